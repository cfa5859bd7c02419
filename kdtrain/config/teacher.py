"""The teachers of a recipe as they are written: one network, or several whose outputs are combined."""

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

from kdtrain.base_config import MOST, Config, Count, Positive, Seed, tuple_from_list
from kdtrain.config.problems import KeyPath, dotted, format_value
from kdtrain.config.training import Clipping, EarlyStopping, LrSchedule, Optimizer
from kdtrain.config.written_teachers import Written, each_teacher, written_teachers
from kdtrain.data.base import DataConfig
from kdtrain.data.registry import Data
from kdtrain.data.sampling import Sampler
from kdtrain.methods.registry import Method
from kdtrain.models.config import WEIGHTS_KEY, Network, WeightsKey, default_dropout
from kdtrain.models.source import ImageShape

Smoothing = Annotated[float, Field(ge=0, lt=1)]
ClassWeights = Annotated[
    Annotated[Literal["none", "balanced"], Tag("word")]
    | Annotated[tuple[Positive, ...], BeforeValidator(tuple_from_list), Tag("list")],
    Discriminator(lambda written: "list" if isinstance(written, list | tuple) else "word"),
]
Precision = Literal["fp32", "tf32", "bf16", "fp16"]
BatchNorm = Literal["global", "per_worker"]


def names_finished(teacher: Mapping[str, Any]) -> bool:
    """Return True if a teacher, as it is written, is a finished one.

    The old key `file` counts too, so that its error, which names the new key, is the only one.
    """
    return teacher.get("trained", teacher.get("file")) is not None


FEWEST, MOST_SEEDS = 2, 100
"""The least number of teachers of an ensemble, and the most that `seeds` makes of one."""


def _or_one(schema: dict[str, Any]) -> None:
    """Allow one item in place of the list, in a JSON schema."""
    items = schema.pop("items")
    schema["anyOf"] = [{"type": schema.pop("type"), "items": items}, {**items}]


def or_list(schema: dict[str, Any]) -> None:
    """Allow a list of teachers in place of one, in a JSON schema."""
    one, _ = forms = schema["anyOf"][0]["oneOf"]
    forms.append({"type": "array", "items": {**one}, "minItems": FEWEST})


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
    teacher: "AnyTeacher | None" = Field(
        None,
        description="The teacher from which this teacher is distilled, or several; it takes what it leaves out from"
        " this teacher's own training.",
        json_schema_extra=or_list,
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
    def _one_network(cls, written: Any) -> Any:
        if isinstance(written, list | tuple) or (isinstance(written, dict) and "ensemble" in written):
            raise ValueError("an ensemble cannot be a member of another; list the teachers of both in one")
        return written

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
        require_teacher_if_needed(self.method.name if self.method else "none", self.teacher, "teacher.teacher")
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


def require_teacher_if_needed(method: str, teacher: "AnyTeacher | None", place: str) -> None:
    if method == "none" and teacher is not None:
        raise ValueError(f"method none uses no teacher; remove {place}")
    if method != "none" and teacher is None:
        raise ValueError(f"method {method} needs a teacher: {{model: ...}}")


def with_whole_teachers(recipe: Any) -> Any:
    """Return a recipe as it is written with each teacher's model and data whole.

    `as_student` becomes the student's model, and a teacher's data have what they leave out from the recipe's; those of
    a teacher's teacher from the teacher's. A whole recipe stays as it is.
    """
    if not isinstance(recipe, dict) or "teacher" not in recipe:
        return recipe
    student, data = recipe.get("student"), recipe.get("data")

    def whole(teacher: Written) -> Written:
        filled, own = {**teacher}, teacher.get("data")
        if teacher.get("model") == AS_STUDENT and isinstance(student, dict):
            of_student = {name: student[name] for name in OF_THE_MODEL if name in student}
            filled = {**of_student, **teacher, "model": student.get("model")}
        if isinstance(own, dict) and isinstance(data, dict):
            filled["data"] = {**data, **own}
        if "teacher" in teacher:
            own_recipe = {"teacher": teacher["teacher"], "student": filled, "data": filled.get("data") or data}
            filled["teacher"] = with_whole_teachers(own_recipe)["teacher"]
        return filled

    return {**recipe, "teacher": each_teacher(recipe["teacher"], whole)}


def require_one_data_set(recipe: Any) -> None:
    """Raise ValueError if a teacher's data, as it is written, are another data set than the recipe's."""
    data = recipe.get("data") if isinstance(recipe, dict) else None
    if isinstance(data, dict) and data.get("name") is not None:
        _require_data_set(data["name"], recipe.get("teacher"), ("teacher",))


def _require_data_set(name: Any, teacher: Any, place: KeyPath) -> None:
    for path, each in written_teachers(teacher):
        here, own = (*place, *path), each.get("data")
        if isinstance(own, dict) and own.get("name", name) != name:
            text = f"must be that of recipe.data, {name}, or left out, got {format_value(own['name'])}"
            raise ValueError(f"{dotted((*here, 'data', 'name'))} {text}")
        _require_data_set(name, each.get("teacher"), (*here, "teacher"))


def overlap(one: DataConfig, other: DataConfig) -> bool:
    """Return True if two configs take different parts of the training images that have images in common."""
    if one.part is None or other.part is None or one.part == other.part:
        return False  # one has all images, or both have the same
    return one.part.of != other.part.of or (one.split_seed, one.limit_per_class) != (
        other.split_seed,
        other.limit_per_class,
    )


class Ensemble(Config):
    """Several teachers whose outputs are combined. One teacher with `seeds: n` is that teacher n times, with the seeds
    s, s + 1, ..., where s is its own seed. A dump has the list of all teachers.
    """

    newer: ClassVar = {"seeds": None}

    of: Annotated[tuple[Teacher, ...], BeforeValidator(tuple_from_list)] = Field(
        description="The teachers, or one teacher, beside `seeds`.", json_schema_extra=_or_one
    )
    seeds: Annotated[int, Field(ge=FEWEST, le=MOST_SEEDS)] | None = Field(
        None,
        description="Number of trainings of the one teacher in `of`, with seeds that follow its own.",
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
Teacher.model_rebuild()


def networks_of(teacher: AnyTeacher | None) -> tuple[Teacher, ...]:
    if isinstance(teacher, TeacherEnsemble):
        return teacher.ensemble.of
    return () if teacher is None else (teacher,)
