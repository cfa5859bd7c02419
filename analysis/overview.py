"""overview.md: the primary claims of all sweeps in a results folder, and each method's hyperparameters."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from analysis import by_method
from analysis.claims import BEAT, LOST, UNDECIDED, teacher_name
from analysis.references.sections import all_references
from analysis.rendering import render
from analysis.summary import VERDICTS, Summary, method_of, summaries, sweep_folders
from analysis.tables import MISSING, bold_if, count, estimate_points, p_value
from kdtrain.errors import UserError
from kdtrain.storage.folder import write_bytes


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
    text = render(
        "overview.md.j2",
        names={name: [summary.name for summary in found if summary.verdict.name == name] for name in VERDICTS},
        family=_family(found),
        rows=[_row(results, summary) for summary in found],
        no_forest=_draw_forest(found, results / "forest.png"),
        references=all_references([summary.study for summary in found if summary.study]),
        methods=by_method.methods(found),
        values_for_a_correlation=by_method.VALUES_FOR_A_CORRELATION,
    )
    overview = results / "overview.md"
    write_bytes(overview, text.encode())
    return overview, [problem for summary in found for problem in summary.problems]


def _family(found: Sequence[Summary]) -> dict[str, int]:
    """Count the finished sweeps: their claims, those with a p value, the decided, and those with p (Holm) < 0.05."""
    finished = [summary for summary in found if summary.verdict.name in (BEAT, LOST, UNDECIDED)]
    decided = [summary for summary in finished if summary.decided]
    return {
        "claims": len(finished),
        "with_p": sum(summary.p_holm is not None for summary in finished),
        "decided": len(decided),
        "significant": sum(summary.p_holm is not None and summary.p_holm < 0.05 for summary in decided),
    }


def _row(results: Path, summary: Summary) -> dict[str, Any]:
    name, study, winner, difference = summary.name, summary.study, summary.winner, summary.difference
    data = study.data if study else None
    won = (study.winner or {}).get("trial_id", "") if study else ""
    teacher = teacher_name(study.recipes.get(won, {}).get("recipe", {})) if study else None
    n = MISSING
    if difference is not None and winner is not None:  # a lost confirming run is left out with its pair
        n = f"{difference.n}" + (f" of {winner.planned}" if difference.n != winner.planned else "")
    has_report = (results / name / "report.md").exists()
    return {
        "sweep": f"[{name}]({quote(name)}/report.md)" if has_report else f"{name} (no report.md)",
        "data": f"{data['name']}, {count(data['train'])} to train" if data else MISSING,
        "teacher → student": f"{teacher or MISSING} → {winner.model}" if winner else MISSING,
        "method": (method_of(study, won) if study else None) or MISSING,
        "difference, points": bold_if(summary.decided, estimate_points(difference)),
        "n": n,
        "distillation … the student alone": bold_if(summary.decided, str(summary.verdict)),
        "p": p_value(summary.p),
        "p (Holm)": p_value(summary.p_holm),
    }


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
