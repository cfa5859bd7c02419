"""How a network is trained: optimizer, learning-rate schedule, clipping, averaging, when to stop."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from kdtrain.base_config import Config, Count, NonNegative, Positive

Natural = Annotated[int, Field(ge=0)]


class Sgd(Config):
    """torch.optim.SGD, decay added to the gradient."""

    name: Literal["sgd"]
    lr: Positive
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.0
    weight_decay: NonNegative = 0.0


class Adam(Config):
    """torch.optim.Adam, decay added to the gradient."""

    name: Literal["adam"]
    lr: Positive
    weight_decay: NonNegative = 0.0


class AdamW(Config):
    """torch.optim.AdamW, decay decoupled from the gradient: w -= lr_t * weight_decay * w at every step."""

    name: Literal["adamw"]
    lr: Positive
    weight_decay: NonNegative = 0.0
    decay_on: Literal["weights", "all"] = Field(
        "weights", description="weights: not biases and one-dimensional parameters; all: every parameter"
    )
    decay_times: Literal["lr", "relative_lr", "nothing"] = Field(
        "lr",
        description="lr: torch's; relative_lr: weight_decay * lr_t / lr per step, so that it does not change with lr;"
        " nothing: weight_decay per step whatever the schedule (as the Flowers document has it)",
    )

    @model_validator(mode="after")
    def _a_step_leaves_some_weight(self) -> Self:
        if self.decay_times != "lr" and self.weight_decay >= 1:
            raise ValueError(
                f"weight_decay must be below 1 with decay_times {self.decay_times}, got {self.weight_decay}:"
                " one step would take the whole weight"
            )
        return self


Optimizer = Annotated[Sgd | Adam | AdamW, Field(discriminator="name")]


class Constant(Config):
    """The learning rate as written, throughout."""

    name: Literal["constant"]


class Step(Config):
    """lr * factor ** (epoch // every_epochs): torch's StepLR."""

    name: Literal["step"]
    every_epochs: Count
    factor: Annotated[float, Field(gt=0, lt=1)] = 0.1


class Exponential(Config):
    """lr * factor ** epoch: torch's ExponentialLR."""

    name: Literal["exponential"]
    factor: Annotated[float, Field(gt=0, lt=1)]


class Cosine(Config):
    """Linear warm-up over epochs, then half a cosine from lr to lowest_lr, reached after the last step; set per step.

    published (setup 4): set once per epoch, the first one at lowest_lr, and after the warm-up the cosine swings: it
    falls for 10 epochs and rises for 10, as CosineAnnealingLR(T_max=10) does when it is stepped on.
    """

    name: Literal["cosine"]
    warmup_epochs: Natural = 0
    lowest_lr: NonNegative = 0.0
    convention: Literal["corrected", "published"] = "corrected"


class CosineInSteps(Config):
    """Linear warm-up from 0 (the first step's rate) counted in steps, then half a cosine to 0.

    corrected: the cosine ends with the training, and the warm-up takes at most a tenth of it.
    published (setup 5): both are fixed whatever the epochs: warm-up to warmup_steps, cosine to 0 at total_steps.
    """

    name: Literal["cosine_in_steps"]
    warmup_steps: Natural = 1500
    total_steps: Count | None = Field(None, description="published only: where the cosine reaches 0")
    convention: Literal["corrected", "published"] = "corrected"

    @model_validator(mode="after")
    def _total_where_published(self) -> Self:
        if self.convention == "corrected" and self.total_steps is not None:
            raise ValueError("total_steps does nothing when corrected: the cosine ends with the training; remove it")
        if self.convention == "published" and (self.total_steps is None or self.total_steps <= self.warmup_steps):
            raise ValueError(f"convention published needs total_steps above warmup_steps {self.warmup_steps}")
        return self


LrSchedule = Annotated[Constant | Step | Exponential | Cosine | CosineInSteps, Field(discriminator="name")]


class Clipping(Config):
    """Gradients scaled down to an L2 norm: of all of them together, or of each tensor by itself (Keras' clipnorm)."""

    norm: Positive
    over: Literal["all", "tensor"] = "all"


class EarlyStopping(Config):
    """The training ends when the best epoch (by the objective, ties by the other metric) lies so many epochs back."""

    patience_epochs: Count


class Ema(Config):
    """Evaluation uses averaged weights: decay * (1 - exp(-updates / ramp_updates)), BatchNorm's buffers too."""

    decay: Annotated[float, Field(gt=0, lt=1)] = 0.9999
    ramp_updates: Positive = 2000.0


class RDrop(Config):
    """R-Drop (Liang et al. 2021, arXiv:2106.14448): two passes with dropout, all terms averaged over both, and
    weight * (KL(p||q) + KL(q||p)) / 2, mean over N.

    published (setup 4): summed over the batch; it never reached distillation, so only method none takes it.
    """

    weight: Positive = 0.3
    convention: Literal["corrected", "published"] = "corrected"
