"""A reference implementation whose setup a sweep repeats: its tables, its conclusions, its curves."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from analysis.references.claims import Claim
from analysis.references.measured import Measured

Measurements = Sequence[Measured]


@dataclass(frozen=True)
class Curves:
    """A picture of metrics by epoch: one band per label over its trials.

    metrics: axis label by metric. kind: of the students, for the caption. zoomed_epochs: number of last epochs that are
    drawn once more, larger; None if there are no more epochs than that.
    """

    file: str
    kind: str
    trial_ids: Mapping[str, Sequence[str]]
    metrics: Mapping[str, str]
    zoomed_epochs: int | None


@dataclass(frozen=True)
class Reference:
    """A reference implementation.

    Args:
        name: Its name in a sweep file; `templates/reference_<name>.md.j2` shows its tables.
        title: The heading of its part of a report.
        networks: Its models, by "student" and "teacher"; a conclusion that names one of them accepts a substitute.
        setting: Its hyperparameters, as paths of a recipe (and `classes`); a tuple has alternatives.
        tables: Computes the variables of the template: reported rows beside the measured ones.
        claims: Judges its conclusions.
        curves: Selects the curves that it shows.
    """

    name: str
    title: str
    networks: Mapping[str, set[str]]
    setting: Mapping[str, Any]
    tables: Callable[[Measurements], Mapping[str, Any]]
    claims: Callable[[Measurements], list[Claim]] = lambda _: []
    curves: Callable[[Measurements], list[Curves]] = lambda _: []


def yes_or_no(value: object) -> str:
    return "yes" if value else "no"


def differences(reference: Reference, rows: Measurements) -> list[str]:
    """Return the hyperparameters that differ from the reference: `epochs 10 (150)`."""
    students = [row for row in rows if row.role != "teacher"]
    found = []
    for path, reported in reference.setting.items():
        there = reported if isinstance(reported, tuple) else (reported,)
        here = {str(_at(row.recipe, path)) for row in students}
        if not here <= set(map(str, there)):
            found.append(f"{path} {' or '.join(sorted(here))} ({' or '.join(map(str, there))})")
    return found


def substitutes(reference: Reference, rows: Measurements) -> list[str]:
    """Return the networks that the reference does not have: `tf_efficientnet_lite0 as student`."""
    distilled = [row for row in rows if row.role in ("published", "best")]
    return [
        f"{model} as {part}"
        for part in ("student", "teacher")
        for model in sorted({str(getattr(row, part)) for row in distilled} - reference.networks[part])
    ]


def _at(tree: Mapping[str, Any], path: str) -> Any:
    node: Any = tree
    for key in path.split("."):
        node = node.get(key) if isinstance(node, Mapping) else None
    return node
