"""Trials on disk. What stands under its name is whole: written beside it, then renamed. Standard library only.

<results>/trials/<trial_id>/
    recipe.json       what is trained, on which data
    epochs.jsonl      a row an epoch
    outcome.json      written last; its presence means ended, its `state` says how
    checkpoint-*.safetensors while running; weights.safetensors, predictions.npz where they are kept
"""

import json
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from kdtrain.errors import UserError
from kdtrain.storage.folder import Folder, Row, digest, write_bytes

SCHEMA = 1


def write_json(path: Path, value: Any) -> None:
    write_bytes(path, json_bytes(value), durable=True)


def read_json(path: Path) -> Row:
    """One of the store's objects; UserError if it is no JSON object or of a newer schema."""
    return _checked(path.read_bytes(), str(path))


def read_object(folder: Folder, name: str) -> Row | None:
    """The same of a folder of results; None where it is absent."""
    data = folder.read(name)
    return None if data is None else _checked(data, f"{folder}/{name}")


def json_bytes(value: Any) -> bytes:
    return (json.dumps(value, indent=1, allow_nan=False) + "\n").encode()


def _checked(data: bytes, place: str) -> Row:
    try:
        value = json.loads(data)
    except ValueError as error:
        raise UserError(f"{place}: is no JSON file of kdtrain ({error}); remove it to have it made again") from None
    if not isinstance(value, dict) or not isinstance(value.get("schema"), int):
        raise UserError(f"{place}: must be an object with a schema number; remove it to have it made again")
    if value["schema"] > SCHEMA:
        raise UserError(
            f"{place}: is of schema {value['schema']}, written by a newer kdtrain; this one reads up to {SCHEMA}: "
            "upgrade kdtrain or name another folder with --results"
        )
    return value


class Store:
    """All trials under one results folder, shared by its sweeps."""

    def __init__(self, results: Path | Folder, by: str = "a training") -> None:
        """by: what this process calls itself where it holds a trial at a URL, see Folder.held."""
        self.folder = results if isinstance(results, Folder) else Folder(results)
        self.results = self.folder.path
        self._by = by

    def trial(self, trial_id: str) -> "TrialFolder":
        return TrialFolder(self.folder.folder("trials").folder(trial_id), self._by)

    def fetch_for_reports(self) -> None:
        """Makes what lies here what reports read: all of each trial but weights and checkpoints."""
        trials = self.folder.folder("trials")
        trials.fetch_all("recipe.json", "epochs.jsonl", "outcome.json", "predictions.npz")

    def trials(self) -> Iterator["TrialFolder"]:
        """Those that lie here."""
        folder = self.results / "trials"
        for path in sorted(folder.iterdir()) if folder.is_dir() else ():
            if (path / "recipe.json").exists():
                yield self.trial(path.name)

    def remove_leftovers(self, trial_ids: Iterable[str]) -> None:
        """Checkpoints of trials that have ended: of a process that died between the outcome and their removal."""
        for trial in map(self.trial, trial_ids):
            if trial.has_checkpoints() and trial.outcome() is not None:
                trial.remove_checkpoints()


class TrialFolder:
    """One recipe run once."""

    def __init__(self, files: Folder, by: str) -> None:
        self.files, self._by = files, by
        self.path = files.path
        self.trial_id = files.path.name

    def held(self) -> AbstractContextManager[None]:
        """For this process alone; one that outlived its killed driver, or another sweep's, is waited for."""
        return self.files.held(self._by, wait=True)

    def recipe(self) -> Row | None:
        return read_object(self.files, "recipe.json")

    def write_recipe(self, row: Row) -> None:
        self.files.write("recipe.json", json_bytes({"schema": SCHEMA, **row}), durable=True)

    def epochs(self) -> list[Row]:
        return self.files.rows("epochs.jsonl")

    def append_epoch(self, row: Row) -> None:
        self.files.append("epochs.jsonl", row)

    def keep_epochs(self, count: int) -> None:
        """Drops the rows past epoch `count`: a training that continues from a checkpoint writes them again."""
        rows = [row for row in self.epochs() if row["epoch"] <= count]
        self.files.write("epochs.jsonl", "".join(json.dumps(row) + "\n" for row in rows).encode())

    def outcome(self) -> Row | None:
        return read_object(self.files, "outcome.json")

    def write_outcome(self, row: Row) -> None:
        self.files.write("outcome.json", json_bytes({"schema": SCHEMA, **row}), durable=True)

    def remove_outcome(self) -> None:
        """For a training that goes on: a cut from now on must not leave an outcome that its rows contradict."""
        self.files.remove("outcome.json")

    @property
    def weights(self) -> Path:
        """Where they lie on this machine, if there are any."""
        return self.files.file("weights.safetensors")

    def has_weights(self) -> bool:
        return self.files.has("weights.safetensors")

    def write_weights(self, data: bytes) -> None:
        self.files.write("weights.safetensors", data)

    @property
    def predictions(self) -> Path:
        """Where they lie on this machine, if there are any."""
        return self.files.file("predictions.npz")

    def write_predictions(self, data: bytes) -> None:
        self.files.write("predictions.npz", data)

    def write_error(self, text: str) -> None:
        self.files.write("error.txt", text.encode())

    def write_checkpoint(self, step: int, data: bytes) -> None:
        """Keeps it and the one before it; the name carries the digest of the bytes, so damage shows.

        Later ones are damaged, or the training would not have gone back to this step.
        """
        of_step = f"checkpoint-{step:09d}-"
        written = f"{of_step}{digest(data)}.safetensors"
        self.files.write(written, data)
        names = self._checkpoints()
        earlier = [name for name in names if name < of_step]
        for name in set(names) - {written, *earlier[-1:]}:
            self.files.remove(name)
        self._remove_torn()

    def read_checkpoint(self) -> bytes | None:
        """The newest whole checkpoint; one that was cut off or changed is passed over."""
        for name in reversed(self._checkpoints()):
            data = self.files.read(name)
            if data is not None and Path(name).stem.endswith(digest(data)):
                return data
        return None

    def has_checkpoints(self) -> bool:
        return bool(self._checkpoints())

    def remove_checkpoints(self) -> None:
        for name in self._checkpoints():
            self.files.remove(name)
        self._remove_torn()

    def _remove_torn(self) -> None:
        """What processes left that were killed while they wrote; it can be large."""
        for torn in self.path.glob(".checkpoint-*"):
            torn.unlink(missing_ok=True)

    def _checkpoints(self) -> list[str]:
        return self.files.names("checkpoint-*.safetensors")
