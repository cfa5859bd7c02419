"""The recipe of one training: everything that may change a bit of what is learned. A recipe has no search spaces."""

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import (
    Field,
    model_validator,
)

from kdtrain.base_config import Config, Count, Seed
from kdtrain.config.teacher import (
    AnyTeacher,
    BatchNorm,
    ClassWeights,
    Ensemble,
    Precision,
    Smoothing,
    Student,
    Teacher,
    TeacherEnsemble,
    networks_of,
    or_list,
    overlap,
    require_one_data_set,
    require_teacher_if_needed,
    with_whole_teachers,
)
from kdtrain.config.training import Clipping, Cosine, EarlyStopping, Ema, LrSchedule, Optimizer, RDrop
from kdtrain.data.mixup import Mixup
from kdtrain.data.registry import Data
from kdtrain.data.sampling import Drawing, Sampler
from kdtrain.methods.registry import Method

Share = Annotated[float, Field(gt=0, le=1)]
Objective = Literal["val/accuracy", "val/mpa", "val/nll", "val/ece"]


class Recipe(Config):
    """Everything that may change a bit of what one training learns. It is immutable and can be compared and hashed.

    Load one with `load_recipe` or `recipe_from_dict`, whose error messages name the place of every mistake.
    """

    newer: ClassVar = {"labelled_share": None}

    data: Data
    mixup: Mixup | None = Field(None, description="Mixed images; teacher and student see the same ones.")
    teacher: AnyTeacher | None = Field(
        None,
        description="Required by every method except none. Several teachers: a list, or {ensemble: {of: ...}}.",
        json_schema_extra=or_list,
    )
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
        require_one_data_set(written)
        return with_whole_teachers(written)

    @model_validator(mode="after")
    def _teacher_if_needed(self) -> Self:
        require_teacher_if_needed(self.method.name, self.teacher, "recipe.teacher")
        if self.teacher is None and self.labelled_share is not None:
            raise ValueError(
                "labelled_share has no effect with method none, which trains on labelled images only; remove it"
            )
        return self

    @model_validator(mode="after")
    def _teachers_data_fit(self) -> Self:
        for i, teacher in enumerate(self.teachers, 1):
            own = teacher.data
            if own is None or own == self.data:
                continue
            its_data = "teacher.data" if self.ensemble is None else f"teacher has a network, number {i}, whose data"
            other = [name for name in type(own).model_fields if getattr(own, name) != getattr(self.data, name, None)]
            if teacher.trained is not None and other != ["resolution"]:
                name = next(name for name in other if name != "resolution")
                raise ValueError(
                    f"{its_data}.{name} belongs to a teacher's training, and a finished teacher (trained: FILE) is not"
                    " trained; it may have its own resolution only"
                )
            if overlap(self.data, own):
                raise ValueError(
                    f"{its_data}.part overlaps recipe.data.part; parts have no common image with the same"
                    " `of`, another index, and the same split_seed and limit_per_class of the data"
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
        if self.ensemble is not None and self.method.needed_stages:
            raise ValueError(
                f"teacher must be one network with method {self.method.name}, which reads its features; got an ensemble"
                f" of {len(self.teachers)}, which has outputs only"
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

    @property
    def ensemble(self) -> Ensemble | None:
        """How several teachers are combined; None if there is at most one."""
        return self.teacher.ensemble if isinstance(self.teacher, TeacherEnsemble) else None

    @property
    def teachers(self) -> tuple[Teacher, ...]:
        """The networks that teach: none, one, or those of an ensemble."""
        return networks_of(self.teacher)


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
