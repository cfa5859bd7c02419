"""Fixtures of the tests of reports; `python -m pytest tests/analysis --renew-golden` writes the golden files anew."""

from collections.abc import Callable
from pathlib import Path

import pytest
from made_up_study import MadeUpStudy, whole_study

GOLDEN = Path(__file__).parent / "golden"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--renew-golden", action="store_true", help="write the golden reports instead of comparing them")


@pytest.fixture
def golden(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[str, str], None]:
    """golden(name, text) compares a text with a file; the folder of the test is replaced by TMP."""

    def check(name: str, text: str) -> None:
        text = text.replace(str(tmp_path), "TMP")
        if request.config.getoption("--renew-golden", default=False):
            GOLDEN.mkdir(exist_ok=True)
            (GOLDEN / name).write_text(text)
        assert text == (GOLDEN / name).read_text()

    return check


@pytest.fixture
def made_up(tmp_path: Path) -> Callable[..., MadeUpStudy]:
    """An empty study: made_up(parameters=...)."""
    return lambda **fields: MadeUpStudy(tmp_path / "results" / "made_up", **fields)


@pytest.fixture
def whole(tmp_path: Path) -> Callable[..., MadeUpStudy]:
    """A finished study: whole(gain=0.02)."""
    return lambda results=tmp_path / "results", **fields: whole_study(results, **fields)
