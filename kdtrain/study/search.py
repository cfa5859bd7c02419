"""One search of a study: what to try next, and what is not worth finishing. Optuna decides; nothing is stored here.

A suggestion is a function of (study seed, stage, number, what had ended before its batch), and a pruning decision one
of the trial's own epochs and of earlier batches. So a search can be rebuilt from the trials' rows after any kill, and
which trial happens to finish first changes nothing.
"""

import logging
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import optuna
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from kdtrain.config import space
from kdtrain.config.recipe import Recipe
from kdtrain.config.study_settings import GridSampler, Tpe
from kdtrain.config.sweep import Sweep
from kdtrain.runtime.rng import stream
from kdtrain.storage.folder import Row
from kdtrain.trials.records import EpochRow

optuna.logging.set_verbosity(logging.WARNING)
Values = dict[str, Any]
STATES = {"complete": TrialState.COMPLETE, "pruned": TrialState.PRUNED, "failed": TrialState.FAIL}


@dataclass
class Judged:
    """A running trial among those it is compared with: its rows so far, and the epoch at which it was to stop."""

    trial: optuna.Trial
    epoch: int = 0
    stop: int | None = None


@dataclass
class Search:
    """`ended` holds, by number, every trial that has ended; `planned` the values of every trial that was planned."""

    stage: str
    sweep: Sweep  # its tree is searched; its published points are tried before anything is suggested
    planned: dict[int, Values] = field(default_factory=dict)
    ended: dict[int, FrozenTrial] = field(default_factory=dict)
    order_ended: list[int] = field(default_factory=list)
    judged: dict[int, "Judged"] = field(default_factory=dict)

    @property
    def trials(self) -> int:
        """How many trials this search has: the study's, or fewer where the space (or its grid) holds fewer."""
        study = self.sweep.study
        if not self.sweep.parameters:
            return 1
        if isinstance(study.sampler, GridSampler):
            size = space.grid_size(self.sweep.tree, study.sampler.points)
            return min(study.trials, len(self.sweep.published) + size)
        return study.trials

    def recipe(self, number: int) -> Recipe:
        """The recipe of a planned trial, with the search's one seed."""
        return self.sweep.recipe_for(self.planned[number], self.sweep.study.seed)

    def batch_of(self, number: int) -> range:
        """The numbers that are drawn together: they do not see one another's results."""
        size = self.sweep.study.batch if self.sweep.study.order == "batches" else 1
        start = number - number % size
        return range(start, min(start + size, self.trials))

    def suggest(self, number: int) -> Values:
        """The values of trial `number`; those of its batch before it count as running."""
        first = self.sweep.published
        if number < len(first):
            return first[number]
        if isinstance(self.sweep.study.sampler, GridSampler):
            return space.grid(self.sweep.tree, self.sweep.study.sampler.points)[number - len(first)]
        study = self._study(self._seen_by(number), self._sampler(number))
        start = self.batch_of(number).start
        for other, values in sorted(self.planned.items()):
            if other < number and (other >= start or other not in self.ended):
                study.add_trial(self._frozen(values, TrialState.RUNNING, None, {}, {}))
        return space.suggest(study.ask(), self.sweep.tree)

    def pruned_after(self, number: int, rows: Sequence[EpochRow]) -> int | None:
        """The epoch after which trial `number` is to stop, or None. Every row is judged once, in the order of epochs,
        so it does not matter how many rows there are when the question is asked. Fewer than were judged: they are done
        again, from an earlier checkpoint, and elsewhere they may be others."""
        again = bool(rows) and number in self.judged and rows[-1]["epoch"] < self.judged[number].epoch
        if number not in self.judged or again:
            self.judged[number] = Judged(self._comparison(number))
        judged = self.judged[number]
        for row in rows:
            if judged.stop is None and row["epoch"] > judged.epoch:
                judged.epoch = row["epoch"]
                judged.stop = judged.epoch if self._report(judged.trial, row) else None
        return judged.stop

    def tell(self, number: int, state: str, value: float | None, rows: Sequence[EpochRow]) -> None:
        """Trial `number` has ended."""
        self.judged.pop(number, None)
        comparison = self._comparison(number)
        for row in rows:
            self._report(comparison, row)
        rungs = comparison.study.get_trials(deepcopy=False)[-1].system_attrs
        reported = {int(row["epoch"]): float(row[self.sweep.study.objective]) for row in rows}
        own = value if state == "complete" else None
        self.ended[number] = self._frozen(self.planned[number], STATES[state], own, reported, dict(rungs))
        self.order_ended.append(number)

    def _seen_by(self, number: int) -> list[FrozenTrial]:
        """In batches: everything of earlier batches, by number. Free: whatever has ended, as it came."""
        if self.sweep.study.order == "free":
            return [self.ended[other] for other in self.order_ended]
        start = self.batch_of(number).start
        return [trial for other, trial in sorted(self.ended.items()) if other < start]

    def _comparison(self, number: int) -> optuna.Trial:
        """A fresh Optuna trial among those that trial `number` is compared with when it may be pruned."""
        return self._study(self._seen_by(number), optuna.samplers.RandomSampler(seed=0)).ask()

    def _report(self, trial: optuna.Trial, row: EpochRow) -> bool:
        trial.report(float(row[self.sweep.study.objective]), int(row["epoch"]))
        return trial.should_prune()

    def _study(self, trials: Sequence[FrozenTrial], sampler: optuna.samplers.BaseSampler) -> optuna.Study:
        maximize = self.sweep.study.objective == "val/accuracy"
        direction = StudyDirection.MAXIMIZE if maximize else StudyDirection.MINIMIZE
        study = optuna.create_study(sampler=sampler, pruner=self._pruner(), direction=direction)
        study.add_trials(trials)
        return study

    def _frozen(
        self, values: Mapping[str, Any], state: TrialState, value: float | None, reported: dict[int, float], rungs: Row
    ) -> FrozenTrial:
        return optuna.create_trial(
            state=state,
            params=dict(values),
            distributions=space.distributions(self.sweep.tree, values),
            value=value,
            intermediate_values=reported,
            system_attrs=rungs,
        )

    def _sampler(self, number: int) -> optuna.samplers.BaseSampler:
        seed = stream(self.sweep.study.seed, self.stage, number) % 2**32
        sampler = self.sweep.study.sampler
        if not isinstance(sampler, Tpe):
            return optuna.samplers.RandomSampler(seed=seed)
        with warnings.catch_warnings():  # `group`, which conditional spaces need, has been experimental since 2021
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            return optuna.samplers.TPESampler(
                seed=seed, n_startup_trials=sampler.startup_trials, multivariate=True, group=True
            )

    def _pruner(self) -> optuna.pruners.BasePruner:
        pruner = self.sweep.study.pruner
        if pruner.name == "asha":
            return optuna.pruners.SuccessiveHalvingPruner(pruner.min_epochs, pruner.reduction)
        if pruner.name == "median":
            return optuna.pruners.MedianPruner(pruner.startup_trials, n_warmup_steps=pruner.min_epochs)
        return optuna.pruners.NopPruner()
