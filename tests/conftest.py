"""What the tests share. Nothing heavy is imported here: the tests of analysis and config need no torch."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--renew-golden", action="store_true", help="write golden files anew instead of comparing them")


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What trials of a node share lies in a folder of these tests, not of their user."""
    before = os.environ.get("KDTRAIN_CACHE")
    os.environ["KDTRAIN_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    yield
    del os.environ["KDTRAIN_CACHE"]
    if before is not None:
        os.environ["KDTRAIN_CACHE"] = before


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Set the CPU threads that these tests were measured with: their number changes float rounding."""
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real image files, for tests marked `data`."""
    folder = os.environ.get("KDTRAIN_DATA")
    if not folder:
        pytest.skip("KDTRAIN_DATA is unset: it names the folder with MNIST/raw and hymenoptera_data")
    return Path(folder)
