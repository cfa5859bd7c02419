"""The base of every config class, and the ranges of numbers that they share."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field


class Config(BaseModel):
    """Immutable settings that refuse unknown keys, values of another type, and NaN.

    `renamed` has the new name of each key that earlier versions had, `moved` the whole path if it stands elsewhere now.
    """

    renamed: ClassVar[Mapping[str, str]] = {}
    moved: ClassVar[Mapping[str, str]] = {}

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


def tuple_from_list(written: Any) -> Any:
    """Return a list as a tuple: strict validation refuses a list for a tuple, and YAML has lists only."""
    return tuple(written) if isinstance(written, list) else written


Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
MOST = 10**9
"""Upper bound of every count: products of two fit into 64 bits."""
Count = Annotated[int, Field(ge=1, le=MOST)]
NonNegativeInt = Annotated[int, Field(ge=0, le=MOST)]
Seed = Annotated[int, Field(ge=0, lt=2**53)]
