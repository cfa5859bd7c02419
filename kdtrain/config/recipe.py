"""The recipe of one training: everything that may change a bit of what is learned. A recipe has no search spaces."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BeforeValidator, Discriminator, Field, Tag, model_validator

from kdtrain.base_config import Config, Count, Positive, Seed, tuple_from_list
from kdtrain.config.training import Clipping, Cosine, EarlyStopping, Ema, LrSchedule, Optimizer, RDrop
from kdtrain.data.mixup import Mixup
from kdtrain.data.registry import Data
from kdtrain.data.sampling import Sampler
from kdtrain.methods.none import NoDistillation
from kdtrain.methods.registry import Method
from kdtrain.models.config import WEIGHTS_KEY, Network, WeightsKey, default_dropout

Smoothing = Annotated[float, Field(ge=0, lt=1)]
ClassWeights = Annotated[
    Annotated[Literal["none", "balanced"], Tag("word")]
    | Annotated[tuple[Positive, ...], BeforeValidator(tuple_from_list), Tag("list")],
    Discriminator(lambda written: "list" if isinstance(written, list | tuple) else "word"),
]
Precision = Literal["fp32", "tf32", "bf16", "fp16"]
BatchNorm = Literal["global", "per_worker"]
Objective = Literal["val/accuracy", "val/mpa", "val/nll", "val/ece"]


def names_finished(teacher: Mapping[str, Any]) -> bool:
    """Return True if a teacher, as it is written, is a finished one.

    The old key `file` counts too, so that its error, which names the new key, is the only one.
    """
    return teacher.get("trained", teacher.get("file")) is not None


class Student(Network):
    """The network that is trained."""


class Teacher(Network):
    """The network whose outputs the student learns from: finished (`trained`), or trained first by its own recipe.

    A training field that is left out has the recipe's value; model `as_student` is the student's model.
    """

    renamed: ClassVar = {"file": "trained"}

    trained: str | None = Field(
        None,
        description="File with the weights of a finished teacher (.safetensors, or of torch.save), which is not trained"
        " any further. A relative path begins at the working folder. To go on with its training: weights: {file: PATH}",
    )
    weights_key: WeightsKey | None = Field(None, description=f"Of `trained`. {WEIGHTS_KEY}")
    seed: Seed = 0
    epochs: Count | None = None
    batch_size: Count | None = None
    optimizer: Optimizer | None = None
    lr_schedule: LrSchedule | None = None
    clipping: Clipping | None = None
    early_stopping: EarlyStopping | None = None
    label_smoothing: Smoothing | None = None
    class_weights: ClassWeights | None = None
    sampler: Sampler | None = None
    precision: Precision | None = None
    batch_norm: BatchNorm | None = None

    @model_validator(mode="before")
    @classmethod
    def _no_initial_weights_if_finished(cls, written: Any) -> Any:
        return {"weights": None, **written} if isinstance(written, dict) and names_finished(written) else written

    @model_validator(mode="after")
    def _finished_or_trained(self) -> Self:
        # Compare values, not model_fields_set: a dumped recipe, as workers and best.yaml have it, sets every default.
        fields = Teacher.model_fields
        untrained = (
            *INHERITED, "seed", "weights", "freeze", "batch_norm_statistics", "allow_random_frozen", "input_dropout",
            "max_norm",
        )  # fmt: skip
        written = [name for name in untrained if getattr(self, name) != fields[name].default]
        written += ["dropout"] if self.dropout != default_dropout(self.head) else []
        if self.trained is not None and written:
            raise ValueError(
                f"a finished teacher (trained: FILE) is not trained; remove {', '.join(written)}, or write"
                " weights: {file: FILE} instead of trained to go on with its training"
            )
        if self.trained is None and self.weights_key is not None:
            raise ValueError("weights_key needs trained: FILE; for initial weights write weights: {file, weights_key}")
        return self


OWN = {*Network.model_fields, "trained", "weights_key", "seed"}
INHERITED = tuple(name for name in Teacher.model_fields if name not in OWN)
"""The fields of a recipe that its teacher has too; if the teacher leaves one out, the recipe's value counts."""

AS_STUDENT = "as_student"
"""A teacher's model that stands for the student's model, whatever that is in a trial (self-distillation)."""
OF_THE_MODEL = ("model", "hidden", "stem")
"""The fields of a network's encoder, which such a teacher has of the student."""


class Recipe(Config):
    """Everything that may change a bit of what one training learns. It is immutable and can be compared and hashed.

    Load one with `load_recipe` or `recipe_from_dict`, whose error messages name the place of every mistake.
    """

    data: Data
    mixup: Mixup | None = Field(None, description="Mixed images; teacher and student see the same ones.")
    teacher: Teacher | None = Field(None, description="Required by every method except none.")
    student: Student
    method: Method
    r_drop: RDrop | None = None
    optimizer: Optimizer
    lr_schedule: LrSchedule
    clipping: Clipping | None = None
    ema: Ema | None = None
    early_stopping: EarlyStopping | None = None
    label_smoothing: Smoothing = 0.0
    class_weights: ClassWeights = Field(
        "none",
        description="Weights of the classes in cross-entropy. balanced: images / (classes * images of the class). A"
        " list: one weight for each class, in the order of the data set's classes.",
    )
    sampler: Sampler = Field(
        "shuffled",
        description="shuffled: each training image once per epoch. class_balanced: as many images per epoch, but"
        " equally many of each class; small classes repeat theirs, with the same view within an epoch.",
    )
    batch_size: Count = Field(description="Number of images per step, over all workers together.")
    epochs: Count
    precision: Precision = Field(
        "fp32",
        description="Precision of both networks in training. tf32: TensorFloat-32 convolutions on a GPU. bf16, fp16:"
        " autocast; fp16 with a gradient scaler. Losses and evaluation are always float32.",
    )
    batch_norm: BatchNorm = Field(
        "global",
        description="global: BatchNorm takes its training statistics over the images of all workers, so the number of"
        " workers does not change the result. per_worker: over each worker's own images.",
    )
    objective: Objective = Field(
        "val/accuracy",
        description="The metric of the epoch whose weights are kept. val/mpa: mean accuracy per class. val/ece:"
        " expected calibration error.",
    )
    seed: Seed = 0

    @model_validator(mode="before")
    @classmethod
    def _teacher_as_student(cls, written: Any) -> Any:
        teacher, student = (written.get(key) if isinstance(written, dict) else None for key in ("teacher", "student"))
        if isinstance(teacher, dict) and isinstance(student, dict) and teacher.get("model") == AS_STUDENT:
            own = {name: student[name] for name in OF_THE_MODEL if name in student}
            return {**written, "teacher": {**own, **teacher, "model": student.get("model")}}
        return written

    @model_validator(mode="after")
    def _teacher_if_needed(self) -> Self:
        alone = isinstance(self.method, NoDistillation)
        if alone and self.teacher is not None:
            raise ValueError("method none uses no teacher; remove recipe.teacher")
        if not alone and self.teacher is None:
            raise ValueError(f"method {self.method.name} needs a teacher: {{model: ...}}")
        return self

    @model_validator(mode="after")
    def _parts_go_together(self) -> Self:
        if self.mixup is not None and self.method.needs_hard_labels:
            raise ValueError(f"method {self.method.name} needs one class per image; remove recipe.mixup")
        if self.student.freeze == "encoder" and self.method.needed_stages:
            raise ValueError(
                f"student.freeze must be none or encoder_but_norm with method {self.method.name}, which trains the"
                " encoder's features, got encoder"
            )
        if self.r_drop is not None and self.r_drop.convention == "published" and self.method.name != "none":
            raise ValueError(
                "r_drop.convention published never reached distillation, so only method none can have it; remove r_drop"
            )
        return self

    @model_validator(mode="after")
    def _cosine_fits(self) -> Self:
        schedule = self.lr_schedule
        if isinstance(schedule, Cosine) and schedule.warmup_epochs >= self.epochs:
            raise ValueError(
                f"lr_schedule.warmup_epochs must be below epochs {self.epochs}, got {schedule.warmup_epochs}"
            )
        if isinstance(schedule, Cosine) and schedule.lowest_lr >= self.optimizer.lr:
            raise ValueError(
                f"lr_schedule.lowest_lr must be below optimizer.lr {self.optimizer.lr}, got {schedule.lowest_lr}"
            )
        return self


def teacher_recipe(recipe: Recipe) -> Recipe | None:
    """Return the whole recipe by which a recipe's teacher is trained, or None if no teacher is trained."""
    teacher = recipe.teacher
    if teacher is None or teacher.trained is not None:
        return None
    fields: dict[str, Any] = {name: getattr(teacher, name) for name in INHERITED}
    network = {name: getattr(teacher, name) for name in Network.model_fields}
    return Recipe(
        data=recipe.data,
        student=Student(**network),
        method=NoDistillation(name="none"),
        objective=recipe.objective,
        seed=teacher.seed,
        **{name: getattr(recipe, name) if value is None else value for name, value in fields.items()},
    )
