"""A slow reference of kdtrain.study.search: it rebuilds an Optuna study from all trials for each decision."""

from collections.abc import Sequence
from typing import Any, ClassVar

import optuna
from optuna.trial import FrozenTrial, TrialState

from kdtrain.config import space
from kdtrain.config.parameter import Values
from kdtrain.config.sweep import Sweep
from kdtrain.runtime.rng import stream
from kdtrain.study.optuna_parts import build_pruner, build_sampler
from kdtrain.trials.objectives import HIGHER_IS_BETTER

STATES = {"complete": TrialState.COMPLETE, "pruned": TrialState.PRUNED, "failed": TrialState.FAIL}
Rows = Sequence[dict[str, Any]]


class RebuiltSearch:
    """The decisions of a search. A trial sees those of its own option only, if options are compared."""

    def __init__(self, stage: str, sweep: Sweep) -> None:
        self.stage, self.sweep = stage, sweep
        self.planned: dict[int, Values] = {}
        self.ended: dict[int, tuple[str, float | None, Rows]] = {}  # as they ended
        self.rungs: dict[int, dict[str, Any]] = {}
        self.compared_with: dict[int, tuple[int, list[int]]] = {}  # by running trial, since its first epoch

    def batch_of(self, number: int) -> range:
        size = self.sweep.study.batch if self.sweep.study.order == "batches" else 1
        start = number - number % size
        return range(start, min(start + size, self.sweep.study.trials))

    def plan(self, number: int, values: Values) -> None:
        self.planned[number] = values

    def tell(self, number: int, state: str, value: float | None, rows: Rows) -> None:
        trial = self._beside(self._compared(number))
        for row in rows:
            trial.report(row[self.sweep.study.objective], row["epoch"])
            trial.should_prune()
        self.rungs[number] = dict(trial.study.get_trials(deepcopy=False)[-1].system_attrs)
        self.ended[number] = state, value, rows

    def forget(self, number: int) -> None:
        del self.planned[number]

    def suggest(self, number: int) -> Values:
        if number < len(self.sweep.published):
            return self.sweep.published[number]
        seed = stream(self.sweep.study.seed, self.stage, number) % 2**32
        fixed = self._fixed(number)
        study = self._study(build_sampler(self.sweep, seed, fixed))
        before = self._ended_before(number)
        running = [other for other in sorted(self.planned) if other < number and other not in before]
        alike = [other for other in [*before, *running] if fixed.items() <= self.planned[other].items()]
        study.add_trials(self._frozen(other, fixed, is_running=other in running, for_sampler=True) for other in alike)
        return space.suggest(study.ask(), self.sweep.tree, fixed)

    def pruned_at(self, number: int, rows: Rows) -> int | None:
        last, compared = self.compared_with.get(number, (len(rows), []))
        if number not in self.compared_with or len(rows) < last:
            compared = self._compared(number)
        self.compared_with[number] = len(rows), compared
        trial = self._beside(compared)
        for row in rows:
            trial.report(row[self.sweep.study.objective], row["epoch"])
            if trial.should_prune():
                return int(row["epoch"])
        return None

    def _compared(self, number: int) -> list[int]:
        """Return the trials that this one is compared with for pruning."""
        option = self.sweep.option(self.planned[number])
        return [other for other in self._ended_before(number) if self.sweep.option(self.planned[other]) == option]

    def _beside(self, others: Sequence[int]) -> optuna.Trial:
        study = self._study(optuna.samplers.RandomSampler(seed=0))
        study.add_trials(self._frozen(other, {}) for other in others)
        return study.ask()

    def _ended_before(self, number: int) -> list[int]:
        if self.sweep.study.order == "free":
            return list(self.ended)
        return [other for other in sorted(self.ended) if other < self.batch_of(number).start]

    def _fixed(self, number: int) -> Values:
        """Return the option of a trial, if options get equal numbers of trials: that of the fewest trials so far."""
        compared = self.sweep.compared
        if compared is None or not self.sweep.study.select.equal_trials:
            return {}
        options = [point[compared.name] for point in self.sweep.published]
        while len(options) <= number:
            options.append(min(compared.labels, key=options.count))
        return {compared.name: options[number]}

    def _as_told(self, number: int, fixed: Values) -> tuple[str, float | None]:
        """Return the state and value for the sampler: of a failed trial the worst complete value until its batch ended,
        of trials of the same option."""
        state, value, _ = self.ended[number]
        until = list(self.ended)[: list(self.ended).index(number)]
        if self.sweep.study.order == "batches":
            until = [other for other in self.ended if other < self.batch_of(number).stop]
        alike = [self.ended[other] for other in until if fixed.items() <= self.planned[other].items()]
        values = [value for state, value, _ in alike if state == "complete" and value is not None]
        if state == "failed" and values:
            return "complete", min(values) if self._maximize else max(values)
        return state, value if state == "complete" else None

    def _frozen(self, number: int, fixed: Values, is_running: bool = False, for_sampler: bool = False) -> FrozenTrial:
        distributions = space.distributions(self.sweep.tree, self.planned[number], fixed)
        params = {name: self.planned[number][name] for name in distributions}
        if is_running:
            return optuna.create_trial(state=TrialState.RUNNING, params=params, distributions=distributions)
        state, value, rows = self.ended[number]
        if for_sampler:
            state, value = self._as_told(number, fixed)
        return optuna.create_trial(
            state=STATES[state],
            params=params,
            distributions=distributions,
            value=value if state == "complete" else None,
            intermediate_values={row["epoch"]: row[self.sweep.study.objective] for row in rows},
            system_attrs=self.rungs[number],
        )

    @property
    def _maximize(self) -> bool:
        return HIGHER_IS_BETTER[self.sweep.study.objective]

    def _study(self, sampler: optuna.samplers.BaseSampler) -> optuna.Study:
        direction = "maximize" if self._maximize else "minimize"
        return optuna.create_study(sampler=sampler, pruner=build_pruner(self.sweep), direction=direction)


class Watching(optuna.samplers.RandomSampler):
    """A random sampler that notes what it sees at each suggestion: state and value of each trial."""

    seen: ClassVar[list[list[tuple[str, float | None]]]] = []

    def sample_relative(self, study: optuna.Study, *rest: Any) -> dict[str, Any]:
        self.seen.append([(trial.state.name, trial.value) for trial in study.get_trials(deepcopy=False)[:-1]])
        return {}
