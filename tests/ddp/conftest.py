"""The groups that test files share."""

import os
from pathlib import Path

import pytest
from filelock import FileLock
from groups import RANKS, Group, results_of


@pytest.fixture(scope="session", params=RANKS, ids=lambda ranks: f"{ranks} ranks")
def group(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Group:
    """Return the results of all selected files of this folder that have some."""
    modules = {item.module for item in request.session.items if isinstance(item, pytest.Function)}
    here = {module.__name__ for module in modules if Path(module.__file__).parent == Path(__file__).parent}
    files = sorted(module.__name__ for module in modules if module.__name__ in here and hasattr(module, "results"))
    own = tmp_path_factory.getbasetemp()
    folder = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / f"group-{request.param}"
    with FileLock(folder.with_suffix(".lock")):  # of several test processes one starts it
        return results_of(request.param, folder, tuple(files))
