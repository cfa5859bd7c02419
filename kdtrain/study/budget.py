"""What a study has spent of `study.budget`, and what is left of the share of a stage."""

import time
from collections.abc import Callable, Iterable, Sequence

from kdtrain.config.budget_checks import kept_epochs, share_end
from kdtrain.config.study_settings import Budget
from kdtrain.config.sweep import Sweep
from kdtrain.storage.folder import Row
from kdtrain.study.jobs import Job

STAGES = ("baselines", "search", "select", "confirm")
"""The stages whose epochs count. A teacher may have been trained by another study."""
HOUR_S = 3600


class Account:
    """What a study spends of its budget.

    Epochs are counted as trials have them, whoever has trained them: so a study that was cut off decides the same. Time
    is counted as this study has taken it. How much a training will take is known for epochs; of time it is estimated by
    the pace so far.
    """

    def __init__(
        self, budget: Budget, kept_epochs: int, events: Sequence[Row] = (), now: Callable[[], float] = time.time
    ) -> None:
        """Take the events of the journal so far, and the clock of the journal's times."""
        self.budget, self._kept_epochs, self.now = budget, kept_epochs, now
        starts = [row["time"] for row in events if row["event"] == "opened"]
        self._opened = starts[-1] if starts else now()
        self._closed_s = wall_seconds(row for row in events if row["time"] < self._opened)
        first = next((i for i, row in enumerate(events) if row["event"] == "planned" and row["stage"] in STAGES), None)
        self._before_s = None if first is None else wall_seconds(events[: first + 1])  # the first training of a student
        self._running: dict[str, int] = {}  # upper bounds of epochs
        self._ended: dict[str, int] = {}  # epochs
        self._trained: dict[str, tuple[int, float]] = {}  # epochs and seconds of what this study has trained itself
        self._seconds: dict[str, float] = {}  # of running trainings
        for row in events:
            if row["event"] == "ended" and "seconds" in row:
                self._trained[f"{row['stage']}-{row['number']}"] = row["epochs"], row["seconds"]

    @property
    def repeatable(self) -> bool:
        return self.budget.unit == "epochs"

    @property
    def spent(self) -> float:
        """What is spent so far, in the budget's unit."""
        if self.budget.unit == "hours":
            return self._wall_s / HOUR_S
        if self.budget.unit == "gpu_hours":
            ended = sum(seconds for _, seconds in self._trained.values())
            return (ended + sum(self._seconds.values())) / HOUR_S
        return sum(self._ended.values())

    def begin(self, job: Job) -> None:
        """Count a training of a student that begins, with the most epochs that it can have."""
        if job.stage in STAGES:
            self._before_s = self._wall_s if self._before_s is None else self._before_s
            self._running[job.key] = job.recipe.epochs

    def measure(self, job: Job, seconds: float) -> None:
        """Count the seconds of a training that runs, times its GPUs."""
        self._seconds[job.key] = seconds

    def end(self, job: Job, epochs: int, seconds: float | None) -> None:
        """Count a training that has ended; `seconds` is None if this study has not trained it."""
        self._running.pop(job.key, None)
        self._seconds.pop(job.key, None)
        if job.stage in STAGES:
            self._ended[job.key] = epochs
        if seconds is not None:
            self._trained[job.key] = epochs, seconds

    def fits(self, stage: str, epochs: int) -> bool:
        """Return True if so many more epochs fit into what is left of a stage's share; in time at the pace so far."""
        expected = (epochs + sum(self._running.values())) * self._pace
        return not self.is_over(stage) and self.spent + expected <= self.share_end(stage)

    def is_over(self, stage: str) -> bool:
        """Return True if the share of a stage has ended."""
        return self.spent >= self.share_end(stage)

    def share_end(self, stage: str) -> float:
        """Return how much may be spent when the share of a stage ends."""
        return share_end(stage, self.budget.total, self._kept_epochs * self._pace)

    @property
    def text(self) -> str:
        """Return `12 of 40 epochs`."""
        return f"{self.spent:.4g} of {self.budget.total:g} {self.budget.unit}"

    @property
    def _wall_s(self) -> float:
        return self._closed_s + self.now() - self._opened

    @property
    def _pace(self) -> float:
        """What an epoch takes, in the budget's unit; 0 if that is not known yet."""
        if self.repeatable:
            return 1.0
        own = [pair for key, pair in self._trained.items() if key.rpartition("-")[0] in STAGES]
        epochs = sum(epochs for epochs, _ in own)
        if not epochs:
            return 0.0
        if self.budget.unit == "gpu_hours":
            return sum(seconds for _, seconds in own) / HOUR_S / epochs
        return (self._wall_s - (self._before_s or 0.0)) / HOUR_S / epochs


def wall_seconds(events: Iterable[Row]) -> float:
    """Return the seconds from each `opened` to the last event before the next one."""
    total, opened, last = 0.0, None, 0.0
    for row in events:
        if row["event"] == "opened":
            total, opened = total + (0.0 if opened is None else last - opened), row["time"]
        last = row["time"]
    return total + (0.0 if opened is None else last - opened)


def open_account(sweep: Sweep, events: Sequence[Row]) -> Account | None:
    """Return the account of a study with these events, or None without a budget."""
    if sweep.study.budget is None:
        return None
    return Account(sweep.study.budget, kept_epochs(sweep.study, sweep.tree), events)
