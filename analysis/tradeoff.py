"""The fronts of a trade-off: test accuracy against the student's cost, distilled and alone."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from analysis.claims import Candidate, find
from analysis.frame import Study
from analysis.results import difference_cell, test_cell
from analysis.selection import in_unit, unit
from analysis.tables import MISSING, Rows, count, number, p_value, thousands
from kdtrain.trials.records import network_name

TITLES = {"search": "Student distilled", "baselines": "Student alone"}
UNITS: dict[str, tuple[str, float, Callable[[float], str]]] = {
    "parameters": ("parameters", 1.0, count),
    "flops": ("MFLOP per image", 1e6, lambda cost: thousands(cost, 2)),
    "latency_ms": ("latency of one image, ms", 1.0, lambda cost: number(cost, 3)),
}
"""By cost: the label of its axis, the factor to its unit, and how it is written in a table."""


@dataclass(frozen=True)
class Point:
    """A point of a front. cost: in the unit of its axis; value: the search's objective; confirmed: None if it is not.

    trial: the searched trial, "search 12"; model: of the student.
    """

    trial: str
    model: str
    cost: float
    value: float
    confirmed: Candidate | None


@dataclass(frozen=True)
class Front:
    """The front of the distilled students or of the students alone, the cheapest point first."""

    race: str
    points: list[Point]

    @property
    def title(self) -> str:
        return TITLES[self.race]


def fronts(study: Study, candidates: Sequence[Candidate]) -> list[Front]:
    """Return the newest front of the search and that of the baselines; [] before both searches have ended."""
    newest = {event["race"]: event for event in study.events("front")}
    found = []
    for race in TITLES:
        if race in newest:
            factor = UNITS[newest[race]["cost"]][1]
            points = [
                Point(
                    trial=point["candidate"],
                    model=_model(study, point["trial_id"]),
                    cost=point["cost"] / factor,
                    value=point["value"],
                    confirmed=find(candidates, point["confirmed"]),
                )
                for point in newest[race]["points"]
            ]
            found.append(Front(race, points))
    return found


def tradeoff(study: Study, found: Sequence[Front]) -> dict[str, Any] | None:
    """Return the tables of both fronts, or None if the study has no trade-off. measured: where latencies were."""
    if study.tradeoff is None:
        return None
    return {
        "cost": study.tradeoff,
        "tables": [(front.title, _rows(study, front)) for front in found],
        "most": study.description["study"]["select"]["candidates"],
        "thinned": any(point.confirmed is None for front in found for point in front.points),
        "measured": sorted({(event["device"], event["threads"]) for event in study.events("latency")}),
    }


def _rows(study: Study, front: Front) -> Rows:
    label, _, write = UNITS[str(study.tradeoff)]
    return [
        {
            "point": point.confirmed.key if point.confirmed else "not confirmed",
            "from": point.trial,
            "student": point.model,
            label: write(point.cost),
            f"search's value, {unit(study)}": in_unit(study)(point.value),
            **_confirmed(point.confirmed, is_distilled=front.race == "search"),
        }
        for point in front.points
    ]


def _confirmed(candidate: Candidate | None, *, is_distilled: bool) -> dict[str, str]:
    cells = {
        "test accuracy, %": test_cell(candidate) if candidate else MISSING,
        "n": str(len(candidate.trial_ids)) if candidate else MISSING,
    }
    if is_distilled:
        cells |= {
            "minus": candidate.baseline or MISSING if candidate else MISSING,
            "difference, points": difference_cell(candidate) if candidate else MISSING,
            "p (Holm)": p_value(candidate.p_holm if candidate else None),
            "claim": MISSING if candidate is None else "primary" if candidate.primary else "exploratory",
        }
    return cells


def _model(study: Study, trial_id: str) -> str:
    recipe = study.recipes.get(trial_id, {}).get("recipe") or {}
    return network_name(recipe.get("student") or {})
