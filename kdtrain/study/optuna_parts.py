"""Optuna's samplers and pruners from their settings."""

import warnings

import optuna

from kdtrain.config.search_settings import Pruner, Sampler, Tpe


def build_sampler(sampler: Sampler, seed: int) -> optuna.samplers.BaseSampler:
    """Return the sampler of one suggestion. Each suggestion has a sampler of its own, seeded by the trial's number."""
    if not isinstance(sampler, Tpe):
        return optuna.samplers.RandomSampler(seed=seed)
    with warnings.catch_warnings():  # `group`, which conditional spaces need, has been experimental since 2021
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return optuna.samplers.TPESampler(
            seed=seed, n_startup_trials=sampler.startup_trials, multivariate=True, group=True
        )


def build_pruner(pruner: Pruner) -> optuna.pruners.BasePruner:
    """Return the pruner of a search."""
    if pruner.name == "asha":
        return optuna.pruners.SuccessiveHalvingPruner(pruner.min_epochs, pruner.reduction)
    if pruner.name == "median":
        return optuna.pruners.MedianPruner(pruner.startup_trials, n_warmup_steps=pruner.min_epochs)
    return optuna.pruners.NopPruner()
