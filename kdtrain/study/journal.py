"""A study's own record: record.jsonl, every event appended. The folder belongs to one recipe and one study."""

import time
from pathlib import Path
from typing import Any

from kdtrain.errors import UserError
from kdtrain.storage.folder import Folder, LocalFolder, Row
from kdtrain.trials.store import SCHEMA, json_bytes, read_object

FILE = "record.jsonl"


class StudyJournal:
    """What was planned and how it ended, by (stage, number); kept in memory as in the file."""

    def __init__(self, folder: Path | Folder) -> None:
        self.files = folder if isinstance(folder, Folder) else LocalFolder(folder)
        self.folder = self.files.path
        self.path = self.folder / FILE
        self._plans: dict[tuple[str, int], Row] = {}
        self._ends: dict[tuple[str, int], Row] = {}
        self._said: dict[str, Row] = {}  # by event, since a job was last planned or ended
        for row in self.files.rows(FILE):
            self._keep(row)

    def open(self, about: Row, file_text: str) -> None:
        """Claims the folder for a study, or finds it claimed by the same one; raises UserError where it is another's.

        about: study.json without its schema. Only `study.trials` may differ, and only grow; resources, report and
        where the file lay may differ freely.
        """
        earlier = read_object(self.files, "study.json")
        if earlier is not None:
            problems = _differences(_owned(earlier), _owned(about))
            before, now = earlier["study"]["trials"], about["study"]["trials"]
            if now < before:
                problems.append(f"study.trials was {before} and can only grow, got {now}")
            if problems:
                raise UserError(
                    f"{self.files} holds another study of this name: {'; '.join(problems)}; "
                    "name another folder with --results"
                )
        self.files.write("study.json", json_bytes({"schema": SCHEMA, **about}), durable=True)
        self.files.write("sweep.yaml", file_text.encode())

    def append(self, event: str, **fields: Any) -> None:
        row = {"event": event, "time": time.time(), **fields}
        self.files.append(FILE, row)
        self._keep(row)

    def is_idle(self) -> bool:
        """Whether nothing was ever tried but, perhaps, the first batches of the smoke stage."""
        return all(stage == "smoke" for stage, _ in self._plans)

    def append_once(self, event: str, **fields: Any) -> None:
        """Appends unless the newest event of this kind says the same and no job was planned or ended since."""
        if self._said.get(event) != fields:
            self.append(event, **fields)

    def note(self, event: str, **about: Any) -> None:
        """Appends what was planned or how it ended, unless that is what the record says already."""
        known = self._kept(event).get((about["stage"], about["number"]))
        if known is None or any(known.get(key) != value for key, value in about.items()):
            self.append(event, **about)

    def planned_values(self, stage: str, number: int) -> dict[str, Any] | None:
        """The values that were drawn for this trial at an earlier start, if any were."""
        row = self._plans.get((stage, number))
        return row["values"] if row else None

    def trial_ids(self) -> list[str]:
        """Of all that was planned, each once."""
        return list(dict.fromkeys(row["trial_id"] for row in self._plans.values() if row["trial_id"] is not None))

    def ends(self, stage: str) -> dict[int, Row]:
        """How each job of a stage ended, by number."""
        return {number: row for (own, number), row in self._ends.items() if own == stage}

    def _keep(self, row: Row) -> None:
        if row["event"] not in ("planned", "ended"):
            self._said[row["event"]] = {key: value for key, value in row.items() if key not in ("event", "time")}
            return
        self._kept(row["event"])[row["stage"], row["number"]] = row
        if row["stage"] != "pictures":  # they follow the winner
            self._said.clear()

    def _kept(self, event: str) -> dict[tuple[str, int], Row]:
        return self._plans if event == "planned" else self._ends


def _owned(about: Row) -> Row:
    study = {key: value for key, value in about["study"].items() if key != "trials"}
    return {"recipe": about["recipe"], "study": study}


def _differences(before: Any, now: Any, place: str = "") -> list[str]:
    """Where two trees differ, as sentences."""
    if isinstance(before, dict) and isinstance(now, dict):
        found = []
        for key in sorted(before.keys() | now.keys()):
            found += _differences(before.get(key), now.get(key), f"{place}.{key}" if place else key)
        return found
    return [] if before == now else [f"{place} was {before!r}, is {now!r}"]
