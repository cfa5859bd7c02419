"""The first part of a report: the primary claim with its conditions, and the networks."""

from collections.abc import Sequence
from typing import Any

from analysis.accounts import continue_command, stages_ended
from analysis.chance import chance_remarks
from analysis.claims import Candidate, Single, bootstrap, grown_seeds, verdict
from analysis.frame import Study
from analysis.results import difference_cell, test_cell
from analysis.tables import (
    MISSING,
    bold_if,
    count,
    missing,
    percent,
    percent_interval,
    thousands,
)

SEEN = ("training images", "labels")
"""The columns that say with how many images and labels a network was trained."""


def headline(
    study: Study, winner: Candidate | None, baseline: Candidate | None, teachers: Sequence[Single]
) -> dict[str, Any]:
    """Return the primary claim with its conditions, and the rows of the table of networks.

    binomial_images: numbers of test images of the teachers' intervals; lost: confirming runs without a test result.
    """
    diverged = [each for each in (winner, baseline) if each is not None and each.diverged]
    return {
        "title": (study.description.get("report") or {}).get("title") or study.name,
        "stages": stages_ended(study),
        "command": continue_command(study),
        "winner": winner,
        "baseline": baseline,
        "verdict": verdict(winner.difference if winner else None),
        "bootstrap": None if diverged or not winner or not baseline else bootstrap(study, winner, baseline),
        "teacher_below": _teacher_below(study, baseline, teachers[0]) if teachers else None,
        "teachers": [
            {"name": single.model + (f" from {single.file}" if single.file else ""), "validation": single.validation}
            for single in teachers
            if not missing(single.validation)
        ],
        "chance": chance_remarks(study),
        "weights": study.description.get("weights", []),
        "lost": [
            {"runs": each.planned - each.diverged - len(each.trial_ids), "planned": each.planned, "key": each.key}
            for each in (winner, baseline)
            if each is not None and len(each.trial_ids) + each.diverged < each.planned
        ],
        "diverged": diverged,
        "trials_grown": study.events("trials_grown"),
        "grown": grown_seeds(study, winner, baseline) if winner and baseline else [],
        "networks": _networks(study, winner, baseline, teachers),
        "binomial_images": sorted({single.test_images for single in teachers if single.interval}),
    }


def _teacher_below(study: Study, baseline: Candidate | None, teacher: Single) -> dict[str, Any] | None:
    """Compare on test if both are measured there, and else by the validation accuracy of the best epoch."""
    alone = baseline.test.mean if baseline and baseline.test else None
    split, of_teacher = "test", teacher.test
    if alone is None or missing(of_teacher):
        trials = study.stage("baselines")
        alone, split = trials.loc[trials["state"] == "complete", "val/accuracy"].max(), "validation"
        of_teacher = teacher.validation
    if missing(alone) or missing(of_teacher) or of_teacher >= alone:
        return None
    return {"split": split, "teacher": of_teacher, "alone": alone}


def _networks(
    study: Study, winner: Candidate | None, baseline: Candidate | None, teachers: Sequence[Single]
) -> list[dict[str, str]]:
    """Return a row for each network; with images and labels only if not all networks see the same, all labelled."""
    rows = []
    for i, teacher in enumerate(teachers):
        accuracy = percent(teacher.test)
        if teacher.interval is not None:
            accuracy = f"{percent_interval(teacher.test, teacher.interval)} \\*"
        network = "other teacher" if i else "teacher"
        rows.append(_row(study, network + (" (finished)" if teacher.file else ""), teacher, accuracy, "1"))
    if not rows:
        from_file = any((recipe.get("teacher") or {}).get("file") for recipe in study.recipes.values())
        rows.append(_row(study, f"teacher ({'from a file, not measured here' if from_file else 'not trained yet'})"))
    for network, student in (("student alone (baseline)", baseline), ("student distilled (winner)", winner)):
        if student is None:
            rows.append(_row(study, network, accuracy="not confirmed yet"))
            continue
        gain = bold_if(student.difference is not None and student.difference.decided, difference_cell(student))
        n = str(student.test.n) if student.test else "0"
        rows.append(_row(study, network, student, test_cell(student), n, gain))
    numbers = {row[name] for row in rows for name in SEEN} - {MISSING}
    return rows if len(numbers) > 1 else [{k: v for k, v in row.items() if k not in SEEN} for row in rows]


def _seen(study: Study, measured: Single | Candidate | None) -> tuple[str, str]:
    """Return how many images and labels a network was trained with. Without a teacher it sees no unlabelled image."""
    trial_ids = [measured.trial_id] if isinstance(measured, Single) else measured.trial_ids.values() if measured else ()
    record = next((study.recipes[trial_id] for trial_id in trial_ids if trial_id in study.recipes), {})
    data = record.get("data")
    if not data or "finished" in record:  # nobody knows what a finished teacher was trained with
        return MISSING, MISSING
    labels = data.get("labels", data["train"])
    return count(data["train"] if record["teacher"] else labels), count(labels)


def _row(
    study: Study, network: str, measured: Single | Candidate | None = None,
    accuracy: str = MISSING, n: str = MISSING, difference: str = MISSING,
) -> dict[str, str]:  # fmt: skip
    models = study.description.get("models", {})
    flops: Any = models.get(measured.model, {}).get("flops_per_image") if measured else None
    return {
        "network": network,
        "model": measured.model if measured else MISSING,
        "parameters": count(measured.parameters if measured else None),
        "MFLOP per image": MISSING if missing(flops) else thousands(flops / 1e6, 2),
        **dict(zip(SEEN, _seen(study, measured), strict=True)),
        "test accuracy, %": accuracy,
        "n": n,
        "difference to the student alone, points": difference,
    }
