"""The trials of a folder of results. Every write is atomic (see `storage.folder`). Standard library only.

<results>/trials/<trial_id>/
    recipe.json       what is trained, on which data
    epochs.jsonl      one row per epoch
    outcome.json      written last: it exists if the training has ended, and its `state` is the result
    checkpoint-*.safetensors while the training runs; weights.safetensors and predictions.npz if they are kept

`records` has the types of these objects.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, cast

from kdtrain.errors import UserError
from kdtrain.storage.folder import Folder, LocalFolder, Row, digest
from kdtrain.trials.records import EpochRow, Outcome, RecipeRecord

SCHEMA = 1
STUDY_SCHEMA = 2
"""The schema of study.json."""
CHECKPOINTS = "checkpoint-*.safetensors"
NON_FINITE = r"epoch \d+[ ,:]"
"""The pattern with which the reason of a non-finite loss begins, and no other reason."""


def read_object(folder: Folder, name: str, newest: int = SCHEMA) -> Row | None:
    """Return an object of a folder of results, or None if there is no such file; `newest` is the last known schema.

    Raises:
        UserError: The file is no JSON object with a schema number, or its schema is newer than this code's.
    """
    data, place = folder.read(name), f"{folder}/{name}"
    if data is None:
        return None
    try:
        value = json.loads(data)
    except ValueError as error:
        raise UserError(f"{place}: is no JSON file of kdtrain ({error}); remove it to have it made again") from None
    if not isinstance(value, dict) or not isinstance(value.get("schema"), int):
        raise UserError(f"{place}: must be an object with a schema number; remove it to have it made again")
    if value["schema"] > newest:
        raise UserError(
            f"{place}: is of schema {value['schema']}, written by a newer kdtrain; this one reads up to {newest}: "
            "upgrade kdtrain or name another folder with --results"
        )
    return value


def read_study_record(folder: Folder) -> Row | None:
    """Return study.json, upgraded to the present schema, or None if there is none.

    Schema 1 had `confirm.best` in place of the stage select.
    """
    value = read_object(folder, "study.json", STUDY_SCHEMA)
    if value is not None and value["schema"] < STUDY_SCHEMA and isinstance(study := value.get("study"), dict):
        confirm = {name: setting for name, setting in study.get("confirm", {}).items() if name != "best"}
        select = {"candidates": 8, "trainings": None, "best_of_each": None, "equal_trials": True}
        value |= {"schema": STUDY_SCHEMA, "study": {**study, "select": select, "confirm": confirm}}
    return value


def is_broken(end: Mapping[str, Any]) -> bool:
    """Return True if a training or a job broke. Earlier versions called that failed, as they did a non-finite loss."""
    non_finite = re.match(NON_FINITE, end.get("reason") or "")
    return end.get("state") == "broken" or (end.get("state") == "failed" and non_finite is None)


def json_bytes(value: Mapping[str, Any]) -> bytes:
    """Return an object as the bytes of a JSON file; ValueError if a number is not finite."""
    return (json.dumps(value, indent=1, allow_nan=False) + "\n").encode()


class Store:
    """All trials of a folder of results, which sweeps share; `results` is its path on this machine."""

    def __init__(self, results: Path | Folder, owner: str = "a training") -> None:
        """Open the trials of a folder of results; `owner` names this process or job in leases, see `Folder.lock`."""
        self.folder = results if isinstance(results, Folder) else LocalFolder(results)
        self.results = self.folder.path
        self._owner = owner

    def trial(self, trial_id: str) -> "TrialFolder":
        """Return the folder of a trial, which may not exist yet."""
        return TrialFolder(self.folder.folder("trials").folder(trial_id), self._owner)

    def fetch_for_reports(self) -> None:
        """Update the copies of what reports read: all files of each trial except weights and checkpoints."""
        self.folder.folder("trials").fetch_all("recipe.json", "epochs.jsonl", "outcome.json", "predictions.npz")

    def trials(self) -> Iterator["TrialFolder"]:
        """Yield the trials of this machine that have a recipe.json, by id."""
        for recipe in sorted(self.results.glob("trials/*/recipe.json")):
            yield self.trial(recipe.parent.name)

    def remove_leftovers(self, trial_ids: Iterable[str]) -> None:
        """Remove the checkpoints of trials that have an outcome: their processes were killed before they did it."""
        for trial in map(self.trial, trial_ids):
            if trial.has_checkpoints() and trial.outcome() is not None:
                trial.remove_checkpoints()


class TrialFolder:
    """The files of one recipe's training; the folder's name is its `trial_id`."""

    def __init__(self, files: Folder, owner: str) -> None:
        self.files, self._owner = files, owner
        self.path = files.path
        self.trial_id = files.path.name

    def lock(self) -> AbstractContextManager[None]:
        """Reserve the trial for this process; wait for another one, such as another sweep's or one whose driver was
        killed."""
        return self.files.lock(self._owner, wait=True)

    def recipe(self) -> RecipeRecord | None:
        """Return recipe.json, or None before the training has begun."""
        return cast(RecipeRecord | None, read_object(self.files, "recipe.json"))

    def write_recipe(self, row: Mapping[str, Any]) -> None:
        self.files.write("recipe.json", json_bytes({"schema": SCHEMA, **row}), durable=True)

    def epochs(self) -> list[EpochRow]:
        """Return the rows of epochs.jsonl."""
        return cast(list[EpochRow], self.files.rows("epochs.jsonl"))

    def append_epoch(self, row: Mapping[str, Any]) -> None:
        self.files.append("epochs.jsonl", row)

    def keep_epochs(self, count: int) -> None:
        """Remove the rows after epoch `count`: a training that continues from a checkpoint writes them again."""
        rows = [row for row in self.epochs() if row["epoch"] <= count]
        self.files.write("epochs.jsonl", "".join(json.dumps(row) + "\n" for row in rows).encode())

    def outcome(self) -> Outcome | None:
        """Return outcome.json, or None before the training has ended.

        Earlier versions also wrote one if the training broke; it counts as none, so that the recipe is trained again.
        """
        outcome = read_object(self.files, "outcome.json")
        return None if outcome is None or is_broken(outcome) else cast(Outcome, outcome)

    def write_outcome(self, row: Mapping[str, Any]) -> None:
        self.files.write("outcome.json", json_bytes({"schema": SCHEMA, **row}), durable=True)

    def remove_outcome(self) -> None:
        """Remove the outcome of a training that continues, so that a kill leaves none that its rows contradict."""
        self.files.remove("outcome.json")

    @property
    def weights(self) -> Path:
        """The path of the kept weights on this machine; there may be no file."""
        return self.files.file("weights.safetensors")

    def has_weights(self) -> bool:
        return self.files.has("weights.safetensors")

    def write_weights(self, data: bytes) -> None:
        self.files.write("weights.safetensors", data)

    @property
    def predictions(self) -> Path:
        """The path of the kept predictions on this machine; there may be no file."""
        return self.files.file("predictions.npz")

    def write_predictions(self, data: bytes) -> None:
        self.files.write("predictions.npz", data)

    def write_checkpoint(self, step: int, data: bytes) -> None:
        """Write the checkpoint of a step under its digest, and remove all others except the newest earlier one.

        Later ones are damaged, or the training would not have gone back to this step.
        """
        of_step = f"checkpoint-{step:09d}-"
        written = f"{of_step}{digest(data)}.safetensors"
        self.files.write(written, data)
        names = self.files.names(CHECKPOINTS)
        earlier = [name for name in names if name < of_step]
        for name in set(names) - {written, *earlier[-1:]}:
            self.files.remove(name)
        self._remove_temporary()

    def read_checkpoint(self) -> bytes | None:
        """Return the newest checkpoint that is not damaged, or None."""
        for name in reversed(self.files.names(CHECKPOINTS)):
            data = self.files.read(name)
            if data is not None and Path(name).stem.endswith(digest(data)):
                return data
        return None

    def has_checkpoints(self) -> bool:
        return bool(self.files.names(CHECKPOINTS))

    def remove_checkpoints(self) -> None:
        for name in self.files.names(CHECKPOINTS):
            self.files.remove(name)
        self._remove_temporary()

    def _remove_temporary(self) -> None:
        """Remove the temporary files of processes that were killed while they wrote a checkpoint; they can be large."""
        for temporary in self.path.glob(".checkpoint-*"):
            temporary.unlink(missing_ok=True)
