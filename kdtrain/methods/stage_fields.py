"""Types for stages in the config of a method, and a check of the shapes of two networks there."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator

from kdtrain.errors import UserError
from kdtrain.methods.base import MethodContext, Shape

Name = Literal["4", "8", "16", "32"]


def _require_text(written: Any) -> Any:
    if isinstance(written, int):
        raise ValueError(f"a stage is text: write '{written}', got {written}")
    return written


def _tuple_from_list(written: Any) -> Any:
    # Strict validation refuses a list for a tuple, and YAML has lists only.
    return tuple(written) if isinstance(written, list) else written


def _require_distinct(stages: tuple[Name, ...]) -> tuple[Name, ...]:
    if not stages:
        raise ValueError("must name at least one of 4, 8, 16, 32, got []")
    if len(set(stages)) < len(stages):
        raise ValueError(f"must name each stage once, got [{', '.join(stages)}]")
    return stages


Stage = Annotated[Name, BeforeValidator(_require_text)]
Stages = Annotated[tuple[Stage, ...], BeforeValidator(_tuple_from_list), AfterValidator(_require_distinct)]


def require_equal_map_sizes(method: str, field: str, stages: tuple[str, ...], context: MethodContext) -> None:
    """Raise UserError if the maps [C, H, W] of student and teacher differ in H or W at one of the stages.

    Args:
        method: name, for the error.
        field: key of the stages in the config of the method.
        stages: to check.
        context: has the shapes.
    """
    for stage in stages:
        student, teacher = context.student_shapes[stage], context.teacher_shapes[stage]
        if student[1:] != teacher[1:]:
            raise UserError(
                f"recipe.method.{field}: {method} compares maps of one height and width, but at stage '{stage}' the"
                f" student has {_shown(student)} and the teacher {_shown(teacher)} (channels x height x width)"
            )


def _shown(shape: Shape) -> str:
    return " x ".join(map(str, shape))
