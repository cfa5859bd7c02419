"""The report's top: whether distilling beat the student alone, how sure, on what terms; the networks."""

from typing import Any

import pandas as pd

from analysis.accounts import continue_command, stages_ended
from analysis.claims import Candidate, Single, bootstrap, verdict
from analysis.frame import Study
from analysis.statistics import Estimate
from analysis.tables import (
    MISSING,
    bold_if,
    count,
    described,
    estimate_percent,
    estimate_points,
    markdown,
    missing,
    percent,
    points,
    points_interval,
)


def answer_section(study: Study, winner: Candidate | None, baseline: Candidate | None, found: list[Single]) -> str:
    title = (study.description.get("report") or {}).get("title") or study.name
    parts = [f"# {title}"]
    if not study.finished:
        parts.append(_unfinished(study))
    parts.append(_answer(study, winner, baseline))
    below = _teacher_below(study, baseline, found[0]) if found else None
    notes = [
        _who(winner, baseline),
        below,
        _runs_lost(winner, baseline),
        CONDITIONAL,
        _order(study),
        _data(study),
    ]
    parts.append("\n".join(f"- {note}" for note in notes if note))
    return "\n\n".join(parts) + "\n"


def setup_section(study: Study, winner: Candidate | None, baseline: Candidate | None, found: list[Single]) -> str:
    rows = [_teacher_row(study, single, "teacher" if i == 0 else "other teacher") for i, single in enumerate(found)]
    if not rows:
        from_file = any((recipe.get("teacher") or {}).get("file") for recipe in study.recipes.values())
        rows.append(_row("teacher (from a file, not measured here)" if from_file else "teacher (not trained yet)"))
    rows += [
        _student_row(study, "student alone (baseline)", baseline),
        _student_row(study, "student distilled (winner)", winner),
    ]
    legend = (
        "Students: mean ± half-width of its 95 % t interval over n confirming seeds; the difference is paired by seed."
        " MFLOP: of a forward pass, 2 operations a multiply-add."
    )
    if any(single.interval for single in found):
        images = " and ".join(sorted({count(single.test_images) for single in found if single.interval}))
        legend += (
            f"\n\n\\* One run: the binomial (Clopper-Pearson) 95 % interval of its {images} test images, "
            "which knows nothing of other seeds."
        )
    return f"## Teacher, student alone, student distilled\n\n{markdown(pd.DataFrame(rows))}\n{legend}\n"


CONDITIONAL = (
    "All intervals are conditional on the split and the teacher: both are fixed; the confirming seed "
    "changes initialisation, order of images and views."
)


def _answer(study: Study, winner: Candidate | None, baseline: Candidate | None) -> str:
    if winner is None or baseline is None:
        return "Whether distilling beats the student alone is not known yet: no winner is confirmed."
    difference, said = winner.difference, verdict(winner.difference)
    words = {
        "beat": "Distilling **beat** the student alone:",
        "lost to": "Distilling **lost to** the student alone:",
    }.get(said, f"Whether distilling beats the student alone is {said}; the difference is")
    return f"{words} {_measured(difference)}.\n\n{_bootstrap(study, winner, baseline)}"


def _measured(difference: Estimate | None) -> str:
    if difference is None:
        return "no difference is measured"
    interval = (
        "no interval" if difference.interval is None else f"95 % t interval {points_interval(difference.interval)}"
    )
    return (
        f"{points(difference.mean)} percentage points of test accuracy ({interval}; mean of paired "
        f"differences by seed, n = {difference.n} seed{'s' if difference.n > 1 else ''})"
    )


def _bootstrap(study: Study, winner: Candidate, baseline: Candidate) -> str:
    found = bootstrap(study, winner, baseline)
    if found is None:
        return "There is no bootstrap over test images: not every confirming run has kept its predictions."
    interval, images, seeds = found
    contains = ", which contains 0" if interval.contains_zero else ""
    return (
        f"Other test images instead of other seeds: {points_interval(interval)} percentage points{contains} "
        f"(95 % bootstrap over the {count(images)} test images, paired by image, accuracies averaged over "
        f"{seeds} seed{'s' if seeds > 1 else ''})."
    )


def _who(winner: Candidate | None, baseline: Candidate | None) -> str | None:
    if winner is None or baseline is None:
        return None
    values = described(winner.values)
    alone = f" ({described(baseline.values)})" if baseline.values else ""
    searched = f"the best of the same student's own search{alone}"
    if baseline.source.startswith("search"):
        searched = f"at the values of {baseline.source}{alone}: its own search has tried no such student"
    return (
        f"The winner is {winner.key} (from {winner.source}{': ' if values else ''}{values}); the student "
        f"alone is {baseline.key}, {searched}."
    )


def _teacher_below(study: Study, baseline: Candidate | None, teacher: Single) -> str | None:
    """By test where both have it, before that by the best epoch's validation accuracy."""
    alone = baseline.test.mean if baseline and baseline.test else None
    split, of_teacher = "test", teacher.test
    if alone is None or missing(of_teacher):
        trials = study.stage("baselines")
        alone, split = trials.loc[trials["state"] == "complete", "val/accuracy"].max(), "validation"
        of_teacher = teacher.validation
    if missing(alone) or missing(of_teacher) or of_teacher >= alone:
        return None
    return (
        f"The teacher ends below the student alone: {percent(of_teacher)} % against {percent(alone)} % of "
        f"{split} accuracy."
    )


def _runs_lost(winner: Candidate | None, baseline: Candidate | None) -> str | None:
    lost = [
        f"{c.planned - len(c.trial_ids)} of {c.planned} confirming runs of {c.key}"
        for c in (winner, baseline)
        if c is not None and len(c.trial_ids) < c.planned
    ]
    return f"Without a test result, and so left out with their pairs: {' and '.join(lost)}." if lost else None


def _order(study: Study) -> str:
    fields = study.description["study"]
    if fields.get("order") == "free":
        return (
            "Order of the search: `free`. Suggestions and prunings depend on which trial finishes first, so "
            "these tables are not repeatable."
        )
    return (
        f"Order of the search: `batches` of {fields.get('batch')}. Nothing depends on which trial finishes "
        "first: all that stands "
        'above "Cost and versions" is repeatable, byte for byte, from the same file and seed '
        "on the same kind of machine."
    )


def _data(study: Study) -> str | None:
    data = study.data
    if data is None:
        return None
    return (
        f"Data: {data['name']}, {data['classes']} classes; {count(data['train'])} images to train, "
        f"{count(data['val'])} to choose by, {count(data['test'])} to test, read once."
    )


def _unfinished(study: Study) -> str:
    return (
        f"> This study is unfinished: {stages_ended(study)}. What is shown may still change. It "
        f"continues with `{_last_command(study)}`."
    )


def _last_command(study: Study) -> str:
    """As it was given last, with its folders: an unfinished report is no table that must repeat."""
    given = [event["command"] for event in study.record if event["event"] == "opened" and event.get("command")]
    return str(given[-1]) if given else continue_command(study)


def _row(network: str, **cells: Any) -> dict[str, Any]:
    columns = (
        "model", "parameters", "MFLOP an image", "test accuracy, %", "n", "difference to the student alone, points"
    )  # fmt: skip
    return {"network": network} | dict.fromkeys(columns, MISSING) | cells


def _network(study: Study, of: Single | Candidate) -> dict[str, str]:
    """Name and size: parameters, and the FLOPs of one image's forward pass, 2 a multiply-add."""
    flops = study.description.get("models", {}).get(of.model, {}).get("flops_per_image")
    mflop = MISSING if missing(flops) else f"{flops / 1e6:,.2f}".replace(",", " ")
    return {"model": of.model, "parameters": count(of.parameters), "MFLOP an image": mflop}


def _teacher_row(study: Study, teacher: Single, network: str) -> dict[str, Any]:
    interval = teacher.interval
    accuracy = percent(teacher.test)
    if interval is not None:
        accuracy += f" [{percent(interval.low)} to {percent(interval.high)}] \\*"
    return _row(network, **_network(study, teacher), **{"test accuracy, %": accuracy, "n": "1"})


def _student_row(study: Study, network: str, candidate: Candidate | None) -> dict[str, Any]:
    if candidate is None:
        return _row(network, **{"test accuracy, %": "not confirmed yet"})
    cells = {
        **_network(study, candidate),
        "test accuracy, %": estimate_percent(candidate.test),
        "n": str(candidate.test.n) if candidate.test else "0",
        "difference to the student alone, points": bold_if(
            candidate.difference is not None and candidate.difference.decided,
            estimate_points(candidate.difference),
        ),
    }
    return _row(network, **cells)
