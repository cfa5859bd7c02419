"""Samplers and pruners as a sweep file names them."""

from typing import Annotated, Literal

from pydantic import Field

from kdtrain.base_config import Config, Count, NonNegativeInt


class Tpe(Config):
    """Optuna's tree-structured Parzen estimator; the first `startup_trials` are random."""

    name: Literal["tpe"]
    startup_trials: NonNegativeInt = 10


class RandomSampler(Config):
    """Independent random trials."""

    name: Literal["random"]


class GridSampler(Config):
    """Every combination, in the order of the file."""

    name: Literal["grid"]
    points: Annotated[int, Field(ge=2, le=10_000)] | None = Field(
        default=None,
        description="Number of values of each range, both ends included. Required if the recipe has a range.",
    )


class Asha(Config):
    """Asynchronous successive halving: at min_epochs, and each `reduction` times later, the best 1/reduction go on."""

    name: Literal["asha"]
    min_epochs: Count
    reduction: Annotated[int, Field(ge=2, le=10_000)] = 3


class Median(Config):
    """Pruning of a trial whose best value so far is worse than the median of earlier trials at the same epoch."""

    name: Literal["median"]
    startup_trials: NonNegativeInt = 5
    min_epochs: Count = 1


class NoPruner(Config):
    """No pruning: every trial trains for all its epochs."""

    name: Literal["none"]


Sampler = Tpe | RandomSampler | GridSampler
Pruner = Asha | Median | NoPruner
