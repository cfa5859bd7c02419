"""The journal of a study: record.jsonl, to which every event is appended."""

import re
import time
from pathlib import Path
from typing import Any, cast

from kdtrain.errors import UserError
from kdtrain.models.config import Network
from kdtrain.storage.folder import Folder, LocalFolder, Row, digest, remove_temporary
from kdtrain.storage.sealed import sealed_object
from kdtrain.trials.records import (
    EVENT_KEYS,
    BudgetEndEvent,
    EndedEvent,
    PlannedEvent,
    StudyRecord,
    WarmStartEvent,
    network_name,
)
from kdtrain.trials.store import RECORD, STUDY_SCHEMA, is_broken, read_events, read_study_record

FILE = RECORD
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
        self._newest: dict[str, dict[tuple[Any, ...], Row]] = {event: {} for event in EVENT_KEYS}
        self._planned_anew: set[tuple[Any, ...]] = set()  # jobs whose newest end belongs to an earlier plan
        self._others: dict[str, Row] = {}  # the newest of each other event since a job was last planned or ended
        for row in read_events(self.files):
            self._remember(row)

    def open(self, about: StudyRecord, file_text: str) -> None:
        """Take the folder for a study: write its study.json and sweep.yaml.

        `study.trials` and `study.confirm.seeds` may have grown, or gone back to what has been trained or to what they
        were when the test split was read; resources, report and the place of the sweep file may differ.

        Raises:
            UserError: The folder holds another study, or files of somebody else that the study would overwrite.
        """
        self.description = about
        remove_temporary(self.folder)
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
            tested = self._newest["tested"].get((), {})
            sizes = {  # setting: (what it is now, what has ended, what it was when the test split was read)
                "trials": (about["study"]["trials"], self._ended_trials(), tested.get("trials")),
                "confirm.seeds": (about["study"]["confirm"]["seeds"], self._ended_seeds(), tested.get("seeds")),
            }
            too_few = [
                f"study.{name} must be >= {ended}, the number that has been trained, got {now}"
                for name, (now, ended, whole) in sizes.items()
                if now is not None and now < ended and now != whole  # a budget alone sets no number
            ]
            if problems:
                raise UserError(
                    f"{self.files} holds another study of this name: {'; '.join(problems)}; "
                    "name another folder with --results"
                )
            if too_few:
                raise UserError(f"{self.files} goes on with larger numbers only: {'; '.join(too_few)}")
        self.files.write("study.json", sealed_object({"schema": STUDY_SCHEMA, **about}), durable=True)
        self.files.write("sweep.yaml", file_text.encode())

    def study_record(self) -> StudyRecord | None:
        """Return study.json, or None in a new folder."""
        return cast(StudyRecord | None, read_study_record(self.files))

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
        """Append one of the events of EVENT_KEYS, unless the journal's newest one has these fields already."""
        key = tuple(fields[name] for name in EVENT_KEYS[event])
        known = self._newest[event].get(key)
        is_older = event == "ended" and key in self._planned_anew
        if known is None or is_older or any(known.get(key) != value for key, value in fields.items()):
            self.append(event, **fields)

    def has_completed(self, **planned: Any) -> bool:
        """Return True if the job that was planned with these fields is complete."""
        key = planned["stage"], planned["number"]
        plan, end = self._newest["planned"].get(key, {}), self._newest["ended"].get(key)
        as_planned = all(plan.get(name) == value for name, value in planned.items())
        is_its_end = end is not None and end["state"] == "complete" and key not in self._planned_anew
        return as_planned and is_its_end

    def events(self) -> list[Row]:
        """Return every event, in order."""
        return read_events(self.files)

    def digest(self) -> str:
        """Return what identifies the study and all its events, except that it was opened again."""
        events = [row for row in self.events() if row["event"] != "opened"]
        return digest(sealed_object({"study": self.study_record(), "events": events}))

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
        return all(stage == "smoke" for stage, _ in self._newest["planned"])

    def remove(self) -> None:
        """Remove `FILES`, and the folder if nothing else is in it."""
        for name in FILES:
            self.files.remove(name)
        self.files.remove_if_empty()

    def plan(self, stage: str, number: int) -> PlannedEvent | None:
        """Return the newest "planned" event of a job, or None."""
        return cast(PlannedEvent | None, self._newest["planned"].get((stage, number)))

    def trial_ids(self) -> list[str]:
        """Return the distinct trial ids of all planned jobs."""
        return list(
            dict.fromkeys(row["trial_id"] for row in self._newest["planned"].values() if row["trial_id"] is not None)
        )

    def end(self, stage: str, number: int) -> EndedEvent | None:
        """Return the newest "ended" event of a job, or None."""
        return cast(EndedEvent | None, self._newest["ended"].get((stage, number)))

    def ends(self, stage: str) -> dict[int, EndedEvent]:
        """Return the newest "ended" event of each job of a stage, by number."""
        return {number: cast(EndedEvent, row) for (own, number), row in self._newest["ended"].items() if own == stage}

    def latency_ms(self, network: Network) -> float | None:
        """Return the measured latency of a network, or None."""
        event = self._newest["latency"].get(tuple(timed_network(network).values()))
        return None if event is None else float(event["latency_ms"])

    def winner(self) -> str | None:
        """Return the key of the winning candidate, or None before the stage select has ended."""
        event = self._newest["winner"].get(())
        return None if event is None else str(event["candidate"])

    def budget_end(self, stage: str) -> BudgetEndEvent | None:
        """Return the newest event that `study.budget` has ended a stage, or None."""
        return cast(BudgetEndEvent | None, self._newest["budget_end"].get((stage,)))

    def warm_start(self, folder: str) -> WarmStartEvent | None:
        """Return the event that notes which trials of another sweep's folder the samplers were shown, or None."""
        return cast(WarmStartEvent | None, self._newest["warm_start"].get((folder,)))

    def note_tested(self, seeds: int) -> None:
        """Note that the test split was read after so many trials and confirming seeds, and if they have grown since.

        More trials may have changed the winner, so further seeds of the same winner are noted only without them.
        """
        before, trials = self._newest["tested"].get(()), self._searched()
        self.note("tested", seeds=seeds, trials=trials)
        if before is not None and before["trials"] < trials:
            self.append("trials_grown", **{"from": before["trials"], "to": trials})
        elif before is not None and before["seeds"] < seeds:
            self.append("seeds_grown", **{"from": before["seeds"], "to": seeds})

    def _searched(self) -> int:
        """Return the number of trials of the search, without those that were planned when it was larger."""
        planned = len([stage for stage, _ in self._newest["planned"] if stage == "search"])
        written = self.description["study"]["trials"] if self.description is not None else None
        return planned if written is None else min(planned, int(written))

    def _ended_trials(self) -> int:
        """Return the least number of trials with which no trained one is left out."""
        return max((number + 1 for number, row in self.ends("search").items() if row["state"] != "broken"), default=0)

    def _ended_seeds(self) -> int:
        """Return the number of confirming seeds that have been trained."""
        ended = {number for number, row in self.ends("confirm").items() if row["state"] != "broken"}
        planned = self._newest["planned"]
        return len({planned["confirm", number]["seed"] for number in ended if ("confirm", number) in planned})

    def _remember(self, row: Row) -> None:
        if row["event"] == "ended" and row["trial_id"] is not None and is_broken(row):
            row["state"] = "broken"  # of a journal that called it failed
        event = row["event"]
        if event == "planned":
            self._planned_anew.add((row["stage"], row["number"]))
        elif event == "ended":
            self._planned_anew.discard((row["stage"], row["number"]))
        if event in EVENT_KEYS:
            self._newest[event][tuple(row.get(name) for name in EVENT_KEYS[event])] = row
        else:
            self._others[event] = {key: value for key, value in row.items() if key not in ("event", "time")}
        if event in ("planned", "ended") and row["stage"] != "pictures":  # pictures follow what they show
            self._others.clear()


def timed_network(network: Network) -> dict[str, Any]:
    """Return the fields of the event "latency" that say which network it is of; weights do not change its time."""
    return {
        "model": network_name(network.model_dump()),
        "head": network.head,
        "channels_last": network.channels_last,
    }


def _identity(about: StudyRecord) -> Row:
    """Return the part of study.json that must stay the same."""
    study = {key: value for key, value in about["study"].items() if key != "trials"}
    study["confirm"] = {key: value for key, value in study["confirm"].items() if key != "seeds"}
    return {"recipe": about["recipe"], "study": study, "own_code": about.get("own_code", {})}


def _differences(before: Any, now: Any, place: str = "") -> list[str]:
    """Return a text for each place at which two trees differ."""
    if isinstance(before, dict) and isinstance(now, dict):
        found = []
        for key in sorted(before.keys() | now.keys()):
            found += _differences(before.get(key), now.get(key), f"{place}.{key}" if place else key)
        return found
    return [] if before == now else [f"{place} was {before!r}, is {now!r}"]
