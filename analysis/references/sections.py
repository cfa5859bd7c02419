"""The parts of the report and of the overview about reference implementations."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from analysis.claims import Candidate, Single, candidates, teachers
from analysis.frame import Study
from analysis.references.cifar10 import CIFAR10
from analysis.references.claims import claim_rows
from analysis.references.cub200 import CUB200
from analysis.references.flowers102 import FLOWERS102
from analysis.references.hymenoptera import HYMENOPTERA
from analysis.references.measured import Measured, measured_rows
from analysis.references.mnist import MNIST
from analysis.references.mnist_hinton import MNIST_HINTON
from analysis.references.reference import Curves, Measurements, Reference, differences, substitutes
from analysis.tables import Rows

REFERENCES = {each.name: each for each in (CIFAR10, HYMENOPTERA, MNIST, CUB200, FLOWERS102, MNIST_HINTON)}
"""`report: {published: cub200}` in a sweep file selects one."""


@dataclass(frozen=True)
class Section:
    """One reference beside what was measured.

    tables: variables of its template, None if no student is confirmed. differing: `[sweep:] hyperparameters and
    networks that differ`. claims: rows of the table of its conclusions.
    """

    name: str
    title: str
    tables: Mapping[str, Any] | None = None
    differing: Sequence[str] = ()
    substitutes: Sequence[str] = ()
    claims: Rows = ()
    curves: Sequence[Curves] = ()


def reference_section(study: Study, found: Sequence[Candidate], single: Sequence[Single]) -> Section | None:
    """Return the section of a report, or None if the sweep names no reference."""
    reference = REFERENCES.get(study.published or "")
    return section(reference, measured_rows(study, found, single)) if reference else None


def section(reference: Reference, rows: Measurements) -> Section:
    """Return the section about a reference and the measured rows."""
    if not _has_students(rows):
        return Section(reference.name, reference.title)
    return Section(
        reference.name,
        reference.title,
        tables=reference.tables(rows),
        differing=differences(reference, rows),
        substitutes=substitutes(reference, rows),
        claims=claim_rows(reference.claims(rows)),
        curves=reference.curves(rows),
    )


def all_references(studies: Sequence[Study]) -> list[Section]:
    """Return a section for each reference that a sweep names and of which something is confirmed."""
    sections = []
    for name, reference in REFERENCES.items():
        named = [study for study in studies if study.published == name]
        rows = {study.folder.name: measured_rows(study, candidates(study), teachers(study)) for study in named}
        if confirmed := {sweep: own for sweep, own in rows.items() if _has_students(own)}:
            sections.append(_over_sweeps(reference, confirmed))
    return sections


def _once(by_sweep: Mapping[str, Measurements]) -> list[Measured]:
    """Return all rows, teachers and baselines first, with the keys of all their sweeps; equal trainings once."""
    found: dict[tuple[bool, tuple[str, ...]], Measured] = {}
    for sweep, row in ((sweep, row) for sweep, rows in by_sweep.items() for row in rows):
        key = f"{sweep}: {row.key}"
        trainings = row.role == "biased", tuple(sorted(row.trial_ids.values()))
        known = found.get(trainings)
        found[trainings] = replace(row, key=key) if known is None else replace(known, key=f"{known.key}, {key}")
    order = {"teacher": 0, "baseline": 1}
    return sorted(found.values(), key=lambda row: order.get(row.role, 2))


def _over_sweeps(reference: Reference, by_sweep: Mapping[str, Measurements]) -> Section:
    otherwise = {
        sweep: [*differences(reference, rows), *substitutes(reference, rows)] for sweep, rows in by_sweep.items()
    }
    claims = [
        replace(claim, compared=f"{sweep}: {claim.compared}")
        for sweep, rows in by_sweep.items()
        for claim in reference.claims(rows)
        if claim.ours is not None
    ]
    return Section(
        reference.name,
        reference.title,
        tables=reference.tables(_once(by_sweep)),
        differing=[f"{sweep}: {', '.join(found)}" for sweep, found in otherwise.items() if found],
        claims=claim_rows(claims),
    )


def _has_students(rows: Measurements) -> bool:
    return any(row.role != "teacher" for row in rows)
