"""A document whose setup a sweep repeats: its table, its conclusions, its pictures."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.figure import Figure

from analysis.documents.claims import Claim
from analysis.documents.measured import Measured
from analysis.frame import Study

Rows = Sequence[Measured]
Figures = dict[str, tuple[str, Callable[[], Figure | None]]]  # by file name: caption and what draws it


def yes_or_no(value: object) -> str:
    """In a cell."""
    return "yes" if value else "no"


def _no_claims(_: Rows) -> list[Claim]:
    """Of a document that prints no comparison."""
    return []


def _no_pictures(_: Study, __: Rows) -> Figures:
    return {}


@dataclass(frozen=True)
class Document:
    """table: markdown of the published rows beside the measured; claims: its conclusions, judged.

    networks: the models that it has as `student` and as `teacher`; others stand in where a conclusion names one.
    setting: what the document trains with, as keys of a recipe (and `classes`), to say what differs here; a tuple
    has alternatives.
    pictures: further files that its report shows.
    """

    title: str
    networks: Mapping[str, set[str]]
    setting: Mapping[str, Any]
    table: Callable[[Rows], str]
    claims: Callable[[Rows], list[Claim]] = _no_claims
    pictures: Callable[[Study, Rows], Figures] = _no_pictures


def differences(document: Document, rows: Rows) -> list[str]:
    """What the trainings here had otherwise than the document: `epochs 10 (150)`."""
    students = [row for row in rows if row.role != "teacher"]
    found = []
    for path, published in document.setting.items():
        there = published if isinstance(published, tuple) else (published,)
        here = {str(_at(row.recipe, path)) for row in students}
        if not here <= set(map(str, there)):
            found.append(f"{path} {' or '.join(sorted(here))} ({' or '.join(map(str, there))})")
    return found


def stand_ins(document: Document, rows: Rows) -> list[str]:
    """The networks here that the document does not have: `tf_efficientnet_lite0 as student`."""
    distilled = [row for row in rows if row.role in ("published", "best")]
    return [
        f"{model} as {part}"
        for part in ("student", "teacher")
        for model in sorted({str(getattr(row, part)) for row in distilled} - document.networks[part])
    ]


def _at(tree: Mapping[str, Any], path: str) -> Any:
    node: Any = tree
    for key in path.split("."):
        node = node.get(key) if isinstance(node, Mapping) else None
    return node
