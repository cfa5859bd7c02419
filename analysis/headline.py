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
    listed,
    missing,
    percent,
    percent_interval,
    sampled,
    thousands,
)


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
            {"name": _name(single, single in teachers[0].members), "validation": single.validation}
            for single in teachers
            if not missing(single.validation)
        ],
        "ensemble": _ensemble(study),
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


def _name(teacher: Single, is_member: bool) -> str:
    if teacher.members:
        return f"ensemble of {len(teacher.members)} ({teacher.model})"
    if is_member and teacher.seed is not None:
        return f"{teacher.model} (seed {teacher.seed})"
    return teacher.model + (f" from {teacher.file}" if teacher.file else "")


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
    rows = []
    for i, teacher in enumerate(teachers):
        accuracy = percent(teacher.test)
        if teacher.interval is not None:
            accuracy = f"{percent_interval(teacher.test, teacher.interval)} \\*"
        network = "other teacher" if i else "teacher"
        if teacher in teachers[0].members:
            network = "member of the ensemble" + ("" if teacher.seed is None else f", seed {teacher.seed}")
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
    return rows


def _row(
    study: Study, network: str, measured: Single | Candidate | None = None,
    accuracy: str = MISSING, n: str = MISSING, difference: str = MISSING,
) -> dict[str, str]:  # fmt: skip
    models = study.description.get("models", {})
    networks = (isinstance(measured, Single) and measured.members) or (measured,)
    each = [models.get(network.model, {}).get("flops_per_image") if network else None for network in networks]
    flops: Any = None if any(map(missing, each)) else sum(each)
    return {
        "network": network,
        "model": measured.model if measured else MISSING,
        "parameters": count(measured.parameters if measured else None),
        "MFLOP per image": MISSING if missing(flops) else thousands(flops / 1e6, 2),
        "test accuracy, %": accuracy,
        "n": n,
        "difference to the student alone, points": difference,
    }
