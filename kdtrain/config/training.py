"""Training settings of a network: optimizer, learning-rate schedule, clipping, weight average, early stopping."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from kdtrain.base_config import Config, Count, NonNegative, NonNegativeInt, Positive


class Sgd(Config):
    """torch.optim.SGD; weight decay is added to the gradient."""

    name: Literal["sgd"]
    lr: Positive
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.0
    weight_decay: NonNegative = 0.0


class Adam(Config):
    """torch.optim.Adam; weight decay is added to the gradient."""

    name: Literal["adam"]
    lr: Positive
    weight_decay: NonNegative = 0.0


class AdamW(Config):
    """torch.optim.AdamW; weight decay is separate from the gradient: w -= lr_t * weight_decay * w at every step."""

    name: Literal["adamw"]
    lr: Positive
    weight_decay: NonNegative = 0.0
    decay_on: Literal["weights", "all"] = Field(
        "weights",
        description="weights: decay does not apply to biases and one-dimensional parameters. all: it applies to every"
        " parameter.",
    )
    decay_times: Literal["lr", "relative_lr", "nothing"] = Field(
        "lr",
        description="The factor of weight_decay per step. lr: lr_t, as in torch. relative_lr: lr_t / lr, so that the"
        " decay does not depend on lr. nothing: 1 (as in the Flowers document).",
    )

    @model_validator(mode="after")
    def _a_step_leaves_some_weight(self) -> Self:
        if self.decay_times != "lr" and self.weight_decay >= 1:
            raise ValueError(
                f"weight_decay must be below 1 with decay_times {self.decay_times}, got {self.weight_decay}:"
                " one step would remove the whole weight"
            )
        return self


Optimizer = Annotated[Sgd | Adam | AdamW, Field(discriminator="name")]


class Constant(Config):
    """A constant learning rate."""

    name: Literal["constant"]


class Step(Config):
    """lr * factor ** (epoch // every_epochs), as torch's StepLR."""

    name: Literal["step"]
    every_epochs: Count
    factor: Annotated[float, Field(gt=0, lt=1)] = 0.1


class Exponential(Config):
    """lr * factor ** epoch, as torch's ExponentialLR."""

    name: Literal["exponential"]
    factor: Annotated[float, Field(gt=0, lt=1)]


class Linear(Config):
    """lr * (1 - t) with t from 0 at the first step to 1 after the last one; set per step."""

    name: Literal["linear"]


class Cosine(Config):
    """Linear warm-up over epochs, then half a cosine from lr to lowest_lr after the last step; set per step.

    published (setup 4): set once per epoch; the first epoch has lowest_lr, and after the warm-up the cosine falls for
    10 epochs and rises for 10, as CosineAnnealingLR(T_max=10) does if it is stepped further.
    """

    name: Literal["cosine"]
    warmup_epochs: NonNegativeInt = 0
    lowest_lr: NonNegative = 0.0
    convention: Literal["corrected", "published"] = "corrected"


class CosineInSteps(Config):
    """Linear warm-up from 0 (the rate of the first step), counted in steps, then half a cosine to 0.

    corrected: the cosine ends with the training, and the warm-up takes at most a tenth of it.
    published (setup 5): both are independent of epochs: warm-up until warmup_steps, cosine to 0 at total_steps.
    """

    name: Literal["cosine_in_steps"]
    warmup_steps: NonNegativeInt = 1500
    total_steps: Count | None = Field(
        None, description="The step at which the cosine reaches 0; only with convention published."
    )
    convention: Literal["corrected", "published"] = "corrected"

    @model_validator(mode="after")
    def _total_steps_only_if_published(self) -> Self:
        if self.convention == "corrected" and self.total_steps is not None:
            raise ValueError(
                "total_steps has no effect with convention corrected, whose cosine ends with the training; remove it"
            )
        if self.convention == "published" and (self.total_steps is None or self.total_steps <= self.warmup_steps):
            raise ValueError(f"convention published needs total_steps above warmup_steps {self.warmup_steps}")
        return self


LrSchedule = Annotated[Constant | Step | Exponential | Linear | Cosine | CosineInSteps, Field(discriminator="name")]


class Clipping(Config):
    """Gradient clipping by L2 norm."""

    norm: Positive = Field(description="Maximum norm.")
    over: Literal["all", "tensor"] = Field(
        "all", description="all: one norm of all gradients together. tensor: one norm per tensor, as Keras' clipnorm."
    )


class EarlyStopping(Config):
    """The end of a training patience_epochs after its best epoch (by the objective; ties by the other metric)."""

    patience_epochs: Count


class Ema(Config):
    """An exponential moving average of weights and BatchNorm buffers, used for evaluation.

    Its decay grows with the number of updates: decay * (1 - exp(-updates / ramp_updates)).
    """

    decay: Annotated[float, Field(gt=0, lt=1)] = 0.9999
    ramp_updates: Positive = 2000.0


class RDrop(Config):
    """R-Drop (Liang et al. 2021, arXiv:2106.14448): two passes with dropout; every loss term is their average.

    The loss gets weight * (KL(p||q) + KL(q||p)) / 2, averaged over the batch.
    published (setup 4): the sum over the batch. It never reached distillation, so it is allowed with method none only.
    """

    weight: Positive = 0.3
    convention: Literal["corrected", "published"] = "corrected"
