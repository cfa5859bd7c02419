import pytest

from analysis.claims import student_name
from analysis.tables import (
    duration,
    estimate_percent,
    estimate_points,
    listed,
    markdown,
    one_line,
    points,
    sampled,
    short_names,
)


def test_markdown_aligns_numbers_right_and_shows_missing_as_a_dash() -> None:
    rows = [{"name": "a|b", "n": 1, "gap": "+0.10"}, {"name": "c", "n": 20}]
    assert markdown(rows) == "| name | n | gap |\n| :-- | --: | --: |\n| a\\|b | 1 | +0.10 |\n| c | 20 | — |\n"
    assert [estimate_percent(None), sampled(float("nan")), estimate_points(None)] == ["—"] * 3


def test_what_rounds_to_zero_has_no_sign() -> None:
    assert [points(x) for x in (0.0123, -0.0123, -0.00001)] == ["+1.23", "-1.23", "0.00"]


def test_short_names_are_unique_ends() -> None:
    short = {"method[kd].temperature": "temperature", "method": "method"}
    long = ("method[kd].balance.weight", "method[mgd].balance.weight")
    assert short_names([*short, *long]) == short | {name: name for name in long}


def test_long_reasons_and_lists_are_cut() -> None:
    assert one_line("first\nsecond") == "first"
    assert len(one_line("x" * 500)) == 160
    assert one_line(None) == "no reason recorded"
    assert listed(range(14)) == "0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11 and 2 more"


def test_a_student_whose_random_encoder_was_frozen_is_marked() -> None:
    assert student_name({"student": {"model": "a", "allow_random_frozen": True}}) == "a (random weights, frozen)"
    assert student_name({"student": {"model": "a", "allow_random_frozen": False}}) == "a"
    assert student_name(None) == "unknown"


@pytest.mark.parametrize(
    ("seconds", "text"), [(3.14, "3.1 s"), (61, "1 min 1 s"), (59.97, "1 min 0 s"), (7_322, "2 h 2 min")]
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text
