"""The fronts of a trade-off in the report: tables, claims and the picture."""

from collections.abc import Callable

import pytest
from made_up_study import IMAGES, MadeUpStudy, choice, number

from analysis import style
from analysis.findings import find_all
from analysis.frame import read_study
from analysis.fronts import pareto
from analysis.report import write_report

Maker = Callable[..., MadeUpStudy]
SPACE = (choice("student.model", "lenet5_student", "lenet5_teacher"), number("optimizer.lr", "loguniform", 0.01, 0.3))
COSTS = {"lenet5_student": 46164, "lenet5_teacher": 81194}
ALONE = (0.90, 0.91, 0.92)


@pytest.fixture
def traded(made_up: Maker) -> MadeUpStudy:
    """Two points distilled, of which the larger is a little better, and one alone."""
    made = made_up(parameters=SPACE, tradeoff={"cost": "parameters"}, trials=3)
    made.trial("teacher", 0, [0.9, 0.97], test=0.97, model="lenet5_teacher")
    for stage, trials in (("baselines", [0.9]), ("search", [0.92, 0.95, 0.5])):
        for n, value in enumerate(trials):
            model = "lenet5_teacher" if n == 1 else "lenet5_student"
            values = {"student.model": model, "optimizer.lr": 0.1}
            state = "pruned" if n == 2 else "complete"
            made.trial(stage, n, [0.4, value], model=model, values=values, state=state, cost=COSTS[model])
    points = [
        {"candidate": f"search {n}", "trial_id": f"search000{n}", "value": value, "cost": cost, "confirmed": key}
        for n, (value, cost, key) in enumerate(((0.92, 46164, "front 1"), (0.95, 81194, "front 2")))
    ]
    made.event("front", race="search", cost="parameters", points=points)
    alone = {"candidate": "baselines 0", "trial_id": "baselines0000", "value": 0.9, "cost": 46164}
    made.event("front", race="baselines", cost="parameters", points=[{**alone, "confirmed": "baseline 1"}])
    confirmed = ["front 1", "front 2", "baseline 1"]
    made.event("winner", candidate="front 2", baseline="baseline 1", trial_id="confirm0003", confirmed=confirmed)
    made.confirm("front 1", [0.90, 0.93, 0.93], start=0)
    made.confirm("front 2", [each + gain for each, gain in zip(ALONE, (0.02, 0.03, 0.04), strict=True)], start=3,
                 model="lenet5_teacher")  # fmt: skip
    made.confirm("baseline 1", list(ALONE), start=6, role="baseline")
    made.event("finished")
    return made


def rows(text: str, heading: str) -> list[list[str]]:
    """The cells of the first table below a heading."""
    lines = text.split(f"{heading}\n")[1].split("\n")
    table = [line for line in lines if line.startswith("|")][: lines.index("", 2)]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table]


def test_each_point_stands_beside_the_baseline_that_costs_no_more(traded: MadeUpStudy) -> None:
    text = write_report(traded.folder).read_text()
    [head, _, first, second, *_] = rows(text, "### Student distilled")
    at = {name: i for i, name in enumerate(head)}
    assert [first[at[name]] for name in ("point", "from", "student", "parameters", "minus", "claim")] == [
        "front 1", "search 0", "lenet5_student", "46 164", "baseline 1", "exploratory",
    ]  # fmt: skip
    assert [second[at[name]] for name in ("point", "student", "parameters", "claim", "p (Holm)")] == [
        "front 2", "lenet5_teacher", "81 194", "primary", "—",
    ]  # fmt: skip
    assert float(second[at["difference, points"]].split()[0]) == pytest.approx(3, abs=100 / IMAGES)
    assert first[at["p (Holm)"]] != "—"
    [_, _, alone, *_] = rows(text, "### Student alone")
    assert alone[:3] == ["baseline 1", "baselines 0", "lenet5_student"]


def test_the_report_of_a_tradeoff_claims_its_most_accurate_point_and_has_no_race(traded: MadeUpStudy) -> None:
    text = write_report(traded.folder).read_text()
    assert 'The winner is "front 2", the most accurate point of the front' in text
    assert "the most accurate baseline that costs no more" in text
    assert "## Select" not in text
    assert "## Student models" not in text
    assert "(front.png)" in text
    assert "repeatable, byte for byte" in text


def test_a_measured_latency_is_said_to_be_not_repeatable(traded: MadeUpStudy) -> None:
    traded.describe(study=traded.description["study"] | {"tradeoff": {"cost": "latency_ms"}})
    traded.event("latency", model="lenet5_student", latency_ms=0.2, device="cpu (x86_64)", threads=2)
    text = write_report(traded.folder).read_text()
    assert "repeatable, byte for byte" not in text
    assert "not repeatable" in text
    assert "on cpu (x86_64) with 2 CPU threads" in text


def test_the_picture_has_the_trials_and_both_fronts_with_their_intervals(traded: MadeUpStudy) -> None:
    study = read_study(traded.folder)
    with style.look():
        figure = pareto(find_all(study).fronts, study)
    assert figure is not None
    [search, confirmed] = figure.axes
    assert set(search.get_legend_handles_labels()[1]) == {
        "student distilled, complete", "student distilled, pruned", "student alone, complete",
        "front, student distilled", "front, student alone",
    }  # fmt: skip
    by_label = {container.get_label(): container for container in confirmed.containers}
    assert set(by_label) == {"student distilled", "student alone"}
    x, y = by_label["student distilled"].lines[0].get_data()  # type: ignore[attr-defined]
    assert list(x) == pytest.approx(list(COSTS.values()), rel=0.05)
    assert list(y) == pytest.approx([92.0, 94.0], abs=0.2)


def test_there_is_no_picture_and_no_table_before_both_searches_have_ended(made_up: Maker) -> None:
    made = made_up(parameters=SPACE, tradeoff={"cost": "flops"})
    made.trial("search", 0, [0.5, 0.6], values={"student.model": "lenet5_student", "optimizer.lr": 0.1})
    text = write_report(made.folder).read_text()
    assert "The fronts are not known yet" in text
    assert "front.png" not in text
