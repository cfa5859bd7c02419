import pytest

from analysis.claims import student_name
from analysis.statistics import Estimate, Interval
from analysis.tables import (
    described,
    duration,
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
    rows = [{"name": "a|b", "n": 1, "gap": "+0.10"}, {"name": "c", "n": 20}]
    assert markdown(rows) == "| name | n | gap |\n| :-- | --: | --: |\n| a\\|b | 1 | +0.10 |\n| c | 20 | — |\n"


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
    assert student_name(recipe) == "resnet18 (random weights, frozen)"
    assert student_name({"student": {"model": "resnet18", "allow_random_frozen": False}}) == "resnet18"
    assert student_name(None) == "unknown"


@pytest.mark.parametrize(
    ("seconds", "text"), [(3.14, "3.1 s"), (61, "1 min 1 s"), (59.97, "1 min 0 s"), (7_322, "2 h 2 min")]
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text
