"""One search of a study: Optuna suggests the values of its trials and prunes them. Nothing is stored here.

A suggestion is a function of (study seed, stage, number, trials that had finished before its batch). A pruning decision
is a function of the trial's own epochs and of earlier batches. So a search can be rebuilt from the trials' rows after
any kill, and the order in which the trials of a batch finish changes nothing.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import optuna
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from kdtrain.config import space
from kdtrain.config.parameter import Values
from kdtrain.config.recipe import Recipe
from kdtrain.config.search_settings import GridSampler, step_of
from kdtrain.config.sweep import Sweep
from kdtrain.runtime.rng import stream
from kdtrain.storage.folder import Row
from kdtrain.study.optuna_parts import build_pruner, build_sampler
from kdtrain.trials.objectives import HIGHER_IS_BETTER
from kdtrain.trials.records import EpochRow

STATES = {"complete": TrialState.COMPLETE, "pruned": TrialState.PRUNED, "failed": TrialState.FAIL}


@dataclass
class RunningTrial:
    """A running trial beside those that the pruner compares it with: last reported epoch, and where it was stopped."""

    trial: optuna.Trial
    epoch: int = 0
    stop: int | None = None


@dataclass
class Search:
    """The search of a stage ("search" or "baselines") over a sweep's tree; published points are its first trials.

    `planned` has the trials by number, `values` the objectives of the complete ones. `_finished` has all in the order
    in which they finished; `_told` those that are yet to join it, which takes a search that has ended seconds.
    """

    stage: str
    sweep: Sweep
    planned: dict[int, Values] = field(default_factory=dict)
    values: dict[int, float] = field(default_factory=dict)
    _finished: dict[int, FrozenTrial] = field(default_factory=dict)
    _told: list[tuple[int, str, float | None, Sequence[EpochRow]]] = field(default_factory=list)
    _running: dict[int, RunningTrial] = field(default_factory=dict)

    @property
    def trials(self) -> int:
        """The number of trials: the study's, or fewer if the space (or its grid) has fewer points."""
        study = self.sweep.study
        if not self.sweep.parameters:
            return 1
        if isinstance(study.sampler, GridSampler):
            size = space.grid_size(self.sweep.tree, study.sampler.points)
            return min(study.trials, len(self.sweep.published) + size)
        return study.trials

    def recipe(self, number: int) -> Recipe:
        """Return a planned trial's recipe with the study's seed; UserError if the values do not go together."""
        return self.sweep.recipe_for(self.planned[number], self.sweep.study.seed)

    def batch_of(self, number: int) -> range:
        """Return the numbers of the trials that are suggested together, before any of them has finished."""
        size = self.sweep.study.batch if self.sweep.study.order == "batches" else 1
        start = number - number % size
        return range(start, min(start + size, self.trials))

    def suggest(self, number: int) -> Values:
        """Return the values of a trial; the sampler sees the earlier trials of its batch as running ones."""
        first = self.sweep.published
        if number < len(first):
            return first[number]
        if isinstance(self.sweep.study.sampler, GridSampler):
            return space.grid(self.sweep.tree, self.sweep.study.sampler.points)[number - len(first)]
        study = self._study(
            self._finished_before(number),
            build_sampler(self.sweep, stream(self.sweep.study.seed, self.stage, number) % 2**32),
        )
        start = self.batch_of(number).start
        for other, values in sorted(self.planned.items()):
            if other < number and (other >= start or other not in self._finished):
                study.add_trial(self._frozen(values, TrialState.RUNNING, None, {}, {}))
        return space.suggest(study.ask(), self.sweep.tree)

    def pruned_at(self, number: int, rows: Sequence[EpochRow]) -> int | None:
        """Return the epoch at which the pruner stops a running trial, or None.

        Each epoch is reported once and in order, so the decision does not depend on how many rows there are at a call.
        If there are fewer rows than before, the training has gone back to an earlier checkpoint, perhaps on another
        machine: all its epochs are then reported again.
        """
        again = bool(rows) and number in self._running and rows[-1]["epoch"] < self._running[number].epoch
        if number not in self._running or again:
            self._running[number] = RunningTrial(self._trial_to_prune(number))
        running = self._running[number]
        for row in rows:
            if running.stop is None and row["epoch"] > running.epoch:
                running.epoch = row["epoch"]
                running.stop = running.epoch if self._report(number, running.trial, row) else None
        return running.stop

    def tell(self, number: int, state: str, value: float | None, rows: Sequence[EpochRow]) -> None:
        """Add a trial that has finished, with the objective at its best epoch and the rows of its epochs."""
        self._running.pop(number, None)
        if state == "complete" and value is not None:
            self.values[number] = value
        self._told.append((number, state, value, rows))

    def forget(self, number: int) -> None:
        """Leave out a trial that broke: neither sampler nor pruner takes it into account."""
        self._running.pop(number, None)
        self.planned.pop(number, None)

    def _finished_before(self, number: int) -> list[FrozenTrial]:
        """Return the trials of earlier batches by number, or, in free order, all trials as they finished."""
        told, self._told = self._told, []
        for each in told:
            self._finished[each[0]] = self._as_finished(*each)
        if self.sweep.study.order == "free":
            return list(self._finished.values())
        start = self.batch_of(number).start
        return [trial for other, trial in sorted(self._finished.items()) if other < start]

    def _as_finished(self, number: int, state: str, value: float | None, rows: Sequence[EpochRow]) -> FrozenTrial:
        trial = self._trial_to_prune(number)
        for row in rows:
            self._report(number, trial, row)
        rungs = trial.study.get_trials(deepcopy=False)[-1].system_attrs
        reported = trial.study.get_trials(deepcopy=False)[-1].intermediate_values
        own = value if state == "complete" else None
        return self._frozen(self.planned[number], STATES[state], own, reported, dict(rungs))

    def _trial_to_prune(self, number: int) -> optuna.Trial:
        """Return a new Optuna trial beside those that this trial is compared with for pruning."""
        return self._study(self._finished_before(number), optuna.samplers.RandomSampler(seed=0)).ask()

    def _report(self, number: int, trial: optuna.Trial, row: EpochRow) -> bool:
        epochs = space.resolve(self.sweep.tree, self.planned[number]).tree["epochs"]
        step = step_of(self.sweep.study.pruner, row["epoch"], epochs)
        trial.report(float(row[self.sweep.study.objective]), step)
        return trial.should_prune()

    def _study(self, trials: Sequence[FrozenTrial], sampler: optuna.samplers.BaseSampler) -> optuna.Study:
        maximize = HIGHER_IS_BETTER[self.sweep.study.objective]
        direction = StudyDirection.MAXIMIZE if maximize else StudyDirection.MINIMIZE
        with _quiet_optuna():  # it logs a line for each study, and each decision makes one
            study = optuna.create_study(sampler=sampler, pruner=build_pruner(self.sweep), direction=direction)
        study.add_trials(trials)
        return study

    def _frozen(
        self, values: Values, state: TrialState, value: float | None, reported: dict[int, float], rungs: Row
    ) -> FrozenTrial:
        return optuna.create_trial(
            state=state,
            params=values,
            distributions=space.distributions(self.sweep.tree, values),
            value=value,
            intermediate_values=reported,
            system_attrs=rungs,
        )


@contextmanager
def _quiet_optuna() -> Iterator[None]:
    """Keep Optuna from logging below WARNING for a while."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(max(before, optuna.logging.WARNING))
    try:
        yield
    finally:
        optuna.logging.set_verbosity(before)
