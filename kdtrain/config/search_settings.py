"""Samplers and pruners as a sweep file names them: Optuna's, or a class of the user's own as `module:Class`."""

import re
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import ConfigDict, Discriminator, Field, Tag, field_validator, model_validator

from kdtrain.base_config import Config, Count, NonNegativeInt
from kdtrain.config.parameter import Label, Parameter

WORD = "[A-Za-z_][A-Za-z0-9_]*"
CLASS_NAME = re.compile(rf"{WORD}(\.{WORD})*:{WORD}")
BY_NAME, BY_CLASS = "by name", "module:Class"
"""The two ways in which a sampler or a pruner is named."""
STEPS_OF_A_TRAINING = 1_000_000
"""What a whole training counts to a pruner whose rungs are shares."""


class Tpe(Config):
    """Optuna's tree-structured Parzen estimator; the first `startup_trials` are random."""

    models_choices: ClassVar[bool] = True
    models_conditional: ClassVar[bool] = True
    several_objectives: ClassVar[bool] = True

    name: Literal["tpe"]
    startup_trials: NonNegativeInt = Field(
        default=10, description="Number of trials, complete or pruned, before the first one that is not random."
    )


class Gp(Config):
    """Optuna's Gaussian process. It models what all trials have in common; conditional parameters are random."""

    models_choices: ClassVar[bool] = True
    models_conditional: ClassVar[bool] = False
    several_objectives: ClassVar[bool] = True

    name: Literal["gp"]
    startup_trials: NonNegativeInt = Field(
        default=10,
        description="Number of complete trials before the first one that is not random; pruned ones count not.",
    )


class CmaEs(Config):
    """CMA-ES of the package cmaes. It models the numbers that all trials have in common; choices are random."""

    models_choices: ClassVar[bool] = False
    models_conditional: ClassVar[bool] = False
    several_objectives: ClassVar[bool] = False

    name: Literal["cmaes"]
    startup_trials: NonNegativeInt = Field(
        default=1, description="Number of trials, complete or pruned, before the first one that is not random."
    )
    population: Annotated[int, Field(ge=2, le=10_000)] | None = Field(
        default=None,
        description="Number of trials after which the distribution is updated. Default: 4 + 3 ln(number of parameters)",
    )


class RandomSampler(Config):
    """Independent random trials."""

    models_choices: ClassVar[bool] = True
    models_conditional: ClassVar[bool] = True
    several_objectives: ClassVar[bool] = True

    name: Literal["random"]


class GridSampler(Config):
    """Every combination, in the order of the file."""

    models_choices: ClassVar[bool] = True
    models_conditional: ClassVar[bool] = True
    several_objectives: ClassVar[bool] = True

    name: Literal["grid"]
    points: Annotated[int, Field(ge=2, le=10_000)] | None = Field(
        default=None,
        description="Number of values of each range, both ends included. Required if the recipe has a range.",
    )


class Own(Config):
    """A class as `module:Class`; every further key is an argument of its constructor.

    The module is looked for beside the sweep file, in the working folder and among the installed packages.
    """

    model_config = ConfigDict(extra="allow")

    name: str = Field(
        description="module:Class", examples=[BY_CLASS], json_schema_extra={"pattern": f"^{CLASS_NAME.pattern}$"}
    )

    @field_validator("name")
    @classmethod
    def _is_a_class_name(cls, name: str) -> str:
        if not CLASS_NAME.fullmatch(name):
            raise ValueError(f"must be module:Class, such as my_search:Mine, got '{name}'")
        return name

    @property
    def arguments(self) -> dict[str, Any]:
        """The arguments of the constructor."""
        return dict(self.model_extra or {})


class OwnSampler(Own):
    """A sampler of Optuna, or of the user's own: a subclass of optuna.samplers.BaseSampler.

    Each suggestion makes one, with `seed=`, so it must keep nothing in itself between trials. A further key is an
    argument of its constructor.
    """

    models_choices: ClassVar[bool] = True
    models_conditional: ClassVar[bool] = True


class OwnPruner(Own):
    """A pruner of Optuna, or of the user's own: a subclass of optuna.pruners.BasePruner. Its steps are epochs.

    It must keep nothing in itself between decisions. A further key is an argument of its constructor.
    """


class Rungs(Config):
    """The first epoch after which a trial can be pruned, counted in epochs or as a share of the trial's epochs."""

    compares_epochs: ClassVar[bool]
    """If true, a trial is compared with others at the same step only; if false, with all that have reached a rung."""

    name: str
    min_epochs: Count | None = Field(
        default=None, description="Number of epochs after which a trial can be pruned first. Either this or min_share."
    )
    min_share: Annotated[float, Field(ge=0.001, lt=1)] | None = Field(
        default=None,
        description="Share of the trial's epochs after which it can be pruned first: 0.15. Either this or min_epochs.",
    )

    @model_validator(mode="after")
    def _one_of_the_two(self) -> Self:
        if (self.min_epochs is None) == (self.min_share is None):
            what = (
                "either min_epochs or min_share" if self.min_epochs is None else "only one of min_epochs and min_share"
            )
            raise ValueError(f"needs {what}: the epochs, or the share of a trial's epochs, before it can be pruned")
        return self

    @property
    def start(self) -> tuple[str, float]:
        """The key that is written, and its value."""
        return ("min_share", self.min_share) if self.min_epochs is None else ("min_epochs", self.min_epochs)  # type: ignore[return-value]

    @property
    def first_step(self) -> int:
        """The first step at which a trial can be pruned, counted as `step_of` does."""
        if self.min_epochs is not None:
            return self.min_epochs
        assert self.min_share is not None
        return round(self.min_share * STEPS_OF_A_TRAINING)

    def step_of(self, epoch: int, epochs: int) -> int:
        """Return an epoch, counted from 1, as the step of a trial of so many epochs."""
        return epoch if self.min_epochs is not None else epoch * STEPS_OF_A_TRAINING // epochs

    def first_epoch(self, step: int, epochs: int) -> int:
        """Return the first epoch of a trial of so many epochs that reaches a step."""
        return next((e for e in range(1, epochs + 1) if self.step_of(e, epochs) >= step), epochs)

    def rungs(self, epochs: int) -> list[int]:
        """Return the epochs at which a trial of so many epochs can be pruned; it is never pruned after the last one."""
        raise NotImplementedError


Reduction = Annotated[int, Field(ge=2, le=10_000)]


class Halving(Rungs):
    """Rungs whose steps grow by the factor `reduction`."""

    compares_epochs: ClassVar[bool] = False

    reduction: Reduction = Field(
        default=3,
        description="The best 1/reduction of the trials at a rung go on; the next rung is reduction times later.",
    )

    def rungs(self, epochs: int) -> list[int]:
        step, found = self.first_step, []
        while (epoch := self.first_epoch(step, epochs)) < epochs:
            found.append(epoch)
            step *= self.reduction
        return list(dict.fromkeys(found))


class Asha(Halving):
    """Asynchronous successive halving: at each rung the best 1/reduction of the trials go on."""

    name: Literal["asha"]


class Hyperband(Halving):
    """Several asynchronous successive halvings, each with another first rung; a trial belongs to one of them."""

    name: Literal["hyperband"]


class Beaten(Rungs):
    """Pruning at any epoch from the first rung on, after a number of complete trials."""

    compares_epochs: ClassVar[bool] = True

    startup_trials: NonNegativeInt = Field(
        default=5, description="Number of complete trials before the first one can be pruned."
    )

    def rungs(self, epochs: int) -> list[int]:
        return list(range(self.first_epoch(self.first_step, epochs), epochs))


class Median(Beaten):
    """Pruning of a trial whose best value so far is worse than the median of earlier trials at the same epoch."""

    name: Literal["median"]


class Percentile(Beaten):
    """Pruning of a trial whose best value so far is not among the best `percentile` % of earlier ones at its epoch."""

    name: Literal["percentile"]
    percentile: Annotated[float, Field(gt=0, lt=100)] = Field(
        default=25.0,
        description="Share of the trials that go on, in percent: 25 keeps the best quarter; 50 is the median.",
    )


class NoPruner(Config):
    """No pruning: every trial trains for all its epochs."""

    name: Literal["none"]


def _kind(written: Any) -> str:
    """Return how a sampler or a pruner is named; whatever names no class is checked among the names."""
    name = written.get("name") if isinstance(written, dict) else getattr(written, "name", None)
    return BY_CLASS if isinstance(name, str) and ":" in name else BY_NAME


NamedSampler = Tpe | Gp | CmaEs | RandomSampler | GridSampler
NamedPruner = Asha | Median | Percentile | Hyperband | NoPruner
AnySampler = NamedSampler | OwnSampler
AnyPruner = NamedPruner | OwnPruner
Sampler = Annotated[
    Annotated[NamedSampler, Field(discriminator="name"), Tag(BY_NAME)] | Annotated[OwnSampler, Tag(BY_CLASS)],
    Discriminator(_kind),
]
Pruner = Annotated[
    Annotated[NamedPruner, Field(discriminator="name"), Tag(BY_NAME)] | Annotated[OwnPruner, Tag(BY_CLASS)],
    Discriminator(_kind),
]


def step_of(pruner: AnyPruner, epoch: int, epochs: int) -> int:
    """Return the step at which an epoch's value is reported to the pruner: the epoch, or its share of the trial."""
    return pruner.step_of(epoch, epochs) if isinstance(pruner, Rungs) else epoch


def split_by_model(
    sampler: AnySampler, parameters: Iterable[Parameter], fixed: Mapping[str, Label]
) -> tuple[list[str], list[str]]:
    """Return the names of the parameters that a sampler models, and of those that it draws at random.

    `fixed` are the choices that are the same in all trials of a search; what depends on them only is not conditional.
    """
    modelled: list[str] = []
    random: list[str] = []
    for parameter in parameters:
        if parameter.name in fixed or any(
            fixed.get(name, label) != label for name, label in parameter.conditions.items()
        ):
            continue  # not searched here
        conditional = not parameter.conditions.keys() <= fixed.keys()
        choice = parameter.kind == "choice"
        left = (conditional and not sampler.models_conditional) or (choice and not sampler.models_choices)
        (random if left else modelled).append(parameter.name)
    return modelled, random
