"""The conclusions of a reference, and whether the measurements support them."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from analysis.claims import Verdict, undecided
from analysis.references.measured import Measured, difference
from analysis.statistics import Estimate
from analysis.tables import MISSING, Rows, estimate_points, points


@dataclass(frozen=True)
class Claim:
    """A conclusion about the difference of two rows in a metric: it is positive (`higher`), or it is not.

    published: the reported difference, a fraction. compared, ours: the rows that are compared here, their difference.
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
    """Return the claim that `first` is higher than `second`, or not higher if the reported difference is at most 0.

    `higher` replaces the direction of the reported difference.
    """
    upward = higher if higher is not None else bool(published and published > 0)
    if first is None or second is None:
        return Claim(text, published, upward)
    return Claim(text, published, upward, f"{first.label} minus {second.label}", difference(first, second, metric))


def verdict(claim: Claim) -> Verdict:
    """Return supported or contradicted if the 95 % interval lies on one side of 0, else undecided with the reason."""
    if claim.ours is None:
        return Verdict("not measured here")
    reason = undecided(claim.ours)
    if reason is not None:
        return Verdict("undecided", reason)
    return Verdict("supported" if (claim.ours.mean > 0) == claim.higher else "contradicted")


def claim_rows(claims: Sequence[Claim]) -> Rows:
    """Return a row for each conclusion."""
    return [
        {
            "conclusion": claim.text,
            "reported difference, points": MISSING if claim.published is None else points(claim.published),
            "compared here": claim.compared or MISSING,
            "difference here, points": estimate_points(claim.ours),
            "n": MISSING if claim.ours is None else str(claim.ours.n),
            "verdict": verdict(claim),
        }
        for claim in claims
    ]


def pick(rows: Iterable[Measured], networks: Mapping[str, set[str]], **wanted: Any) -> Measured | None:
    """Return the row of a published point with these facts, or else of the best searched recipe.

    networks: the reference's models by "student" and "teacher"; if the sweep has none of them, any model will do.
    """
    distilled = [row for row in rows if row.role in ("published", "best")]
    fixed = [name for name in wanted if name not in networks or not is_substituted(rows, networks, name)]
    fitting = [row for row in distilled if all(getattr(row, name) == wanted[name] for name in fixed)]
    return max(fitting, key=lambda row: (row.role == "published", _validation(row)), default=None)


def is_substituted(rows: Iterable[Measured], networks: Mapping[str, set[str]], part: str) -> bool:
    """Return True if none of the reference's students (or teachers) is measured here."""
    return not any(getattr(row, part) in networks[part] for row in rows if row.role in ("published", "best"))


def alone(rows: Iterable[Measured], like: Measured | None) -> Measured | None:
    """Return the best confirmed baseline of the same student, if possible with the same EMA and R-Drop."""
    if like is None:
        return None
    same = [row for row in rows if row.role == "baseline" and row.recipe["student"] == like.recipe["student"]]
    alike = [row for row in same if (row.ema, row.r_drop) == (like.ema, like.r_drop)]
    return max(alike or same, key=_validation, default=None)


def own_teacher(rows: Iterable[Measured], like: Measured | None) -> Measured | None:
    """Return the run of the teacher of this row's students, or None if it came from a file."""
    if like is None or like.teacher_id is None:
        return None
    return next((row for row in rows if row.role == "teacher" and like.teacher_id in row.trial_ids.values()), None)


def _validation(row: Measured) -> float:
    found = row.estimate("val/accuracy")
    return found.mean if found else 0.0
