"""Whatever stands in a sweep file, a recipe or an override ends in exit code 0, or in sentences with their place."""

import contextlib
import copy
import io
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kdtrain.cli import check
from kdtrain.cli.common import guarded
from kdtrain.config.sweep import load_recipe

ROOT = Path(__file__).parents[2]
SWEEPS = [(ROOT / "sweeps" / f"{name}.yaml").read_text() for name in ("digits_kd", "digits_tradeoff")]
RECIPES = [(ROOT / "recipes" / f"{name}.yaml").read_text() for name in ("mnist_kd", "cub_tricks")]
LONG = "Q" * 5000
WORDS = [
    "choice",
    "uniform",
    "loguniform",
    "int",
    "logint",
    "name",
    "model",
    "ensemble",
    "of",
    "seeds",
    "weights",
    "data",
    "method",
    "balance",
    "alpha",
    "teacher",
    "part",
    "values",
    "min",
    "max",
    "kd",
    "digits",
    LONG,
]
FRAGMENTS = [
    "\t",
    "\0",
    "\ufeff",
    "\r\n",
    "\x1b[31m",
    "\u202e",
    "\u2028",
    "&a ",
    "*a",
    "<<: ",
    "- ",
    ": ",
    "? ",
    "{",
    "}",
    "[",
    "]",
    "!!int ",
    "!x ",
    "|",
    ">",
    "'",
    '"',
    "#",
    "%",
    "---\n",
    "...\n",
    "@",
    "`",
    "0x" + "f" * 5000,
    "1" + "0" * 400,
    ".nan",
    "-.inf",
    "1e999",
    "[" * 300,
    "{a: " * 300,
    "? " * 300,
    LONG,
]
SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.sampled_from([0, -1, 2**63, 10**400, 2**53, 1]), st.floats(),
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="/"), max_size=8), st.sampled_from(WORDS),
)  # fmt: skip
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(st.one_of(st.sampled_from(WORDS), st.text("ab.é\n", max_size=3)), inner, max_size=3),
        st.lists(inner, max_size=4).map(lambda options: {"choice": options}),
        st.tuples(st.sampled_from(["uniform", "loguniform", "int", "logint"]), inner, inner).map(
            lambda space: {space[0]: list(space[1:])}
        ),
    ),
    max_leaves=6,
)


def places(tree: Any, above: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Yield the path of every value."""
    yield above
    for key, child in tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ():
        yield from places(child, (*above, key))


def changed(tree: Any, path: tuple[str | int, ...], value: Any) -> Any:
    tree = copy.deepcopy(tree)
    node = tree
    for key in path[:-1]:
        node = node[key]
    node[path[-1]] = value
    return tree


@st.composite
def files(draw: st.DrawFn, originals: list[str]) -> str:
    """A file with some values, or some characters, replaced."""
    text = draw(st.sampled_from(originals))
    if draw(st.booleans()):
        tree = yaml.safe_load(text)
        for _ in range(draw(st.integers(1, 3))):
            path = draw(st.sampled_from([*places(tree)][1:]))
            tree = changed(tree, path, draw(VALUES))
        return yaml.safe_dump(tree, allow_unicode=True)
    for _ in range(draw(st.integers(1, 3))):
        start = draw(st.integers(0, len(text)))
        text = text[:start] + draw(st.sampled_from(FRAGMENTS)) + text[start + draw(st.integers(0, 6)) :]
    return text


@st.composite
def overrides(draw: st.DrawFn) -> str:
    path = draw(st.sampled_from([*places(yaml.safe_load(SWEEPS[0]))][1:]))
    keys = [*map(str, path), *draw(st.lists(st.sampled_from([*WORDS, "0", "7", ""]), max_size=2))]
    value = draw(st.one_of(st.sampled_from(FRAGMENTS), VALUES.map(lambda value: yaml.safe_dump(value).strip())))
    return ".".join(keys) + draw(st.sampled_from(["=", "=", "=", ""])) + value


CASES: st.SearchStrategy[tuple[str, str]] = st.one_of(
    files(SWEEPS).map(lambda text: ("sweep", text)),
    files(RECIPES).map(lambda text: ("recipe", text)),
    overrides().map(lambda text: ("--set", text)),
)


@pytest.mark.parametrize(
    "examples",
    [100, pytest.param(500, marks=pytest.mark.slow), pytest.param(10_000, marks=pytest.mark.long)],
)
def test_hostile_input_ends_in_sentences_with_their_place(examples: int, tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"

    @settings(
        max_examples=examples, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck)
    )
    @given(CASES)
    def holds(case: tuple[str, str]) -> None:
        kind, text = case
        file.write_bytes((SWEEPS[0] if kind == "--set" else text).encode())
        options = ["--set", text] if kind == "--set" else []

        def run() -> int:
            if kind == "recipe":
                load_recipe(file)
                return 0
            return check.main([str(file), "--data", str(tmp_path), *options])

        code, err = outcome(run)
        assert code in (0, 2)
        lines = err.removesuffix("\n").split("\n") if err else []
        assert bool(lines) == (code == 2)
        for line in lines:
            assert re.match(rf"{re.escape(str(file))}:\d+: |--(set|data) ", line), line
            assert line.isprintable()
            assert "Q" * 81 not in line

    holds()


def outcome(run: Callable[[], int]) -> tuple[int, str]:
    """The exit code of a command and what it printed as errors."""
    with contextlib.redirect_stderr(io.StringIO()) as err, contextlib.redirect_stdout(io.StringIO()):
        code = guarded(run)
    return code, err.getvalue()


SPACES = {
    "a choice of 500 options": (f"{{choice: [{', '.join(f'0.00{i}' for i in range(1000, 1500))}]}}", 0),
    "a choice of 600 options": (f"{{choice: [{', '.join(f'0.00{i}' for i in range(1000, 1600))}]}}", 2),
    "100,000 values": (f"[{'1, ' * 100_000}]", 2),
    "a text of 1 MB": ("a" * 1_000_000, 2),
    "numbers of 1 MB": (f"'{'1,' * 500_000}'", 2),
    "100,000 levels": ("[" * 100_000, 2),
    "40 levels of choices": ("{choice: [1, {choice: [2, " * 20 + "3" + "]}]}" * 20, 0),
}


@pytest.mark.parametrize("case", SPACES)
def test_a_large_file_is_checked_within_seconds(case: str, tmp_path: Path) -> None:
    value, code = SPACES[case]
    (file := tmp_path / "a.yaml").write_text(SWEEPS[0].replace("{loguniform: [0.001, 0.015]}", value))
    start = time.process_time()
    found, err = outcome(lambda: check.main([str(file), "--data", str(tmp_path)]))
    assert found == code, err
    assert time.process_time() - start < 10, "2 s on an idle machine, without the import"
    assert len(err) < 2000


def test_a_file_of_more_than_a_megabyte_is_refused(tmp_path: Path) -> None:
    (file := tmp_path / "a.yaml").write_text(SWEEPS[0] + "#" * (1 << 20))
    code, err = outcome(lambda: check.main([str(file)]))
    assert code == 2
    assert "1,048,576 bytes" in err


def test_combinations_that_cannot_be_counted_out_are_refused(tmp_path: Path) -> None:
    teachers = ", ".join(f"{{model: lenet5_teacher, seed: {{choice: [{i}, {i + 50}]}}}}" for i in range(50))
    text = yaml.safe_load(SWEEPS[0])
    text["recipe"]["teacher"] = yaml.safe_load(f"[{teachers}]")
    (file := tmp_path / "a.yaml").write_text(yaml.safe_dump(text))
    code, err = outcome(lambda: check.main([str(file)]))
    assert code == 2
    assert "512 combinations" in err
