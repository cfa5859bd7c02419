"""Stages as a method's config writes them, and what two networks' shapes there must have in common."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator

from kdtrain.errors import UserError
from kdtrain.methods.base import MethodContext, Shape

Name = Literal["4", "8", "16", "32"]


def _text(written: Any) -> Any:
    if isinstance(written, int):
        raise ValueError(f"a stage is text: write '{written}', got {written}")
    return written


def _list(written: Any) -> Any:
    # strict validation of Python data takes no list for a tuple; JSON and YAML know lists only
    return tuple(written) if isinstance(written, list) else written


def _some_and_distinct(stages: tuple[Name, ...]) -> tuple[Name, ...]:
    if not stages:
        raise ValueError("must name at least one of 4, 8, 16, 32, got []")
    if len(set(stages)) < len(stages):
        raise ValueError(f"must name each stage once, got [{', '.join(stages)}]")
    return stages


Stage = Annotated[Name, BeforeValidator(_text)]
Stages = Annotated[tuple[Stage, ...], BeforeValidator(_list), AfterValidator(_some_and_distinct)]


def maps_of_one_size(method: str, field: str, stages: tuple[str, ...], setting: MethodContext) -> None:
    """Raises UserError where the maps [C, H, W] of student and teacher differ in H or W."""
    for stage in stages:
        student, teacher = setting.student_shapes[stage], setting.teacher_shapes[stage]
        if student[1:] != teacher[1:]:
            raise UserError(
                f"recipe.method.{field}: {method} compares maps of one height and width, but at stage '{stage}' the"
                f" student has {_shown(student)} and the teacher {_shown(teacher)} (channels x height x width)"
            )


def _shown(shape: Shape) -> str:
    return " x ".join(map(str, shape))
