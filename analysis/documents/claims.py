"""What a document concludes, and whether what was measured here supports it."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from analysis.documents.measured import Measured, difference
from analysis.statistics import SEEDS_FOR_A_CLAIM, Estimate
from analysis.tables import MISSING, estimate_points, markdown, points


@dataclass(frozen=True)
class Claim:
    """A difference of two rows in a metric, and its direction as the document has it: `higher`, or not.

    published: the document's own difference, a fraction; compared: which rows were compared here.
    """

    text: str
    published: float | None
    higher: bool
    compared: str = ""
    ours: Estimate | None = None


def compare(
    text: str,
    published: float | None,
    first: Measured | None,
    second: Measured | None,
    *,
    metric: str = "test/accuracy",
    higher: bool | None = None,
) -> Claim:
    """The claim that `first` is higher than `second`, or (published difference <= 0, higher=False) that it is not."""
    upward = higher if higher is not None else bool(published and published > 0)
    if first is None or second is None:
        return Claim(text, published, upward)
    return Claim(text, published, upward, f"{first.named} minus {second.named}", difference(first, second, metric))


def verdict(claim: Claim) -> str:
    """supported or contradicted where the 95 % interval lies on one side of 0; else undecided, with the reason."""
    ours = claim.ours
    if ours is None:
        return "not measured here"
    if ours.n < SEEDS_FOR_A_CLAIM:
        return f"undecided: n = {ours.n}, a claim needs {SEEDS_FOR_A_CLAIM} seeds"
    if ours.interval is None:
        return "undecided: all differences are equal"
    if ours.interval.contains_zero:
        return "undecided: the interval contains 0"
    return "supported" if (ours.mean > 0) == claim.higher else "contradicted"


def claims_table(claims: Sequence[Claim]) -> str:
    rows = [
        {
            "the document concludes": claim.text,
            "its difference, points": MISSING if claim.published is None else points(claim.published),
            "compared here": claim.compared or MISSING,
            "difference here, points": estimate_points(claim.ours),
            "n": MISSING if claim.ours is None else str(claim.ours.n),
            "verdict": verdict(claim),
        }
        for claim in claims
    ]
    return markdown(pd.DataFrame(rows))


EXPLAINED = (
    "Differences are of the test split unless the row says otherwise: means over the confirming seeds, paired by seed, "
    "with their 95 % t interval; from a teacher's one run every seed is subtracted alike. Supported: the interval "
    "lies on the side that the document names; contradicted: on the other. `(searched)`: no published point with "
    "these facts was confirmed, so the best searched recipe was judged. The intervals are not corrected for being "
    "several, and none of them is the sweep's primary claim.\n"
)


def pick(rows: Iterable[Measured], document: Mapping[str, set[str]], **wanted: Any) -> Measured | None:
    """The row of a published point with these facts (method, student, teacher, freeze), or else of the best recipe.

    document: its students' and teachers' names. Where a sweep has none of them, since other networks were set, the
    networks that are there stand in.
    """
    distilled = [row for row in rows if row.role in ("published", "best")]
    wanted = {
        part: value for part, value in wanted.items() if part not in document or not stands_in(rows, document, part)
    }
    fitting = [row for row in distilled if all(getattr(row, name) == value for name, value in wanted.items())]
    return max(fitting, key=lambda row: (row.role == "published", _validation(row)), default=None)


def stands_in(rows: Iterable[Measured], document: Mapping[str, set[str]], part: str) -> bool:
    """Whether none of the document's students (or teachers) is here."""
    return not any(getattr(row, part) in document[part] for row in rows if row.role in ("published", "best"))


def alone(rows: Iterable[Measured], like: Measured | None) -> Measured | None:
    """The best confirmed baseline of the very same student: model, weights and freeze; with the same tricks if there is
    one."""
    if like is None:
        return None
    same = [row for row in rows if row.role == "baseline" and row.recipe["student"] == like.recipe["student"]]
    alike = [row for row in same if (row.ema, row.r_drop) == (like.ema, like.r_drop)]
    return max(alike or same, key=_validation, default=None)


def own_teacher(rows: Iterable[Measured], like: Measured | None) -> Measured | None:
    """The one run of the teacher that this row's students had; None for one that came from a file."""
    if like is None or like.teacher_id is None:
        return None
    return next((row for row in rows if row.role == "teacher" and like.teacher_id in row.trial_ids.values()), None)


def _validation(row: Measured) -> float:
    found = row.estimate("val/accuracy")
    return found.mean if found else 0.0
