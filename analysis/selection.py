"""The races of the stage select: rounds over fresh seeds between the promising recipes of the search."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from analysis.frame import AXIS, SEARCHED, Study, complete_trials, race_rounds
from analysis.results import ranked
from analysis.tables import MISSING, Rows, number, percent
from kdtrain.storage.folder import Row

ALSO_LIKELY = 0.05
"""The probability of being the best candidate from which on a candidate that has not won is named."""


@dataclass(frozen=True)
class Race:
    """One race as the journal has it.

    name: as in the journal. rows: a row per candidate, the best first. ended: its "selected" event; None if the race
    has not ended. last: its newest "round" event; None if there was no race. others: (candidate, probability of being
    the best) of those that have not won and may be the best.
    """

    name: str
    rows: Rows
    ended: Row | None
    last: Row | None
    others: list[tuple[str, float]]

    @property
    def title(self) -> str:
        """The heading of its table; a race of baselines is named after its student model if there are several."""
        stage, _, model = self.name.partition(" ")
        return {"search": "Student distilled", "baselines": "Student alone"}[stage] + (f", {model}" if model else "")


@dataclass(frozen=True)
class Fall:
    """The best single value of the search, and the mean of the same recipe over its fresh seeds.

    fresh is None before its first fresh seed, and if the recipe did not race.
    """

    number: int
    value: float
    raced: bool
    seeds: int
    fresh: float | None


def races(study: Study) -> list[Race]:
    """Return the newest races, that of the distilled students first."""
    rounds = race_rounds(study.record)
    ends = {event["race"]: event for event in study.events("selected")}
    names = sorted({*rounds, *ends}, key=lambda name: (-SEARCHED.index(name.partition(" ")[0]), name))
    return [_race(study, name, rounds.get(name, []), ends.get(name)) for name in names]


def fall(study: Study) -> Fall | None:
    """Return how far the best single value of the search fell, or None before a trial is complete."""
    best = complete_trials(ranked(study), study.objective).head(1)
    rounds = race_rounds(study.record).get("search")
    if best.empty or not rounds:
        return None
    trial = best.iloc[0]
    racer = next((each for each in rounds[-1]["racers"] if each["trial_id"] == trial["trial_id"]), None)
    seeds, fresh = (racer["seeds"], racer["fresh"]) if racer else (0, None)
    return Fall(int(trial["number"]), float(trial[study.objective]), racer is not None, seeds, fresh)


def in_unit(study: Study) -> Callable[[float | None], str]:
    """Return a function that writes a value of the objective in its unit: percent, or a number with four decimals."""
    return percent if AXIS[study.objective][1] > 1 else number


def unit(study: Study) -> str:
    """Return "%" or "nats"."""
    return AXIS[study.objective][0].rpartition(", ")[2]


def _race(study: Study, name: str, rounds: list[Row], end: Row | None) -> Race:
    last = rounds[-1] if rounds else None
    if end and last and (end["rounds"] != last["round"] or {*end["probabilities"]} != _names(last)):
        end = None  # of an earlier race: the study has grown since
    probabilities: Mapping[str, float] = end["probabilities"] if end else {}
    winner = end["winner"] if end else None
    likely = [(key, p) for key, p in probabilities.items() if key != winner and p >= ALSO_LIKELY]
    racers = _in_order(last["racers"], larger_is_better=study.larger_is_better) if last else []
    has_options = len({racer["option"] for racer in racers}) > 1
    rows = [_row(study, each, end, probabilities, has_options) for each in racers]
    return Race(name, rows, end, last, sorted(likely, key=lambda pair: -pair[1]))


def _in_order(racers: list[Row], *, larger_is_better: bool) -> list[Row]:
    """Return the racers by option, the option with the best leader first, and then by posterior mean."""
    sign = -1.0 if larger_is_better else 1.0
    ordered = sorted(racers, key=lambda racer: (racer["diverged"], 0.0 if racer["diverged"] else sign * racer["mean"]))
    options = list(dict.fromkeys(racer["option"] for racer in ordered))
    return sorted(ordered, key=lambda racer: options.index(racer["option"]))


def _names(last: Row) -> set[str]:
    return {racer["candidate"] for racer in last["racers"]}


def _row(
    study: Study, racer: Row, end: Row | None, probabilities: Mapping[str, float], has_options: bool
) -> dict[str, Any]:
    write, sign = in_unit(study), unit(study)
    probability = probabilities.get(racer["candidate"])
    return {
        "candidate": racer["candidate"],
        **({"option": racer["option"]} if has_options else {}),
        f"search's value, {sign}": write(racer["value"]),
        "fresh seeds": str(racer["seeds"]),
        f"mean of the fresh seeds, {sign}": write(racer["fresh"]),
        f"posterior mean ± sd, {sign}": MISSING
        if racer["diverged"]
        else f"{write(racer['mean'])} ± {write(racer['sd'])}",
        "in the race": _fate(racer, end),
        "probability of being the best": _chance(probability),
    }


def _chance(probability: float | None) -> str:
    if probability is None:
        return MISSING
    if probability < 0.01:
        return "< 1 %"
    return "> 99 %" if probability > 0.99 else f"{100 * probability:.0f} %"


def _fate(racer: Row, end: Row | None) -> str:
    if racer["diverged"]:
        return "diverged" + ("" if racer["dropped"] is None else f" in round {racer['dropped']}")
    if racer["dropped"] is not None:
        why = {True: ", probably below the leader", False: ", among the lowest means"}
        return f"dropped after round {racer['dropped']}{why.get(racer.get('improbable'), '')}"  # type: ignore[arg-type]
    if end is None:
        return "yes"
    if racer["candidate"] == end["winner"]:
        return "winner"
    return "leader of its option" if racer["candidate"] in end["leaders"].values() else "to the end"
