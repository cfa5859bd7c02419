import re
from pathlib import Path
from typing import Any

import pytest

from kdtrain.config.located import load_located, parse_value
from kdtrain.config.problems import Problem
from kdtrain.config.yaml_reader import dump_yaml
from kdtrain.errors import UserError


def written(tmp_path: Path, text: str) -> Path:
    file = tmp_path / "x.yaml"
    file.write_text(text)
    return file


def problems_of(tmp_path: Path, text: str) -> list[str]:
    """The problems that load_located raises or collects."""
    file = written(tmp_path, text)
    try:
        located = load_located(file)
        raise located.error(located.problems)
    except UserError as error:
        return [problem.replace(str(file), "x.yaml") for problem in error.problems]


def test_every_path_knows_its_line(tmp_path: Path) -> None:
    located = load_located(written(tmp_path, "a:\n  b: 1\n  c:\n    - {d: 2}\n    -\n      d: 3\n"))
    assert located.data == {"a": {"b": 1, "c": [{"d": 2}, {"d": 3}]}}
    paths = ("a",), ("a", "b"), ("a", "c", 0, "d"), ("a", "c", 1, "d"), ("a", "c", 1, "nowhere", "deeper")
    problems = located.error(Problem(path, "is wrong") for path in paths).problems
    assert [problem.removeprefix(located.file).split(":")[1] for problem in problems] == ["1", "2", "4", "6", "6"]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4), ("3.0e-5", 3e-5), ("1.", 1.0), (".5", 0.5), ("-2E3", -2000.0), ("12", 12), ("-3", -3),
        ("0x1f", 31), ("0o17", 15), ("010", 10), ("true", True), ("False", False), ("null", None), ("~", None),
        ("", None), ("on", "on"), ("no", "no"), ("12:30", "12:30"), ("none", "none"), ("2020-01-01", "2020-01-01"),
        ("1_000", "1_000"), ("'1e-4'", "1e-4"), ("!!float 3", 3.0), ("!!str 3", "3"),
    ],
)  # fmt: skip
def test_scalars_are_those_of_yaml_1_2(text: str, value: object) -> None:
    read = parse_value(text, "--set x")
    assert (type(read), read) == (type(value), value)


@pytest.mark.parametrize(
    ("text", "place", "words"),
    [
        ("", "x.yaml:1: ", "empty"),
        ("# only a comment\n---\n", "x.yaml:1: ", "empty"),
        ("- a\n- b\n", "x.yaml:1: ", "mapping"),
        ("\n\njust text\n", "x.yaml:3: ", "mapping"),
        ("a: 1\n\tb: 2\n", "x.yaml:2: ", "use spaces"),
        ("a: [1, 2\nb: 3\n", "x.yaml:2: ", "is not YAML: did not find expected ',' or ']'"),
        ("a: 1\n---\nb: 2\n", "x.yaml:2: ", "one document"),
        ("a: *b\n", "x.yaml:1: ", "undefined alias"),
        ("a: é\n\nb: \x07\n", "x.yaml:3: ", "control characters"),
        ("a: &b [*b]\n", "x.yaml:1: a.0: ", "inside its own anchor"),
        ("a: 1\nb: 2\na: 3\n", "x.yaml:3: a: ", "first in line 1"),
        ("a: {b: 1, b: 2}\n", "x.yaml:1: a.b: ", "first in line 1"),
        ("1: a\n", "x.yaml:1: 1: ", "must be text, got 1"),
        ("? [a]\n: b\n", "x.yaml:1: a list or mapping: ", "must be text, got a list or mapping"),
        ("a: &b {c: 1}\nd:\n  <<: *b\n", "x.yaml:3: d.<<: ", "merge keys"),
        ("a: .nan\n", "x.yaml:1: a: ", "must be a finite number, got .nan"),
        ("a: [1, -.inf]\n", "x.yaml:1: a.1: ", "must be a finite number, got -.inf"),
        ("a: 1e999\n", "x.yaml:1: a: ", "must be a finite number, got 1e999"),
        ("a: !!python/object:os.system x\n", "x.yaml:1: a: ", "!!python/object:os.system"),
        ("a: !!int x\n", "x.yaml:1: a: ", "int: 'x'"),
        ("a: " + "[" * 1000, "x.yaml:1: ", "too deeply"),
        ("a: 1\nb:" + " [" * 100_000, "x.yaml:2: ", "too deeply"),
        ("a: 1\nb: [" + "1, " * 100_000, "x.yaml:2: ", "10,000 values"),
        (f"a: 0x{'f' * 5000}\n", "x.yaml:1: a: ", "of at most 1023 bits, got 0xfff"),
        (f"a: [1, 1{'0' * 400}]\n", "x.yaml:1: a.1: ", "of at most 1023 bits, got 1000"),
    ],
)
def test_what_cannot_be_read_is_reported_with_its_place(tmp_path: Path, text: str, place: str, words: str) -> None:
    (problem,) = problems_of(tmp_path, text)
    assert problem.startswith(place)
    assert words in problem


def test_all_repeated_and_odd_keys_are_collected(tmp_path: Path) -> None:
    found = problems_of(tmp_path, "a: 1\na: 2\nb: {2: x}\na: 3\n")
    assert [problem.rpartition(": ")[0] for problem in found] == ["x.yaml:2: a", "x.yaml:3: b.2", "x.yaml:4: a"]


def test_files_that_cannot_be_opened_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere\.yaml: no such file$"):
        load_located(tmp_path / "nowhere.yaml")
    with pytest.raises(UserError, match="cannot be read: Is a directory"):
        load_located(tmp_path)
    (tmp_path / "image.yaml").write_bytes(b"\xff\xfe\x00\x01\x80")
    with pytest.raises(UserError, match=r"image\.yaml: cannot be read: not UTF-8 text"):
        load_located(tmp_path / "image.yaml")


def test_aliases_stand_for_their_value_and_a_bomb_of_them_is_refused(tmp_path: Path) -> None:
    assert load_located(written(tmp_path, "a: &x {b: 1}\nc: *x\n")).data == {"a": {"b": 1}, "c": {"b": 1}}
    bomb = "a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]\n"
    bomb += "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 12))
    with pytest.raises(UserError, match="more than 10,000 values"):
        load_located(written(tmp_path, bomb))


def test_problems_come_once_in_the_order_of_the_file_the_command_line_last(tmp_path: Path) -> None:
    located = load_located(written(tmp_path, "recipe:\n  a: 1\n  b: 2\n  c: {d: 3}\n"))
    located = located.with_value(("recipe", "b"), {"e": 1}, "--set recipe.b")
    paths = [("recipe", "b", "e"), ("recipe", "b"), ("recipe", "c", "d"), ("recipe", "a"), ("recipe", "a")]
    lines = located.error(Problem(path, "is wrong") for path in paths).problems
    assert [re.sub(r"^.*x\.yaml", "x.yaml", line) for line in lines] == [
        "x.yaml:2: recipe.a: is wrong",
        "x.yaml:4: recipe.c.d: is wrong",
        "--set recipe.b: recipe.b.e: is wrong",
        "--set recipe.b: is wrong",
    ]


@pytest.mark.parametrize(
    "value", ["1e5", "on", "true", "0o17", "", "a: b", 1e-5, 3.0, 3, True, None, ["x", {"y": 1.5}]]
)
def test_what_is_dumped_reads_back_equal(value: Any) -> None:
    assert parse_value(dump_yaml({"a": value}), "here") == {"a": value}
