"""A study that the tests of this folder share."""

import pytest
from studies import open_study, sweep_file

from kdtrain.executors.local import execute
from kdtrain.study.study import Study


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Study:
    """One study carried out to its end, for the tests that only look."""
    folder = tmp_path_factory.mktemp("finished")
    study = open_study(sweep_file(folder), folder / "results")
    execute(study)
    return study
