"""The trials of a folder of results. Every write is atomic (see `storage.folder`), and what is read has been verified.

Standard library only. Every object and row has a digest (`storage.sealed`), and
outcome.json has those of the other files. A file that does not fit its digest, or rows that do not fit the outcome, are
a DamagedFile. `standing` and `sound_epochs` serve those that make it again.

<results>/trials/<trial_id>/
    recipe.json       what is trained, on which data
    epochs.jsonl      one row per epoch
    outcome.json      written last: it exists if the training has ended, and its `state` is the result
    checkpoint-*.safetensors while the training runs; weights.safetensors and predictions.npz if they are kept

`records` has the types of these objects.
"""

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple, cast, get_args

from kdtrain.errors import DamagedFile, UserError
from kdtrain.storage.folder import Folder, LocalFolder, Row, digest, remove_temporary, sha256, sync
from kdtrain.storage.sealed import open_journal, open_object, sealed_object, sealed_row
from kdtrain.trials.records import EVENT_KEYS, EpochRow, Outcome, RecipeRecord, State

SCHEMA = 2
"""The schema of recipe.json and outcome.json. From 2 on they have a digest."""
STUDY_SCHEMA = 3
"""The schema of study.json. From 3 on it has a digest."""
RECORD = "record.jsonl"
ADDED_FIELDS = ("head", "channels_last")
"""Fields of events that earlier versions did not write."""
PICTURES = "pictures.npz"
WEIGHTS, PREDICTIONS = "weights.safetensors", "predictions.npz"
CHECKPOINTS = "checkpoint-*.safetensors"
NON_FINITE = r"epoch \d+[ ,:]"
"""The pattern with which the reason of a non-finite loss begins, and no other reason."""


def read_object(folder: Folder, name: str, newest: int = SCHEMA) -> Row | None:
    """Return an object of a folder of results, or None if there is no such file; `newest` is the last known schema.

    Raises:
        DamagedFile: The file is no JSON object with a schema number, or has changed since it was written.
        UserError: Its schema is newer than this code's.
    """
    data, place = folder.read(name), f"{folder}/{name}"
    if data is None:
        return None
    try:
        value = open_object(data, newest)
    except ValueError as error:
        raise DamagedFile.at(place, str(error)) from None
    if value["schema"] > newest:
        raise UserError(
            f"{place}: is of schema {value['schema']}, written by a newer kdtrain; this one reads up to {newest}: "
            "upgrade kdtrain or name another folder with --results"
        )
    return value


def read_study_record(folder: Folder) -> Row | None:
    """Return study.json, upgraded to the present schema, or None if there is none.

    Schema 1 had `confirm.best` in place of the stage select, schema 2 no digest.
    """
    value = read_object(folder, "study.json", STUDY_SCHEMA)
    if value is not None and value["schema"] < 2 and isinstance(study := value.get("study"), dict):
        confirm = {name: setting for name, setting in study.get("confirm", {}).items() if name != "best"}
        select = {"candidates": 8, "trainings": None, "best_of_each": None, "equal_trials": True}
        value |= {"study": {**study, "select": select, "confirm": confirm}}
    return None if value is None else {**value, "schema": STUDY_SCHEMA}


def read_events(folder: Folder) -> list[Row]:
    """Return the events of a study's journal; DamagedFile if one has changed or lacks a field that is read."""
    events = folder.rows(RECORD)
    for number, row in enumerate(events, 1):
        fields = ("event", "time", *EVENT_KEYS.get(str(row.get("event")), ()))
        lacking = [name for name in fields if name not in row and name not in ADDED_FIELDS]
        if lacking:
            raise DamagedFile.at(f"{folder}/{RECORD}", f"event {number} lacks {', '.join(lacking)}")
    return events


def files_without_digest(folder: Folder, *names: str) -> int:
    """Return how many of these files are there and were written, or begun, by a version that made no digests."""
    found = 0
    for name in names:
        data = folder.read(name)
        if data is None:
            continue
        if name.endswith(".jsonl"):
            found += not open_journal(data).is_sealed
        else:
            found += b'\n "digest": "' not in data
    return found


def require_unchanged(path: Path, place: object, expected: str | None) -> None:
    """Raise DamagedFile if a file has not the SHA-256 that it had when it was written; None is not known."""
    if expected is not None and path.exists() and sha256(path) != expected:
        raise DamagedFile.at(place, "has changed since it was written")


def is_broken(end: Mapping[str, Any]) -> bool:
    """Return True if a training or a job broke. Earlier versions called that failed, as they did a non-finite loss."""
    non_finite = re.match(NON_FINITE, end.get("reason") or "")
    return end.get("state") == "broken" or (end.get("state") == "failed" and non_finite is None)


def pictures_digest(events: Iterable[Mapping[str, Any]]) -> str | None:
    """Return the SHA-256 of pictures.npz when a study has last made it, or None if its journal has none."""
    made = [row for row in events if row["event"] == "ended" and row["stage"] == "pictures"]
    return made[-1].get("sha256") if made else None


class TrialContent(NamedTuple):
    """What a trial's folder says of its training; None is not there yet."""

    recipe: RecipeRecord | None
    epochs: list[EpochRow]
    outcome: Outcome | None


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
        self._written: dict[str, str] = {}  # the SHA-256 of weights and predictions that this object has written

    def lock(self) -> AbstractContextManager[None]:
        """Reserve the trial for this process; wait for another one, such as another sweep's or one whose driver was
        killed."""
        return self.files.lock(self._owner, wait=True)

    def recipe(self) -> RecipeRecord | None:
        """Return recipe.json, or None before the training has begun."""
        return cast(RecipeRecord | None, read_object(self.files, "recipe.json"))

    def write_recipe(self, row: Mapping[str, Any]) -> None:
        self.files.write("recipe.json", sealed_object({"schema": SCHEMA, **row}), durable=True)

    def epochs(self) -> list[EpochRow]:
        """Return the rows of epochs.jsonl."""
        rows = self.files.rows("epochs.jsonl")
        for number, row in enumerate(rows, 1):
            if type(row.get("epoch")) is not int or not all(isinstance(value, int | float) for value in row.values()):
                raise DamagedFile.at(f"{self.files}/epochs.jsonl", f"row {number} is not one of numbers, with an epoch")
        return cast(list[EpochRow], rows)

    def sound_epochs(self) -> list[EpochRow]:
        """Return the rows of the epochs 1, 2, ... before the first that is damaged or missing."""
        rows = open_journal(self.files.read("epochs.jsonl") or b"").rows
        count = next((i for i, row in enumerate(rows) if row.get("epoch") != i + 1), len(rows))
        return cast(list[EpochRow], rows[:count])

    def append_epoch(self, row: Mapping[str, Any]) -> None:
        self.files.append("epochs.jsonl", row)

    def keep_epochs(self, count: int) -> None:
        """Remove the rows after epoch `count`: a training that continues from a checkpoint writes them again."""
        kept = b""
        for row in self.sound_epochs()[:count]:
            kept += sealed_row(row, kept[kept.rfind(b"\n", 0, -1) + 1 :])
        self.files.write("epochs.jsonl", kept)

    def outcome(self) -> Outcome | None:
        """Return outcome.json, or None before the training has ended.

        Earlier versions also wrote one if the training broke; it counts as none, so that the recipe is trained again.
        """
        outcome = read_object(self.files, "outcome.json")
        return None if outcome is None or is_broken(outcome) else cast(Outcome, outcome)

    def content(self) -> TrialContent:
        """Return recipe, rows and outcome; DamagedFile if one of them has changed, or if they contradict each other."""
        outcome = self.outcome()  # first: if it is there, so are all its rows
        recipe, rows = self.recipe(), self.epochs()
        if outcome is not None:
            place, count, state = f"{self.files}/outcome.json", outcome.get("epochs"), outcome.get("state")
            if type(count) is not int or state not in get_args(State):
                raise DamagedFile.at(place, "lacks its state or its number of epochs")
            if state == "complete" and not isinstance(outcome.get("best"), dict):
                raise DamagedFile.at(place, "lacks its best epoch")
            # workers may have run ahead of a decision to prune
            counted = rows[:count] if state == "pruned" else rows
            if [row["epoch"] for row in counted] != list(range(1, count + 1)):
                if self.outcome() != outcome:  # another sweep has begun to train it further
                    return self.content()
                raise DamagedFile.at(place, f"counts {count} epochs, and epochs.jsonl has {len(rows)} others")
        return TrialContent(recipe, rows, outcome)

    def standing(self) -> tuple[Outcome | None, DamagedFile | None]:
        """Return the outcome and None, or None and what is damaged: the training then counts as not ended."""
        try:
            return self.content().outcome, None
        except DamagedFile as error:
            return None, error

    def write_outcome(self, row: Mapping[str, Any]) -> None:
        """Write outcome.json, with the digests of the weights and the predictions that this object has written."""
        sync(self.path / "epochs.jsonl")  # rows survive a power cut if the outcome does
        files = {**(row.get("files") or {}), **self._written}
        about = {**row, "schema": SCHEMA, **({"files": files} if files else {})}
        self.files.write("outcome.json", sealed_object(about), durable=True)

    def remove_outcome(self) -> None:
        """Remove the outcome of a training that continues, so that a kill leaves none that its rows contradict."""
        for name in ("outcome.json", WEIGHTS, PREDICTIONS):
            self.files.remove(name)

    @property
    def weights(self) -> Path:
        """The path of the kept weights on this machine; there may be no file. DamagedFile if they have changed."""
        return self._unchanged(WEIGHTS)

    def has_weights(self) -> bool:
        return self.files.has(WEIGHTS)

    def write_weights(self, data: bytes) -> None:
        self._write_named(WEIGHTS, data)

    @property
    def predictions(self) -> Path:
        """The path of the kept predictions on this machine; there may be no file. DamagedFile if they have changed."""
        return self._unchanged(PREDICTIONS)

    def write_predictions(self, data: bytes) -> None:
        self._write_named(PREDICTIONS, data)

    def is_whole(self, name: str) -> bool:
        """Return True if the weights or the predictions are there and have not changed since they were written."""
        try:
            return self._unchanged(name).exists()
        except DamagedFile:
            return False

    def _unchanged(self, name: str) -> Path:
        path, outcome = self.files.file(name), self.outcome()
        expected = (outcome.get("files") or {}).get(name) if outcome is not None else None
        require_unchanged(path, f"{self.files}/{name}", expected)
        return path

    def _write_named(self, name: str, data: bytes) -> None:
        self._written[name] = hashlib.sha256(data).hexdigest()
        self.files.write(name, data, durable=True)

    def remove_temporary(self) -> None:
        """Remove the temporary files of killed processes of this machine."""
        remove_temporary(self.path)

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

    def checkpoints(self) -> Iterator[bytes]:
        """Yield the checkpoints that are not damaged, the newest first."""
        for name in reversed(self.files.names(CHECKPOINTS)):
            data = self.files.read(name)
            if data is not None and Path(name).stem.endswith(digest(data)):
                yield data

    def read_checkpoint(self) -> bytes | None:
        """Return the newest checkpoint that is not damaged, or None."""
        return next(self.checkpoints(), None)

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
