"""Optuna studies for one decision each: a trial beside other trials.

A sampler or a pruner that decides about a trial must see exactly the trials that had finished before its batch. To copy
them into a new study for each decision takes time that grows with their number. So the storage here holds only the
trial in question, and refers to the others.
"""

import copy
from bisect import bisect_left
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import optuna
from optuna.pruners import BasePruner
from optuna.samplers import BaseSampler, RandomSampler
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from kdtrain.config.parameter import Values
from kdtrain.config.search_checks import quiet_optuna
from kdtrain.storage.folder import Row


class SharedTrials(optuna.storages.InMemoryStorage):
    """A storage of one study and one trial, which has `number`, beside `others`: it refers to them without a copy.

    Samplers and pruners list trials by `get_all_trials`. Optuna's own in-memory storage, below it, numbers its only
    trial 0. The others have ended or are running.

    Args:
        name: The study's name, from which Hyperband takes a trial's bracket.
        directions: One direction for each objective.
    """

    def __init__(self, name: str, directions: Sequence[StudyDirection]) -> None:
        super().__init__()
        self.others: Sequence[FrozenTrial] = ()
        self.number, self.name = 0, name
        with quiet_optuna():
            self.study_id = self.create_new_study(directions, name)

    def beside(self, others: Sequence[FrozenTrial], number: int) -> "SharedTrials":
        """Return a storage with the same study and its system attributes for another trial."""
        new = copy.deepcopy(self)  # to create a study again takes longer: Optuna logs a line
        new.others, new.number = others, number
        return new

    def get_trial(self, trial_id: int) -> FrozenTrial:
        return self._numbered(super().get_trial(trial_id))

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        trials = [*map(self._numbered, super().get_all_trials(study_id, deepcopy=False, states=states))]
        if states is None:
            trials = [*self.others, *trials]
        elif any(state in states for state in TrialState if state != TrialState.WAITING):
            trials = [*(trial for trial in self.others if trial.state in states), *trials]
        return copy.deepcopy(trials) if deepcopy else trials

    def _numbered(self, trial: FrozenTrial) -> FrozenTrial:
        trial = copy.copy(trial)
        trial.number = self.number
        return trial


class OneTrialStudy:
    """An Optuna study with one trial beside others, and what samplers and pruners keep in it."""

    def __init__(self, storage: SharedTrials, sampler: BaseSampler, pruner: BasePruner) -> None:
        self._storage = storage
        self._study = optuna.load_study(study_name=storage.name, storage=storage, sampler=sampler, pruner=pruner)

    @property
    def study_attributes(self) -> dict[str, Any]:
        """The study's system attributes."""
        return dict(self._storage.get_study_system_attrs(self._storage.study_id))

    @property
    def trial_attributes(self) -> dict[str, Any]:
        """The system attributes of the trial."""
        trial_id = self._storage.get_trial_id_from_study_id_trial_number(self._storage.study_id, 0)
        return dict(self._storage.get_trial(trial_id).system_attrs)

    def ask(self) -> optuna.Trial:
        """Return the trial."""
        return self._study.ask()

    def tell(self, running: FrozenTrial, state: TrialState, values: Sequence[float] | None) -> FrozenTrial:
        """Return a running trial as it is when it has finished; the sampler is informed, as by Optuna."""
        self._study.add_trial(running)
        return self._study.tell(0, values, state)


@dataclass
class FinishedTrials:
    """Finished trials in the order in which decisions see them, with their numbers in the search."""

    numbers: list[int] = field(default_factory=list)
    trials: list[FrozenTrial] = field(default_factory=list)

    def add(self, number: int, trial: FrozenTrial) -> None:
        self.numbers.append(number)
        self.trials.append(trial)

    def before(self, number: int | None) -> list[FrozenTrial]:
        """Return the trials with smaller numbers, which are sorted then, or all if `number` is None."""
        return self.trials[: None if number is None else bisect_left(self.numbers, number)]


class Suggestions:
    """The Optuna study that suggests values. Each suggestion has a sampler of its own, seeded by the trial's number.

    A trial's number in the Optuna study is its place among the trials that the sampler sees. What outlives a sampler is
    in the system attributes of trials and study.

    Args:
        name, directions: See `SharedTrials`.
        sampler: Returns the sampler of a trial of the search.
        pruner: Returns the search's pruner: samplers of Optuna look at its brackets.
    """

    def __init__(
        self,
        name: str,
        directions: Sequence[StudyDirection],
        sampler: Callable[[int], BaseSampler],
        pruner: Callable[[], BasePruner],
    ) -> None:
        self.name = name
        self._empty, self._sampler, self._pruner = SharedTrials(name, directions), sampler, pruner
        self.finished = FinishedTrials()

    def suggest(
        self,
        number: int,
        seen: Sequence[FrozenTrial],
        running: Iterable[FrozenTrial],
        draw: Callable[[optuna.Trial], Values],
    ) -> tuple[Values, Row]:
        """Return the values of a trial, and the system attributes that the sampler has given to trial and study."""
        others = list(seen)
        for trial in running:
            trial.number = len(others)
            others.append(trial)
        study = self._study(number, others)
        before = study.study_attributes
        values = draw(study.ask())
        kept = {key: value for key, value in study.study_attributes.items() if before.get(key) != value}
        attributes = {"trial": study.trial_attributes, "study": kept}
        self.keep(kept)
        return values, {part: own for part, own in attributes.items() if own}

    def keep(self, attributes: Row) -> None:
        """Take system attributes of the study."""
        for key, value in attributes.items():
            self._empty.set_study_system_attr(self._empty.study_id, key, value)

    def tell(self, number: int, running: FrozenTrial, state: TrialState, values: Sequence[float] | None) -> None:
        """Add a trial that has finished, after the sampler has seen it."""
        study = self._study(number, self.finished.trials)
        told = study.tell(running, state, values)
        self.keep(study.study_attributes)
        self.finished.add(
            number,
            FrozenTrial(
                number=len(self.finished.trials),
                trial_id=number + 1,  # the id of the trial in question is 0
                state=told.state,
                value=None,
                values=told.values,
                datetime_start=told.datetime_start,
                datetime_complete=told.datetime_complete,
                params=told.params,
                distributions=told.distributions,
                user_attrs=told.user_attrs,
                system_attrs=told.system_attrs,
                intermediate_values=told.intermediate_values,
            ),
        )

    def _study(self, number: int, others: Sequence[FrozenTrial]) -> OneTrialStudy:
        return OneTrialStudy(self._empty.beside(others, len(others)), self._sampler(number), self._pruner())


class RunningTrial:
    """A running trial beside those that the pruner compares it with.

    `step(epoch)` is the pruner's count of an epoch. `reported` has the objective by epoch, `stop` the epoch at which
    the pruner stopped the trial.
    """

    def __init__(self, study: OneTrialStudy, step: Callable[[int], int]) -> None:
        self._study, self._trial, self._step = study, study.ask(), step
        self.reported: dict[int, float] = {}
        self.stop: int | None = None

    @property
    def attributes(self) -> dict[str, Any]:
        """The system attributes that the pruner has given to the trial."""
        return self._study.trial_attributes

    def continues_as(self, reported: Mapping[int, float]) -> bool:
        """Return True if these epochs begin with those that were reported."""
        return self.reported.items() <= reported.items()

    def report(self, epoch: int, value: float) -> bool:
        """Report an epoch, unless it was reported before; return True if the pruner stops the trial after it."""
        if epoch in self.reported:
            return False
        self.reported[epoch] = value
        self._trial.report(value, self._step(epoch))
        return self._trial.should_prune()


class Pruning:
    """The Optuna study that prunes. A trial has its number in the search, which decides its bracket of Hyperband."""

    def __init__(self, name: str, direction: StudyDirection, pruner: Callable[[], BasePruner]) -> None:
        self._empty, self._pruner = SharedTrials(name, [direction]), pruner
        self.finished = FinishedTrials()

    def begin(self, number: int, seen: Sequence[FrozenTrial], step: Callable[[int], int]) -> RunningTrial:
        """Return a trial without epochs beside those that it is compared with."""
        storage = self._empty.beside(seen, number)
        return RunningTrial(OneTrialStudy(storage, RandomSampler(seed=0), self._pruner()), step)
