"""The groups that test files share."""

from pathlib import Path

import pytest
from groups import RANKS, Group, asked


@pytest.fixture(scope="session", params=RANKS, ids=lambda ranks: f"{ranks} ranks")
def group(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Group:
    """Answers of all selected files of this folder that ask a group."""
    modules = {item.module for item in request.session.items if isinstance(item, pytest.Function)}
    here = {module.__name__ for module in modules if Path(module.__file__).parent == Path(__file__).parent}
    files = sorted(module.__name__ for module in modules if module.__name__ in here and hasattr(module, "answers"))
    return asked(request.param, tmp_path_factory.mktemp("group"), tuple(files))
