"""The recipe of one training: everything that may change a bit of what is learned. A recipe has no search spaces."""

import re
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import (
    BeforeValidator,
    Discriminator,
    Field,
    SerializerFunctionWrapHandler,
    Tag,
    field_serializer,
    model_validator,
)

from kdtrain.base_config import Config, Count, Positive, Seed, tuple_from_list
from kdtrain.config.training import Clipping, Cosine, EarlyStopping, Ema, LrSchedule, Optimizer, RDrop
from kdtrain.data.base import DataConfig
from kdtrain.data.mixup import Mixup
from kdtrain.data.registry import AnyData, Data
from kdtrain.data.sampling import Drawing, Sampler
from kdtrain.methods.none import NoDistillation
from kdtrain.methods.registry import Method
from kdtrain.models.config import WEIGHTS_KEY, Network, WeightsKey, default_dropout
from kdtrain.models.source import ImageShape

Smoothing = Annotated[float, Field(ge=0, lt=1)]
ClassWeights = Annotated[
    Annotated[Literal["none", "balanced"], Tag("word")]
    | Annotated[tuple[Positive, ...], BeforeValidator(tuple_from_list), Tag("list")],
    Discriminator(lambda written: "list" if isinstance(written, list | tuple) else "word"),
]
Share = Annotated[float, Field(gt=0, le=1)]
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

    A training field that is left out has the recipe's value; model `as_student` is the student's model. A teacher may
    be distilled itself, by its own `method` from its own `teacher` (a teacher assistant, Mirzadeh et al. 2020,
    arXiv:1902.03393).
    """

    renamed: ClassVar = {"file": "trained"}
    newer: ClassVar = {**Network.newer, "data": None, "method": None, "teacher": None}

    trained: str | None = Field(
        None,
        description="File with the weights of a finished teacher (.safetensors, or of torch.save), which is not trained"
        " any further. A relative path begins at the working folder. To go on with its training: weights: {file: PATH}",
    )
    weights_key: WeightsKey | None = Field(None, description=f"Of `trained`. {WEIGHTS_KEY}")
    data: Data | None = Field(
        None,
        description="Values of the recipe's data that are others in this teacher's own training; what is left out is"
        " the recipe's. With another resolution this teacher sees the student's view resized. With trained, only"
        " resolution.",
    )
    method: Method | None = Field(
        None,
        description="The method by which this teacher is distilled itself. Left out: none, from the labels alone.",
    )
    teacher: "Teacher | None" = Field(
        None,
        description="The teacher from which this teacher is distilled; it takes what it leaves out from this teacher's"
        " own training.",
    )
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
            *INHERITED, "method", "teacher", "seed", "weights", "freeze", "batch_norm_statistics",
            "allow_random_frozen", "input_dropout", "max_norm",
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

    @field_serializer("data", mode="wrap")
    def _with_resets(self, data: Data | None, handler: SerializerFunctionWrapHandler) -> Any:
        """Dump null where the recipe's value was reset by it: a key that is left out has the recipe's value."""
        resets = () if data is None else (key for key in data.newer if key in data.model_fields_set)
        return {**dict.fromkeys(resets), **handler(data)} if data is not None else None

    @model_validator(mode="after")
    def _teacher_with_method(self) -> Self:
        if self.teacher is not None and self.method is None:
            raise ValueError("teacher needs a method beside it, by which this teacher was distilled: {name: kd, ...}")
        _require_teacher_if_needed(self.method.name if self.method else "none", self.teacher, "teacher.teacher")
        return self

    def image_shape(self, of_recipe: ImageShape) -> ImageShape:
        """Return (C, H, W) of the images that this network takes; `of_recipe` is that of the recipe's views."""
        return of_recipe if self.data is None else self.data.image_shape


OWN = {*Network.model_fields, "trained", "weights_key", "data", "method", "teacher", "seed"}
INHERITED = tuple(name for name in Teacher.model_fields if name not in OWN)
"""The fields of a recipe that its teacher has too; if the teacher leaves one out, the recipe's value counts."""

AS_STUDENT = "as_student"
"""A teacher's model that stands for the student's model, whatever that is in a trial (self-distillation)."""
OF_THE_MODEL = ("model", "hidden", "stem")
"""The fields of a network's encoder, which such a teacher has of the student."""


def _require_teacher_if_needed(method: str, teacher: Teacher | None, place: str) -> None:
    if method == "none" and teacher is not None:
        raise ValueError(f"method none uses no teacher; remove {place}")
    if method != "none" and teacher is None:
        raise ValueError(f"method {method} needs a teacher: {{model: ...}}")


def with_whole_teachers(recipe: Any) -> Any:
    """Return a recipe as it is written with each teacher's model and data whole.

    `as_student` becomes the student's model, and a teacher's data have what they leave out from the recipe's; those of
    a teacher's teacher from the teacher's. A whole recipe stays as it is.
    """
    if not isinstance(recipe, dict) or not isinstance(teacher := recipe.get("teacher"), dict):
        return recipe
    student, data, own = recipe.get("student"), recipe.get("data"), teacher.get("data")
    whole = {**teacher}
    if teacher.get("model") == AS_STUDENT and isinstance(student, dict):
        of_student = {name: student[name] for name in OF_THE_MODEL if name in student}
        whole = {**of_student, **teacher, "model": student.get("model")}
    if isinstance(own, dict) and isinstance(data, dict):
        whole["data"] = {**data, **own}
    if "teacher" in teacher:
        own_recipe = {"teacher": teacher["teacher"], "student": whole, "data": whole.get("data") or data}
        whole["teacher"] = with_whole_teachers(own_recipe)["teacher"]
    return {**recipe, "teacher": whole}


def _require_one_data_set(recipe: Any) -> None:
    """Raise ValueError if a teacher's data, as it is written, are another data set than the recipe's."""
    data, teacher = (recipe.get(key) if isinstance(recipe, dict) else None for key in ("data", "teacher"))
    place, name = "teacher.data.name", data.get("name") if isinstance(data, dict) else None
    while name is not None and isinstance(teacher, dict):
        own = teacher.get("data")
        if isinstance(own, dict) and own.get("name", name) != name:
            raise ValueError(f"{place} must be that of recipe.data, {name}, or left out, got {own['name']}")
        teacher, place = teacher.get("teacher"), f"teacher.{place}"


def _overlap(one: DataConfig, other: DataConfig) -> bool:
    """Return True if two configs take different parts of the training images that have images in common."""
    if one.part == other.part:
        return False
    if one.part is None or other.part is None or one.part.of != other.part.of:
        return True
    return (one.split_seed, one.limit_per_class) != (other.split_seed, other.limit_per_class)


class Recipe(Config):
    """Everything that may change a bit of what one training learns. It is immutable and can be compared and hashed.

    Load one with `load_recipe` or `recipe_from_dict`, whose error messages name the place of every mistake.
    """

    newer: ClassVar = {"labelled_share": None}

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
    labelled_share: Share | None = Field(
        None,
        description="If the labels of some images are hidden: the share of labelled images in each batch of a distilled"
        " student, rounded, at least one image. Left out: images are drawn without regard to labels.",
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
    def _whole_teachers(cls, written: Any) -> Any:
        _require_one_data_set(written)
        return with_whole_teachers(written)

    @model_validator(mode="after")
    def _teacher_if_needed(self) -> Self:
        _require_teacher_if_needed(self.method.name, self.teacher, "recipe.teacher")
        if self.teacher is None and self.labelled_share is not None:
            raise ValueError(
                "labelled_share has no effect with method none, which trains on labelled images only; remove it"
            )
        return self

    @model_validator(mode="after")
    def _teachers_data_fit(self) -> Self:
        own = None if self.teacher is None else self.teacher.data
        if own is None or self.teacher is None or own == self.data:
            return self
        other = [name for name in type(own).model_fields if getattr(own, name) != getattr(self.data, name, None)]
        if self.teacher.trained is not None and other != ["resolution"]:
            name = next(name for name in other if name != "resolution")
            raise ValueError(
                f"teacher.data.{name} belongs to a teacher's training, and a finished teacher (trained: FILE) is not"
                " trained; it may have its own resolution only"
            )
        if _overlap(self.data, own):
            raise ValueError(
                "teacher.data.part overlaps recipe.data.part; parts have no common image if both are written, with the"
                " same `of`, another index, and the same split_seed and limit_per_class of the data"
            )
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
    def _labels_suffice(self) -> Self:
        hidden = self.data.hides_labels
        if hidden is not None and (problem := label_problem(self, hidden)):
            raise ValueError(problem)
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

    @property
    def drawing(self) -> Drawing:
        """The options by which batches are drawn. An unlabelled image teaches nothing without a teacher."""
        alone = self.teacher is None
        return Drawing(self.seed, self.batch_size, self.sampler, alone, self.labelled_share)


def label_problem(recipe: Recipe, hidden: bool) -> str | None:
    """Return what is wrong with a recipe whose data have hidden labels or not, beginning with its key; else None."""
    if not hidden:
        why = "has no effect, because all training images have their labels; remove it"
        return f"labelled_share {why}" if recipe.labelled_share is not None else None
    if recipe.teacher is None:  # the student alone learns from labelled images only
        return None
    if recipe.sampler == "class_balanced":
        return "sampler class_balanced needs the class of each image, and labels of data are hidden; write shuffled"
    if recipe.mixup is not None and recipe.label_smoothing:
        return (
            "label_smoothing must be 0 with mixup if labels of data are hidden, because a mixed target without a label"
            f" cannot be smoothed, got {recipe.label_smoothing:g}"
        )
    return None


DISTILLED_ONLY = ("teacher", "labelled_share")
"""The fields of a recipe, besides its method, that a student alone does not have."""


def teacher_recipe(recipe: Recipe) -> Recipe | None:
    """Return the whole recipe by which a recipe's teacher is trained, or None if no teacher is trained."""
    teacher = recipe.teacher
    if teacher is None or teacher.trained is not None:
        return None
    fields: dict[str, Any] = {name: getattr(teacher, name) for name in INHERITED}
    network = {name: getattr(teacher, name) for name in Network.model_fields}
    return Recipe(
        data=teacher.data or recipe.data,
        teacher=teacher.teacher,
        student=Student(**network),
        method=teacher.method or NoDistillation(name="none"),
        objective=recipe.objective,
        seed=teacher.seed,
        **{name: getattr(recipe, name) if value is None else value for name, value in fields.items()},
    )


def chain(recipe: Recipe) -> list[Recipe]:
    """Return the recipes of all trainings that a recipe needs, in their order: each after that of its teacher."""
    taught_by = teacher_recipe(recipe)
    return [*(chain(taught_by) if taught_by is not None else []), recipe]


def teachers_above(recipe: Recipe) -> list[tuple[str, Teacher]]:
    """Return a recipe's teacher, its teacher and so on, each with its place: `recipe.teacher.teacher`."""
    found: list[tuple[str, Teacher]] = []
    teacher, place = recipe.teacher, teacher_place()
    while teacher is not None:
        found.append((place, teacher))
        teacher, place = teacher.teacher, teacher_place(place)
    return found


def data_above(recipe: Recipe) -> list[tuple[str, AnyData]]:
    """Return a recipe's data, those by which its teacher is trained and so on, each with its place."""
    place, found = "recipe.student", []
    for each in reversed(chain(recipe)):
        found.append((f"{place}.data".replace("recipe.student.", "recipe."), each.data))
        place = teacher_place(place)
    return found


def teacher_place(of: str = "recipe.student") -> str:
    """Return where the teacher of the network at a place of a recipe is written."""
    return "recipe.teacher" if of == "recipe.student" else f"{of}.teacher"


def at_teacher(text: str, recipe: Recipe) -> str:
    """Return a message about the recipe by which a recipe's teacher is trained with the places in the recipe itself."""
    own_data = recipe.teacher is not None and recipe.teacher.data is not None

    def moved(place: re.Match[str]) -> str:
        if place[1] == "student":
            return "recipe.teacher"
        return place[0] if place[1] == "data" and not own_data else f"recipe.teacher.{place[1]}"

    return re.sub(r"\brecipe\.(\w+)", moved, text)
