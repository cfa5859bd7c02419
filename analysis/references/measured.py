"""The measurements of a sweep as rows of a reference's table: a recipe over its seeds, or the one run of a teacher."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from analysis.claims import Candidate, Single
from analysis.frame import Study
from analysis.references.published_tables import one_run
from analysis.statistics import Estimate, mean_estimate, paired_differences
from analysis.tables import MISSING, estimate_percent, percent
from analysis.unseen_classes import best_bias, recognised, with_bias
from kdtrain.storage.folder import Row


@dataclass(frozen=True)
class Measured:
    """A measured row; `recipe` is that of its first run, `values` {metric: {seed: value}}.

    Role "biased": the predictions of a row with a bias added to the logits of the classes without training images,
    whose number is the metric "bias". Both rows have the metric "test/unseen", the share of their images recognised.
    """

    key: str
    role: str
    recipe: Mapping[str, Any]
    weights: tuple[float, float] | None
    parameters: float
    trial_ids: Mapping[int, str]
    teacher_id: str | None
    values: Mapping[str, Mapping[int, float]]
    images: Mapping[str, int]  # by split
    epochs: Mapping[int, Sequence[Row]]  # by seed: a row an epoch

    @property
    def method(self) -> str:
        return str(self.recipe["method"]["name"])

    @property
    def student(self) -> str:
        return str(self.recipe["student"]["model"])

    @property
    def teacher(self) -> str | None:
        return None if self.recipe.get("teacher") is None else str(self.recipe["teacher"]["model"])

    @property
    def teacher_freeze(self) -> str | None:
        return None if self.recipe.get("teacher") is None else str(self.recipe["teacher"].get("freeze", "none"))

    @property
    def label(self) -> str:
        """The key of the row, with its source and with EMA and R-Drop."""
        tricks = [name for name, on in (("EMA", self.ema), ("R-Drop", self.r_drop)) if on]
        searched = " (searched)" if self.role == "best" else ""
        return f"{self.key}{searched}{' with ' + ' and '.join(tricks) if tricks else ''}"

    @property
    def freeze(self) -> str:
        return str(self.recipe["student"].get("freeze", "none"))

    @property
    def ema(self) -> bool:
        return self.recipe.get("ema") is not None

    @property
    def unseen(self) -> bool:
        """True if the student was trained without images of some classes."""
        return "test/unseen" in self.values

    @property
    def r_drop(self) -> bool:
        return self.recipe.get("r_drop") is not None

    @property
    def kd_ratio(self) -> float | None:
        """The kd_ratio of setup 4 for the distillation weight w.

        It is w itself for AT, and for SP from 1 on; else r with w = r / (1 - r). None without cross-entropy.
        """
        if self.weights is None or self.method == "none" or not self.weights[0]:
            return None
        weight = self.weights[1] / self.weights[0]
        return weight if self.method == "at" or (self.method == "sp" and weight >= 1) else weight / (1 + weight)

    @property
    def first_run(self) -> Sequence[Row]:
        """The epochs of the first seed."""
        return next(iter(self.epochs.values()), ())

    @property
    def n(self) -> int:
        return len(self.trial_ids)

    def estimate(self, metric: str) -> Estimate | None:
        return mean_estimate(list(self.values.get(metric, {}).values()))

    def cell(self, metric: str) -> str:
        """Return mean and t interval over the seeds in per cent; for one run the binomial interval of an accuracy."""
        found = list(self.values.get(metric, {}).values())
        if not found:
            return MISSING
        if len(found) > 1:
            return estimate_percent(mean_estimate(found))
        split, _, name = metric.partition("/")
        images = self.images.get(split.removesuffix("_tta"))
        return one_run(found[0], images) if name == "accuracy" and images else percent(found[0])


def measured_rows(study: Study, candidates: Sequence[Candidate], teachers: Sequence[Single]) -> list[Measured]:
    """Return the rows: teachers, baselines, distilled students."""
    order = {"baseline": 0, "published": 1, "best": 2}
    rows = []
    for teacher in teachers:
        recipe = study.recipes.get(teacher.trial_id, {}).get("recipe", {})
        freeze = recipe.get("student", {}).get("freeze", "none")
        key = f"teacher {teacher.model}{'' if freeze == 'none' else f' ({freeze} frozen)'}"
        rows.append(_row(study, key, "teacher", {int(recipe.get("seed", 0)): teacher.trial_id}))
    confirmed = sorted(candidates, key=lambda candidate: order[candidate.role])
    for each in confirmed:
        row = _row(study, each.key, each.role, each.trial_ids)
        rows += [row, _biased(study, row)] if row is not None else []
    return [row for row in rows if row is not None]


def difference(first: Measured, second: Measured, metric: str) -> Estimate | None:
    """Return first minus second, paired by seed; the one run of a teacher is subtracted from every seed."""
    mine, other = first.values.get(metric, {}), second.values.get(metric, {})
    if second.role == "teacher" and other:
        constant = next(iter(other.values()))
        return mean_estimate([value - constant for value in mine.values()])
    return mean_estimate(paired_differences(mine, other))


def _row(study: Study, key: str, role: str, trial_ids: Mapping[int, str]) -> Measured | None:
    abouts = [about for trial_id in trial_ids.values() if (about := study.recipes.get(trial_id))]
    if not abouts:
        return None
    first = abouts[0]
    data = first.get("data") or {}
    values: dict[str, dict[int, float]] = {}
    epochs = {seed: study.rows_of(trial_id) for seed, trial_id in trial_ids.items()}
    for seed, trial_id in trial_ids.items():
        for metric, value in _metrics(study.outcomes.get(trial_id) or {}, epochs[seed]).items():
            values.setdefault(metric, {})[seed] = value
    for seed, trial_id in trial_ids.items():
        share = _recognised(study, trial_id)
        if share is not None:
            values.setdefault("test/unseen", {})[seed] = share
    outcome = study.outcomes.get(next(iter(trial_ids.values())), {})
    return Measured(
        key=key,
        role=role,
        recipe=first["recipe"] | {"classes": data.get("classes")},
        weights=first.get("weights"),
        parameters=outcome.get("parameters") or float("nan"),
        trial_ids=dict(trial_ids),
        teacher_id=(first.get("teacher") or {}).get("trial_id"),
        values=values,
        epochs=epochs,
        images={"val": data.get("val", 0), "last": data.get("val", 0), "test": data.get("test", 0)},
    )


def _unseen_classes(study: Study, trial_id: str) -> list[int]:
    """Return the classes without a labelled training image, by their place in the logits."""
    return list((study.recipes.get(trial_id, {}).get("data") or {}).get("unseen_classes", ()))


def _recognised(study: Study, trial_id: str) -> float | None:
    """Return the share of the test images of unseen classes that are recognised, or None without such a class."""
    classes, test = _unseen_classes(study, trial_id), study.predictions(trial_id, "test")
    return recognised(*test, classes) if classes and test is not None else None


def _biased(study: Study, row: Measured) -> Measured | None:
    """Return a row with the bias of unseen classes that is best on validation, by seed; None without such a class."""
    values: dict[str, dict[int, float]] = {"bias": {}, "val/accuracy": {}, "test/accuracy": {}, "test/unseen": {}}
    for seed, trial_id in row.trial_ids.items():
        classes = _unseen_classes(study, trial_id)
        val, test = study.predictions(trial_id, "val"), study.predictions(trial_id, "test")
        if not classes or val is None or test is None:
            continue
        bias = best_bias(*val, classes)
        values["bias"][seed] = bias
        for split, (logits_NK, labels_N) in (("val", val), ("test", test)):
            right_N = with_bias(logits_NK, classes, bias).argmax(axis=1) == labels_N
            values[f"{split}/accuracy"][seed] = float(right_N.mean())
        values["test/unseen"][seed] = recognised(with_bias(test[0], classes, bias), test[1], classes)
    if not values["bias"]:
        return None
    return replace(row, key=f"{row.key}, bias raised", role="biased", values=values)


def _metrics(outcome: Row, rows: Sequence[Row]) -> dict[str, float]:
    """Return val/... of the best epoch, last/... of the last epoch, mean/accuracy over all epochs, and test/..."""
    best = next((row for row in rows if row["epoch"] == (outcome.get("best") or {}).get("epoch")), {})
    found = {name: value for name, value in best.items() if name.startswith("val/")}
    found |= {name.replace("val/", "last/"): v for name, v in (rows[-1] if rows else {}).items() if "val/" in name}
    if rows:
        found["mean/accuracy"] = sum(row["val/accuracy"] for row in rows) / len(rows)
    found |= {name: value for name, value in (outcome.get("test") or {}).items() if "/" in name}
    return {name: float(value) for name, value in found.items() if value is not None}
