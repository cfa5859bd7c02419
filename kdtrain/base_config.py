"""The base of every config class, and the ranges of numbers that they share."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer


class Config(BaseModel):
    """Immutable settings that refuse unknown keys, values of another type, and NaN.

    `renamed` has the new name of each key that earlier versions had, `moved` the whole path if it stands elsewhere now.
    `newer` has the keys that version 0.1.0 did not have, with the value that changes nothing: a dump leaves such a key
    out, so that a recipe without it keeps its trial_id.
    """

    renamed: ClassVar[Mapping[str, str]] = {}
    moved: ClassVar[Mapping[str, str]] = {}
    newer: ClassVar[Mapping[str, Any]] = {}

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    @model_serializer(mode="wrap")
    def _without_unused_newer_keys(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        dumped: dict[str, Any] = handler(self)
        return {key: value for key, value in dumped.items() if key not in self.newer or value != self.newer[key]}


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
