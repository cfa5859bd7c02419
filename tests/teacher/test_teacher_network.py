"""The weights that a teacher is read from: a training's own, or a file's under its library's names."""

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from made_up_data import packed
from safetensors.torch import save_file
from torchvision import models as torchvision_models
from trainings import recipe, workspace

from kdtrain.data.base import Dataset, Split, TensorImages
from kdtrain.errors import UserError
from kdtrain.models.build import build
from kdtrain.models.classifier import Classifier
from kdtrain.models.config import Network
from kdtrain.models.weights import load_whole_network
from kdtrain.teacher.network import trained_teacher
from kdtrain.trials.identity import file_digest

SHAPE = (3, 32, 32)
NO_IMAGES = Split(TensorImages(torch.zeros(0, *SHAPE, dtype=torch.uint8)), torch.zeros(0, dtype=torch.int64))
MADE_UP = Dataset("made up", tuple("abcde"), SHAPE, NO_IMAGES, NO_IMAGES, NO_IMAGES, "")
PLACE = "recipe.teacher.file"


def network(model: str, classes: int = 5, **fields: Any) -> Classifier:
    config = Network.model_validate({"model": model, "weights": None, "normalization": "none", **fields})
    return build(config, SHAPE, classes, seed=1).eval()


def library(model: str) -> torch.nn.Module:
    if model in torchvision_models.list_models():
        return torchvision_models.get_model(model, weights=None, num_classes=5).eval()
    return timm.create_model(model, num_classes=5).eval()


@pytest.mark.parametrize("model", ["resnet18", "regnet_y_400mf", "ghostnet_100", "resnetv2_50x1_bit"])
def test_a_librarys_file_gives_the_librarys_logits(model: str, tmp_path: Path) -> None:
    theirs, file = library(model), tmp_path / "teacher.pth"
    torch.save({"state_dict": {f"module.{name}": value for name, value in theirs.state_dict().items()}}, file)
    ours = network(model)
    before = torch.random.get_rng_state()
    load_whole_network(ours, file, PLACE)
    assert torch.equal(torch.random.get_rng_state(), before)
    images = torch.rand(2, *SHAPE)
    with torch.no_grad():
        torch.testing.assert_close(ours(images), theirs(images))


def test_it_answers_what_its_library_would(tmp_path: Path) -> None:
    theirs, file = library("resnet18"), tmp_path / "teacher.pth"
    torch.save(theirs.state_dict(), file)
    config = recipe(
        data={"name": "image_folder", "folder": "pets", "resolution": 32},
        method={"name": "logit_mse", "balance": {"alpha": 0.5}},
        teacher={"model": "resnet18", "file": str(file), "normalization": "none"},
    )
    teacher = trained_teacher(config, MADE_UP, workspace(tmp_path, tmp_path))
    assert teacher is not None
    images = torch.rand(40, *SHAPE)
    with torch.no_grad():
        torch.testing.assert_close(teacher(images).logits, theirs(images), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("head", ["linear", "hidden"])
def test_a_trainings_own_file_reads_back_as_it_was(head: str, tmp_path: Path) -> None:
    trained, other = network("resnet18", head=head), network("resnet18", head=head)
    with torch.no_grad():
        trained.encoder.conv1.weight.zero_()
    save_file(packed(trained), tmp_path / "weights.safetensors")
    load_whole_network(other, tmp_path / "weights.safetensors", PLACE)
    assert all(torch.equal(value, trained.state_dict()[name]) for name, value in other.state_dict().items())


def test_another_number_of_classes_is_told_with_place_and_file(tmp_path: Path) -> None:
    file = tmp_path / "teacher.safetensors"
    for state in (packed(network("resnet18", 7)), torchvision_models.resnet18(num_classes=7).state_dict()):
        save_file(state, file)
        with pytest.raises(UserError) as caught:
            load_whole_network(network("resnet18"), file, PLACE)
        assert str(caught.value) == f"{PLACE}: {file} does not fit resnet18: the file has 7 classes, the data 5"


def test_a_librarys_head_is_no_hidden_one(tmp_path: Path) -> None:
    file = tmp_path / "teacher.safetensors"
    save_file(torchvision_models.resnet18(num_classes=5).state_dict(), file)
    with pytest.raises(UserError, match=rf"{PLACE}: {file} does not fit resnet18: missing head\.0\.weight") as caught:
        load_whole_network(network("resnet18", head="hidden"), file, PLACE)
    assert "part:" not in str(caught.value)


def test_the_weights_of_another_network_are_refused_and_change_nothing(tmp_path: Path) -> None:
    file, ours = tmp_path / "teacher.safetensors", network("resnet18")
    before = {name: value.clone() for name, value in ours.state_dict().items()}
    save_file(torchvision_models.mobilenet_v2(num_classes=5).state_dict(), file)
    with pytest.raises(UserError, match=rf"{PLACE}: {file} does not fit resnet18: missing encoder\.conv1\.weight"):
        load_whole_network(ours, file, PLACE)
    assert all(torch.equal(value, before[name]) for name, value in ours.state_dict().items())


def test_a_tilde_is_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    ours = network("resnet18")
    save_file(packed(ours), tmp_path / "teacher.safetensors")
    load_whole_network(ours, Path("~/teacher.safetensors"), PLACE)
    assert file_digest("~/teacher.safetensors") == file_digest(str(tmp_path / "teacher.safetensors"))
    with pytest.raises(UserError, match=rf"{PLACE}: {tmp_path}/none cannot be read \(No such file"):
        file_digest("~/none")
    with pytest.raises(UserError, match=rf"{PLACE}: ~nobody-of-this-name/none cannot be read"):
        file_digest("~nobody-of-this-name/none")
