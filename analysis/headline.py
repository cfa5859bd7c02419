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

LEAKS = (("val", "validation"), ("test", "test"))
"""The splits on which no teacher may have been trained, and their names."""
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
            {"name": _name(single), "validation": single.validation}
            for single in teachers
            if not missing(single.validation)
        ],
        "shared": _shared(study, winner),
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


def _name(teacher: Single) -> str:
    """Return `resnet18 (taught by resnet50, kd; its data: resolution 64)`."""
    name = teacher.model + (f" from {teacher.file}" if teacher.file else "")
    about = [
        *([f"taught by {teacher.taught_by}"] if teacher.taught_by else []),
        *([f"its data: {teacher.data}"] if teacher.data else []),
    ]
    return f"{name} ({'; '.join(about)})" if about else name


def _shared(study: Study, winner: Candidate | None) -> dict[str, Any] | None:
    """Return how many of the winner's images its teachers were trained on; None if they had no data of their own."""
    about = study.recipes.get(next(iter(winner.trial_ids.values()), ""), {}) if winner else {}
    shared = (about.get("teacher") or {}).get("shared_images")
    if shared is None:
        return None
    leaked = [f"{shared[split]} of the {about['data'][split]} {name} images" for split, name in LEAKS if shared[split]]
    return {"train": shared["train"], "of": about["data"]["train"], "leaked": leaked}


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
        network = "other teacher" if i and teacher.depth is None else "teacher" + "'s teacher" * (teacher.depth or 0)
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
    size = models.get(measured.model, {}) if measured else {}
    if isinstance(measured, Single) and measured.resolution is not None:
        size = models.get(f"{measured.model} at {measured.resolution} px", {})
    flops: Any = size.get("flops_per_image")
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
