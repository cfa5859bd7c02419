"""The units of work that a study hands to an executor."""

from collections.abc import Generator, Sequence
from dataclasses import dataclass, field

from kdtrain.config.recipe import Recipe
from kdtrain.storage.folder import Row
from kdtrain.trials.records import JobEnd

WITH_OUTCOME = ("train", "evaluate")
"""The kinds of jobs whose outcome the store has."""
STOPPED_BY_BUDGET = "stopped by study.budget"
"""The reason of a pruned trial that study.budget has ended, before its epoch."""
WITHOUT_EVENTS = ("test", "latency")
"""The kinds of jobs that the journal does not hold: the report counts tests to the stage confirm, and a latency has an
event of its own."""
JobStream = Generator["Job | None", None, None]
"""Jobs to be handed out; None if a running job must end before the next one."""
TrainingStream = Generator["Job | None", None, "list[Job]"]


@dataclass(frozen=True)
class Job:
    """A unit of work for an executor.

    Its kind is "smoke", "latency", "train", "evaluate" (a finished teacher), "test" or "pictures". A `final` training
    keeps its weights. `trained` are the recipes whose test split is read, or that are shown side by side; `recipe` is
    then the winner's. `details` join the job's "planned" event. A job that ran out of a GPU's memory is handed out
    again as `alone`: no other job may use its GPU meanwhile.
    """

    stage: str
    number: int
    recipe: Recipe
    trial_id: str
    kind: str = "train"
    final: bool = False
    prunable: bool = False
    trained: tuple[Recipe, ...] = ()
    alone: bool = False
    details: Row = field(default_factory=dict, compare=False)

    @property
    def key(self) -> str:
        """The job's name in its study, such as "search-3"."""
        return f"{self.stage}-{self.number}"

    @property
    def about(self) -> Row:
        """The fields that every journal event of this job has."""
        return {"stage": self.stage, "number": self.number, "trial_id": self.trial_id}


@dataclass(frozen=True)
class Broken:
    """Why a job broke: anything but an outcome of its recipe, such as a bug, a full disk or a killed process.

    `traceback` is None if the process ended without one, or if the reason is a mistake of the user (`users`).
    """

    reason: str
    traceback: str | None = None
    out_of_memory: bool = False
    users: bool = False


def advice(ends: Sequence[JobEnd]) -> str:
    """Return what the user can do about jobs that did not complete."""
    if any(end["state"] == "broken" for end in ends):
        return "the same command tries again what broke"
    if any(str(end["reason"]).startswith(STOPPED_BY_BUDGET) for end in ends):
        return "write a larger study.budget, and another folder with --results"
    return "the same command gives the same; change the recipe, for example its learning rate"
