"""The folder of a sweep and its trials as data frames: one row per trial, one row per epoch; a missing value is NaN."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from kdtrain.errors import DamagedFile, UserError
from kdtrain.storage.folder import LocalFolder, Row
from kdtrain.trials.arrays import read_arrays, read_predictions
from kdtrain.trials.objectives import HIGHER_IS_BETTER, objectives_of
from kdtrain.trials.records import STAGES
from kdtrain.trials.store import (
    PICTURES,
    RECORD,
    Store,
    TrialContent,
    TrialFolder,
    files_without_digest,
    is_broken,
    pictures_digest,
    read_events,
    read_study_record,
)

TRAINING = STAGES[1:-1]  # the other stages have a recipe, but train nothing
SEARCHED = ("baselines", "search")
NOT_ENDED, BROKEN = "not ended", "broken"
PLANNED = (
    "stage", "number", "trial_id", "state", "reason", "traceback", "published",
    "candidate", "role", "seed", "baseline", "source_stage", "source_number", "race", "round", "cost",
)  # fmt: skip
TEST = ("test/accuracy", "test/mpa", "test/nll")
MEASURED = (
    "best_epoch", *HIGHER_IS_BETTER, *TEST, "test_images", "parameters",
    "epochs", "images", "teacher_images", "seconds", "images_per_s", "peak_memory_bytes",
)  # fmt: skip
AXIS = {
    "val/accuracy": ("validation accuracy, %", 100.0),
    "val/mpa": ("validation mean accuracy per class, %", 100.0),
    "val/nll": ("validation cross-entropy (NLL), nats", 1.0),
    "val/ece": ("validation calibration error (ECE), %", 100.0),
}
"""The label of an objective on an axis, and the factor to its unit."""
OPTIONS = ("method", "method.name")
"""The names of the choice of methods, whose options are compared unless a sweep names another choice."""
DAMAGED_SHOWN = 10
PARAMETER = ("name", "kind", "low", "high", "choices", "conditions")


@dataclass(frozen=True)
class Study:
    """One sweep as recorded.

    record: the events of its journal. trials: a row per trial, columns PLANNED and MEASURED; values: same index, a
    column per hyperparameter, in the order of the sweep file. recipes, outcomes, rows (of epochs): by trial_id.
    unverified: the number of files that an earlier version wrote without a digest, so that damage may go unnoticed.
    """

    folder: Path
    description: Row
    record: list[Row]
    trials: pd.DataFrame
    values: pd.DataFrame
    recipes: Mapping[str, Row]
    outcomes: Mapping[str, Row]
    rows: Mapping[str, list[Row]]
    unverified: int

    @property
    def name(self) -> str:
        return str(self.description["name"])

    @property
    def published(self) -> str | None:
        """The name of the reference implementation whose reported results the report repeats, or None."""
        return (self.description.get("report") or {}).get("published")

    @property
    def objective(self) -> str:
        return str(self.description["study"]["objective"])

    @property
    def larger_is_better(self) -> bool:
        return HIGHER_IS_BETTER[self.objective]

    @property
    def parameters(self) -> list[Row]:
        return list(self.description["parameters"])

    @property
    def compared(self) -> Row | None:
        """The searched choice whose options are compared, or None: that of select.best_of_each, else the methods'."""
        if self.tradeoff is not None:
            return None
        named = (self.description["study"].get("select") or {}).get("best_of_each")
        names = OPTIONS if named is None else (named,)
        return next((p for p in self.parameters if p["name"] in names and p["kind"] == "choice"), None)

    @property
    def tradeoff(self) -> str | None:
        """The cost that accuracy is traded for: parameters, flops or latency_ms; None if there is no trade-off."""
        return (self.description["study"].get("tradeoff") or {}).get("cost")

    @property
    def has_select(self) -> bool:
        """True if a race chooses the winner; earlier versions chose it from the recipes that they had confirmed."""
        return self.stage("confirm").empty or "confirmed" in (self.winner or {})

    @property
    def winner(self) -> Row | None:
        return _newest(self.record, "winner")

    def events(self, name: str) -> list[Row]:
        return [event for event in self.record if event["event"] == name]

    @property
    def no_result(self) -> str | None:
        """The reason why the study has ended without a result, or None."""
        newest = next((event for event in reversed(self.record) if event["event"] not in ("opened", "placed")), {})
        return newest["reason"] if newest.get("event") == "no_result" else None

    @property
    def data(self) -> Row | None:
        """Name, number of classes and of images by split of the students; None before the first trial has begun."""
        teachers = set(self.stage("teacher")["trial_id"])  # they may have data of their own
        by_student = sorted(self.recipes, key=lambda trial_id: trial_id in teachers)
        return next((data for trial_id in by_student if (data := self.recipes[trial_id].get("data"))), None)

    @property
    def finished(self) -> bool:
        """True if the study has finished, and all trials are planned and ended: their number may have been raised."""
        return (
            any(event["event"] == "finished" for event in self.record)
            and len(self.stage("search")) >= self.searched_trials
            and not (self.trials["state"] == NOT_ENDED).any()
        )

    @property
    def searched_trials(self) -> int:
        """The number of trials of the search: as written, or as far as the budget has let it come."""
        if "search" in self.budget_ends:
            return int(self.budget_ends["search"]["number"])
        written = self.description["study"]["trials"]
        return len(self.stage("search")) if written is None else int(written)

    @property
    def budget_ends(self) -> dict[str, Row]:
        """The newest event that `study.budget` has ended a stage, by stage."""
        return {event["stage"]: event for event in self.record if event["event"] == "budget_end"}

    def stage(self, name: str) -> pd.DataFrame:
        return self.trials[self.trials["stage"] == name]

    @cached_property
    def epochs(self) -> pd.DataFrame:
        """One row per epoch of every trial: trial_id and the reported metrics."""
        rows = [{"trial_id": trial_id} | row for trial_id in self.recipes for row in self.rows_of(trial_id)]
        frame = pd.DataFrame(rows) if rows else pd.DataFrame(columns=["trial_id", "epoch"])
        return frame.drop_duplicates(["trial_id", "epoch"], keep="last", ignore_index=True)

    def rows_of(self, trial_id: str) -> list[Row]:
        """Return one row per epoch, in order; the last one if an epoch was written twice."""
        rows = {row["epoch"]: row for row in self.rows.get(trial_id, [])}
        return [rows[epoch] for epoch in sorted(rows)]

    def predictions(self, trial_id: str, split: str = "test") -> tuple[np.ndarray, np.ndarray] | None:
        """Return (logits [N, K], labels [N]) of the images of "val" or "test", or None if the trial has none stored."""
        arrays = read_predictions(Store(self.folder.parent).trial(trial_id))
        logits, labels = arrays.get(f"{split}_logits"), arrays.get(f"{split}_labels")
        return None if logits is None or labels is None else (logits, labels)

    def pictures(self) -> dict[str, np.ndarray]:
        """Return the arrays of pictures.npz, none if there is no file; DamagedFile if it has changed."""
        return read_arrays(self.folder / PICTURES, pictures_digest(self.record))


def read_study(folder: Path) -> Study:
    """Return the study that is recorded in a folder of a sweep.

    Raises:
        DamagedFile: Files have changed since they were written, or contradict each other: a sentence for each.
        UserError: If there is no such folder, or it is not that of a sweep, or written by a newer kdtrain.
    """
    _check_is_a_sweep(folder)
    description = _description(folder / "study.json")
    record = read_events(LocalFolder(folder))
    planned = _planned(record, description["study"])
    store = Store(folder.parent)
    trial_ids = dict.fromkeys(row["trial_id"] for row in planned if row["stage"] in TRAINING and row["trial_id"])
    folders = [store.trial(trial_id) for trial_id in trial_ids]
    contents = _contents(folders)
    recipes: dict[str, Row] = {key: {**each.recipe} for key, each in contents.items() if each.recipe}
    outcomes: dict[str, Row] = {key: {**each.outcome} for key, each in contents.items() if each.outcome}
    epochs: dict[str, list[Row]] = {key: [{**row} for row in each.epochs] for key, each in contents.items()}
    rows = [_trial_row(row, recipes.get(row["trial_id"]), _outcome(row, outcomes, epochs)) for row in planned]
    trials = pd.DataFrame(rows, columns=[*PLANNED, *MEASURED]).astype(dict.fromkeys(MEASURED, float))
    names = dict.fromkeys(
        [p["name"] for p in description["parameters"]] + [n for row in planned for n in row["values"]]
    )
    values = pd.DataFrame([row["values"] for row in planned], columns=list(names), index=trials.index, dtype=object)
    unverified = _without_digest(folder, folders)
    return Study(folder, description, record, trials, values, recipes, outcomes, epochs, unverified)


def rests_on_unverified(folder: Path) -> bool:
    """Return True if a file of a sweep, or of any trial beside it, has no digest."""
    return _without_digest(folder, Store(folder.parent).trials()) > 0


def _without_digest(folder: Path, trials: Iterable[TrialFolder]) -> int:
    found = files_without_digest(LocalFolder(folder), "study.json", RECORD)
    return found + sum(
        files_without_digest(each.files, "recipe.json", "epochs.jsonl", "outcome.json") for each in trials
    )


def _contents(folders: Sequence[TrialFolder]) -> dict[str, TrialContent]:
    """Return what is stored of each trial; DamagedFile with a sentence for each that is damaged."""
    found: dict[str, TrialContent] = {}
    damaged: list[str] = []
    for folder in folders:
        try:
            found[folder.trial_id] = folder.content()
        except DamagedFile as error:
            damaged += error.problems
    if damaged:
        more = [f"and {len(damaged) - DAMAGED_SHOWN} more damaged files"] if len(damaged) > DAMAGED_SHOWN else []
        raise DamagedFile(*damaged[:DAMAGED_SHOWN], *more)
    return found


def trials_csv(study: Study) -> str:
    """Return a CSV with one row per trial; a searched value has the column `recipe.<name>`, unlike any metric."""
    columns = ["stage", "number", "trial_id", "state", "candidate", "seed"]
    measured = ["best_epoch", *HIGHER_IS_BETTER, *TEST, "epochs", "reason", "seconds"]
    counts = study.trials.astype(dict.fromkeys(("best_epoch", "epochs", "seed"), "Int64"))
    frame = pd.concat([counts[columns], study.values.add_prefix("recipe."), counts[measured]], axis="columns")
    return str(frame.to_csv(index=False, lineterminator="\n"))


def complete_trials(trials: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Return the complete trials that have a value of the metric."""
    return trials[(trials["state"] == "complete") & trials[metric].notna()]


def flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Return the leaves of a tree by dotted path: {"optimizer": {"lr": 1}} -> {"optimizer.lr": 1}; a list is a leaf."""
    if not isinstance(tree, Mapping):
        return {prefix: tree}
    below = [flatten(value, f"{prefix}.{key}" if prefix else key) for key, value in tree.items()]
    return {path: leaf for leaves in below for path, leaf in leaves.items()}


def _check_is_a_sweep(folder: Path) -> None:
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; give a sweep's folder, for example results/digits_kd")
    if not (folder / "study.json").exists():
        sweeps = sorted(path.parent for path in folder.glob("*/study.json"))
        hint = f"; sweeps in it: {', '.join(str(path) for path in sweeps)}" if sweeps else ""
        raise UserError(f"{folder}: is not a sweep's folder, it has no study.json{hint}")


def _description(path: Path) -> Row:
    """Read study.json and check that it has all fields that are used later."""
    description = read_study_record(LocalFolder(path.parent)) or {}
    lacking = [name for name in ("name", "study", "parameters") if name not in description]
    for i, parameter in enumerate(description.get("parameters", [])):
        lacking += [f"parameters[{i}].{name}" for name in PARAMETER if name not in parameter]
    if lacking:
        raise UserError(f"{path}: lacks {', '.join(lacking)}; remove it and run the sweep again to have it made again")
    return description


def race_rounds(record: list[Row]) -> dict[str, list[Row]]:
    """Return the newest "round" events of each race in order. A race that was run anew begins with round 1 again."""
    rounds: dict[str, dict[int, Row]] = {}
    for event in record:
        if event["event"] == "round":
            own = rounds.setdefault(event["race"], {})
            rounds[event["race"]] = {n: row for n, row in own.items() if n < event["round"]} | {event["round"]: event}
    return {race: list(own.values()) for race, own in rounds.items()}


def _newest(record: list[Row], name: str) -> Row | None:
    return next((event for event in reversed(record) if event["event"] == name), None)


def _planned(record: list[Row], study: Row) -> list[Row]:
    """Return the planned trials by stage and number with their ends; the last one if a trial was recorded twice.

    Left out is what the study no longer has, after it has grown or gone back to an earlier size.
    """
    rows: dict[tuple[str, int], Row] = {}
    for event in record:
        key = (event.get("stage", ""), event.get("number", -1))
        if event["event"] == "planned":
            rows[key] = {"trial_id": None, "values": {}, **event}
        elif event["event"] == "ended" and key in rows:
            rows[key] |= {name: event.get(name) for name in ("state", "reason", "traceback", "value", "epochs")}
            rows[key]["trial_id"] = event.get("trial_id") or rows[key]["trial_id"]
            if event.get("trial_id") and is_broken(event):
                rows[key]["state"] = BROKEN
    stages: dict[str, list[Row]] = {stage: [] for stage in STAGES}
    for row in sorted(rows.values(), key=lambda row: row["number"]):
        stages[row["stage"]].append(row)
    for stage in SEARCHED:
        if study["trials"] is not None:
            stages[stage] = [row for row in stages[stage] if row["number"] < study["trials"]]
    stages["select"] = _racing(stages["select"], record)
    winner = _newest(record, "winner") or {}
    stages["confirm"] = _confirming(stages["confirm"], winner.get("confirmed"), study["confirm"]["seeds"])
    return [row for own in stages.values() for row in own]


def _racing(rows: list[Row], record: list[Row]) -> list[Row]:
    """Return the rows of the newest races, without candidates and rounds of earlier ones."""
    current = {(row["race"], row["round"], row["candidate"]): row for row in _by_time(rows)}
    ended = {event["race"]: event["rounds"] for event in record if event["event"] == "selected"}
    for race, events in race_rounds(record).items():
        last = events[-1]
        begun = last["round"] + (ended.get(race) != last["round"])
        racers = {racer["candidate"]: racer["dropped"] for racer in last["racers"]}
        for key in [key for key in current if key[0] == race]:
            _, number, candidate = key
            dropped = racers.get(candidate)
            if candidate not in racers or number > begun or (dropped is not None and number > dropped):
                del current[key]
    return sorted(current.values(), key=lambda row: row["number"])


def _confirming(rows: list[Row], confirmed: list[str] | None, seeds: int) -> list[Row]:
    """Return the rows of the recipes that the newest winner was chosen with, of the first `seeds` seeds.

    A recipe that was taken from another trial before has lost its old runs.
    """
    by_time = _by_time(rows)
    latest = {row["candidate"]: row.get("source") for row in by_time}
    current = {
        (row["candidate"], row["seed"]): row
        for row in by_time
        if row.get("source") == latest[row["candidate"]] and (confirmed is None or row["candidate"] in confirmed)
    }
    kept = sorted({seed for _, seed in current})[:seeds]
    return sorted((row for row in current.values() if row["seed"] in kept), key=lambda row: row["number"])


def _by_time(rows: list[Row]) -> list[Row]:
    return sorted(rows, key=lambda row: float(row.get("time", 0.0)))


def _outcome(planned: Row, outcomes: Mapping[str, Row], rows_of: Mapping[str, list[Row]]) -> Row | None:
    """Return how the trial ended in this study: another study may have continued a trial that this one pruned."""
    outcome = outcomes.get(planned["trial_id"]) if planned["stage"] in TRAINING else None
    epochs = planned.get("epochs")
    if outcome is None or planned.get("state") != "pruned" or epochs is None or outcome["epochs"] == epochs:
        return outcome
    rows = [row for row in rows_of[planned["trial_id"]] if row["epoch"] <= epochs]
    if not rows or outcome["best"] is None:
        return outcome
    best = next((row for row in rows if planned.get("value") in objectives_of(row).values()), None)
    return outcome | {"epochs": epochs, "best": best, "test": None}


def _trial_row(planned: Row, recipe: Row | None, outcome: Row | None) -> Row:
    row = {name: planned.get(name) for name in PLANNED}
    row["published"] = bool(planned.get("published"))
    row["state"] = planned.get("state") or (outcome or {}).get("state") or NOT_ENDED
    source = planned.get("source") or {}
    row |= {"source_stage": source.get("stage"), "source_number": source.get("number")}
    if row["seed"] is None and recipe:
        row["seed"] = recipe["recipe"].get("seed")
    if outcome is None:
        return row
    best, test = outcome.get("best") or {}, outcome.get("test") or {}
    row |= {name: outcome.get(name) for name in MEASURED}
    row |= {"best_epoch": best.get("epoch"), "test_images": test.get("images")}
    row |= {name: best.get(name) for name in HIGHER_IS_BETTER}
    row |= {name: test.get(name) for name in TEST}
    return row
