"""One search of a study: Optuna suggests the values of its trials and prunes them. Nothing is stored here.

A suggestion is a function of (study seed, stage, number, trials that had finished before its batch). A pruning decision
is a function of the trial's own epochs and of earlier batches. So a search can be rebuilt from the trials' rows after
any kill, and the order in which the trials of a batch finish changes nothing.
"""

import json
import traceback
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property, partial
from itertools import groupby
from pathlib import Path
from typing import Literal

from optuna.pruners import BasePruner
from optuna.samplers import BaseSampler
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial

from kdtrain.config import space
from kdtrain.config.parameter import Label, Parameter, Values
from kdtrain.config.problems import Problem
from kdtrain.config.recipe import Recipe
from kdtrain.config.search_settings import GridSampler, Own, step_of
from kdtrain.config.sweep import Sweep
from kdtrain.errors import UserError
from kdtrain.runtime.own_classes import error_text
from kdtrain.runtime.rng import stream
from kdtrain.storage.folder import Row
from kdtrain.study.front import Costs
from kdtrain.study.optuna_parts import build_pruner, build_sampler
from kdtrain.study.optuna_study import Pruning, RunningTrial, Suggestions
from kdtrain.trials.objectives import HIGHER_IS_BETTER
from kdtrain.trials.records import EpochRow

STATES = {"complete": TrialState.COMPLETE, "pruned": TrialState.PRUNED, "failed": TrialState.FAIL}


@dataclass
class EndedTrial:
    """A trial that has ended, which decisions are yet to see.

    `value` is the objective at the best epoch of a complete trial, `reported` has the objective by epoch. `attributes`
    are those that the pruner gives it; None if it is yet to see all epochs, which would take an ended search seconds.
    """

    number: int
    state: str
    value: float | None
    reported: dict[int, float]
    running: RunningTrial | None
    attributes: Row | None


@dataclass
class Search:
    """The search of a stage ("search" or "baselines") over a sweep's tree; published points are its first trials.

    `planned` has the trials by number, `values` the objectives of the complete ones. `stopped_at` is the number of
    trials if `study.budget` has ended the search. If options are compared, each has a study of its own for pruning,
    and, if they get equal numbers of trials, for suggestions. In a trade-off, which needs `costs` before the first
    trial, suggestions have a second objective, and each band of costs has a study of its own for pruning.
    """

    stage: str
    sweep: Sweep
    planned: dict[int, Values] = field(default_factory=dict)
    values: dict[int, float] = field(default_factory=dict)
    stopped_at: int | None = None
    costs: Costs | None = None
    _suggestions: dict[str | None, Suggestions] = field(default_factory=dict)
    _pruning: dict[str | None, Pruning] = field(default_factory=dict)
    _unfinished: set[int] = field(default_factory=set)  # planned, and running as far as decisions know
    _running: dict[int, RunningTrial] = field(default_factory=dict)
    _ended: dict[int, EndedTrial] = field(default_factory=dict)  # as they ended; decisions do not know of them yet
    _attributes: dict[int, Row] = field(default_factory=dict)  # of suggestions
    _worst: dict[str | None, Sequence[float]] = field(default_factory=dict)  # complete values
    _options: list[Label] = field(default_factory=list)  # by trial, as far as known
    _counts: Counter[str | None] = field(default_factory=Counter)  # of `_options`

    @property
    def trials(self) -> int:
        """The number of trials: the study's, or fewer if the space (or its grid) has fewer points."""
        if self.stopped_at is not None:
            return self.stopped_at
        most = self.sweep.study.most_trials
        if not self.sweep.parameters:
            return 1
        return most if not self._is_grid else min(most, len(self.sweep.first_points) + self._grid_size)

    def recipe(self, number: int) -> Recipe:
        """Return a planned trial's recipe with the study's seed; UserError if the values do not go together."""
        return self.sweep.recipe_for(self.planned[number], self.sweep.study.seed)

    def batch_of(self, number: int) -> range:
        """Return the numbers of the trials that are suggested together, before any of them has finished."""
        size = self.sweep.study.together
        start = number - number % size
        return range(start, min(start + size, self.trials))

    def suggest(self, number: int) -> Values:
        """Return the values of a trial; the sampler sees the earlier trials of its batch as running ones."""
        first = self.sweep.first_points
        if number < len(first):
            return first[number]
        if self._is_grid:
            return self._grid[number - len(first)]
        self._see_what_ended_before(number)
        fixed = self._fixed(number)
        suggestions = self._suggestions_for(fixed)
        with self._blamed_on("sampler"):
            values, attributes = suggestions.suggest(
                number,
                suggestions.finished.before(self._horizon(number)),
                [
                    self._frozen(values)
                    for values in self._running_beside(number)
                    if self._suggestions_for(values) is suggestions
                ],
                lambda trial: space.suggest(trial, self.sweep.tree, fixed),
            )
            space.resolve(self.sweep.tree, values)  # a ValueError if a value is outside of its range
            json.dumps(attributes)  # a TypeError if the journal cannot hold them
        self._attributes[number] = attributes
        return values

    def sampler_attributes(self, number: int) -> Row:
        """Return what the sampler has kept in Optuna's system attributes when it suggested a trial."""
        return self._attributes.get(number, {})

    def plan(self, number: int, values: Values, attributes: Row | None = None) -> None:
        """Take the values of a trial; `attributes` are its `sampler_attributes` if an earlier start suggested them."""
        self.planned[number] = values
        self._unfinished.add(number)
        if attributes:
            self._attributes[number] = attributes
            self._suggestions_for(values).keep(attributes.get("study", {}))

    def pruned_at(self, number: int, rows: Sequence[EpochRow]) -> int | None:
        """Return the epoch at which the pruner stops a running trial, or None.

        Each epoch is reported once and in order, so the decision does not depend on how many rows there are at a call.
        If rows are missing or differ from before, the training has gone back to an earlier checkpoint, perhaps on
        another machine: all its epochs are then reported again.
        """
        reported = self._objectives(rows)
        running = self._running.get(number)
        if running is None or (reported and not running.continues_as(reported)):
            self._see_what_ended_before(number)
            running = self._running[number] = self._begin(number)
        for epoch, value in reported.items():
            with self._blamed_on("pruner"):
                if running.stop is None and running.report(epoch, value):
                    running.stop = epoch
        return running.stop

    def tell(
        self, number: int, state: str, value: float | None, rows: Sequence[EpochRow], attributes: Row | None = None
    ) -> None:
        """Add a trial that has finished, with the objective at its best epoch and the rows of its epochs.

        `attributes` are its `pruner_attributes`, if it has finished at an earlier start.
        """
        running, reported = self._running.pop(number, None), self._objectives(rows)
        if running is not None and not running.continues_as(reported):
            running = None
        own = value if state == "complete" else None
        if own is not None:
            self.values[number] = own
        self._ended[number] = EndedTrial(number, state, own, reported, running, attributes)

    def pruner_attributes(self, number: int) -> Row:
        """Return what the pruner has kept in Optuna's system attributes of a trial; call it right after `tell`."""
        ended = self._ended.pop(number)
        self._see_what_ended_before(number)
        self._ended[number] = ended
        return self._reported(ended)

    def forget(self, number: int) -> None:
        """Leave out a trial that broke: neither sampler nor pruner takes it into account."""
        self._running.pop(number, None)
        self.planned.pop(number, None)
        self._unfinished.discard(number)

    def add_history(self, trials: Sequence[tuple[Values, float]]) -> None:
        """Show the sampler complete trials of other searches, values and objective, before its first suggestion.

        They are in no ranking, and no trial is compared with them for pruning.
        """
        for number, (values, value) in enumerate(trials, start=-len(trials) - 1):
            told = self._objectives_of(values, value)
            self._suggestions_for(values).tell(number, self._frozen(values), TrialState.COMPLETE, told)

    # what decisions see

    def _horizon(self, number: int) -> int | None:
        """Return the number from which on a decision about this trial sees no finished trial; None in free order."""
        return self.batch_of(number).start if self._in_batches else None

    def _running_beside(self, number: int) -> list[Values]:
        """Return the values of the trials that the sampler sees as running when it suggests this one."""
        siblings = self.planned.keys() & range(self.batch_of(number).start, number)
        return [self.planned[other] for other in sorted(self._unfinished | siblings) if other < number]

    def _see_what_ended_before(self, number: int) -> None:
        """Let decisions see the trials of earlier batches that have ended, by number; in free order all, as they ended.

        A batch is seen as a whole.
        """
        horizon, ended = self._horizon(number), list(self._ended.values())
        if horizon is not None:
            ended = sorted((each for each in ended if each.number < horizon), key=lambda each: each.number)
        for _, batch in groupby(ended, key=lambda each: self.batch_of(each.number).start):
            self._see(list(batch))

    def _see(self, batch: Sequence[EndedTrial]) -> None:
        for each in batch:
            self._show_pruner(each)
            if (told := self._told(each)) is not None:
                name = self._suggestions_for(self.planned[each.number]).name
                self._worst[name] = self._worse(self._worst.get(name, told), told)
        for each in batch:
            with self._blamed_on("sampler"):
                self._show_sampler(each)
            self._unfinished.discard(each.number)
            del self._ended[each.number]

    def _show_pruner(self, ended: EndedTrial) -> None:
        values, attributes = self.planned[ended.number], self._reported(ended)
        trial = create_trial(
            state=STATES[ended.state],
            params=values,
            distributions=space.distributions(self.sweep.tree, values),
            value=ended.value,
            intermediate_values=self._in_steps(values, ended.reported),
            system_attrs=attributes,
        )
        trial.number = ended.number
        self._pruning_for(values).finished.add(ended.number, trial)

    def _show_sampler(self, ended: EndedTrial) -> None:
        """Tell the sampler of a trial. A failed one counts as the worst, or the sampler would propose more of them."""
        values, attributes = self.planned[ended.number], self.sampler_attributes(ended.number).get("trial", {})
        suggestions = self._suggestions_for(values)
        running = self._frozen(values, self._in_steps(values, ended.reported), {**attributes, **self._reported(ended)})
        told = self._told(ended) or (self._worst.get(suggestions.name) if ended.state == "failed" else None)
        if told is not None:
            suggestions.tell(ended.number, running, TrialState.COMPLETE, told)
        elif self.costs is None:  # with several objectives Optuna's samplers take complete trials only
            suggestions.tell(ended.number, running, STATES[ended.state], None)

    def _told(self, ended: EndedTrial) -> list[float] | None:
        """Return the objectives with which a trial counts as complete for the sampler, or None.

        In a trade-off a pruned trial counts as complete, with its last objective.
        """
        value = ended.value
        if self.costs is not None and ended.state == "pruned":
            value = ended.reported[max(ended.reported)]
        return None if value is None else self._objectives_of(self.planned[ended.number], value)

    def _objectives_of(self, values: Values, value: float) -> list[float]:
        return [value] if self.costs is None else [value, self.costs.of(values)]

    def _reported(self, ended: EndedTrial) -> Row:
        """Return the attributes that the pruner gives to an ended trial, after it has seen all its epochs."""
        if ended.attributes is None:
            running = ended.running or self._begin(ended.number)
            with self._blamed_on("pruner"):
                for epoch, value in ended.reported.items():
                    running.report(epoch, value)
                json.dumps(running.attributes)  # a TypeError if the journal cannot hold them
            ended.attributes, ended.running = running.attributes, None
        return ended.attributes

    # the Optuna studies

    def _suggestions_for(self, values: Mapping[str, Label]) -> Suggestions:
        """Return the study that suggests such values: one for each option that gets its own number of trials."""
        key = None if self._divided is None else self.sweep.option(values)
        if key not in self._suggestions:
            fixed = {} if self._divided is None else {self._divided.name: values[self._divided.name]}
            sampler = partial(self._sampler, fixed)
            self._suggestions[key] = Suggestions(self._name(key), self._directions, sampler, self._pruner)
        return self._suggestions[key]

    def _pruning_for(self, values: Mapping[str, Label]) -> Pruning:
        """Return the study in which trials with such values are compared: one for each option, or band of costs."""
        key = self.sweep.option(values) if self.costs is None else f"band {self.costs.band(values) + 1}"
        if key not in self._pruning:
            self._pruning[key] = Pruning(self._name(key), self._direction, self._pruner)
        return self._pruning[key]

    def _name(self, key: str | None) -> str:
        return self.stage if key is None else f"{self.stage} {key}"

    def _begin(self, number: int) -> RunningTrial:
        pruning = self._pruning_for(self.planned[number])
        step = partial(step_of, self.sweep.study.pruner, epochs=self._epochs(self.planned[number]))
        return pruning.begin(number, pruning.finished.before(self._horizon(number)), step)

    def _epochs(self, values: Values) -> int:
        return int(space.resolve(self.sweep.tree, values).tree["epochs"])

    def _in_steps(self, values: Values, reported: Mapping[int, float]) -> dict[int, float]:
        """Return what was reported by epoch as the pruner counts: rungs may be shares of a trial's epochs."""
        pruner, epochs = self.sweep.study.pruner, self._epochs(values)
        return {step_of(pruner, epoch, epochs): value for epoch, value in reported.items()}

    def _sampler(self, fixed: Mapping[str, Label], number: int) -> BaseSampler:
        return build_sampler(self.sweep, stream(self.sweep.study.seed, self.stage, number) % 2**32, fixed)

    def _pruner(self) -> BasePruner:
        return build_pruner(self.sweep)

    def _frozen(
        self, values: Values, reported: dict[int, float] | None = None, attributes: Row | None = None
    ) -> FrozenTrial:
        """Return a running trial as the sampler sees it."""
        fixed = () if self._divided is None else (self._divided.name,)
        found = space.distributions(self.sweep.tree, values, fixed)
        return create_trial(
            state=TrialState.RUNNING,
            params={name: values[name] for name in found},
            distributions=found,
            intermediate_values=reported,
            system_attrs=attributes,
        )

    # the options that are compared

    @cached_property
    def _divided(self) -> Parameter | None:
        """The choice whose options get equal numbers of trials, or None."""
        equal = self.sweep.study.select.equal_trials and not self._is_grid
        return self.sweep.compared if equal else None

    def _fixed(self, number: int) -> dict[str, Label]:
        """Return the option in whose space a trial is suggested: that of the fewest trials, of equal ones the first."""
        if self._divided is None:
            return {}
        name, labels = self._divided.name, self._divided.labels
        while len(self._options) <= number:
            new = len(self._options)
            given = self.sweep.first_points[new][name] if new < len(self.sweep.first_points) else None
            label = min(labels, key=lambda label: self._counts[self.sweep.option({name: label})])
            self._options.append(label if given is None else given)
            self._counts[self.sweep.option({name: self._options[new]})] += 1
        return {name: self._options[number]}

    # the sweep

    @contextmanager
    def _blamed_on(self, part: Literal["sampler", "pruner"]) -> Iterator[None]:
        """Turn an error that a sampler or pruner of the user's own raises into one about its line of the sweep file."""
        own = getattr(self.sweep.study, part)
        try:
            yield
        except Exception as error:
            if not isinstance(own, Own) or isinstance(error, UserError):
                raise
            frame = traceback.extract_tb(error.__traceback__)[-1]
            where = f"{Path(frame.filename).name}, line {frame.lineno}"
            text = f"{own.name} fails: {error_text(error)} ({where}); correct it, and name other --results"
            raise self.sweep.located.error([Problem(("study", part, "name"), text)]) from error

    @property
    def _in_batches(self) -> bool:
        return self.sweep.study.order == "batches"

    @property
    def _direction(self) -> StudyDirection:
        maximize = HIGHER_IS_BETTER[self.sweep.study.objective]
        return StudyDirection.MAXIMIZE if maximize else StudyDirection.MINIMIZE

    @property
    def _directions(self) -> list[StudyDirection]:
        return [self._direction] if self.costs is None else [self._direction, StudyDirection.MINIMIZE]

    def _worse(self, one: Sequence[float], other: Sequence[float]) -> list[float]:
        return [
            min(pair) if direction == StudyDirection.MAXIMIZE else max(pair)
            for direction, *pair in zip(self._directions, one, other, strict=True)
        ]

    def _objectives(self, rows: Sequence[EpochRow]) -> dict[int, float]:
        return {int(row["epoch"]): float(row[self.sweep.study.objective]) for row in rows}

    @property
    def _is_grid(self) -> bool:
        return isinstance(self.sweep.study.sampler, GridSampler)

    @cached_property
    def _grid(self) -> list[Values]:
        return space.grid(self.sweep.tree, self._grid_points)

    @cached_property
    def _grid_size(self) -> int:
        return space.grid_size(self.sweep.tree, self._grid_points)

    @property
    def _grid_points(self) -> int | None:
        sampler = self.sweep.study.sampler
        assert isinstance(sampler, GridSampler)
        return sampler.points
