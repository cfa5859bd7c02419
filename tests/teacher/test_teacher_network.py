"""The weights that a teacher is read from: a training's own, or a file's under its library's names."""

from pathlib import Path
from typing import Any

import pytest
import torch
from made_up_data import packed
from safetensors.torch import save_file
from torchvision.models import resnet18
from trainings import recipe, workspace

from kdtrain.data.base import Dataset, Split, TensorImages
from kdtrain.errors import UserError
from kdtrain.models.build import build
from kdtrain.models.classifier import Classifier
from kdtrain.models.config import Network
from kdtrain.models.weights import content_digest, load_whole_network
from kdtrain.teacher.network import trained_teacher

SHAPE = (3, 32, 32)
NO_IMAGES = Split(TensorImages(torch.zeros(0, *SHAPE, dtype=torch.uint8)), torch.zeros(0, dtype=torch.int64))
MADE_UP = Dataset("made up", tuple("abcde"), SHAPE, NO_IMAGES, NO_IMAGES, NO_IMAGES)
PLACE = "recipe.teacher.trained"


def network(**fields: Any) -> Classifier:
    config = Network.model_validate({"model": "resnet18", "weights": None, "normalization": "none", **fields})
    return build(config, SHAPE, 5, seed=1).eval()


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_teacher_in_a_librarys_file_has_the_librarys_logits(wrapped: bool, tmp_path: Path) -> None:
    theirs, file = resnet18(num_classes=5).eval(), tmp_path / "teacher.pth"
    state = theirs.state_dict()
    torch.save({"state_dict": {f"module.{name}": value for name, value in state.items()}} if wrapped else state, file)
    config = recipe(
        data={"name": "image_folder", "folder": "pets", "resolution": 32},
        method={"name": "logit_mse", "balance": {"alpha": 0.5}},
        teacher={"model": "resnet18", "trained": str(file), "normalization": "none"},
    )
    before = torch.random.get_rng_state()
    teacher = trained_teacher(config, MADE_UP, workspace(tmp_path, tmp_path))
    assert torch.equal(torch.random.get_rng_state(), before)
    images = torch.rand(40, *SHAPE)
    with torch.no_grad():
        torch.testing.assert_close(teacher(images).logits, theirs(images), rtol=1e-4, atol=1e-4)


def test_a_librarys_head_is_no_hidden_one(tmp_path: Path) -> None:
    file = tmp_path / "teacher.safetensors"
    save_file(resnet18(num_classes=5).state_dict(), file)
    with pytest.raises(UserError, match=rf"{PLACE}: {file} does not fit resnet18: missing head\.0\.weight") as caught:
        load_whole_network(network(head="hidden"), file, PLACE)
    assert "weights: {file: FILE, part: encoder} instead of trained" in str(caught.value)


def test_a_tilde_is_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    ours = network()
    save_file(packed(ours), tmp_path / "teacher.safetensors")
    load_whole_network(ours, Path("~/teacher.safetensors"), PLACE)
    assert content_digest("~/teacher.safetensors", PLACE) == content_digest(tmp_path / "teacher.safetensors", PLACE)
    with pytest.raises(UserError, match=rf"{PLACE}: {tmp_path}/none cannot be read \(No such file"):
        content_digest("~/none", PLACE)
    with pytest.raises(UserError, match=rf"{PLACE}: ~nobody-of-this-name/none is no path"):
        content_digest("~nobody-of-this-name/none", PLACE)
