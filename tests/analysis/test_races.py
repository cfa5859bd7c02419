"""The races of the stage select, as the journal has them."""

from collections.abc import Callable

import pytest
from made_up_study import MadeUpStudy

from analysis.frame import race_rounds, read_study
from analysis.report import write_report
from analysis.selection import fall, races

Maker = Callable[..., MadeUpStudy]
FIRST = {"search 0": ("search0000", 0.9), "search 1": ("search0001", 0.8), "search 2": ("search0002", 0.7)}
SECOND = {"search 1": ("search0001", 0.8), "search 3": ("search0003", 0.95)}


@pytest.fixture
def searched(made_up: Maker) -> MadeUpStudy:
    made = made_up()
    for number, value in enumerate((0.9, 0.8, 0.7, 0.95)):
        made.trial("search", number, [value - 0.1, value])
    return made


def test_a_race_that_was_run_anew_leaves_no_row_of_the_earlier_one(searched: MadeUpStudy) -> None:
    searched.race("search", FIRST, start=0, rounds=3)
    searched.race("search", SECOND, start=0, rounds=2)
    study = read_study(searched.folder)
    rows = study.stage("select")[["candidate", "round"]].values.tolist()
    assert rows == [["search 1", 1], ["search 3", 1], ["search 1", 2], ["search 3", 2]]
    (race,) = races(study)
    assert {row["candidate"] for row in race.rows} == SECOND.keys()
    assert race.ended is not None


def test_a_race_that_has_begun_anew_has_not_ended(searched: MadeUpStudy) -> None:
    searched.race("search", FIRST, start=0, rounds=3)
    ended = races(read_study(searched.folder))[0]
    assert (ended.ended or {})["winner"] == "search 0"
    (event,) = [row for row in read_study(searched.folder).events("round") if row["round"] == 1]
    searched.event("round", **{key: value for key, value in event.items() if key not in ("event", "time")})
    study = read_study(searched.folder)
    assert [row["round"] for row in race_rounds(study.record)["search"]] == [1]
    assert races(study)[0].ended is None
    assert "The race has not ended." in write_report(searched.folder).read_text()


def test_the_best_single_value_falls_to_the_mean_of_its_fresh_seeds(searched: MadeUpStudy) -> None:
    assert fall(read_study(searched.folder)) is None, "no race has begun"
    searched.race("search", FIRST, start=0, rounds=1)
    found = fall(read_study(searched.folder))
    assert found is not None
    assert (found.number, found.value, found.raced) == (3, 0.95, False)
    searched.race("search", SECOND, start=0, rounds=3)
    study = read_study(searched.folder)
    rows = study.stage("select")
    found = fall(study)
    assert found is not None
    assert (found.seeds, found.fresh) == (
        3,
        pytest.approx(rows.loc[rows["candidate"] == "search 3", "val/accuracy"].mean()),
    )


def test_a_study_with_one_complete_trial_has_the_reason_why_there_is_no_race(searched: MadeUpStudy) -> None:
    about = {"leaders": {}, "probabilities": {"search 0": 1.0}, "rounds": 0, "spent": 0, "trainings": 4, "without": []}
    searched.event("selected", race="search", winner="search 0", reason="one trial is complete", **about)
    assert "There was no race: one trial is complete." in write_report(searched.folder).read_text()


def test_who_else_could_be_the_best_has_a_probability_of_five_percent_or_more(searched: MadeUpStudy) -> None:
    probabilities = {"search 0": 0.91, "search 1": 0.05, "search 2": 0.04}
    searched.race("search", FIRST, start=0, rounds=2, probabilities=probabilities)
    (race,) = races(read_study(searched.folder))
    assert race.others == [("search 1", 0.05)]
    assert [row["in the race"] for row in race.rows] == ["winner", "to the end", "dropped after round 2"]


def test_only_confirmed_recipes_of_the_newest_winner_and_its_number_of_seeds_are_shown(whole: Maker) -> None:
    made = whole(searched=6)
    made.event(
        "winner", candidate="best", baseline="baseline 1", trial_id="confirm0000", confirmed=["best", "baseline 1"]
    )
    made.describe(study=made.description["study"] | {"confirm": {"seeds": 3, "published": True}})
    rows = read_study(made.folder).stage("confirm")
    assert rows.groupby("candidate", sort=False)["seed"].apply(list).to_dict() == {
        "best": [1000, 1001, 1002], "baseline 1": [1000, 1001, 1002],
    }  # fmt: skip
