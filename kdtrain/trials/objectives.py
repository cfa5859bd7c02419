"""The metrics by which epochs and trials are ranked. Standard library only."""

from collections.abc import Mapping
from typing import Any

HIGHER_IS_BETTER = {"val/accuracy": True, "val/mpa": True, "val/nll": False, "val/ece": False}
"""Every objective. `val/mpa` is the mean accuracy per class, over the classes that have validation images; `val/ece` is
the expected calibration error."""


def ranking_key(metrics: Mapping[str, Any], objective: str) -> tuple[float, float]:
    """Return the key by which epochs and trials are ranked, larger is better: objective, then NLL or accuracy."""
    value = metrics[objective] if HIGHER_IS_BETTER[objective] else -metrics[objective]
    return value, metrics["val/accuracy"] if objective == "val/nll" else -metrics["val/nll"]


def objectives_of(row: Mapping[str, Any]) -> dict[str, float]:
    """Return the values of all objectives in a row of metrics; rows of before may lack one."""
    return {name: row[name] for name in HIGHER_IS_BETTER if name in row}
