import pandas as pd

from analysis.claims import _student
from analysis.statistics import Estimate, Interval
from analysis.tables import (
    described,
    estimate_percent,
    estimate_points,
    listed,
    markdown,
    one_line,
    points,
    points_interval,
    sampled,
    short_names,
)


def test_markdown_aligns_numbers_right_and_shows_missing_as_a_dash() -> None:
    frame = pd.DataFrame({"name": ["a|b", "c"], "n": [1, 20], "gap": ["+0.10", None]})
    assert markdown(frame) == "| name | n | gap |\n| :-- | --: | --: |\n| a\\|b | 1 | +0.10 |\n| c | 20 | — |\n"


def test_missing_is_never_zero() -> None:
    assert estimate_percent(None) == "—"
    assert sampled(float("nan")) == "—"
    assert estimate_points(None) == "—"


def test_percent_has_two_decimals_and_an_estimate_without_interval_no_plus_minus() -> None:
    assert estimate_percent(Estimate(0.97204, 0.00118, 5)) == "97.20 ± 0.12"
    assert estimate_percent(Estimate(0.97204, None, 1)) == "97.20"


def test_points_are_signed_and_what_rounds_to_zero_has_no_sign() -> None:
    assert [points(x) for x in (0.0123, -0.0123, -0.00001)] == ["+1.23", "-1.23", "0.00"]
    assert points_interval(None) == "no interval"
    assert points_interval(Interval(-0.001, 0.02)) == "-0.10 to +2.00"


def test_short_names_are_unique_ends() -> None:
    names = ["method[kd].temperature", "method[kd].balance.weight", "method[mgd].balance.weight", "method"]
    assert short_names(names) == {
        "method[kd].temperature": "temperature",
        "method[kd].balance.weight": "method[kd].balance.weight",
        "method[mgd].balance.weight": "method[mgd].balance.weight",
        "method": "method",
    }


def test_values_in_a_sentence() -> None:
    values = {"method.temperature": 4.12345, "optimizer.lr": None, "student": "lenet5_student"}
    assert described(values) == "`temperature` 4.123, `student` lenet5_student"


def test_long_reasons_and_lists_are_cut() -> None:
    assert one_line("first\nsecond") == "first"
    assert len(one_line("x" * 500)) == 160
    assert one_line(None) == "no reason recorded"
    assert listed(range(14)) == "0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11 and 2 more"


def test_a_student_whose_random_encoder_was_frozen_is_marked() -> None:
    recipe = {"student": {"model": "resnet18", "allow_random_frozen": True}}
    assert _student(recipe) == "resnet18 (random weights, frozen)"
    assert _student({"student": {"model": "resnet18", "allow_random_frozen": False}}) == "resnet18"
    assert _student(None) == "unknown"
