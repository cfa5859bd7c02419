"""overview.md: the primary claims of all sweeps of a results folder side by side, and what each method's knobs did."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pandas as pd

from analysis import style
from analysis.by_method import methods_section
from analysis.documents.together import documents_section
from analysis.forest import forest
from analysis.summary import BEAT, LOST, UNDECIDED, UNFINISHED, UNREADABLE, Summary, method_of, summaries, sweep_folders
from analysis.tables import (
    MISSING,
    bold_if,
    count,
    estimate_points,
    listed,
    markdown,
    p_value,
)
from kdtrain.errors import UserError
from kdtrain.storage.folder import write_bytes


def write_overview(results: Path) -> tuple[Path, list[str]]:
    """overview.md and forest.png in the results folder; returns the former, and why a sweep could not be read."""
    folders = sweep_folders(results)
    if not folders:
        raise UserError(
            f"{results}: is neither a sweep's folder nor one of sweeps: there is no study.json in it nor one "
            "folder below; give results or results/digits_kd"
        )
    found = summaries(folders)
    with style.look():
        figure = forest(found)
        if figure is None:
            (results / "forest.png").unlink(missing_ok=True)
        else:
            style.save(figure, results / "forest.png")
    overview = results / "overview.md"
    write_bytes(overview, compose(results, found, has_forest=figure is not None).encode())
    return overview, [problem for summary in found for problem in summary.problems]


def compose(results: Path, found: Sequence[Summary], *, has_forest: bool) -> str:
    sections = [
        f"# Overview\n\n{answer(found)}\n\n{_family(found)}\n",
        markdown(pd.DataFrame([_row(results, summary) for summary in found])),
        LEGEND,
        "![Winner minus student alone on test, of every sweep, with its 95 % t interval](forest.png)\n"
        if has_forest
        else "There is no forest plot: no sweep has measured a difference.\n",
        documents_section([summary.study for summary in found if summary.study]),
        methods_section(found),
    ]
    return "\n".join(section for section in sections if section)


LEGEND = (
    "Each difference is the sweep's primary claim: test accuracy of the winner, which was chosen on validation, minus "
    "that of the student alone after a search of its own; mean of paired differences by seed, 95 % t interval, n "
    "seeds. It is conditional on the sweep's split and teacher. Bold is what is decided.\n"
)


def answer(found: Sequence[Summary]) -> str:
    """One sentence that counts."""
    of = {word: [summary.name for summary in found if summary.verdict == word] for word in WORDS}
    without = [f"{word}: {listed(of[word], most=30)}" for word in (UNFINISHED, UNREADABLE) if of[word]]
    sweeps = f"Of {len(found)} sweeps" if len(found) > 1 else "Of 1 sweep"
    why = f" ({'; '.join(without)})" if without else ""
    return (
        f"{sweeps}, distilling beat the student alone in {len(of[BEAT])}, lost to it in {len(of[LOST])}, is undecided "
        f"in {len(of[UNDECIDED])}, and has no result in {len(of[UNFINISHED]) + len(of[UNREADABLE])}{why}."
    )


WORDS = (BEAT, LOST, UNDECIDED, UNFINISHED, UNREADABLE)


def _family(found: Sequence[Summary]) -> str:
    """What the claims are worth together."""
    finished = [summary for summary in found if summary.verdict in (BEAT, LOST, UNDECIDED)]
    if not finished:
        return "No sweep has finished, so nothing is claimed."
    if len(finished) == 1:
        return "This is one claim, at 95 %: there is nothing to correct it for."
    text = f"These are {len(finished)} claims, one per finished sweep, each at 95 % and not corrected for the others."
    family = [summary for summary in finished if summary.p_holm is not None]
    decided = [summary for summary in finished if summary.decided]
    stay = [summary for summary in decided if summary.p_holm is not None and summary.p_holm < 0.05]
    holds = f"of {len(decided)} decided, p stays below 0.05 in {len(stay)}" if decided else "none of them is decided"
    return f"{text} p (Holm) corrects the two-sided paired t tests of the {len(family)} that have one: {holds}."


def _row(results: Path, summary: Summary) -> dict[str, Any]:
    difference = summary.difference
    return {
        "sweep": _link(results, summary.name),
        "data": _data(summary),
        "teacher → student": _networks(summary),
        "method": _method(summary),
        "difference, points": bold_if(summary.decided, estimate_points(difference)),
        "n": _seeds(summary),
        "distilling … the student alone": bold_if(summary.decided, summary.said),
        "p": p_value(summary.p),
        "p (Holm)": p_value(summary.p_holm),
    }


def _seeds(summary: Summary) -> str:
    """4 of 5: a confirming run was lost, and with it its pair."""
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
    recipe = summary.study.recipes.get((summary.study.winner or {}).get("trial_id", ""), {}).get("recipe", {})
    teacher = (recipe.get("teacher") or {}).get("model", MISSING)
    return f"{teacher} → {summary.winner.model}"


def _method(summary: Summary) -> str:
    study = summary.study
    return (method_of(study, (study.winner or {}).get("trial_id")) if study else None) or MISSING
