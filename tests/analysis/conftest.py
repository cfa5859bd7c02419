from collections.abc import Callable
from pathlib import Path

import pytest
from made_up_study import MadeUpStudy, whole_study


@pytest.fixture
def made_up(tmp_path: Path) -> Callable[..., MadeUpStudy]:
    """An empty study to be filled: made_up(parameters=...)."""
    return lambda **fields: MadeUpStudy(tmp_path / "results" / "made_up", **fields)


@pytest.fixture
def whole(tmp_path: Path) -> Callable[..., MadeUpStudy]:
    """A finished study: whole(gain=0.02)."""
    return lambda results=tmp_path / "results", **fields: whole_study(results, **fields)
