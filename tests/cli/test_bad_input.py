"""What `kdtrain train` refuses before anything is trained: with place and cause, and exit code 2."""

import socket
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import made_up_data
import pytest
import torch
import yaml
from safetensors.torch import save_file
from trainings import workspace

from kdtrain.cli.train import main
from kdtrain.config.sweep import recipe_from_dict
from kdtrain.data.registry import load
from kdtrain.errors import UserError
from kdtrain.models import timm_source, torchvision_source
from kdtrain.models.build import build
from kdtrain.models.config import Network
from kdtrain.training.preflight import check_before_teacher

HYMENOPTERA = {"name": "hymenoptera", "resolution": 16}
DIGITS = {"name": "digits", "resolution": 16, "limit_per_class": 4}
LENET = {"model": "lenet5_student"}
RESNET = {"model": "test_resnet", "weights": None}  # timm's, of 370,000 parameters
LARGER = HYMENOPTERA | {"resolution": 64}
KD = {"name": "kd", "temperature": 4.0, "balance": {"alpha": 0.5}}
LABELLED = {"balance": {"weight": 1.0}}
CRITIC = {"name": "logits_discriminator", **LABELLED, "temperature": 2.0, "critic_steps": 1, "student_steps": 1}
SP = {"name": "sp", **LABELLED, "stages": ["4"]}
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

    def refuses(self, *expected: str, **changes: Any) -> None:
        """Before anything is trained: not the teacher either."""
        code, out, err = self(**changes)
        assert code == 2, out + err
        assert err.count("\n") == 1, err
        assert all(words in err for words in expected), err
        assert [path for path in Path("results").rglob("*") if path.is_file() and path.name != ".lock"] == []

    def trains(self, **changes: Any) -> None:
        code, _, err = self(**changes)
        assert (code, err) == (0, "")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of data sets that no test changes."""
    folder = tmp_path_factory.mktemp("data")
    made_up_data.hymenoptera(folder)
    return folder


@pytest.fixture
def kdtrain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], data: Path) -> Command:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("KDTRAIN_DATA", raising=False)
    Path("data").symlink_to(data)
    return Command(capsys)


@pytest.mark.parametrize("split", ["train", "val", "test"])
@pytest.mark.parametrize("changes", [{}, DISTILLING], ids=["student alone", "with a teacher"])
def test_a_damaged_image_of_any_split_is_named_before_training(
    kdtrain: Command, changes: dict[str, Any], split: str
) -> None:
    Path("data").unlink()
    made_up_data.hymenoptera(Path("data"))
    config = recipe_from_dict(PLAIN).data
    file = getattr(load(config, Path("data").absolute()), split).images.source.files[-1]
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    kdtrain.refuses(f"{file}: is not a whole image", **changes)


def test_absent_data_is_named_with_its_place_and_the_option(kdtrain: Command) -> None:
    at = str(Path("data", "CUB_200_2011/images"))
    kdtrain.refuses("recipe.yaml:1: data: cub200 is not there", "CUB_200_2011.tgz", at, "--data DIR or KDTRAIN_DATA",
                    data={"name": "cub200", "resolution": 16}, **DISTILLING)  # fmt: skip


# Weights


class Intruder:
    """Pickled, it makes a file where it is read without care."""

    def __reduce__(self) -> Any:
        return Path.touch, (Path("intruded"),)


def write_weights(model: str, file: str, classes: int = 2) -> None:
    network = build(Network(model=model), (3, 16, 16), classes, seed=5)
    (save_file if file.endswith(".safetensors") else torch.save)(made_up_data.packed(network), file)


def in_place(place: str, file: str) -> dict[str, Any]:
    """The changes of a recipe that name a weights file at one of the places below."""
    weights = LENET | {"weights": {"file": file, **({"part": "encoder"} if "encoder" in place else {})}}
    role = place.partition(",")[0]
    if place == "teacher":
        weights = LENET | {"trained": file}
    return DISTILLING | {role: weights}


PLACES = {
    "student": "student.weights.file",
    "student, encoder": "student.weights.file",
    "teacher, trained first": "teacher.weights.file",
    "teacher": "teacher.trained",
}


@pytest.mark.parametrize("place", PLACES)
def test_weights_that_cannot_be_used_are_named_and_never_run(
    kdtrain: Command, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, changes = PLACES[place], in_place(place, "weights.pth")
    monkeypatch.setenv("HOME", str(Path.cwd() / "home"))
    absent = f"{name}: {Path.cwd()}/home/weights.pth cannot be read (No such file or directory)"
    kdtrain.refuses(absent, **in_place(place, "~/weights.pth"))
    write_weights("lenet5_teacher", "weights.pth")
    kdtrain.refuses(f"{name}: weights.pth does not fit", "encoder.3.weight", **changes)
    torch.save({"encoder.0.weight": Intruder()}, "weights.pth")
    kdtrain.refuses(f"{name}: weights.pth holds more than tensors", "pickled code is never run", **changes)
    assert not Path("intruded").exists()
    torch.load("weights.pth", weights_only=False)
    assert Path("intruded").exists(), "the file would do harm"
    Path("intruded").unlink()
    write_weights("lenet5_student", "weights.pth", classes=1000)
    if "encoder" in place:
        kdtrain.trains(**changes)
    else:
        told = f"{name}: weights.pth does not fit lenet5_student: the file has 1000 classes, the data 2"
        kdtrain.refuses(told, **changes)
        write_weights("lenet5_student", "weights.pth")
        kdtrain.trains(**changes)


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


@pytest.mark.parametrize(
    ("role", "model", "file"),
    [
        ("student", "resnet18", "place resnet18-f37072fd.pth at {home}/torch/hub/checkpoints/resnet18-f37072fd.pth"),
        ("teacher", "ghostnet", "fetch model.safetensors of timm/ghostnet_100.in1k"),
    ],
)
def test_imagenet_weights_without_a_network_name_the_file_to_place(
    kdtrain: Command, no_weights: Path, role: str, model: str, file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = DISTILLING | {role: {"model": model, "weights": "imagenet"}}
    told = f": {role}.weights: imagenet of {model}"
    kdtrain.refuses(told, file.format(home=no_weights), "weights: null", **changes)
    assert torchvision_source.TIMEOUT_S <= 15
    for module in (torchvision_source, timm_source):
        monkeypatch.setattr(module, "TIMEOUT_S", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as silent:  # a network that never answers is not waited for
        proxied(monkeypatch, f"http://127.0.0.1:{silent.getsockname()[1]}")
        began = time.perf_counter()
        kdtrain.refuses(told, **changes)
    assert time.perf_counter() - began < 5


# What does not go together: (changes, texts of the error, changes that correct it)

BATCH_NORM = ("leaves 1 of 17 images for the last batch", "batch normalisation head.2 of test_resnet")
BAD: dict[str, tuple[dict[str, Any], tuple[str, ...], dict[str, Any]]] = {
    "at on maps of two sizes": (
        {"method": SP | {"name": "at"}, "teacher": RESNET},
        ("recipe.method.stages: at compares maps of one height and width", "stage '4'", "12 x 2 x 2", "32 x 4 x 4"),
        {"student": RESNET}),
    "a stage that the student lacks": (
        {"method": SP | {"stages": ["4", "32"]}, "teacher": RESNET},
        ("recipe.method", "lenet5_student has no stage '32'; it has", "4, pool"), {"method": SP}),
    "a stage that the teacher lacks": (
        {"method": SP | {"stages": ["8"]}, "student": RESNET},
        ("recipe.method", "lenet5_teacher has no stage '8'; it has", "4, pool"), {"method": SP}),
    "sp of one image": (
        {"method": SP, "batch_size": 1},
        ("recipe.batch_size: sp compares images", "at least 2, got 1"), {"batch_size": 2}),
    "angles of one image": (
        {"method": {"name": "rkd_angle", **LABELLED}, "batch_size": 1},
        ("recipe.batch_size: rkd_angle compares images", "at least 2, got 1"), {"batch_size": 2}),
    "a critic of two logits": (
        {"method": CRITIC},
        ("recipe.method: logits_discriminator needs at least", "classes", "got 2"), {"data": DIGITS}),
    "r_drop without dropout": (
        {"r_drop": {"weight": 0.3}},
        ("recipe.r_drop: compares two passes with dropout, but lenet5_student has none; write student.dropout",),
        {"student": RESNET | {"dropout": 0.2}}),
    "one image for the student's batch norm": (
        {"data": LARGER, "student": RESNET | {"head": "hidden"}, "batch_size": 16},
        ("recipe.batch_size: 16", *BATCH_NORM), {"batch_size": 6}),
    "one image for the teacher's batch norm": (
        {"data": LARGER, "teacher": RESNET | {"head": "hidden"}, "batch_size": 16},
        ("recipe.teacher.batch_size: 16", *BATCH_NORM), {"batch_size": 6}),
    "one image for the batch norm of maps of one pixel": (
        {"student": RESNET, "batch_size": 8},
        ("recipe.batch_size: 8 leaves 1 of 17 images", "batch normalisation encoder.layer3", "of test_resnet"),
        {"data": LARGER}),
    "mixup with dkd": (
        {"mixup": {}, "method": {"name": "dkd", **LABELLED}, "data": DIGITS},
        ("r: method: dkd needs one class per image; remove recipe.mixup",), {"mixup": None}),
    "a frozen random encoder of the teacher": (
        {"teacher": LENET | {"freeze": "encoder"}},
        ("r: teacher.freeze: encoder with weights null would freeze random weights", "allow_random_frozen: true"),
        {"teacher": LENET | {"freeze": "encoder", "allow_random_frozen": True}}),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_what_does_not_go_together_is_refused_before_the_teacher_is_trained(
    case: str, data: Path, tmp_path: Path
) -> None:
    changes, expected, correction = BAD[case]
    place = workspace(tmp_path, data)
    with pytest.raises(UserError) as caught:
        check_before_teacher(recipe_from_dict(PLAIN | DISTILLING | changes, "r"), place)
    assert all(text in str(caught.value) for text in expected), caught.value
    check_before_teacher(recipe_from_dict(PLAIN | DISTILLING | changes | correction, "r"), place)
    assert list(tmp_path.iterdir()) == []


def test_a_last_batch_of_one_image_trains_if_its_own_maps_or_kept_statistics_suffice(kdtrain: Command) -> None:
    kdtrain.trains(data=LARGER, student=RESNET, batch_size=16)
    kdtrain.trains(student=RESNET | {"batch_norm_statistics": "keep"}, batch_size=16)
