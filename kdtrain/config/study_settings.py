"""What a sweep file says beside its recipe: `study:`, `resources:`, `report:`."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from kdtrain.base_config import Config, Count, NonNegative
from kdtrain.config.recipe import Objective

Natural = Annotated[int, Field(ge=0)]


class Tpe(Config):
    """Tree-structured Parzen estimator; the first `startup_trials` are drawn at random."""

    name: Literal["tpe"]
    startup_trials: Natural = 10


class RandomSampler(Config):
    """Every trial drawn on its own."""

    name: Literal["random"]


class GridSampler(Config):
    """Every combination, in the order of the file; each range gives `points` values from end to end."""

    name: Literal["grid"]
    points: Annotated[int, Field(ge=2)] | None = None


class Asha(Config):
    """Successive halving: at min_epochs, and each `reduction` times later, the best 1/reduction go on."""

    name: Literal["asha"]
    min_epochs: Count
    reduction: Annotated[int, Field(ge=2)] = 3


class Median(Config):
    """A trial whose best so far is below the median of earlier trials at that epoch ends."""

    name: Literal["median"]
    startup_trials: Natural = 5
    min_epochs: Count = 1


class NoPruner(Config):
    """Every trial trains all its epochs."""

    name: Literal["none"]


class Confirm(Config):
    """How many of the best recipes are trained again, and with how many seeds each."""

    best: Count = 2
    seeds: Count = 5
    published: Annotated[bool, Field(description="whether the published points are trained again too")] = True


class Study(Config):
    """What is asked of the recipe's space."""

    objective: Objective = "val/accuracy"
    trials: Count
    sampler: Annotated[Tpe | RandomSampler | GridSampler, Field(discriminator="name")] = Tpe(name="tpe")
    pruner: Annotated[Asha | Median | NoPruner, Field(discriminator="name")] = NoPruner(name="none")
    published: tuple[dict[str, Any], ...] = Field(
        (), description="values of the recipe; first in the search, never pruned"
    )
    confirm: Confirm = Confirm()
    seed: Annotated[int, Field(ge=0, lt=1_000_000)] = 0
    order: Literal["batches", "free"] = Field("batches", description="free: faster on a cluster, not repeatable")
    batch: Count = Field(4, description="how many suggestions are drawn at once")

    @model_validator(mode="after")
    def _batch_in_batches(self) -> Self:
        if self.order == "free" and "batch" in self.model_fields_set:
            raise ValueError("batch does nothing with order free; remove it")
        return self


class Resources(Config):
    """How fast, never what: workers and CPUs change the rounding of floats alone, loaders nothing at all."""

    workers: Annotated[Count, Field(description="processes that train one trial together")] = 1
    cpus_per_worker: Count = 1
    gpus_per_worker: NonNegative = 0.0
    loaders: Annotated[
        int,
        Field(ge=0, le=64, description="processes that make a worker's training views, a CPU each; 0: it does"),
    ] = 0
    concurrent_trials: Literal["auto"] | Count = "auto"
    checkpoint_every_steps: Annotated[
        Count | None,
        Field(
            description="checkpoints in mid-epoch too, for epochs that are too long to lose, and one after every epoch,"
            " whatever it costs"
        ),
    ] = None
    teacher_cache: Annotated[
        Literal["auto", "none"],
        Field(
            description="auto: what a teacher says, and decoded images, are computed once on a node for all trials that"
            " see the same images; none: by each for itself"
        ),
    ] = "auto"
    cache_bytes: Annotated[Count, Field(description="of a node, for what trials share")] = 20 << 30

    @model_validator(mode="after")
    def _whole_gpus(self) -> Self:
        if self.gpus_per_worker > 1 and not float(self.gpus_per_worker).is_integer():
            raise ValueError(f"gpus_per_worker must be whole above 1, got {self.gpus_per_worker}")
        return self


class Report(Config):
    """What stands on top of the report, and whose table beside our own."""

    title: str | None = None
    published: Annotated[
        Literal["cifar10", "hymenoptera", "mnist", "cub200", "flowers102"] | None,
        Field(description="the document whose table and conclusions the report repeats, by the name of its data set"),
    ] = None


class SweepFile(Config):
    """The four parts of the file; the recipe is checked for itself, since it has spaces in it."""

    recipe: dict[str, Any]
    study: Study
    resources: Resources = Resources()
    report: Report = Report()
