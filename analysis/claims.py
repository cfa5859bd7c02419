"""The claims of a study: each confirmed candidate against its baseline; one of the differences is the primary claim.

Where options were compared, such as methods, the best recipe of each is compared with that of each other option too.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from analysis.frame import BROKEN, Study, complete_trials
from analysis.statistics import (
    SEEDS_FOR_A_CLAIM,
    Estimate,
    Interval,
    bootstrap_over_images,
    clopper_pearson,
    holm,
    mean_estimate,
    paired_differences,
    paired_p_value,
)
from analysis.tables import missing
from analysis.trained import text_of
from kdtrain.trials.records import network_name

BEAT, LOST, UNDECIDED = "beat", "lost to", "undecided"


@dataclass(frozen=True)
class Verdict:
    """The outcome of a comparison; `reason` says why it is not decided."""

    name: str
    reason: str = ""

    def __str__(self) -> str:
        return f"{self.name}: {self.reason}" if self.reason else self.name


@dataclass(frozen=True)
class Candidate:
    """A confirmed recipe over its seeds.

    trial_ids: by seed, of the complete runs; planned: number of runs; diverged: of those with a non-finite loss.
    option: of the compared options, if this is its best recipe. difference: test accuracy minus that of its baseline,
    paired by seed; p: of the paired t test; p_holm: corrected over all differences of the sweep but the primary one.
    """

    key: str
    role: str
    baseline: str | None
    source: str
    values: Mapping[str, Any]
    weights: tuple[float, float] | None
    trial_ids: Mapping[int, str]
    planned: int
    diverged: int
    option: str | None
    model: str
    parameters: float
    validation: Estimate | None
    test: Estimate | None
    test_mpa: Estimate | None = None
    difference: Estimate | None = None
    p: float | None = None
    p_holm: float | None = None
    primary: bool = False


@dataclass(frozen=True)
class Pair:
    """The best recipes of two options: test accuracy of the first minus that of the second, paired by seed."""

    first: Candidate
    second: Candidate
    difference: Estimate | None
    p: float | None
    p_holm: float | None = None


@dataclass(frozen=True)
class Comparisons:
    """All differences of a sweep: each candidate's to its baseline, and those of each pair of options."""

    candidates: list[Candidate]
    pairs: list[Pair]


class GrownSeeds(NamedTuple):
    """The primary claim over its first `seeds` seeds: the test split was read before there were more."""

    seeds: int
    first: Estimate | None


@dataclass(frozen=True)
class Single:
    """A teacher: one run, so its interval is the binomial interval of its test images.

    file: of a finished teacher, whose test accuracy is that which its students were compared with; so is that of a
    teacher with data of its own. taught_by: its own teacher and method. data, resolution: those that its students have
    otherwise.
    depth: 0 of the winner's teacher, 1 of the teacher of that one, ...; None of other teachers.
    """

    model: str
    trial_id: str
    parameters: float
    validation: float
    test: float
    test_images: float
    interval: Interval | None
    file: str | None = None
    taught_by: str | None = None
    data: str | None = None
    resolution: int | None = None
    depth: int | None = None


class ImageBootstrap(NamedTuple):
    """The bootstrap interval of a difference over the test images, averaged over the seeds."""

    interval: Interval
    images: int
    seeds: int


def candidates(study: Study) -> list[Candidate]:
    """Return the confirmed candidates in the order of confirmation."""
    return comparisons(study).candidates


def comparisons(study: Study) -> Comparisons:
    """Return the confirmed candidates in the order of confirmation, and the pairs of the compared options.

    Holm's family are all differences but the primary one.
    """
    confirm = study.stage("confirm")
    winner = (study.winner or {}).get("candidate")
    groups = {str(key): group for key, group in confirm.groupby("candidate", sort=False)}
    races = [event for event in study.events("selected") if event["race"] == "search"]
    leaders = races[-1]["leaders"] if races else {}  # a published point may lead its option
    found = [_candidate(study, key, group, leaders) for key, group in groups.items()]
    tests = {key: _by_seed(group, "test/accuracy") for key, group in groups.items()}
    broken = {key: _broken(group) for key, group in groups.items()}

    def compared(first: Candidate, second: Candidate) -> tuple[Estimate | None, float | None]:
        differences = paired_differences(tests[first.key], tests[second.key])
        lost = broken[first.key] + broken[second.key]
        difference = mean_estimate(differences, lost, first.diverged + second.diverged)
        return difference, paired_p_value(differences) if difference and difference.interval else None

    for i, candidate in enumerate(found):
        baseline = find(found, candidate.baseline)
        if baseline is not None:
            difference, p = compared(candidate, baseline)
            candidate = replace(candidate, difference=difference, p=p)
        found[i] = replace(candidate, primary=candidate.key == winner)
    options = [candidate for candidate in found if candidate.option is not None]
    pairs = [Pair(first, second, *compared(first, second)) for first, second in combinations(options, 2)]
    corrected = holm([None if each.primary else each.p for each in found] + [pair.p for pair in pairs])
    return Comparisons(
        [replace(candidate, p_holm=p) for candidate, p in zip(found, corrected, strict=False)],
        [replace(pair, p_holm=p) for pair, p in zip(pairs, corrected[len(found) :], strict=True)],
    )


def grown_seeds(study: Study, winner: Candidate, baseline: Candidate) -> list[GrownSeeds]:
    """Return the primary claim at each earlier number of confirming seeds at which the test split was read."""
    mine, other = (
        {seed: float(study.outcomes[trial_id]["test"]["test/accuracy"]) for seed, trial_id in each.trial_ids.items()}
        for each in (winner, baseline)
    )
    seeds = sorted({int(seed) for seed in study.stage("confirm")["seed"]})
    newest = max((event["time"] for event in study.events("trials_grown")), default=0.0)
    raised = [event for event in study.events("seeds_grown") if event["time"] > newest]
    sizes = sorted({int(event["from"]) for event in raised if event["from"] < len(seeds)})
    found = []
    for size in sizes:
        first = set(seeds[:size])
        differences = paired_differences(*({s: v for s, v in each.items() if s in first} for each in (mine, other)))
        found.append(GrownSeeds(size, mean_estimate(differences)))
    return found


def find(found: Sequence[Candidate], key: str | None) -> Candidate | None:
    return next((candidate for candidate in found if candidate.key == key), None)


def teachers(study: Study) -> list[Single]:
    """Return the teachers that are trained or evaluated: that of the winner first, then its own teachers."""
    rows = study.stage("teacher")
    rows = rows[rows["trial_id"].notna()]
    first = _teacher_id(study, (study.winner or {}).get("trial_id", ""))
    if first is None:  # there is no winner yet: a teacher of students
        ids = list(rows["trial_id"])
        of_teachers = {_teacher_id(study, trial_id) for trial_id in ids}
        first = next((trial_id for trial_id in ids if trial_id not in of_teachers), None)
    above: list[str] = []
    while first is not None:
        above.append(first)
        first = _teacher_id(study, first)
    depths = {trial_id: depth for depth, trial_id in enumerate(above)}
    found = [_single(study, row, depths.get(row["trial_id"])) for _, row in rows.iterrows()]
    return sorted(found, key=lambda single: len(above) if single.depth is None else single.depth)


def _teacher_id(study: Study, trial_id: str) -> str | None:
    found: str | None = (study.recipes.get(trial_id, {}).get("teacher") or {}).get("trial_id")
    return found


def undecided(difference: Estimate) -> str | None:
    """Return why a difference decides nothing, or None if it decides."""
    if difference.broken:
        runs = "1 confirming run" if difference.broken == 1 else f"{difference.broken} confirming runs"
        return f"{runs} broke, which gives no interval until the sweep is run again"
    if difference.diverged:
        runs = "1 confirming run has" if difference.diverged == 1 else f"{difference.diverged} confirming runs have"
        return f"{runs} diverged (a non-finite loss), so there is no claim"
    if difference.n < SEEDS_FOR_A_CLAIM:
        seeds = "1 seed is" if difference.n == 1 else f"{difference.n} seeds are"
        return f"{seeds} too few, a claim needs {SEEDS_FOR_A_CLAIM}"
    if difference.interval is None:
        return f"all {difference.n} differences are equal, which gives no interval"
    return "the interval contains 0" if difference.interval.contains_zero else None


def verdict(difference: Estimate | None) -> Verdict:
    """Return the verdict on a difference of the winner minus the student alone."""
    reason = "no seed has both measured" if difference is None else undecided(difference)
    if difference is None or reason is not None:
        return Verdict(UNDECIDED, reason or "")
    return Verdict(BEAT if difference.mean > 0 else LOST)


def bootstrap(study: Study, winner: Candidate, baseline: Candidate) -> ImageBootstrap | None:
    """Return the bootstrap over test images, or None unless every common seed has predictions of the same images."""
    seeds = sorted(winner.trial_ids.keys() & baseline.trial_ids.keys())
    rows = [[_right(study, candidate.trial_ids[seed]) for seed in seeds] for candidate in (winner, baseline)]
    known = [right_N for row in rows for right_N in row if right_N is not None]
    if not seeds or len(known) < 2 * len(seeds) or len({right_N.size for right_N in known}) > 1:
        return None
    interval = bootstrap_over_images(rows[0], rows[1])  # type: ignore[arg-type]
    return None if interval is None else ImageBootstrap(interval, known[0].size, len(seeds))


def _candidate(study: Study, key: str, group: pd.DataFrame, leaders: Mapping[str, str]) -> Candidate:
    first = group.iloc[0]
    about = study.recipes.get(first["trial_id"], {})
    recipe = about.get("recipe")
    complete = complete_trials(group, "test/accuracy")
    values = study.values.loc[first.name].dropna().to_dict()  # type: ignore[call-overload]
    is_option = study.has_select and (first["role"] == "best" or key in leaders.values())
    broken, diverged = _broken(group), int((group["state"] == "failed").sum())
    return Candidate(
        key=key,
        role=str(first["role"]),
        baseline=None if pd.isna(first["baseline"]) else str(first["baseline"]),
        source=f"{first['source_stage']} {first['source_number']:.0f}" if not pd.isna(first["source_number"]) else "",
        values=values,
        weights=about.get("weights"),
        trial_ids=dict(zip(complete["seed"].astype(int).tolist(), complete["trial_id"], strict=True)),
        planned=len(group),
        diverged=diverged,
        option=option_label(study, values) if is_option else None,
        model=student_name(recipe),
        parameters=float(group["parameters"].dropna().iloc[0]) if group["parameters"].notna().any() else math.nan,
        validation=mean_estimate(list(_by_seed(group, study.objective).values()), broken, diverged),
        test=mean_estimate(list(_by_seed(group, "test/accuracy").values()), broken, diverged),
        test_mpa=mean_estimate(list(_by_seed(group, "test/mpa").values()), broken, diverged),
    )


def _broken(group: pd.DataFrame) -> int:
    return int((group["state"] == BROKEN).sum())


def _by_seed(group: pd.DataFrame, metric: str) -> dict[int, float]:
    known = complete_trials(group, metric)
    return {int(seed): float(value) for seed, value in zip(known["seed"], known[metric], strict=True)}


def _single(study: Study, row: pd.Series, depth: int | None) -> Single:
    about = study.recipes.get(row["trial_id"], {})
    recipe, file = about.get("recipe", {}), (about.get("finished") or {}).get("file")
    test, images = row["test/accuracy"], row["test_images"]
    of_students = _data_of_students(study, row["trial_id"])
    other = _other_values(about, of_students)
    if file is not None or other:
        test, images = _test_by_students(study, row["trial_id"], of_students)
    its_teacher = recipe.get("teacher")
    measured = not math.isnan(test) and not math.isnan(images)
    return Single(
        model=student_name(recipe),
        trial_id=row["trial_id"],
        parameters=row["parameters"],
        validation=row["val/accuracy"],
        test=test,
        test_images=images,
        interval=clopper_pearson(round(test * images), int(images)) if measured else None,
        file=file,
        taught_by=f"{its_teacher['model']}, {recipe['method']['name']}" if its_teacher else None,
        data=", ".join(f"no {key}" if value is None else f"{key} {text_of(value)}" for key, value in other.items())
        or None,
        resolution=other.get("resolution"),
        depth=depth,
    )


def _other_values(about: Mapping[str, Any], of_students: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of a teacher's data that differ from its students' data, by key."""
    recipe = about.get("recipe", {})
    own = (recipe.get("student") or {}).get("data") if about.get("finished") else recipe.get("data")
    if not own or not of_students:
        return {}
    return {key: own.get(key) for key in {**of_students, **own} if own.get(key) != of_students.get(key)}


def _data_of_students(study: Study, trial_id: str) -> Mapping[str, Any]:
    """Return the data, as the recipe has them, of the students that a teacher teaches, through other teachers too."""
    taught = next((own for own in study.recipes if _teacher_id(study, own) == trial_id), None)
    if taught is not None:
        return _data_of_students(study, taught)
    found: Mapping[str, Any] = study.recipes.get(trial_id, {}).get("recipe", {}).get("data") or {}
    return found


def _test_by_students(study: Study, trial_id: str, data: Mapping[str, Any]) -> tuple[float, float]:
    """Return a teacher's test accuracy and the number of test images, as its students on this data have them."""
    for student_id, about in study.recipes.items():
        test = (study.outcomes.get(student_id) or {}).get("test") or {}
        is_its = _teacher_id(study, student_id) == trial_id and (about["recipe"].get("data") or {}) == data
        if is_its and "test/teacher_accuracy" in test:
            return float(test["test/teacher_accuracy"]), float(test["images"])
    return math.nan, math.nan


def option_label(study: Study, values: Mapping[str, Any]) -> str | None:
    """Return the label of the compared option to which values belong, or None."""
    value = None if study.compared is None else values.get(study.compared["name"])
    return None if missing(value) else label_text(value)


def label_text(label: Any) -> str:
    """Return the label of a choice as text: `kd`, `true`."""
    return label if isinstance(label, str) else json.dumps(label)


def student_name(recipe: Mapping[str, Any] | None) -> str:
    """Return the model's name, marked if its encoder has random weights and is frozen."""
    student = (recipe or {}).get("student") or {}
    mark = " (random weights, frozen)" if student.get("allow_random_frozen") else ""
    return network_name(student) + mark


def _right(study: Study, trial_id: str) -> np.ndarray | None:
    predictions = study.predictions(trial_id)
    return None if predictions is None else predictions[0].argmax(axis=1) == predictions[1]
