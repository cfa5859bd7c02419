"""Fixtures of the tests of reports; `python -m pytest tests/analysis --renew-golden` writes the golden files anew."""

from collections.abc import Callable
from pathlib import Path

import pytest
from made_up_study import MadeUpStudy, whole_study

from analysis import style
from analysis.frame import Study, read_study

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture
def golden(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[str, str], None]:
    """golden(name, text) compares a text with a file; the folder of the test is replaced by TMP."""

    def check(name: str, text: str) -> None:
        text = text.replace(str(tmp_path), "TMP")
        if request.config.getoption("--renew-golden"):
            (GOLDEN / name).write_text(text)
        assert text == (GOLDEN / name).read_text()

    return check


@pytest.fixture
def rendered() -> None:
    """Let the test write real PNG files."""


@pytest.fixture(autouse=True)
def _without_rendering(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw figures, but write empty files: rendering takes most of a report's time."""
    if "rendered" not in request.fixturenames:
        monkeypatch.setattr(style, "save", lambda figure, path: path.write_bytes(b""))


@pytest.fixture
def made_up(tmp_path: Path) -> Callable[..., MadeUpStudy]:
    """An empty study: made_up(parameters=...)."""
    return lambda **fields: MadeUpStudy(tmp_path / "results" / "made_up", **fields)


@pytest.fixture
def whole(tmp_path: Path) -> Callable[..., MadeUpStudy]:
    """A finished study: whole(gain=0.02)."""
    return lambda results=tmp_path / "results", **fields: whole_study(results, **fields)


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Study:
    """A finished study; tests only read it."""
    return read_study(whole_study(tmp_path_factory.mktemp("finished")).folder)
