"""Trainings on the stand-in for GPUs: devices do not mix, no step waits, and the numbers are those of the CPU.

`tests/stand_in_device.py` lists what it cannot see; tests/gpu has the same facts for a real GPU.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from losses import CONFIGS
from runs import fresh_state
from stand_in_device import StandIn
from torch.nn.modules.module import register_module_forward_hook
from trainings import CPU, KD, Trained, equal_weights, recipe, trained, with_teacher, workspace

from kdtrain.config.recipe import Recipe
from kdtrain.data.sampling import batches_of
from kdtrain.executors.local import carry_out
from kdtrain.methods.registry import Method
from kdtrain.storage.cache import Cache
from kdtrain.storage.folder import LocalFolder
from kdtrain.teacher.cached import CachedTeacher, cached_teacher
from kdtrain.training.loop import fit, train_step
from kdtrain.training.precision import backend_settings
from kdtrain.training.preflight import smoke
from kdtrain.training.state import TrainState

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="a real GPU is there: tests/gpu")

DISCRIMINATOR: dict[str, Any] = {
    "name": "logits_discriminator", "balance": {"alpha": 0.5}, "temperature": 1.5,
    "critic_steps": 1, "student_steps": 1,
}  # fmt: skip
METHODS: dict[str, dict[str, Any]] = {
    "none": {"name": "none"},
    **CONFIGS,
    "logits_discriminator": DISCRIMINATOR,
    "logits_discriminator clipping": DISCRIMINATOR | {"critic_training": {"lipschitz": {"name": "clipping"}}},
    "logits_discriminator published": DISCRIMINATOR | {"convention": "published"},
}
SCALED: dict[str, Any] = {"precision": "fp16", "clipping": {"norm": 1.0}}
OPTIMIZERS: dict[str, dict[str, Any]] = {
    "sgd": {"name": "sgd", "lr": 0.05, "momentum": 0.9},
    "adam": {"name": "adam", "lr": 0.01},
    "adamw": {"name": "adamw", "lr": 0.01, "weight_decay": 0.1},
    "adamw relative": {"name": "adamw", "lr": 0.01, "weight_decay": 0.1, "decay_times": "relative_lr"},
    "adamw nothing": {"name": "adamw", "lr": 0.01, "weight_decay": 0.1, "decay_times": "nothing"},
}
OPTIONS: dict[str, dict[str, Any]] = {
    "bf16": {"precision": "bf16"},
    "fp16": {"precision": "fp16"},
    "tf32": {"precision": "tf32"},
    "clipping": {"clipping": {"norm": 0.1}},
    "clipping of tensors": {"clipping": {"norm": 0.1, "over": "tensor"}, "precision": "fp16"},
    "ema": {"ema": {"decay": 0.9}},
    "mixup": {"mixup": {}, "label_smoothing": 0.1},
    "mixup published": {"mixup": {"convention": "published"}},
    "frozen encoder": {"student": {"model": "lenet5_student", "freeze": "encoder", "allow_random_frozen": True}},
    "batch norm, dropout, channels_last": {
        "student": {"model": "test_resnet", "weights": None, "dropout": 0.5, "channels_last": True}
    },
    "other views": {"data": {"name": "digits", "resolution": 24, "limit_per_class": 6}},
}


@pytest.fixture
def devices() -> Iterator[StandIn]:
    with StandIn() as made:
        yield made


def distilled(label: str, **changes: Any) -> Recipe:
    """Return a recipe of a method whose maps are those of stage 4, which both networks have."""
    method = METHODS[label]
    method = method | ({"stages": ["4"]} if method["name"] in ("at", "sp") else {})
    method = method | ({"stage": "4"} if method["name"] == "mgd" else {})
    return recipe(**({} if label == "none" else KD) | changes | {"method": method})


def waits_of_steps(devices: StandIn, state: TrainState, batches: Any = None) -> list[str]:
    """Return the waits of two steps; the two before them make the optimizers' state and copy the images."""
    batches = torch.arange(48).split(16) if batches is None else batches
    found: list[str] = []
    for step in range(4):
        with devices.counting() as waits:
            train_step(state, batches[step % 3], step % 3)
        state.step += 1
        found += waits if step >= 2 else []
    return found


def test_every_method_is_among_these() -> None:
    union, *_ = get_args(Method)
    names = {get_args(each.model_fields["name"].annotation)[0] for each in get_args(union)}
    assert {written["name"] for written in METHODS.values()} == names


@pytest.mark.parametrize("label", METHODS)
def test_no_step_of_a_method_waits_for_the_device(devices: StandIn, label: str) -> None:
    assert waits_of_steps(devices, fresh_state(distilled(label), device=devices.cuda(1))) == []


@pytest.mark.slow
@pytest.mark.parametrize("label", METHODS)
def test_no_step_of_a_method_waits_under_a_gradient_scaler(devices: StandIn, label: str) -> None:
    assert waits_of_steps(devices, fresh_state(distilled(label, **SCALED), device=devices.cuda(1))) == []


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_no_step_of_an_optimizer_waits_under_a_gradient_scaler(devices: StandIn, optimizer: str) -> None:
    config = recipe(optimizer=OPTIMIZERS[optimizer], precision="fp16")
    assert waits_of_steps(devices, fresh_state(config, device=devices.cuda(1))) == []


@pytest.mark.parametrize("option", OPTIONS)
def test_no_step_of_an_option_waits_for_the_device(devices: StandIn, option: str) -> None:
    config = distilled("kd", **OPTIONS[option])
    assert waits_of_steps(devices, fresh_state(config, device=devices.cuda(1))) == []


def on_second_gpu(devices: StandIn, config: Recipe, results: Path | None = None, **options: Any) -> Trained:
    return trained(config, results, device=devices.cuda(1), **options)


def require_equal(ours: Trained, theirs: Trained) -> None:
    assert ours.outcome["state"] == "complete", ours.outcome["reason"]
    assert ours.rows == theirs.rows
    assert ours.outcome["test"] == theirs.outcome["test"]
    assert equal_weights(ours.weights, theirs.weights)


LOOPS: dict[str, Recipe] = {
    "none": distilled("none"),
    "kd in float16, averaged, mixed, clipped": distilled(
        "kd", precision="fp16", ema={"decay": 0.9}, mixup={}, label_smoothing=0.1, clipping={"norm": 1.0}
    ),
    "critic": distilled("logits_discriminator", precision="bf16"),
    "kd, frozen": distilled(
        "kd", student={"model": "lenet5_student", "freeze": "encoder", "allow_random_frozen": True},
        optimizer=OPTIMIZERS["adamw"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("label", LOOPS)
def test_a_training_on_the_device_equals_that_of_the_cpu(devices: StandIn, label: str, tmp_path: Path) -> None:
    require_equal(on_second_gpu(devices, LOOPS[label], tmp_path), trained(LOOPS[label]))


@pytest.mark.slow
@pytest.mark.parametrize("label", METHODS)
def test_a_training_of_every_method_on_the_device_equals_that_of_the_cpu(
    devices: StandIn, label: str, tmp_path: Path
) -> None:
    require_equal(on_second_gpu(devices, distilled(label), tmp_path), trained(distilled(label)))


def test_tf32_changes_nothing_but_the_gpus_kernels(devices: StandIn, tmp_path: Path) -> None:
    require_equal(on_second_gpu(devices, distilled("none", precision="tf32"), tmp_path), trained(distilled("none")))


@pytest.mark.parametrize("label", ["kd", "sp", "mgd"])
def test_cached_teacher_outputs_are_written_and_read_on_the_device(
    devices: StandIn, label: str, tmp_path: Path
) -> None:
    config, cache = distilled(label), Cache(tmp_path / "cache", 1 << 30)
    first = on_second_gpu(devices, config, tmp_path / "first", cache=cache)
    again = on_second_gpu(devices, config, tmp_path / "again", cache=cache)
    assert sum(row["teacher_images_computed"] for row in again.folder.epochs()) == 0
    for each in (first, again):
        require_equal(each, on_second_gpu(devices, config, tmp_path / "live"))


@pytest.mark.parametrize("label", ["kd", "sp", "mgd"])
def test_no_step_that_reads_cached_outputs_waits(devices: StandIn, label: str, tmp_path: Path) -> None:
    state = fresh_state(distilled(label), device=devices.cuda(1))
    state.teacher.digest = "of no file"
    state.teacher_outputs = cached_teacher(state.teacher_outputs, Cache(tmp_path, 1 << 30), (), "a test")
    assert isinstance(state.teacher_outputs, CachedTeacher)
    state.teacher_outputs.begin(0)
    assert waits_of_steps(devices, state, batches_of(state.recipe.seed, 16, 60, 0)[:3]) == []


@pytest.mark.parametrize("label", ["kd in float16, averaged, mixed, clipped", "critic"])
def test_a_training_cut_off_on_the_device_continues_bit_for_bit(devices: StandIn, label: str, tmp_path: Path) -> None:
    def stop(metrics: Any) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        on_second_gpu(devices, LOOPS[label], tmp_path, on_epoch=stop, checkpoint_every_steps=2)
    for newest in sorted(tmp_path.glob("trials/*/checkpoint-*"))[-1:]:
        newest.unlink()  # what is left was written in mid-epoch
    require_equal(on_second_gpu(devices, LOOPS[label], tmp_path), trained(LOOPS[label]))


def test_the_preflight_check_runs_on_the_device(devices: StandIn, tmp_path: Path) -> None:
    for label in ("kd", "logits_discriminator"):
        smoke(distilled(label), workspace(tmp_path, device=devices.cuda(1)))


def test_an_epoch_of_any_number_of_steps_waits_four_times(devices: StandIn) -> None:
    """For its costs at begin and end, for its loss terms, and for the logits of the validation split."""
    for batch_size in (10, 30):
        state = fresh_state(distilled("kd", batch_size=batch_size, epochs=3), device=devices.cuda(1))
        epochs: list[list[str]] = []

        def report(metrics: Any, state: Any, epochs: list[list[str]] = epochs) -> None:
            epochs.append(devices.waits[:])
            devices.waits.clear()

        fit(state, 3, report)
        assert [len(waits) for waits in epochs[1:]] == [4, 4], epochs[1]


@pytest.mark.parametrize("index", [0, 1])
def test_dropout_of_either_gpu_is_seeded_by_the_step(devices: StandIn, index: int) -> None:
    config = distilled("none", student=OPTIONS["batch norm, dropout, channels_last"]["student"])
    losses = []
    for seed in (1, 2):
        torch.cuda.manual_seed_all(seed)
        losses.append(train_step(fresh_state(config, device=devices.cuda(index)), torch.arange(16))["loss"].item())
    assert losses[0] == losses[1] == train_step(fresh_state(config), torch.arange(16))["loss"].item()


@pytest.mark.parametrize("index", [0, 1])
def test_the_gpu_of_a_training_is_the_current_one_and_its_generator_is_kept(devices: StandIn, index: int) -> None:
    device = devices.cuda(index)
    before = torch.cuda.get_rng_state(device)
    with backend_settings("fp32", device):
        assert torch.cuda.current_device() == index
        torch.rand(3, device=device)
        assert not torch.equal(torch.cuda.get_rng_state(device), before)
    assert torch.cuda.current_device() == 0
    assert torch.equal(torch.cuda.get_rng_state(device), before)


def test_peak_memory_begins_anew_with_each_training(devices: StandIn, tmp_path: Path) -> None:
    devices.peak_bytes = {0: 1, 1: 10**12}  # of an earlier trial of the same process
    assert {row["peak_memory_bytes"] for row in on_second_gpu(devices, recipe(), tmp_path).folder.epochs()} == {0}
    assert devices.peak_bytes == {0: 1, 1: 0}


def test_mps_trains_without_float64(devices: StandIn, tmp_path: Path) -> None:
    mps, config = torch.device("mps", 0), LOOPS["kd in float16, averaged, mixed, clipped"]
    require_equal(trained(config, tmp_path, device=mps), trained(config))
    other = distilled("logits_discriminator", data={"name": "digits", "resolution": 24, "limit_per_class": 6})
    smoke(other, workspace(tmp_path, device=mps))
    assert trained(recipe(), device=mps).folder.recipe()["environment"]["device"].startswith("mps")


def float32_settings() -> tuple[Any, ...]:
    """How float32 is multiplied, by each library that may round it."""
    cuda, cudnn, mkldnn = torch.backends.cuda, torch.backends.cudnn, torch.backends.mkldnn
    operations = (cuda.matmul, cudnn.conv, cudnn.rnn, mkldnn.matmul, mkldnn.conv, mkldnn.rnn)
    return (*(each.fp32_precision for each in operations), cudnn.deterministic, cudnn.benchmark)


def set_older(precise: bool) -> None:
    torch.set_float32_matmul_precision("highest" if precise else "medium")
    torch.backends.cudnn.allow_tf32 = not precise


def set_newer(precise: bool) -> None:
    torch.backends.fp32_precision = "ieee" if precise else "tf32"
    torch.backends.mkldnn.matmul.fp32_precision = "ieee" if precise else "bf16"


@pytest.fixture
def _settings_kept() -> Iterator[None]:
    with backend_settings("fp32", CPU):
        yield
        torch.backends.fp32_precision = "none"


@pytest.mark.usefixtures("_settings_kept")
@pytest.mark.parametrize("precise", [False, True])
@pytest.mark.parametrize("user", [set_older, set_newer])
def test_numbers_are_made_with_the_recipes_precision_whatever_the_process_has_set(
    user: Any, precise: bool, tmp_path: Path
) -> None:
    config = distilled("kd")
    with_teacher(config, tmp_path)
    user(precise)
    before, seen = float32_settings(), set()
    place, drawn, counts = workspace(tmp_path), LocalFolder(tmp_path / "study"), []
    hook = register_module_forward_hook(lambda module, inputs, output: seen.add(float32_settings()))
    try:
        for work in ("smoke", "train", "test", "pictures"):
            carry_out(work, config, [config], place, drawn, {"final": True} if work == "train" else {})
            counts.append(len(seen))
            assert seen == {("ieee",) * 6 + (True, False)}, work
            assert float32_settings() == before
    finally:
        hook.remove()
    assert counts == [1] * 4
