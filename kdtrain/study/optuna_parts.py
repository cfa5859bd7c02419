"""Optuna's samplers and pruners from their settings."""

import warnings
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial

from kdtrain.config.parameter import Label
from kdtrain.config.search_checks import construct, folders_of, longest_training
from kdtrain.config.search_settings import (
    STEPS_OF_A_TRAINING,
    Asha,
    CmaEs,
    Gp,
    Hyperband,
    Median,
    Own,
    Percentile,
    Tpe,
    split_by_model,
)
from kdtrain.config.sweep import Sweep


class OnlyCommon(optuna.samplers.BaseSampler):
    """A sampler that models only the parameters that all trials have, from the first trial on."""

    def __init__(self, common: Collection[str], **options: Any) -> None:
        super().__init__(**options)
        self._common = frozenset(common)

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        found = super().infer_relative_search_space(study, trial)  # type: ignore[safe-super]  # of the next base class
        return {name: distribution for name, distribution in found.items() if name in self._common}


class CommonGp(OnlyCommon, optuna.samplers.GPSampler):
    """A Gaussian process over the parameters that all trials have.

    Optuna takes those that all earlier trials have, which are more while one branch of the space has not been tried.
    """


class CommonCmaEs(OnlyCommon, optuna.samplers.CmaEsSampler):
    """CMA-ES over the numbers that all trials have.

    Optuna's own keeps the dimension of its first generation. If that had a parameter that later trials lack, it would
    draw at random from then on.
    """


def build_sampler(sweep: Sweep, seed: int, fixed: Mapping[str, Label] | None = None) -> optuna.samplers.BaseSampler:
    """Return the sampler of one suggestion. Each suggestion has a sampler of its own, seeded by the trial's number.

    `fixed` are the choices that all trials of the search share.
    """
    sampler = sweep.study.sampler
    common, _ = split_by_model(sampler, sweep.parameters, fixed or {})
    with experimental_allowed():
        if isinstance(sampler, Tpe):
            return optuna.samplers.TPESampler(
                seed=seed, n_startup_trials=sampler.startup_trials, multivariate=True, group=True
            )
        if isinstance(sampler, Gp):
            return CommonGp(common, seed=seed, n_startup_trials=sampler.startup_trials, warn_independent_sampling=False)
        if isinstance(sampler, CmaEs):
            return CommonCmaEs(
                common,
                seed=seed,
                n_startup_trials=sampler.startup_trials,
                popsize=sampler.population,
                consider_pruned_trials=True,  # a pruned trial counts with its last value; without pruner there is none
                warn_independent_sampling=False,
            )
        if isinstance(sampler, Own):
            own: optuna.samplers.BaseSampler = construct(sampler, folders_of(sweep.located), seed=seed)
            return own
    return optuna.samplers.RandomSampler(seed=seed)


def build_pruner(sweep: Sweep) -> optuna.pruners.BasePruner:
    """Return the pruner of a search. Its steps are those of `step_of`."""
    pruner = sweep.study.pruner
    if isinstance(pruner, Asha):
        return optuna.pruners.SuccessiveHalvingPruner(pruner.first_step, pruner.reduction)
    if isinstance(pruner, Hyperband):
        whole = STEPS_OF_A_TRAINING if pruner.min_epochs is None else longest_training(sweep.tree)
        return optuna.pruners.HyperbandPruner(pruner.first_step, whole, pruner.reduction)
    if isinstance(pruner, Median):
        return optuna.pruners.MedianPruner(pruner.startup_trials, n_warmup_steps=pruner.first_step)
    if isinstance(pruner, Percentile):
        return optuna.pruners.PercentilePruner(
            pruner.percentile, pruner.startup_trials, n_warmup_steps=pruner.first_step
        )
    if isinstance(pruner, Own):
        own: optuna.pruners.BasePruner = construct(pruner, folders_of(sweep.located))
        return own
    return optuna.pruners.NopPruner()


@contextmanager
def experimental_allowed() -> Iterator[None]:
    """Silence Optuna's warning about features such as `group`, which has been experimental since 2021."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        yield
