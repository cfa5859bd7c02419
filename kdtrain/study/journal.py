"""The journal of a study: record.jsonl, to which every event is appended."""

import re
import time
from pathlib import Path
from typing import Any, cast

from kdtrain.errors import UserError
from kdtrain.storage.folder import Folder, LocalFolder, Row, digest
from kdtrain.trials.records import EndedEvent, PlannedEvent, StudyRecord
from kdtrain.trials.store import SCHEMA, is_broken, json_bytes, read_object

FILE = "record.jsonl"
ERRORS = "errors"
"""The folder of the tracebacks of jobs that broke."""
FILES = ("study.json", "sweep.yaml", FILE, "ray.log")
"""What a study has written before its first training."""
WRITTEN = ("sweep.yaml", "report.md", "trials.csv", "best.yaml")
"""What a study writes for its user. In a folder without a journal they are somebody else's."""


class StudyJournal:
    """The events of a study: what was planned, how it ended, and the winner. It owns the study's folder."""

    def __init__(self, folder: Path | Folder) -> None:
        self.files = folder if isinstance(folder, Folder) else LocalFolder(folder)
        self.folder = self.files.path
        self.path = self.folder / FILE
        self.description: StudyRecord | None = None  # of the study that has taken the folder
        self._plans: dict[tuple[str, int], PlannedEvent] = {}  # by (stage, number)
        self._ends: dict[tuple[str, int], EndedEvent] = {}
        self._others: dict[str, Row] = {}  # the newest of each other event since a job was last planned or ended
        for row in self.files.rows(FILE):
            self._remember(row)

    def open(self, about: StudyRecord, file_text: str) -> None:
        """Take the folder for a study: write its study.json and sweep.yaml.

        `study.trials` may have grown; resources, report and the place of the sweep file may differ.

        Raises:
            UserError: The folder holds another study, or files of somebody else that the study would overwrite.
        """
        self.description = about
        earlier = self.study_record()
        if earlier is None and not self.files.has(FILE):
            foreign = [name for name in WRITTEN if self.files.has(name)]
            if foreign:
                raise UserError(
                    f"{self.files} holds {', '.join(foreign)}, which no sweep has written; move them, or name another"
                    " folder with --results"
                )
        if earlier is not None:
            problems = _differences(_identity(earlier), _identity(about))
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

    def study_record(self) -> StudyRecord | None:
        """Return study.json, or None in a new folder."""
        return cast(StudyRecord | None, read_object(self.files, "study.json"))

    def append(self, event: str, **fields: Any) -> None:
        """Append an event with the present time."""
        row = {"event": event, "time": time.time(), **fields}
        self.files.append(FILE, row)
        self._remember(row)

    def append_once(self, event: str, **fields: Any) -> None:
        """Append an event, unless the newest one of this kind is equal and no job was planned or ended since."""
        if self._others.get(event) != fields:
            self.append(event, **fields)

    def note(self, event: str, **fields: Any) -> None:
        """Append a job's "planned" or "ended" event, unless the journal's newest one has these fields already."""
        known = self._events(event).get((fields["stage"], fields["number"]))
        if known is None or any(known.get(key) != value for key, value in fields.items()):
            self.append(event, **fields)

    def has_completed(self, **planned: Any) -> bool:
        """Return True if the job that was planned with these fields is complete."""
        key = planned["stage"], planned["number"]
        plan, end = self._events("planned").get(key, {}), self._ends.get(key)
        as_planned = all(plan.get(name) == value for name, value in planned.items())
        return as_planned and end is not None and end["state"] == "complete"

    def digest(self) -> str:
        """Return what identifies the study and all its events, except that it was opened again."""
        events = [row for row in self.files.rows(FILE) if row["event"] != "opened"]
        return digest(json_bytes({"study": self.study_record(), "events": events}))

    def write_error(self, job: str, text: str) -> str:
        """Write the traceback of a job that broke; return the file's name.

        The name is `errors/<job>-<attempt>.txt`; attempts are counted over all starts of the study.
        """
        folder = self.files.folder(ERRORS)
        found = [re.fullmatch(rf"{re.escape(job)}-(\d+)\.txt", name) for name in folder.names(f"{job}-*.txt")]
        name = f"{job}-{max((int(attempt[1]) for attempt in found if attempt), default=0) + 1}.txt"
        folder.write(name, f"{text.rstrip()}\n".encode())
        return f"{ERRORS}/{name}"

    def is_idle(self) -> bool:
        """Return True if no training was ever planned; preflight checks may have been."""
        return all(stage == "smoke" for stage, _ in self._plans)

    def remove(self) -> None:
        """Remove `FILES`, and the folder if nothing else is in it."""
        for name in FILES:
            self.files.remove(name)
        self.files.remove_if_empty()

    def plan(self, stage: str, number: int) -> PlannedEvent | None:
        """Return the newest "planned" event of a job, or None."""
        return self._plans.get((stage, number))

    def trial_ids(self) -> list[str]:
        """Return the distinct trial ids of all planned jobs."""
        return list(dict.fromkeys(row["trial_id"] for row in self._plans.values() if row["trial_id"] is not None))

    def end(self, stage: str, number: int) -> EndedEvent | None:
        """Return the newest "ended" event of a job, or None."""
        return self._ends.get((stage, number))

    def ends(self, stage: str) -> dict[int, EndedEvent]:
        """Return the newest "ended" event of each job of a stage, by number."""
        return {number: row for (own, number), row in self._ends.items() if own == stage}

    def _remember(self, row: Row) -> None:
        if row["event"] == "ended" and row["trial_id"] is not None and is_broken(row):
            row["state"] = "broken"  # of a journal that called it failed
        if row["event"] not in ("planned", "ended"):
            self._others[row["event"]] = {key: value for key, value in row.items() if key not in ("event", "time")}
            return
        self._events(row["event"])[row["stage"], row["number"]] = row
        if row["stage"] != "pictures":  # pictures follow the winner, so they do not make its event outdated
            self._others.clear()

    def _events(self, event: str) -> dict[tuple[str, int], Row]:
        return cast(dict[tuple[str, int], Row], self._plans if event == "planned" else self._ends)


def _identity(about: StudyRecord) -> Row:
    """Return the part of study.json that must stay the same."""
    study = {key: value for key, value in about["study"].items() if key != "trials"}
    return {"recipe": about["recipe"], "study": study}


def _differences(before: Any, now: Any, place: str = "") -> list[str]:
    """Return a text for each place at which two trees differ."""
    if isinstance(before, dict) and isinstance(now, dict):
        found = []
        for key in sorted(before.keys() | now.keys()):
            found += _differences(before.get(key), now.get(key), f"{place}.{key}" if place else key)
        return found
    return [] if before == now else [f"{place} was {before!r}, is {now!r}"]
