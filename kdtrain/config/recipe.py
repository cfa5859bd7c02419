"""The recipe of one training: everything that may change a bit of what is learned. A recipe has no search spaces."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BeforeValidator, Discriminator, Field, Tag, model_validator

from kdtrain.base_config import MOST, Config, Count, Positive, Seed, tuple_from_list
from kdtrain.config.training import Clipping, Cosine, EarlyStopping, Ema, LrSchedule, Optimizer, RDrop
from kdtrain.config.written_teachers import Written, each_teacher
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
        untrained = (*INHERITED, "seed", "weights", "freeze", "batch_norm_statistics", "allow_random_frozen")
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

FEWEST, MOST_SEEDS = 2, 100
"""The least number of teachers of an ensemble, and the most that `seeds` makes of one."""


def _or_one(schema: dict[str, Any]) -> None:
    """Allow one item in place of the list, in a JSON schema."""
    items = schema.pop("items")
    schema["anyOf"] = [{"type": schema.pop("type"), "items": items}, {**items}]


def _or_list(schema: dict[str, Any]) -> None:
    """Allow a list of teachers in place of one, in a JSON schema."""
    one, _ = forms = schema["anyOf"][0]["oneOf"]
    forms.append({"type": "array", "items": {**one}, "minItems": FEWEST})


class Ensemble(Config):
    """Several teachers whose outputs are combined. One teacher with `seeds: n` is that teacher n times, with the seeds
    s, s + 1, ..., where s is its own seed. A dump has the list of all teachers.
    """

    of: Annotated[tuple[Teacher, ...], BeforeValidator(tuple_from_list)] = Field(
        description="The teachers, or one teacher, beside `seeds`.", json_schema_extra=_or_one
    )
    seeds: Annotated[int, Field(ge=FEWEST, le=MOST_SEEDS)] | None = Field(
        None,
        description="Number of trainings of the one teacher in `of`, with seeds that follow its own.",
        exclude=True,
    )
    combine: Literal["probabilities", "logits"] = Field(
        "probabilities",
        description="probabilities: the mean of softmax(logits / T) at the method's temperature T. logits: the mean of"
        " the logits.",
    )
    weights: Annotated[tuple[Annotated[float, Field(ge=0, le=MOST)], ...] | None, BeforeValidator(tuple_from_list)] = (
        Field(
            None,
            description="Weights of the mean, one for each teacher; only their ratios matter. Left out: equal ones."
            " Each may be searched: [1, {uniform: [0, 2]}].",
        )
    )

    @model_validator(mode="before")
    @classmethod
    def _all_written(cls, written: Any) -> Any:
        """Write the teachers as a list and their weights."""
        if not isinstance(written, dict):
            return written
        written, of = {**written}, written.get("of")
        if isinstance(of, dict):
            written["of"] = of = _with_seeds(of, written.get("seeds"))
            if len(of) >= FEWEST:
                del written["seeds"]
        if isinstance(of, list | tuple) and written.get("weights") is None:
            written["weights"] = [1.0] * len(of)
        return written

    @model_validator(mode="after")
    def _parts_go_together(self) -> Self:
        count, weights = len(self.of), self.weights or ()
        if self.seeds is not None:
            raise ValueError(f"seeds goes with one teacher in of, which has a list of {count}; remove seeds")
        if count < FEWEST:
            raise ValueError(f"an ensemble needs at least {FEWEST} teachers, got {count}; write one as {{model: ...}}")
        for i, teacher in enumerate(self.of):
            first = self.of.index(teacher)
            if first < i:
                raise ValueError(
                    f"teacher {i + 1} repeats teacher {first + 1}, which is one network; write another seed"
                )
        if len(weights) != count:
            raise ValueError(f"weights must be one number for each of the {count} teachers, got {len(weights)}")
        if not any(weights):
            raise ValueError(f"weights must have one above 0, got [{', '.join(f'{weight:g}' for weight in weights)}]")
        return self

    @property
    def shares(self) -> tuple[float, ...]:
        """The weights divided by their sum."""
        assert self.weights is not None
        total = sum(self.weights)
        return tuple(weight / total for weight in self.weights)


def _with_seeds(teacher: Written, seeds: Any) -> list[Written]:
    """Return one written teacher as often as `seeds` says; once if it is no valid number, which is reported there."""
    if seeds is None:
        raise ValueError("of must be a list of teachers, or one teacher with their number beside it, seeds: 5")
    if names_finished(teacher):
        raise ValueError("seeds cannot repeat a finished teacher, which is not trained; list the files' teachers in of")
    if type(seeds) is not int or not FEWEST <= seeds <= MOST_SEEDS:
        return [teacher]
    first = teacher.get("seed", 0)
    return [{**teacher, "seed": first + i if isinstance(first, int) else first} for i in range(seeds)]


class TeacherEnsemble(Config):
    """Several teachers in the place of one; a list of teachers is an ensemble with equal weights."""

    ensemble: Ensemble

    @model_validator(mode="before")
    @classmethod
    def _of_list(cls, written: Any) -> Any:
        return {"ensemble": {"of": written}} if isinstance(written, list | tuple) else written


def _several_or_one(written: Any) -> str:
    several = isinstance(written, list | tuple | TeacherEnsemble) or (
        isinstance(written, dict) and "ensemble" in written
    )
    return "several" if several else "one"


AnyTeacher = Annotated[
    Annotated[Teacher, Tag("one")] | Annotated[TeacherEnsemble, Tag("several")], Discriminator(_several_or_one)
]


class Recipe(Config):
    """Everything that may change a bit of what one training learns. It is immutable and can be compared and hashed.

    Load one with `load_recipe` or `recipe_from_dict`, whose error messages name the place of every mistake.
    """

    data: Data
    mixup: Mixup | None = Field(None, description="Mixed images; teacher and student see the same ones.")
    teacher: AnyTeacher | None = Field(
        None,
        description="Required by every method except none. Several teachers: a list, or {ensemble: {of: ...}}.",
        json_schema_extra=_or_list,
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
        student = written.get("student") if isinstance(written, dict) else None
        if not isinstance(student, dict) or "teacher" not in written:
            return written

        def named(teacher: Written) -> Written:
            return {**teacher, "model": student.get("model")} if teacher.get("model") == AS_STUDENT else teacher

        return {**written, "teacher": each_teacher(written["teacher"], named)}

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
    def ensemble(self) -> Ensemble | None:
        """How several teachers are combined; None if there is at most one."""
        return self.teacher.ensemble if isinstance(self.teacher, TeacherEnsemble) else None

    @property
    def teachers(self) -> tuple[Teacher, ...]:
        """The networks that teach: none, one, or those of an ensemble."""
        if isinstance(self.teacher, TeacherEnsemble):
            return self.teacher.ensemble.of
        return () if self.teacher is None else (self.teacher,)


def recipes_by_teacher(recipe: Recipe) -> tuple[Recipe, ...]:
    """Return the recipe once for each of its teachers, with that one as its only teacher."""
    if recipe.ensemble is None:
        return (recipe,) if recipe.teacher is not None else ()
    return tuple(recipe.model_copy(update={"teacher": teacher}) for teacher in recipe.teachers)


def teacher_recipes(recipe: Recipe) -> tuple[Recipe, ...]:
    """Return the whole recipes by which a recipe's teachers are trained, without those of finished teachers."""
    return tuple(trained_by for each in recipes_by_teacher(recipe) if (trained_by := teacher_recipe(each)) is not None)


def teacher_recipe(recipe: Recipe) -> Recipe | None:
    """Return the whole recipe by which a recipe's one teacher is trained, or None if no teacher is trained."""
    teacher = recipe.teacher
    assert not isinstance(teacher, TeacherEnsemble)
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
