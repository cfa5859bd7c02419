"""Checkpoints as other programs write them: which weights are taken, and the remedy for each that is refused."""

import argparse
import datetime
import io
import math
import os
import pickle
import re
import sys
import types
import warnings
import zipfile
from collections import OrderedDict, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import timm
import timm.utils
import torch
from made import config, made
from runs import fresh_state
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from torchvision import models as torchvision_models
from trainings import recipe

from kdtrain.errors import UserError
from kdtrain.models import weights as weights_module
from kdtrain.models.build import build
from kdtrain.models.checkpoints import read_weights
from kdtrain.models.classifier import Classifier
from kdtrain.models.weights import WeightSet, fitting_sets, load_whole_network

MODEL, SHAPE, CLASSES = "shufflenet_v2_x0_5", (3, 32, 32), 5  # 350,000 parameters
PLACE = "recipe.teacher.trained"
State = dict[str, Tensor]


def library(seed: int = 0, classes: int = CLASSES) -> nn.Module:
    torch.manual_seed(seed)
    return torchvision_models.get_model(MODEL, num_classes=classes)


NETWORK, AVERAGE = library(0), library(1)
STATE, EMA = NETWORK.state_dict(), AVERAGE.state_dict()


def network(model: str = MODEL) -> Classifier:
    return made(model, SHAPE, CLASSES, seed=9)


def sets(file: Path, weights_key: str | None = None, model: str = MODEL) -> list[WeightSet]:
    return fitting_sets(network(model), file, PLACE, weights_key=weights_key)


def saved(content: Any, folder: Path, name: str = "checkpoint.pth", **options: Any) -> Path:
    torch.save(content, folder / name, **options)
    return folder / name


def is_of(found: WeightSet, state: State) -> bool:
    """Compare the first weights and the classifier's, bit for bit."""
    (first, *_), (*_, last) = state, state.values()
    return torch.equal(found.state[f"encoder.{first}"], state[first]) and torch.equal(found.state["head.1.bias"], last)


def prefixed(prefix: str, state: State = STATE) -> State:
    return OrderedDict((prefix + name, value) for name, value in state.items())


def numpys(names: str, content: Any, folder: Path) -> Path:
    """Save as numpy 1 or numpy 2 names its modules."""
    written, changed = saved(content, folder, "as written.pth"), folder / "checkpoint.pth"
    with zipfile.ZipFile(written) as source, zipfile.ZipFile(changed, "w") as target:
        for item in source.infolist():
            data = source.read(item)
            if item.filename.endswith("/data.pkl"):
                assert b"multiarray" in data
                data = re.sub(rb"numpy\._?core\.", f"numpy.{names}.".encode(), data)
            target.writestr(item.filename, data)
    return changed


LIGHTNING = {
    "epoch": 3,
    "global_step": 1200,
    "pytorch-lightning_version": "2.5.0",
    "state_dict": {**prefixed("model."), "loss.weight": torch.ones(CLASSES), "accuracy.tp": torch.tensor(3)},
    "loops": {"fit_loop": {"state_dict": {}, "epoch_progress": {"total": {"ready": 4, "completed": 4}}}},
    "callbacks": {
        "ModelCheckpoint{'monitor': 'val_acc'}": {"best_model_score": torch.tensor(0.9), "best_model_path": "a.ckpt"}
    },
    "optimizer_states": [{"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": 0.1, "params": [0]}]}],
    "lr_schedulers": [{"last_epoch": 4, "_last_lr": [0.1]}],
    "hparams_name": "kwargs",
    "hyper_parameters": {"lr": 0.1, "classes": 5, "folder": Path("data")},
}
"""A checkpoint of Lightning, as its Trainer lays it out."""

FORMS: dict[str, tuple[Any, str]] = {
    "model_state_dict": ({"epoch": 3, "model_state_dict": STATE, "loss": 0.1}, "model_state_dict"),
    "net": ({"net": STATE, "acc": 91.3, "epoch": 3}, "net"),
    "of lightning": (LIGHTNING, "state_dict.model"),
    "compiled": (prefixed("_orig_mod."), ""),
    "compiled in lightning": ({"state_dict": prefixed("model._orig_mod.")}, "state_dict.model"),
    "compiled inside": ({name.replace("stage2.", "stage2._orig_mod."): value for name, value in STATE.items()}, ""),
    "of DDP": (prefixed("module."), "module"),
    "of DDP, compiled": ({"model": prefixed("module._orig_mod.")}, "model.module"),
    "compiled, of DDP": ({"model": prefixed("_orig_mod.module.")}, "model.module"),
    "averaged": (AveragedModel(NETWORK).state_dict(), "module"),
    "averaged, of DDP": ({"swa": prefixed("module.", AveragedModel(NETWORK).state_dict())}, "swa.module.module"),
    "of an attribute of another name": ({"state_dict": prefixed("backbone.net.")}, "state_dict.backbone.net"),
    "with settings": ({"state_dict": STATE, "args": argparse.Namespace(lr=0.1, out=Path("a"), gpu=None)}, "state_dict"),
    "with other containers": (
        {"model": STATE, "log": defaultdict(list, loss=[1.0]), "saved": datetime.datetime(2026, 1, 1), "tags": {"a"}},
        "model"),
    "with an optimizer": (
        {"model": STATE, "optimizer": torch.optim.Adam(NETWORK.parameters()).state_dict(), "scaler": {"scale": 1.0}},
        "model"),
    "with parameters": ({"model": dict(NETWORK.named_parameters()) | dict(NETWORK.named_buffers())}, "model"),
    "with tied tensors": ({"model": STATE | {"conv5.1.bias": STATE["conv5.1.running_mean"]}}, "model"),
}  # fmt: skip


OLD = ("with settings", "with other containers", "of lightning")


@pytest.mark.parametrize(("form", "is_zip"), [*((form, True) for form in FORMS), *((form, False) for form in OLD)])
def test_a_usual_checkpoint_loads_as_it_is(form: str, is_zip: bool, tmp_path: Path) -> None:
    """The files of PyTorch 1.5 and earlier are no zip archives."""
    content, key = FORMS[form]
    file = saved(content, tmp_path, _use_new_zipfile_serialization=is_zip)
    (found,) = sets(file)
    assert found.key == key
    assert is_of(found, STATE)
    loaded = network()
    load_whole_network(loaded, file, PLACE)
    for name, value in loaded.state_dict().items():
        assert torch.equal(value, found.state[name]), name


@pytest.mark.parametrize("names", ["core", "_core"])
def test_numbers_and_arrays_of_numpy_are_left_out(names: str, tmp_path: Path) -> None:
    numbers = {"best": np.float64(0.9), "steps": np.int64(3), "losses": np.arange(3), "kind": np.dtype("f4")}
    (found,) = sets(numpys(names, {"model": STATE, **numbers}, tmp_path))
    assert is_of(found, STATE)


def test_a_checkpoint_of_timms_own_saver_loads(tmp_path: Path) -> None:
    """With its arguments, the optimizer's state and averaged weights."""
    name = "mobilenetv3_small_050"
    args = argparse.Namespace(model=name, lr=0.1, device="cpu")
    model, average = (timm.create_model(name, num_classes=CLASSES) for _ in range(2))
    saver = timm.utils.CheckpointSaver(
        model, torch.optim.SGD(model.parameters(), lr=0.1), args, model_ema=average, checkpoint_dir=str(tmp_path)
    )
    saver.save_checkpoint(1, metric=np.float64(0.5))
    file = tmp_path / "last.pth.tar"
    assert [found.key for found in sets(file, model=name)] == ["state_dict", "state_dict_ema"]
    assert is_of(sets(file, model=name)[0], model.state_dict())
    assert is_of(sets(file, "state_dict_ema", name)[0], average.state_dict())


def test_lightnings_own_dicts_are_read_as_dicts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "lightning.fabric.utilities.data"
    module = types.ModuleType(name)
    module.AttributeDict = type("AttributeDict", (dict,), {"__module__": name})  # type: ignore[attr-defined]
    for part in ("lightning", "lightning.fabric", "lightning.fabric.utilities"):
        monkeypatch.setitem(sys.modules, part, types.ModuleType(part))
    monkeypatch.setitem(sys.modules, name, module)
    file = saved(LIGHTNING | {"hyper_parameters": module.AttributeDict(lr=0.1)}, tmp_path)
    monkeypatch.undo()
    assert is_of(sets(file)[0], STATE)


def test_an_own_network_in_a_wrapper_is_found(tmp_path: Path) -> None:
    ours = network()
    file = saved({"state_dict": prefixed("student.module.", ours.state_dict()), "epoch": 1}, tmp_path)
    (found,) = sets(file)
    assert found.key == "state_dict.student.module"
    assert all(torch.equal(value, ours.state_dict()[name]) for name, value in found.state.items())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_precisions_are_converted(dtype: torch.dtype, tmp_path: Path) -> None:
    state = {name: value.to(dtype) if value.is_floating_point() else value for name, value in STATE.items()}
    loaded = network()
    load_whole_network(loaded, saved(state, tmp_path), PLACE)
    assert torch.equal(loaded.state_dict()["head.1.weight"], state["fc.weight"].float())


def test_safetensors_are_known_by_their_content(tmp_path: Path) -> None:
    packed = {name: value.contiguous() for name, value in STATE.items()}
    safetensors.torch.save_file(packed, tmp_path / "model.bin")
    assert is_of(sets(tmp_path / "model.bin")[0], STATE)


# Several sets of weights

SEVERAL: dict[str, tuple[Any, list[str]]] = {
    "of timm": ({"state_dict_ema": EMA, "state_dict": STATE}, ["state_dict", "state_dict_ema"]),
    "of two names": ({"model": STATE, "model_ema": prefixed("module.", EMA)}, ["model", "model_ema.module"]),
    "in one state dict": (
        {"state_dict": prefixed("ema_model.", EMA) | prefixed("model.")}, ["state_dict.model", "state_dict.ema_model"]),
    "nested": ({"ema": {"model": EMA}, "raw": {"model": STATE}}, ["raw.model", "ema.model"]),
}  # fmt: skip


@pytest.mark.parametrize("form", SEVERAL)
def test_of_several_sets_the_averaged_one_is_taken_only_if_it_is_named(form: str, tmp_path: Path) -> None:
    content, keys = SEVERAL[form]
    file = saved(content, tmp_path)
    found = sets(file)
    assert [each.key for each in found] == keys
    assert is_of(found[0], STATE)
    assert is_of(found[1], EMA)
    (named,) = sets(file, keys[1])
    assert is_of(named, EMA)
    assert is_of(sets(file, keys[1].partition(".")[0])[-1], EMA)  # the beginning of the path will do
    loaded = build(config(MODEL, weights={"file": str(file), "weights_key": keys[1]}), SHAPE, CLASSES, 0)
    assert torch.equal(loaded.state_dict()["head.1.weight"], EMA["fc.weight"])


def test_a_key_that_the_file_lacks_names_the_choices(tmp_path: Path) -> None:
    file = saved({"model": STATE, "model_ema": EMA}, tmp_path)
    with pytest.raises(UserError, match=r"has no weights at weights_key ema; choices: model, model_ema$"):
        sets(file, "ema")
    with pytest.raises(UserError, match=r"has no weights at weights_key ema; it has one set .*; remove weights_key$"):
        sets(saved(STATE, tmp_path), "ema")
    small = saved({"model": STATE, "other": library(classes=7).state_dict()}, tmp_path)
    assert [found.key for found in sets(small)] == ["model"]
    with pytest.raises(
        UserError, match=r"at other does not fit shufflenet_v2_x0_5: the file has 7 classes, the data 5"
    ):
        sets(small, "other")


# What is refused


class Settings:
    """A class of the user's own."""


class Intruder:
    def __reduce__(self) -> Any:
        return print, ("this must not be printed",)


def scripted(folder: Path) -> Path:
    with warnings.catch_warnings(action="ignore"):  # both are deprecated, and there are files of them
        torch.jit.script(nn.Linear(2, 2)).save(str(folder / "script.pt"))
    return folder / "script.pt"


def quantised(folder: Path) -> Path:
    with warnings.catch_warnings(action="ignore"):
        weight = torch.quantize_per_tensor(torch.rand(3, 3), 0.1, 0, torch.qint8)
    return saved({"fc.weight": weight, "fc.packed": (weight, None)}, folder)


def pickled(folder: Path) -> Path:
    (folder / "state.pkl").write_bytes(pickle.dumps(STATE, protocol=4))
    return folder / "state.pkl"


def other_archive(folder: Path) -> Path:
    np.savez(folder / "model.npz", a=np.zeros(3))
    return folder / "model.npz"


def pipe(folder: Path) -> Path:
    os.mkfifo(folder / "pipe")
    return folder / "pipe"


def in_a_folder(folder: Path) -> Path:
    """As transformers lays a model out."""
    safetensors.torch.save_file({"a": torch.zeros(1)}, folder / "model.safetensors")
    return folder


ALONE = "save the weights alone: torch.save(model.state_dict(), FILE)"
REFUSED: dict[str, tuple[Callable[[Path], Path], tuple[str, ...]]] = {
    "a whole network": (lambda f: saved(NETWORK, f), ("whole network (torchvision.models.", "state_dict()")),
    "a whole network in a dict": (lambda f: saved({"model": NETWORK}, f), ("a whole network (", "weights_only=False")),
    "an own class": (lambda f: saved({"net": STATE, "a": Settings()}, f), ("test_checkpoints.Settings", ALONE)),
    "code": (lambda f: saved({"net": STATE, "a": Intruder()}, f), ("(print), and pickled code is never run", ALONE)),
    "a function": (lambda f: saved({"net": STATE, "a": nn.functional.relu}, f), ("torch.nn.functional.relu", ALONE)),
    "TorchScript": (scripted, ("TorchScript archive, which is code", "torch.jit.load(FILE).state_dict()")),
    "quantised weights": (quantised, ("quantised network", "before quantisation")),
    "a plain pickle": (pickled, ("is pickled by another protocol than that of torch.save", ALONE)),
    "another archive": (other_archive, ("is no whole weights file", ALONE)),
    "a folder": (in_a_folder, ("is a folder; name a file of weights in it, such as ", "/model.safetensors")),
    "a pipe": (pipe, ("is no regular file",)),
    "an empty dict": (lambda f: saved({}, f), ("holds no state_dict (names and tensors), but an empty dict", ALONE)),
    "numbers": (lambda f: saved({"epoch": np.float64(3)}, f), ("dict with epoch: an object that is no tensor", ALONE)),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_weights_is_refused_with_the_remedy(case: str, tmp_path: Path, capsys: Any) -> None:
    write, texts = REFUSED[case]
    file = write(tmp_path)
    with pytest.raises(UserError) as caught:
        read_weights(file, PLACE)
    assert str(caught.value).startswith(f"{PLACE}: {file} ")
    for text in texts:
        assert text in str(caught.value)
    assert "this must not" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda value: value.to("meta"), "without values"),
        (lambda value: value.to_sparse(), "sparse_coo for a dense tensor"),
        (lambda value: torch.full_like(value, math.nan), "has weights that are NaN or infinite"),
    ],
)
def test_weights_without_usable_numbers_are_refused_by_the_file(change: Any, text: str, tmp_path: Path) -> None:
    network = fresh_state(recipe(student={"model": "lenet5_student"})).distiller.student
    torch.save({name: change(value) for name, value in network.state_dict().items()}, tmp_path / "t.pth")
    with pytest.raises(UserError, match=text) as caught:
        load_whole_network(network, tmp_path / "t.pth", PLACE)
    assert str(caught.value).startswith(f"{PLACE}: {tmp_path / 't.pth'}")


def test_a_url_is_refused_with_the_remedy() -> None:
    with pytest.raises(UserError, match=r"trained: s3://bucket/teacher.pth is a URL; copy the file to this machine"):
        read_weights("s3://bucket/teacher.pth", PLACE)


def test_nothing_stays_allowed_after_a_file_was_read(tmp_path: Path) -> None:
    before = torch.serialization.get_safe_globals()
    sets(saved({"model": STATE, "args": argparse.Namespace()}, tmp_path))
    assert torch.serialization.get_safe_globals() == before
    with pytest.raises(pickle.UnpicklingError):
        torch.load(tmp_path / "checkpoint.pth", weights_only=True)


def test_of_skipped_objects_nothing_is_made(tmp_path: Path) -> None:
    made_of: list[object] = []
    file = saved({"model": STATE, "args": argparse.Namespace(a=1), "best": np.float64(1)}, tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(argparse.Namespace, "__setattr__", lambda *given: made_of.append(given))
        patch.setattr(np, "dtype", made_of.append)
        sets(file)
    assert not made_of


# What does not fit


def test_the_model_whose_weights_they_are_is_named(tmp_path: Path) -> None:
    with torch.device("meta"):
        state = prefixed("module.", torchvision_models.resnet34(num_classes=CLASSES).state_dict())
    given = {name: torch.zeros((), dtype=value.dtype).expand(value.shape) for name, value in state.items()}
    file = saved({"state_dict": given}, tmp_path)
    with pytest.raises(UserError) as caught:
        sets(file, model="resnet18")
    text = str(caught.value)
    assert f"{file} at state_dict.module does not fit resnet18: not of this network encoder.layer1.2" in text
    assert text.endswith("these are the weights of resnet34: write model: resnet34")


def test_integers_are_no_weights(tmp_path: Path) -> None:
    state = STATE | {"fc.weight": STATE["fc.weight"].to(torch.int8)}
    with pytest.raises(UserError, match=r"other shape or type head.1.weight int8 for float32"):
        sets(saved(state, tmp_path))


def test_a_finished_teacher_of_other_classes_is_refused_with_the_remedy(tmp_path: Path) -> None:
    file = saved(library(classes=1000).state_dict(), tmp_path)
    with pytest.raises(
        UserError, match=r"has 1000 classes, the data 5; to train it .* weights: {file: FILE, part: enc"
    ):
        load_whole_network(network(), file, PLACE)


def test_a_file_with_an_optimizer_is_not_read_as_a_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its weights are mapped: a file on a slow disk costs no more than they do."""
    mapped: list[bool] = []
    load = torch.load

    def watched(*given: Any, mmap: bool = False, **options: Any) -> Any:
        mapped.append(mmap)
        return load(*given, mmap=mmap, **options)

    monkeypatch.setattr(torch, "load", watched)
    sets(saved(STATE, tmp_path))
    sets(saved(STATE, tmp_path, _use_new_zipfile_serialization=False))
    assert mapped == [True, False]


def test_the_own_files_of_this_program_need_no_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every trial reads its teacher: the library's names are not built for it."""
    monkeypatch.setattr(weights_module, "_library_backbone", None)
    ours = network()
    safetensors.torch.save_file({k: v.contiguous() for k, v in ours.state_dict().items()}, tmp_path / "own.safetensors")
    load_whole_network(ours, tmp_path / "own.safetensors", PLACE)


def test_bytes_are_not_kept(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    torch.save({"model": STATE, "raw": b"bytes", "note": bytearray(b"a")}, buffer)
    (tmp_path / "a.pth").write_bytes(buffer.getvalue())
    assert is_of(sets(tmp_path / "a.pth")[0], STATE)
