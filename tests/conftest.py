"""What the tests share. Nothing heavy is imported here: the tests of analysis and config need no torch."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real image files, for tests marked `data`."""
    folder = os.environ.get("KDTRAIN_DATA")
    if not folder:
        pytest.skip("KDTRAIN_DATA is unset: it names the folder with MNIST/raw and hymenoptera_data")
    return Path(folder)
