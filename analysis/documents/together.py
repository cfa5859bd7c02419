"""The documents over all sweeps of a results folder: each document's whole table, each sweep's verdicts."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from analysis.claims import candidates, teachers
from analysis.documents.claims import EXPLAINED, claims_table
from analysis.documents.document import Rows, differences, stand_ins
from analysis.documents.measured import Measured, measured_rows
from analysis.documents.registry import DOCUMENTS
from analysis.frame import Study


def documents_section(studies: Sequence[Study]) -> str:
    """A subsection for each document that a sweep names and has confirmed something of; none: nothing."""
    parts = []
    for name, document in DOCUMENTS.items():
        named = [study for study in studies if study.published == name]
        by_sweep = {study.folder.name: measured_rows(study, candidates(study), teachers(study)) for study in named}
        by_sweep = {sweep: rows for sweep, rows in by_sweep.items() if any(row.role != "teacher" for row in rows)}
        if not by_sweep:
            continue
        otherwise = {
            sweep: [*differences(document, rows), *stand_ins(document, rows)] for sweep, rows in by_sweep.items()
        }
        differing = [f"- {sweep}: {', '.join(found)}" for sweep, found in otherwise.items() if found]
        claims = [
            replace(claim, compared=f"{sweep}: {claim.compared}")
            for sweep, rows in by_sweep.items()
            for claim in document.claims(rows)
            if claim.ours is not None
        ]
        parts.append(f"### {document.title}\n")
        if differing:
            parts.append("Otherwise than in the document (in brackets):\n\n" + "\n".join(differing) + "\n")
        parts.append(document.table(once(by_sweep)))
        if claims:
            parts.append(f"{claims_table(claims)}\n{EXPLAINED}")
    return "\n".join(["## As the documents have it\n", *parts]) if parts else ""


def once(by_sweep: Mapping[str, Rows]) -> list[Measured]:
    """All rows, teachers and baselines first, under the names that their sweeps give them; the same trainings once."""
    found: dict[tuple[str, ...], Measured] = {}
    for sweep, row in ((sweep, row) for sweep, rows in by_sweep.items() for row in rows):
        trainings, key = tuple(sorted(row.trial_ids.values())), f"{sweep}: {row.key}"
        known = found.get(trainings)
        found[trainings] = replace(row, key=key) if known is None else replace(known, key=f"{known.key}, {key}")
    order = {"teacher": 0, "baseline": 1}
    return sorted(found.values(), key=lambda row: order.get(row.role, 2))
