"""Trials on disk. What stands under its name is whole: written beside it, then renamed. Standard library only.

<results>/trials/<trial_id>/
    recipe.json       what is trained, on which data
    epochs.jsonl      a row an epoch
    outcome.json      written last; its presence means ended, its `state` says how
    checkpoint-*.safetensors while running; weights.safetensors, predictions.npz where they are kept
"""

import fcntl
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kdtrain.errors import UserError

SCHEMA = 1
Row = dict[str, Any]


def write_bytes(path: Path, data: bytes, *, durable: bool = False) -> None:
    """Atomic: a reader sees the old file or the whole new one, and so does whoever comes after a kill.

    durable: after a power cut too, which costs some milliseconds; a checkpoint does without, its digest tells.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        os.chmod(temporary, 0o644)  # mkstemp's 0600 would lock colleagues out of a shared results folder
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def write_json(path: Path, value: Any) -> None:
    write_bytes(path, (json.dumps(value, indent=1, allow_nan=False) + "\n").encode(), durable=True)


def read_json(path: Path) -> Row:
    """One of the store's objects; UserError if it is no JSON object or of a newer schema."""
    try:
        value = json.loads(path.read_text())
    except (ValueError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: is no JSON file of kdtrain ({error}); remove it to have it made again") from None
    if not isinstance(value, dict) or not isinstance(value.get("schema"), int):
        raise UserError(f"{path}: must be an object with a schema number; remove it to have it made again")
    if value["schema"] > SCHEMA:
        raise UserError(
            f"{path}: is of schema {value['schema']}, written by a newer kdtrain; this one reads up to {SCHEMA}: "
            "upgrade kdtrain or name another folder with --results"
        )
    return value


def append_row(path: Path, row: Row) -> None:
    """One line of JSON, flushed; a torn last line (of a kill) is ended first, so that it spoils nothing else."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "ab+") as file:
        if file.seek(0, os.SEEK_END):
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                file.write(b"\n")
        file.write((json.dumps(row, allow_nan=False) + "\n").encode())


def read_rows(path: Path) -> list[Row]:
    """The whole rows of a .jsonl file, torn lines left out; none if there is no file."""
    rows = []
    for line in path.read_bytes().splitlines() if path.exists() else ():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict):
            rows.append(row)
    return rows


@contextmanager
def locked(folder: Path, *, wait: bool) -> Iterator[None]:
    """Holds a folder for this process alone; the lock goes with the process, however it ends.

    A folder that another process holds is waited for, or refused with a BlockingIOError.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        yield


def results_folder(written: str) -> Path:
    """The folder that --results names; UserError for a URL, which would silently become a folder of that name."""
    if "://" in written:
        raise UserError(f"--results: must be a folder, got {written}; URLs are not supported yet")
    return Path(written)


class Store:
    """All trials under one results folder, shared by its sweeps."""

    def __init__(self, results: Path) -> None:
        self.results = results

    def trial(self, trial_id: str) -> "TrialFolder":
        return TrialFolder(self.results / "trials" / trial_id)

    def trials(self) -> Iterator["TrialFolder"]:
        folder = self.results / "trials"
        for path in sorted(folder.iterdir()) if folder.is_dir() else ():
            if (path / "recipe.json").exists():
                yield TrialFolder(path)


class TrialFolder:
    """One recipe run once."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.trial_id = path.name
        self.weights = path / "weights.safetensors"
        self.predictions = path / "predictions.npz"

    def recipe(self) -> Row | None:
        path = self.path / "recipe.json"
        return read_json(path) if path.exists() else None

    def write_recipe(self, row: Row) -> None:
        write_json(self.path / "recipe.json", {"schema": SCHEMA, **row})

    def epochs(self) -> list[Row]:
        return read_rows(self.path / "epochs.jsonl")

    def append_epoch(self, row: Row) -> None:
        append_row(self.path / "epochs.jsonl", row)

    def keep_epochs(self, count: int) -> None:
        """Drops the rows past epoch `count`: a training that continues from a checkpoint writes them again."""
        rows = [row for row in self.epochs() if row["epoch"] <= count]
        write_bytes(self.path / "epochs.jsonl", "".join(json.dumps(row) + "\n" for row in rows).encode())

    def outcome(self) -> Row | None:
        path = self.path / "outcome.json"
        return read_json(path) if path.exists() else None

    def write_outcome(self, row: Row) -> None:
        write_json(self.path / "outcome.json", {"schema": SCHEMA, **row})

    def remove_outcome(self) -> None:
        """For a training that goes on: a cut from now on must not leave an outcome that its rows contradict."""
        (self.path / "outcome.json").unlink(missing_ok=True)

    def write_checkpoint(self, step: int, data: bytes) -> None:
        """Keeps it and the one before it; the name carries the digest of the bytes, so damage shows.

        Later ones are damaged, or the training would not have gone back to this step.
        """
        of_step = f"checkpoint-{step:09d}-"
        written = self.path / f"{of_step}{_digest(data)}.safetensors"
        write_bytes(written, data)
        earlier = [path for path in self._checkpoints() if path.name < of_step]
        torn = self.path.glob(".checkpoint-*")  # of a process that was killed while it wrote: they can be large
        for path in {*self._checkpoints(), *torn} - {written, *earlier[-1:]}:
            path.unlink(missing_ok=True)

    def read_checkpoint(self) -> bytes | None:
        """The newest whole checkpoint; one that was cut off or changed is passed over."""
        for path in reversed(self._checkpoints()):
            data = path.read_bytes()
            if path.stem.endswith(_digest(data)):
                return data
        return None

    def remove_checkpoints(self) -> None:
        for path in self._checkpoints():
            path.unlink(missing_ok=True)

    def _checkpoints(self) -> list[Path]:
        return sorted(self.path.glob("checkpoint-*.safetensors"))


def _digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=8).hexdigest()
