"""The parts of a sweep file beside its recipe: `study:`, `resources:`, `report:`."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from kdtrain.base_config import Config, Count, NonNegative, NonNegativeInt, Positive, tuple_from_list
from kdtrain.config.recipe import Objective
from kdtrain.config.search_settings import NoPruner, Pruner, Sampler, Tpe

MOST_TRIALS = 1_000_000
AT_LEAST_OF_EACH = 2
"""Candidates of each compared option, if so many of its trials are complete, and trainings of each candidate."""


class Select(Config):
    """A race over fresh seeds between the promising recipes of the search, and one between those of the baselines."""

    candidates: Annotated[int, Field(ge=2, le=1_000)] = Field(
        default=8,
        description="Number of the best trials that race; published points race too. With study.tradeoff:"
        " the maximum number of points of a front that are confirmed.",
    )
    trainings: Annotated[int, Field(ge=4, le=MOST_TRIALS)] | None = Field(
        default=None,
        description="Maximum number of trainings of a race, at least 2 for each candidate. Default: half of `trials`,"
        " but at least 3 for each candidate.",
    )
    best_of_each: str | None = Field(
        default=None,
        description="A choice of the recipe, such as student.model: its options are searched with equal numbers of"
        " trials, and the best recipe of each is confirmed. Default: the choice of methods, if there is one.",
    )
    equal_trials: bool = Field(
        default=True,
        description="If true, each option of that choice gets the same number of trials. If false, the sampler chooses"
        " the option of each trial.",
    )


class Budget(Config):
    """What a study may spend: exactly one of hours, gpu_hours and epochs."""

    hours: Positive | None = Field(default=None, description="Wall time of the study, summed over its starts.")
    gpu_hours: Positive | None = Field(
        default=None, description="Time of its trainings times the GPUs of a trial, those of teachers included."
    )
    epochs: Count | None = Field(
        default=None,
        description="Number of epochs of its trainings, without those of teachers. Only this budget can be repeated"
        " exactly.",
    )

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        written = [f"{name}: {value}" for name, value in self if value is not None]
        if len(written) != 1:
            raise ValueError(f"takes exactly one of hours, gpu_hours, epochs, got {', '.join(written) or 'none'}")
        return self

    @property
    def unit(self) -> str:
        """The key that is written."""
        return next(name for name, value in self if value is not None)

    @property
    def total(self) -> float:
        """The value that is written."""
        return float(getattr(self, self.unit))


class Confirm(Config):
    """The recipes that are trained again with fresh seeds, and read the test split once."""

    moved: ClassVar[Mapping[str, str]] = {"best": "study.select.candidates"}

    seeds: Annotated[int, Field(ge=1, le=1_000)] = Field(default=5, description="Number of trainings of each recipe.")
    published: bool = Field(default=True, description="If true, the published points are trained again too.")


Cost = Literal["parameters", "flops", "latency_ms"]


class Tradeoff(Config):
    """A search for the front of the objective against the cost of the student's network."""

    cost: Cost = Field(
        description="What a student costs: its number of parameters, the FLOPs of a forward pass of one image, or the"
        " measured time of that pass in ms, which is not repeatable."
    )


class StudySettings(Config):
    """The search of the recipe's space: objective, number of trials, sampler, pruner, confirmation."""

    objective: Objective = Field(
        default="val/accuracy", description="The metric of the best epoch that trials compete by."
    )
    trials: Annotated[int, Field(ge=1, le=MOST_TRIALS)] | None = Field(
        default=None,
        description="Number of trials of the search, published points included. It may be left out if there is a"
        " budget.",
    )
    budget: Budget | None = Field(
        default=None,
        description="What the study may spend: 60 % for baselines and search, 20 % for select, 20 % for confirm. What a"
        " stage leaves over passes on to the next.",
    )
    sampler: Sampler = Field(default=Tpe(name="tpe"), description="What suggests the values of trials, by its name.")
    pruner: Pruner = Field(default=NoPruner(name="none"), description="What ends poor trials early, by its name.")
    published: tuple[dict[str, Any], ...] = Field(
        default=(),
        description="Reference points: values of the recipe as a document reports them. They are the first trials and"
        " are never pruned.",
    )
    start_from: Literal["defaults"] | None = Field(
        default=None,
        description="defaults: after the published points the search tries each method as its authors use it, with the"
        " middle of every other range, before anything is suggested.",
    )
    warm_start: Annotated[tuple[str, ...], BeforeValidator(tuple_from_list), Field(min_length=1)] | None = Field(
        default=None,
        description="Folders of finished sweeps with the same objective, such as results/other. Samplers learn from"
        " their complete trials, which are in no ranking.",
    )
    tradeoff: Tradeoff | None = Field(
        default=None,
        description="If it is written, the search looks for the front of the objective against the student's cost, and"
        " the points of the front are confirmed instead of one winner; there is no race.",
    )
    select: Select = Select()
    confirm: Confirm = Confirm()
    seed: Annotated[int, Field(ge=0, lt=1_000_000)] = Field(
        default=0, description="Seed of the sampler and of every training of the search."
    )
    order: Literal["batches", "free"] = Field(
        default="batches",
        description="batches: suggestions are made in batches, so the search can be repeated exactly. free: one is made"
        " whenever a trial ends, which is faster on a cluster and cannot be repeated exactly.",
    )
    batch: Annotated[int, Field(ge=1, le=MOST_TRIALS)] = Field(
        default=4, description="Number of suggestions that are made at once, with order batches."
    )

    @property
    def most_trials(self) -> int:
        """The number of trials, or the largest that can be written if only a budget limits it."""
        return MOST_TRIALS if self.trials is None else self.trials

    @property
    def together(self) -> int:
        """The number of trials that are suggested together."""
        return self.batch if self.order == "batches" else 1

    def most_candidates(self, options: int) -> int:
        """Return the upper bound of the number of candidates of a race, if so many options are compared."""
        of_others = AT_LEAST_OF_EACH * max(0, options - 1)
        return min(self.most_trials, self.select.candidates + len(self.published) + of_others)

    @model_validator(mode="after")
    def _batch_only_with_batches(self) -> Self:
        if self.order == "free" and "batch" in self.model_fields_set:
            raise ValueError("batch has no effect with order free; remove it")
        return self


class Resources(Config):
    """Settings of speed. Workers and CPUs change results only by floating-point rounding, loaders not at all."""

    workers: Annotated[int, Field(ge=1, le=10_000)] = Field(
        default=1, description="Number of processes that train one trial together."
    )
    cpus_per_worker: Annotated[int, Field(ge=1, le=10_000)] = Field(
        default=1, description="Number of CPUs of each worker."
    )
    gpus_per_worker: Literal["auto"] | NonNegative = Field(
        default="auto",
        description="GPUs of each worker. auto: one if the machine, or a node that the cluster may start, has a GPU,"
        " else none. 0: train on the CPU. 0.25: four workers share one.",
    )
    trials_per_gpu: Literal["auto"] | Annotated[int, Field(ge=1, le=1_000)] = Field(
        default="auto",
        description="Number of trials that share a GPU, if a trial has one worker. auto: as many as fit by the memory"
        " that the preflight checks measure, if gpus_per_worker is auto.",
    )
    loaders: Annotated[int, Field(ge=0, le=64)] = Field(
        default=0,
        description="Number of processes, one CPU each, that prepare the training images of a worker. 0: the worker"
        " prepares them itself.",
    )
    concurrent_trials: Literal["auto"] | Count = Field(
        default="auto", description="Maximum number of trials at the same time. auto: as many as the resources allow."
    )
    retries: NonNegativeInt = Field(
        default=2,
        description="Number of times that a job is tried again in one start of the sweep after it broke: out of memory,"
        " a killed process, a bug. A non-finite loss is a result and is never tried again.",
    )
    checkpoint_every_steps: Count | None = Field(
        default=None,
        description="Number of steps between checkpoints within an epoch. If it is set, every epoch ends with a"
        " checkpoint too, however long it takes to write.",
    )
    teacher_cache: Literal["auto", "none"] = Field(
        default="auto",
        description="auto: teacher outputs and decoded images are computed once per node for all trials that see the"
        " same images. none: every trial computes its own.",
    )
    cache_bytes: Annotated[int, Field(ge=1, le=2**60)] = Field(
        default=20 << 30, description="Maximum size of the cache of a node, in bytes."
    )

    @model_validator(mode="after")
    def _whole_gpus(self) -> Self:
        gpus = self.gpus_per_worker
        if gpus != "auto" and gpus > 1 and not float(gpus).is_integer():
            raise ValueError(f"gpus_per_worker must be a whole number above 1, got {gpus}")
        return self

    @model_validator(mode="after")
    def _one_number_for_a_gpus_trials(self) -> Self:
        if self.trials_per_gpu == "auto":
            return self
        if self.gpus_per_worker not in ("auto", 1):
            raise ValueError(
                f"trials_per_gpu must be auto if gpus_per_worker is {self.gpus_per_worker:g}, which fixes each trial's"
                f" share of a GPU; got {self.trials_per_gpu}; write gpus_per_worker: auto or remove one of the two"
            )
        if self.workers > 1:
            raise ValueError(
                f"trials_per_gpu must be auto if a trial has {self.workers} workers, each of which has its own GPU; got"
                f" {self.trials_per_gpu}; write workers: 1 or remove it"
            )
        return self


class Report(Config):
    """The title of the report, and the document with which it compares."""

    title: str | None = None
    published: Literal["cifar10", "hymenoptera", "mnist", "cub200", "flowers102", "mnist_hinton"] | None = Field(
        default=None,
        description="The document whose table and conclusions the report repeats, by the name of its data set;"
        " mnist_hinton is section 3 of Hinton, Vinyals, Dean 2015.",
    )


class SweepFile(Config):
    """The four parts of a sweep file; `recipe` has search spaces in it and is checked separately."""

    recipe: dict[str, Any]
    study: StudySettings
    resources: Resources = Resources()
    report: Report = Report()
