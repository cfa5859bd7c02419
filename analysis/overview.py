"""overview.md: the primary claims of all sweeps in a results folder, and each method's hyperparameters."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from analysis import by_method
from analysis.claims import BEAT, LOST, UNDECIDED
from analysis.references.sections import all_references
from analysis.rendering import render
from analysis.summary import VERDICTS, Summary, method_of, summaries, sweep_folders
from analysis.tables import MISSING, Rows, bold_if, count, estimate_points, p_value
from kdtrain.errors import UserError
from kdtrain.storage.folder import write_bytes


@dataclass(frozen=True)
class Family:
    """The finished sweeps: their claims, those with a p value, the decided, and those with p (Holm) < 0.05."""

    claims: int
    with_p: int
    decided: int
    significant: int


def write_overview(results: Path) -> tuple[Path, list[str]]:
    """Write overview.md and forest.png over all sweeps of a results folder.

    Args:
        results: The folder whose sub-folders are sweeps.

    Returns:
        The path of overview.md, and one sentence for each sweep that could not be read.

    Raises:
        UserError: If the folder holds no sweep.
    """
    folders = sweep_folders(results)
    if not folders:
        raise UserError(
            f"{results}: holds no study.json, and no folder in it does; give the folder of a sweep, for example "
            "results/digits_kd, or a folder of sweeps, for example results"
        )
    found = summaries(folders)
    no_forest = _draw_forest(found, results / "forest.png")
    overview = results / "overview.md"
    write_bytes(overview, compose(results, found, no_forest).encode())
    return overview, [problem for summary in found for problem in summary.problems]


def compose(results: Path, found: Sequence[Summary], no_forest: str | None) -> str:
    """Return the text of overview.md; `no_forest` is the reason why there is no forest.png, if there is none."""
    return render(
        "overview.md.j2",
        names=names_by_verdict(found),
        family=family(found),
        rows=rows(results, found),
        no_forest=no_forest,
        references=all_references([summary.study for summary in found if summary.study]),
        methods=by_method.methods(found),
        values_for_a_correlation=by_method.VALUES_FOR_A_CORRELATION,
    )


def names_by_verdict(found: Sequence[Summary]) -> Mapping[str, list[str]]:
    """Return the names of the sweeps for each verdict."""
    return {name: [summary.name for summary in found if summary.verdict.name == name] for name in VERDICTS}


def family(found: Sequence[Summary]) -> Family:
    """Return the counts over which p is corrected."""
    finished = [summary for summary in found if summary.verdict.name in (BEAT, LOST, UNDECIDED)]
    decided = [summary for summary in finished if summary.decided]
    return Family(
        claims=len(finished),
        with_p=sum(summary.p_holm is not None for summary in finished),
        decided=len(decided),
        significant=sum(summary.p_holm is not None and summary.p_holm < 0.05 for summary in decided),
    )


def rows(results: Path, found: Sequence[Summary]) -> Rows:
    """Return a row for each sweep."""
    return [
        {
            "sweep": _link(results, summary.name),
            "data": _data(summary),
            "teacher → student": _networks(summary),
            "method": _method(summary),
            "difference, points": bold_if(summary.decided, estimate_points(summary.difference)),
            "n": _seeds(summary),
            "distillation … the student alone": bold_if(summary.decided, str(summary.verdict)),
            "p": p_value(summary.p),
            "p (Holm)": p_value(summary.p_holm),
        }
        for summary in found
    ]


def _draw_forest(found: Sequence[Summary], path: Path) -> str | None:
    """Draw the forest plot, or remove an old one and return the reason."""
    reason: str | None = None
    try:
        from analysis.forest import write_forest  # matplotlib may be missing

        if not write_forest(found, path):
            reason = "no sweep has measured a difference"
    except ImportError as error:
        reason = f"a package cannot be imported ({error})"
    if reason:
        path.unlink(missing_ok=True)
    return reason


def _seeds(summary: Summary) -> str:
    """Return `5`, or `4 of 5` if a confirming run was lost, and with it its pair."""
    if summary.difference is None or summary.winner is None:
        return MISSING
    n, planned = summary.difference.n, summary.winner.planned
    return str(n) if n == planned else f"{n} of {planned}"


def _link(results: Path, name: str) -> str:
    if (results / name / "report.md").exists():
        return f"[{name}]({quote(name)}/report.md)"
    return f"{name} (no report.md)"


def _data(summary: Summary) -> str:
    data = summary.study.data if summary.study else None
    return f"{data['name']}, {count(data['train'])} to train" if data else MISSING


def _networks(summary: Summary) -> str:
    if summary.study is None or summary.winner is None:
        return MISSING
    recipe: Mapping[str, Any] = summary.study.recipes.get((summary.study.winner or {}).get("trial_id", ""), {})
    teacher = (recipe.get("recipe", {}).get("teacher") or {}).get("model", MISSING)
    return f"{teacher} → {summary.winner.model}"


def _method(summary: Summary) -> str:
    study = summary.study
    return (method_of(study, (study.winner or {}).get("trial_id")) if study else None) or MISSING
