"""All ranks train one recipe, or none does: machines with other code, images or weights are refused."""

from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from groups import Group
from trainings import recipe, workspace

from kdtrain.errors import UserError
from kdtrain.runtime import distributed

pytestmark = pytest.mark.ddp


def results() -> dict[str, str]:
    found = {}
    for name, seed in (("one", 0), ("several", distributed.rank())):
        with TemporaryDirectory() as folder:
            try:
                with workspace(Path(folder)).reserved_trial(recipe(seed=seed)):
                    found[name] = "reserved"
            except UserError as error:
                found[name] = str(error)
    return found


def test_ranks_whose_recipes_have_other_ids_are_refused_on_all_ranks(group: Group) -> None:
    for found in group.of(__name__):
        assert found["one"] == "reserved"
        assert found["several"].startswith("workers: images, weights or kdtrain differ between the ")
