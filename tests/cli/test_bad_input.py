"""Bad input through the real commands: exit code 2, one sentence with place and cause, and nothing is trained."""

import re
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import made_up_data
import numpy as np
import pytest
import timm
import torch
import yaml
from safetensors.torch import save_file
from studies import sweep_file

from kdtrain.cli import check
from kdtrain.cli.train import main
from kdtrain.config.recipe import Recipe
from kdtrain.data.registry import load
from kdtrain.errors import UserError
from kdtrain.models import timm_source, torchvision_source
from kdtrain.models.build import build
from kdtrain.models.config import Network
from kdtrain.runtime import distributed
from kdtrain.training.assembly import assemble

HYMENOPTERA = {"name": "hymenoptera", "resolution": 16}
IMAGE_FOLDER = {"name": "image_folder", "folder": "hymenoptera_data", "resolution": 16}
CUB200 = {"name": "cub200", "resolution": 16}
DIGITS = {"name": "digits", "resolution": 16, "limit_per_class": 4}
LENET = {"model": "lenet5_student"}
RESNET = {"model": "test_resnet", "weights": None}  # timm's, of 370,000 parameters
LARGER = {"name": "hymenoptera", "resolution": 64}
KD = {"name": "kd", "temperature": 4.0, "balance": {"alpha": 0.5}}
LABELLED = {"balance": {"weight": 1.0}}
ONE_STEP_EACH = {"critic_steps": 1, "student_steps": 1}
PLAIN: dict[str, Any] = {
    "data": HYMENOPTERA,
    "student": LENET,
    "method": {"name": "none"},
    "optimizer": {"name": "sgd", "lr": 0.0001},
    "lr_schedule": {"name": "constant"},
    "batch_size": 6,
    "epochs": 1,
}
DISTILLING: dict[str, Any] = {"teacher": {"model": "lenet5_teacher"}, "method": KD}


@dataclass
class Command:
    """`kdtrain train` in a folder of its own, with the data sets below data/."""

    capsys: pytest.CaptureFixture[str]

    def __call__(self, **changes: Any) -> tuple[int, str, str]:
        Path("recipe.yaml").write_text(yaml.safe_dump(PLAIN | changes, sort_keys=False))
        load.cache_clear()  # each command is a process of its own
        code = main(["recipe.yaml", "--device", "cpu", "--data", "data"])
        out, err = self.capsys.readouterr()
        return code, out, err

    def refuses(self, *expected: str, **changes: Any) -> str:
        """Before anything is trained: not the teacher either."""
        code, out, err = self(**changes)
        assert code == 2, out + err
        assert err.count("\n") == 1, err
        assert all(words in err for words in expected), err
        assert "Traceback" not in out + err
        assert trained_files() == []
        return err

    def trains(self, **changes: Any) -> None:
        code, _, err = self(**changes)
        assert (code, err) == (0, "")
        assert "outcome.json" in {path.name for path in trained_files()}


def trained_files() -> list[Path]:
    """Everything below results but the locks, which hold nothing."""
    return [path for path in Path("results").rglob("*") if path.is_file() and path.name != ".lock"]


@pytest.fixture
def kdtrain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Command]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("KDTRAIN_DATA", raising=False)
    made_up_data.hymenoptera(Path("data"))
    yield Command(capsys)
    load.cache_clear()


# Images


def cut_off(file: Path) -> None:
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])


def text(file: Path) -> None:
    file.write_text("not an image")


def empty(file: Path) -> None:
    file.write_bytes(b"")


def sixteen_bits(file: Path) -> None:
    from PIL import Image

    Image.new("I;16", (30, 24), 1000).save(file, format="png")


def as_jpg(file: Path) -> None:
    """A JPEG cut off in its pixels, whatever its name says: PIL goes by the content."""
    from PIL import Image

    with Image.open(file) as image:
        pixels = image.convert("RGB")
    pixels.save(file, format="jpeg")
    cut_off(file)


@pytest.mark.parametrize(
    ("data", "split", "damage"),
    [*((data, split, cut_off) for data in (HYMENOPTERA, IMAGE_FOLDER, CUB200) for split in ("train", "val", "test")),
     *((HYMENOPTERA, "val", damage) for damage in (as_jpg, text, empty))],
)  # fmt: skip
def test_a_damaged_image_of_any_split_is_named_before_training(
    kdtrain: Command, data: dict[str, Any], split: str, damage: Callable[[Path], None]
) -> None:
    made_up_data.cub200(Path("data"))
    config = Recipe.model_validate(PLAIN | {"data": data}).data
    file = getattr(load(config, Path("data").absolute()), split).images.source.files[-1]
    whole = file.read_bytes()
    damage(file)
    kdtrain.refuses(f"{file}: is not a whole image", data=data)
    if damage is text:
        kdtrain.refuses(f"{file}: is not a whole image", data=data, **DISTILLING)
        file.write_bytes(whole)
        kdtrain.trains(data=data)


def test_an_image_of_16_bits_is_named_before_training(kdtrain: Command) -> None:
    file = Path("data/hymenoptera_data/val/bees/val_005.png").absolute()
    sixteen_bits(file)
    kdtrain.refuses(f"{file}: has grey values of more than 8 bits", "save it with 8 bits per channel")
    made_up_data.paint(file)
    kdtrain.trains()


def test_an_mnist_of_disagreeing_files_is_named_before_training(kdtrain: Command) -> None:
    raw = made_up_data.mnist(Path("data")).absolute()
    data = {"name": "mnist", "resolution": 16}
    labels = raw / "train-labels-idx1-ubyte"
    whole = labels.read_bytes()
    made_up_data.idx(labels, np.zeros(30, np.uint8))
    kdtrain.refuses(f"recipe.data: {labels} has 30 labels", data=data)
    text(labels)
    kdtrain.refuses(f"recipe.data: {labels} is no whole idx file", data=data, **DISTILLING)
    labels.write_bytes(whole)
    kdtrain.trains(data=data)


@pytest.mark.parametrize(("data", "part"), [(HYMENOPTERA, "train"), (IMAGE_FOLDER, "val")])
def test_an_empty_class_folder_is_named(kdtrain: Command, data: dict[str, Any], part: str) -> None:
    for file in Path("data/hymenoptera_data", part, "ants").iterdir():
        file.unlink()
    kdtrain.refuses(f"hymenoptera_data/{part}/ants holds no image", data=data, **DISTILLING)
    made_up_data.hymenoptera(Path("data"))
    kdtrain.trains(data=data)


@pytest.mark.parametrize("data", [HYMENOPTERA, IMAGE_FOLDER], ids=lambda data: str(data["name"]))
def test_a_class_that_one_part_lacks_is_named(kdtrain: Command, data: dict[str, Any]) -> None:
    made_up_data.paint(Path("data/hymenoptera_data/train/wasps/1.png"))
    made_up_data.paint(Path("data/hymenoptera_data/train/wasps/2.png"))
    kdtrain.refuses("hymenoptera_data/val", "hymenoptera_data/train", "different classes", "wasps", data=data)
    made_up_data.paint(Path("data/hymenoptera_data/val/wasps/1.png"))
    kdtrain.trains(data=data)


def test_labels_that_disagree_with_the_images_are_named_by_list_and_line(kdtrain: Command) -> None:
    labels = made_up_data.cub200(Path("data")) / "image_class_labels.txt"
    whole = labels.read_text()
    first, *rest, last = whole.splitlines()
    for lines, expected in (
        ([first.replace(" 1", " 2"), *rest, last], "image_class_labels.txt:1: image 1 has label 2"),
        ([first, *rest], "images.txt:29: image_class_labels.txt has no label for image 29"),
        ([first, *rest, last, "30 1"], "image_class_labels.txt:30: images.txt has no image 30"),
        ([first, *rest, "29 9"], "image_class_labels.txt:29: label 9 of image 29 is not in classes.txt"),
        ([first, *rest, "29"], "image_class_labels.txt:29: must be a number, a space and a text"),
    ):
        labels.write_text("\n".join(lines))
        kdtrain.refuses(expected, data=CUB200)
    labels.write_text(whole)
    kdtrain.trains(data=CUB200)


@pytest.mark.parametrize(
    ("name", "fetch", "lies"),
    [
        ("mnist", "torchvision.datasets.MNIST(", "MNIST/raw"),
        ("cifar10", "torchvision.datasets.CIFAR10(", "cifar-10-batches-py"),
        ("hymenoptera", "hymenoptera_data.zip", "hymenoptera_data/train"),
        ("cub200", "CUB_200_2011.tgz", "CUB_200_2011/images"),
        ("flowers102", "torchvision.datasets.Flowers102(", "flowers-102/jpg"),
    ],
)
def test_absent_data_says_what_to_fetch_and_where(kdtrain: Command, name: str, fetch: str, lies: str) -> None:
    Path("data/hymenoptera_data").rename("elsewhere")
    data = {"name": name, "resolution": 16}
    shown = kdtrain.refuses(f"recipe.data: {name} is not there", fetch, str(Path("data", lies)), data=data)
    assert "--data DIR or KDTRAIN_DATA" in shown
    kdtrain.refuses(f"recipe.data: {name} is not there", data=data, **DISTILLING)


# Weights


class Intruder:
    """Pickled, it makes a file where it is read without care."""

    def __reduce__(self) -> Any:
        return Path.touch, (Path("intruded"),)


def weights_of(model: str, file: str, classes: int = 2) -> Path:
    network = build(Network(model=model), (3, 16, 16), classes, seed=5)
    (save_file if file.endswith(".safetensors") else torch.save)(made_up_data.packed(network), file)
    return Path(file)


PLACES: dict[str, tuple[str, Callable[[str], dict[str, Any]]]] = {
    "student, network": (
        "recipe.student.weights.file",
        lambda file: DISTILLING | {"student": LENET | {"weights": {"file": file}}},
    ),
    "student, encoder": (
        "recipe.student.weights.file",
        lambda file: {"student": LENET | {"weights": {"file": file, "part": "encoder"}}},
    ),
    "teacher, trained first": (
        "recipe.teacher.weights.file",
        lambda file: DISTILLING | {"teacher": LENET | {"weights": {"file": file}}},
    ),
    "teacher": ("recipe.teacher.file", lambda file: DISTILLING | {"teacher": LENET | {"file": file}}),
}


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("place", PLACES)
def test_weights_that_cannot_be_used_are_named_and_never_run(kdtrain: Command, place: str, suffix: str) -> None:
    knob, changes = PLACES[place]
    file = f"weights{suffix}"
    asked = changes(file)
    kdtrain.refuses(f"{knob}: {file} cannot be read (No such file or directory)", **asked)
    cut_off(weights_of("lenet5_student", file))
    kdtrain.refuses(f"{knob}: {file} is no whole weights file", **asked)
    weights_of("lenet5_teacher", file)
    kdtrain.refuses(f"{knob}: {file} does not fit", "encoder.3.weight", **asked)
    if suffix == ".pth":
        torch.save({"encoder.0.weight": Intruder()}, file)
        kdtrain.refuses(f"{knob}: {file} holds more than tensors", "pickled code is never run", **asked)
        assert not Path("intruded").exists()
        Path(file).write_text("house")  # torch's reader: KeyError
        kdtrain.refuses(f"{knob}: {file} is no whole weights file", **asked)
        torch.save({0: torch.zeros(1)}, file)
        kdtrain.refuses(f"{knob}: {file} holds no state_dict", "but dict with the name 0: int", **asked)
    weights_of("lenet5_student", file)
    kdtrain.trains(**asked)


@pytest.mark.parametrize("place", PLACES)
def test_a_weights_file_below_the_home_folder_is_found(
    kdtrain: Command, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(Path.cwd() / "home"))
    Path("home").mkdir()
    knob, changes = PLACES[place]
    asked = changes("~/weights.safetensors")
    kdtrain.refuses(f"{knob}: {Path.cwd()}/home/weights.safetensors cannot be read (No such file", **asked)


def test_a_teachers_file_of_the_library_is_read_and_one_of_other_classes_refused(kdtrain: Command) -> None:
    asked = DISTILLING | {"teacher": RESNET | {"file": "library.safetensors"}}
    save_file(timm.create_model("test_resnet", num_classes=5).state_dict(), "library.safetensors")
    told = "recipe.teacher.file: library.safetensors does not fit test_resnet: the file has 5 classes, the data 2"
    assert "part:" not in kdtrain.refuses(told, **asked)  # which a teacher's file has not
    save_file(timm.create_model("test_resnet", num_classes=2).state_dict(), "library.safetensors")
    kdtrain.trains(**asked)


def test_the_intruder_would_intrude(kdtrain: Command) -> None:
    torch.save({"encoder.0.weight": Intruder()}, "weights.pth")
    torch.load("weights.pth", weights_only=False)
    assert Path("intruded").exists()


@pytest.mark.parametrize("place", ["student, network", "teacher, trained first", "teacher"])
def test_a_head_of_other_classes_is_refused(kdtrain: Command, place: str) -> None:
    knob, changes = PLACES[place]
    classes = 1000
    weights_of("lenet5_student", "weights.safetensors", classes)
    told = f"{knob}: weights.safetensors does not fit lenet5_student: the file has {classes} classes, the data 2"
    kdtrain.refuses(told, **changes("weights.safetensors"))


def test_the_encoder_of_a_network_of_1000_classes_trains(kdtrain: Command) -> None:
    weights_of("lenet5_student", "weights.safetensors", 1000)
    kdtrain.trains(student=LENET | {"weights": {"file": "weights.safetensors", "part": "encoder"}})


@pytest.fixture
def no_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Caches of the libraries without files, and a network that refuses."""
    from huggingface_hub import constants, file_download

    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    for module in (constants, file_download.constants):
        monkeypatch.setattr(module, "HF_HUB_CACHE", str(tmp_path / "hub"))
    proxied(monkeypatch, "http://127.0.0.1:9")
    return tmp_path


def proxied(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, address)
    for name in ("no_proxy", "NO_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


PRETRAINED = {
    "resnet18": "place resnet18-f37072fd.pth at {home}/torch/hub/checkpoints/resnet18-f37072fd.pth",
    "ghostnet": "fetch model.safetensors of timm/ghostnet_100.in1k",
}


@pytest.mark.parametrize("model", PRETRAINED)
@pytest.mark.parametrize("role", ["student", "teacher"])
def test_imagenet_weights_without_a_network_name_the_file_to_place(
    kdtrain: Command, no_weights: Path, role: str, model: str
) -> None:
    asked = DISTILLING | {role: {"model": model, "weights": "imagenet"}}
    place_of_file = PRETRAINED[model].format(home=no_weights)
    kdtrain.refuses(f"recipe.{role}.weights: imagenet of {model}", place_of_file, "weights: null", **asked)


@pytest.mark.parametrize("model", PRETRAINED)
def test_a_network_that_never_answers_is_waited_for_no_longer_than_patience(
    kdtrain: Command, no_weights: Path, monkeypatch: pytest.MonkeyPatch, model: str
) -> None:
    assert torchvision_source.TIMEOUT_S <= 15
    for module in (torchvision_source, timm_source):
        monkeypatch.setattr(module, "TIMEOUT_S", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        proxied(monkeypatch, f"http://127.0.0.1:{silent.getsockname()[1]}")
        began = time.perf_counter()
        kdtrain.refuses("recipe.student.weights: imagenet of", student={"model": model, "weights": "imagenet"})
    assert time.perf_counter() - began < 5


# What does not go together


NEEDS_DATA = {
    "at on maps of two sizes": (
        {"method": {"name": "at", **LABELLED, "stages": ["4"]}, "teacher": RESNET},
        ("recipe.method.stages: at compares maps of one height and width", "stage '4'", "12 x 2 x 2", "32 x 4 x 4"),
        {"student": RESNET},
    ),
    "mgd on maps of two sizes": (
        {"method": {"name": "mgd", **LABELLED, "stage": "4"}, "teacher": RESNET},
        ("recipe.method.stage: mgd compares maps of one height and width", "stage '4'"),
        {"student": RESNET},
    ),
    "a stage that the student lacks": (
        {"method": {"name": "sp", **LABELLED, "stages": ["4", "32"]}, "teacher": RESNET},
        ("recipe.method", "lenet5_student has no stage '32'; it has", "4, pool"),
        {"method": {"name": "sp", **LABELLED, "stages": ["4"]}},
    ),
    "a stage that the teacher lacks": (
        {"method": {"name": "sp", **LABELLED, "stages": ["8"]}, "student": RESNET},
        ("recipe.method", "lenet5_teacher has no stage '8'; it has", "4, pool"),
        {"method": {"name": "sp", **LABELLED, "stages": ["4"]}},
    ),
    "sp of one image": (
        {"method": {"name": "sp", **LABELLED, "stages": ["4"]}, "batch_size": 1},
        ("recipe.batch_size: sp compares images", "at least 2, got 1"),
        {"batch_size": 2},
    ),
    "angles of one image": (
        {"method": {"name": "rkd_angle", **LABELLED}, "batch_size": 1},
        ("recipe.batch_size: rkd_angle compares images", "at least 2, got 1"),
        {"batch_size": 2},
    ),
    "dkd of two classes": (
        {"method": {"name": "dkd", **LABELLED}},
        ("recipe.method", "dkd needs at least 3 classes, got 2"),
        {"data": DIGITS},
    ),
    "a critic of two logits": (
        {"method": {"name": "logits_discriminator", **LABELLED, "temperature": 2.0, **ONE_STEP_EACH}},
        ("recipe.method: logits_discriminator needs at least", "classes", "got 2"),
        {"data": DIGITS},
    ),
    "two logits standardised": (
        {"method": KD | {"standardise": True}},
        ("recipe.method: kd with standardise needs at least 3 classes, got 2",),
        {"data": DIGITS},
    ),
    "r_drop without dropout": (
        {"r_drop": {"weight": 0.3}},
        ("recipe.r_drop: compares two passes with dropout, but lenet5_student has none; write student.dropout",),
        {"student": RESNET | {"dropout": 0.2}},
    ),
    "one image for the student's batch norm": (
        {"data": LARGER, "student": RESNET | {"head": "hidden"}, "batch_size": 16},
        ("recipe.batch_size: 16 leaves 1 of 17 images for the last batch", "batch normalisation head.2 of test_resnet"),
        {"batch_size": 6},
    ),
    "one image for the teacher's batch norm": (
        {"data": LARGER, "teacher": RESNET | {"head": "hidden"}, "batch_size": 16},
        (
            "recipe.teacher.batch_size: 16 leaves 1 of 17 images for the last batch",
            "batch normalisation head.2 of test_resnet",
        ),
        {"batch_size": 6},
    ),
    "one image for the batch norm of maps of one pixel": (
        {"student": RESNET, "batch_size": 8},
        ("recipe.batch_size: 8 leaves 1 of 17 images", "batch normalisation encoder.layer3", "of test_resnet"),
        {"data": LARGER},
    ),
    "too few pixels": (
        {"data": {"name": "hymenoptera", "resolution": 8}},
        ("recipe.data.resolution: LeNet5 needs at least 10 px, got 8",),
        {"data": HYMENOPTERA},
    ),
}


@pytest.mark.parametrize("case", NEEDS_DATA)
def test_what_the_data_or_the_networks_rule_out_is_said_before_the_teacher_is_trained(
    kdtrain: Command, case: str
) -> None:
    changes, expected, mended = NEEDS_DATA[case]
    kdtrain.refuses(*expected, **DISTILLING | changes)
    kdtrain.trains(**DISTILLING | changes | mended)


def test_a_last_batch_of_one_image_trains_where_its_own_maps_or_kept_statistics_suffice(kdtrain: Command) -> None:
    kdtrain.trains(data=LARGER, student=RESNET, batch_size=16)
    kdtrain.trains(student=RESNET | {"batch_norm_statistics": "keep"}, batch_size=16)


def test_with_statistics_per_worker_each_needs_two_images_of_the_last_batch(
    kdtrain: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Checked before a worker waits for another: so one process that takes itself for one of three shows it."""
    of_each = {"student": RESNET, "batch_norm": "per_worker"}
    recipe = Recipe.model_validate(PLAIN | of_each)  # 17 = 6 + 6 + 5 images, and 5 = 2 + 2 + 1
    data = load(recipe.data, Path("data").absolute())
    monkeypatch.setattr(distributed, "size", lambda: 3)
    with pytest.raises(UserError, match=r"batch_size: 6 leaves 5 of 17 images for the last batch, shared by 3 workers"):
        assemble(recipe, data, None, torch.device("cpu"))


FILE_ALONE: dict[str, tuple[dict[str, Any], tuple[str, ...], dict[str, Any]]] = {
    "mixup with dkd": (
        {"mixup": {}, "method": {"name": "dkd", **LABELLED}, "data": DIGITS},
        ("method: dkd needs one class per image; remove recipe.mixup",),
        {"mixup": None},
    ),
    "a frozen random encoder": (
        {"student": LENET | {"freeze": "encoder"}},
        ("student.freeze: encoder with weights null would freeze random weights", "allow_random_frozen: true"),
        {"student": LENET | {"freeze": "encoder", "allow_random_frozen": True}},
    ),
    "a frozen random encoder of the teacher": (
        {"teacher": LENET | {"freeze": "encoder"}},
        ("teacher.freeze: encoder with weights null would freeze random weights", "allow_random_frozen: true"),
        {"teacher": LENET | {"freeze": "encoder", "allow_random_frozen": True}},
    ),
    "published r_drop beside a teacher": (
        {"student": RESNET | {"dropout": 0.2}, "r_drop": {"convention": "published"}},
        ("r_drop.convention: published never reached distillation",),
        {"r_drop": None},
    ),
    "a stage of no network": (
        {"method": {"name": "at", **LABELLED, "stages": ["5"]}},
        ("method.stages", "5", "4, 8, 16, 32"),
        {"method": {"name": "sp", **LABELLED, "stages": ["4"]}},
    ),
    "features without labels": (
        {"method": {"name": "sp", "balance": {"alpha": 1}, "stages": ["4"]}},
        ("method.balance: must leave cross-entropy a weight above 0",),
        {"method": {"name": "sp", "balance": {"alpha": 0.9}, "stages": ["4"]}},
    ),
}


@pytest.mark.parametrize("case", FILE_ALONE)
def test_what_the_file_alone_rules_out_is_said_with_its_line(kdtrain: Command, case: str) -> None:
    changes, expected, mended = FILE_ALONE[case]
    shown = kdtrain.refuses(*expected, **DISTILLING | changes)
    assert re.match(r"recipe\.yaml(:\d+)?: ", shown), shown
    assert not Path("results").exists()
    kdtrain.trains(**DISTILLING | changes | mended)


@pytest.mark.parametrize("case", [name for name in FILE_ALONE if "published" not in name])
def test_a_sweeps_check_finds_what_can_be_found_without_data(
    case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changes, expected, _ = FILE_ALONE[case]
    file = sweep_file(tmp_path, recipe={**DISTILLING, "optimizer": PLAIN["optimizer"], **changes})
    assert check.main([str(file)]) == 2
    shown = capsys.readouterr().err
    assert all(words in shown for words in expected), shown
    assert "Traceback" not in shown
    assert all(line.startswith(str(file)) for line in shown.splitlines())
