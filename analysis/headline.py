"""The first part of a report: the primary claim with its conditions, and the networks."""

from collections import Counter
from collections.abc import Mapping, Sequence
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
    listed,
    missing,
    percent,
    percent_interval,
    sampled,
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
    several = _one_of_several(teachers)
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
            {"name": _name(single, single in several), "validation": single.validation}
            for single in teachers
            if not missing(single.validation)
        ],
        "ensemble": _ensemble(study),
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


def _one_of_several(teachers: Sequence[Single]) -> list[Single]:
    """Return the networks that teach together with others, in an ensemble, so that a seed may tell them apart."""
    depths = Counter(single.depth for single in teachers if not single.members)
    return [
        single for single in teachers if not single.members and single.depth is not None and depths[single.depth] > 1
    ]


def _name(teacher: Single, with_seed: bool) -> str:
    """Return `resnet18 (taught by resnet50, kd; its data: resolution 64)`."""
    if teacher.members:
        return f"ensemble of {len(teacher.members)} ({teacher.model})"
    name = teacher.model + (f" from {teacher.file}" if teacher.file else "")
    about = [
        *([f"seed {teacher.seed}"] if with_seed and teacher.seed is not None else []),
        *([f"taught by {teacher.taught_by}"] if teacher.taught_by else []),
        *([f"its data: {teacher.data}"] if teacher.data else []),
    ]
    return f"{name} ({'; '.join(about)})" if about else name


def _ensemble(study: Study) -> dict[str, Any] | None:
    """Return the number of networks that taught the winner, and how they are combined; None for one network.

    weights: None if they are equal.
    """
    recipe = study.recipes.get((study.winner or {}).get("trial_id", ""), {}).get("recipe", {})
    written = (recipe.get("teacher") or {}).get("ensemble")
    if written is None:
        return None
    weights = None if len(set(written["weights"])) == 1 else listed(map(sampled, written["weights"]))
    return {"networks": len(written["of"]), "combine": written["combine"], "weights": weights}


def _shared(study: Study, winner: Candidate | None) -> list[dict[str, Any]]:
    """Return how many of the winner's images each of its teachers was trained on, if it had data of its own."""
    about = study.recipes.get(next(iter(winner.trial_ids.values()), ""), {}) if winner else {}
    reference = about.get("teacher") or {}
    found = []
    for i, each in enumerate(reference.get("members", [reference]), 1):
        if (shared := each.get("shared_images")) is not None:
            images = about["data"]
            leaked = [f"{shared[split]} of the {images[split]} {name} images" for split, name in LEAKS if shared[split]]
            teacher = f"teacher {i} of the ensemble" if "members" in reference else "the teacher"
            found.append({"teacher": teacher, "train": shared["train"], "of": images["train"], "leaked": leaked})
    return found


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
    rows, several = [], _one_of_several(teachers)
    for i, teacher in enumerate(teachers):
        accuracy = percent(teacher.test)
        if teacher.interval is not None:
            accuracy = f"{percent_interval(teacher.test, teacher.interval)} \\*"
        network = "other teacher" if i and teacher.depth is None else "teacher" + "'s teacher" * (teacher.depth or 0)
        if teacher in teachers[0].members:
            network = "member of the ensemble"
        if teacher in several and teacher.seed is not None:
            network += f", seed {teacher.seed}"
        note = " (finished)" if teacher.file else f" (ensemble of {len(teacher.members)})" if teacher.members else ""
        rows.append(_row(study, network + note, teacher, accuracy, "1"))
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


def _size(measured: Single | Candidate | None, models: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return parameters and FLOPs of a network, at its own resolution if it has one; nothing if they are unknown."""
    if measured is None:
        return {}
    name = measured.model
    if isinstance(measured, Single) and measured.resolution is not None:
        name += f" at {measured.resolution} px"
    found: Mapping[str, Any] = models.get(name, {})
    return found


def _row(
    study: Study, network: str, measured: Single | Candidate | None = None,
    accuracy: str = MISSING, n: str = MISSING, difference: str = MISSING,
) -> dict[str, str]:  # fmt: skip
    models = study.description.get("models", {})
    networks = (isinstance(measured, Single) and measured.members) or (measured,)
    each = [_size(network, models).get("flops_per_image") for network in networks]
    flops: Any = None if any(map(missing, each)) else sum(each)
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
