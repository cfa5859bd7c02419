"""Trainings on the stand-in for GPUs: devices do not mix, no step waits, and the numbers are those of the CPU.

`tests/stand_in_device.py` lists what it cannot see; tests/gpu has the same facts for a real GPU.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import safetensors.torch
import torch
from losses import ALL_CONFIGS as METHODS
from runs import changed, float32_settings, fresh_state, state_of
from stand_in_device import StandIn
from torch import Tensor
from torch.nn.modules.module import register_module_forward_hook
from trainings import CPU, KD, Trained, equal_weights, recipe, trained, with_teacher, workspace

from kdtrain.config.recipe import Recipe
from kdtrain.data.batch_transforms import RandomCropFlip, RandomResizedCropFlip, Resize
from kdtrain.data.sampling import Drawing
from kdtrain.executors.local import carry_out
from kdtrain.methods.registry import Method
from kdtrain.storage.cache import Cache
from kdtrain.storage.folder import LocalFolder
from kdtrain.teacher.cached import CachedTeacher, cached_teacher
from kdtrain.training.loop import evaluate, fit, train_step
from kdtrain.training.precision import backend_settings
from kdtrain.training.preflight import smoke
from kdtrain.training.state import TrainState

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="a real GPU is there: tests/gpu")

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
    "class weights": {"class_weights": "balanced", "sampler": "class_balanced"},
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


WAITING: dict[str, Callable[[Tensor], object]] = {
    "item": lambda x: x[0, 0].item(),
    "float": lambda x: float(x.sum()),
    "bool": lambda x: bool(x.sum() > 0),
    "tolist": lambda x: x.tolist(),
    "cpu": lambda x: x.cpu(),
    "copy to the CPU": lambda x: torch.zeros(3, 3).copy_(x),
    "copy from the CPU": lambda x: x.copy_(torch.zeros(3, 3)),
    "copy from memory that is not pinned": lambda x: torch.zeros(3).to(x.device, non_blocking=True),
    "to, blocking": lambda x: torch.zeros(3).pin_memory().to(x.device),
    "to, as another": lambda x: torch.zeros(3).to(x),
    "tensor": lambda x: torch.tensor([1.0], device=x.device),
    "equal": lambda x: torch.equal(x, x),
    "nonzero": lambda x: x.nonzero(),
    "mask": lambda x: x[x > 0],
    "masked_select": lambda x: x.masked_select(x > 0),
    "index of the CPU": lambda x: x[torch.tensor([0, 1])],
    "unique": lambda x: x.unique(),
    "bincount": lambda x: x.long().flatten().bincount(),
}
NOT_WAITING: dict[str, Callable[[Tensor], object]] = {
    "scalar of the CPU": lambda x: x * torch.tensor(2.0),
    "number": lambda x: torch.where(x > 0, x, 1.0).clamp(max=3.0),
    "from nothing": lambda x: torch.full((3,), 2.0, device=x.device) + torch.arange(3, device=x.device),
    "pinned": lambda x: torch.zeros(3).pin_memory().to(x.device, non_blocking=True),
    "index": lambda x: x[torch.zeros(2, dtype=torch.long, device=x.device)],
    "masked_fill": lambda x: x.masked_fill(x > 0, 0.0),
    "same device": lambda x: x.to(x.device, torch.float16),
    "another GPU": lambda x: x.to("cuda:0"),
}
MIXING: dict[str, Callable[[Tensor], object]] = {
    "CPU": lambda x: x + torch.zeros(3, 3),
    "another GPU": lambda x: x + torch.zeros(3, 3, device="cuda:0"),
    "product": lambda x: torch.zeros(3, 3) @ x,
    "list": lambda x: torch.cat([x, torch.zeros(3, 3)]),
    "scalars in a list": lambda x: torch.stack([x.sum(), torch.tensor(1.0)]),
    "target": lambda x: torch.nn.functional.cross_entropy(x, torch.zeros(3, dtype=torch.long)),
    "numpy": lambda x: x.numpy(),
}


@pytest.mark.parametrize("name", WAITING)
def test_the_stand_in_counts_a_wait(devices: StandIn, name: str) -> None:
    x = torch.zeros(3, 3, device="cuda:1")
    with devices.counting() as waits:
        WAITING[name](x)
    assert waits


TRANSFORMS = {
    "resize": Resize(24),
    "resize to a dyadic size": Resize(64),
    "crop": RandomCropFlip(32, padding=4),
    "crop and resize": RandomCropFlip(32, padding=4, resolution=48),
    "resized crop": RandomResizedCropFlip(16),
}


@pytest.mark.parametrize("name", TRANSFORMS)
def test_views_made_on_the_device_equal_those_of_the_cpu_and_wait_for_nothing(devices: StandIn, name: str) -> None:
    pixels = torch.randint(256, (6, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    indices, on_device = torch.tensor([4, 1, 2]), pixels.to("cuda:1")
    with devices.counting() as waits:
        views = TRANSFORMS[name].batch(on_device, indices, 0, 1)
    assert waits == []
    assert torch.equal(views.cpu(), TRANSFORMS[name].batch(pixels, indices, 0, 1))


@pytest.mark.parametrize("name", NOT_WAITING)
def test_the_stand_in_counts_no_wait(devices: StandIn, name: str) -> None:
    x = torch.zeros(3, 3, device="cuda:1")
    with devices.counting() as waits:
        NOT_WAITING[name](x)
    assert not waits


@pytest.mark.parametrize("name", MIXING)
def test_the_stand_in_refuses_to_mix_devices(devices: StandIn, name: str) -> None:
    x = torch.zeros(3, 3, device="cuda:1")
    with pytest.raises((RuntimeError, TypeError), match="cuda:1"):
        MIXING[name](x)


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
@pytest.mark.parametrize("label", [label for label in METHODS if label != "mgd"])  # whose layout differs on a CPU
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
    assert waits_of_steps(devices, state, Drawing(0, 16).batches(state.data.train.labels, 0)[:3]) == []


@pytest.mark.parametrize("label", ["kd in float16, averaged, mixed, clipped", "critic"])
def test_a_training_cut_off_on_the_device_continues_bit_for_bit(devices: StandIn, label: str, tmp_path: Path) -> None:
    def stop(metrics: Any) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        on_second_gpu(devices, LOOPS[label], tmp_path, on_epoch=stop, checkpoint_every_steps=2)
    for newest in sorted(tmp_path.glob("trials/*/checkpoint-*"))[-1:]:
        newest.unlink()  # what is left was written in mid-epoch
    require_equal(on_second_gpu(devices, LOOPS[label], tmp_path), trained(LOOPS[label]))


@pytest.mark.parametrize("device", ["cuda", "cuda:1", "mps"])
def test_the_preflight_check_runs_on_the_device(devices: StandIn, device: str, tmp_path: Path) -> None:
    for label in ("kd", "logits_discriminator"):
        smoke(distilled(label), workspace(tmp_path, device=torch.device(device)))


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


def test_a_checkpoint_waits_once_for_each_tensor_and_an_evaluation_once(devices: StandIn) -> None:
    state = fresh_state(recipe(**SCALED, ema={"decay": 0.9}), device=devices.cuda(1))
    train_step(state, torch.arange(16))
    evaluate(state)
    with devices.counting() as waits:
        saved = state.checkpoint()
    assert len(waits) <= len(safetensors.torch.load(saved))
    with devices.counting() as waits:
        evaluate(state)
    assert len(waits) == 1


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


def test_a_training_leaves_the_generators_of_all_gpus_as_they_were(devices: StandIn, tmp_path: Path) -> None:
    before = [torch.cuda.get_rng_state(device) for device in (0, 1)]
    on_second_gpu(devices, LOOPS["critic"], tmp_path)
    assert all(torch.equal(torch.cuda.get_rng_state(device), before[device]) for device in (0, 1))


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_an_overflow_skips_the_whole_update_on_the_device(devices: StandIn, optimizer: str) -> None:
    state = fresh_state(recipe(optimizer=OPTIMIZERS[optimizer], precision="fp16"), device=devices.cuda(1))
    state.learner.scaler = torch.amp.GradScaler("cuda", init_scale=2.0**40)
    skipped = []
    while not skipped or skipped[-1]:
        before = state_of(state.distiller)
        skipped.append(train_step(state, torch.arange(16))["skipped_steps"].item())
        assert bool(changed(before, state_of(state.distiller))) != bool(skipped[-1])
    assert len(skipped) > 1


def test_the_fused_decay_of_a_device_is_that_of_the_cpu_but_for_rounding(devices: StandIn) -> None:
    config = recipe(optimizer=OPTIMIZERS["adamw nothing"])
    ours, theirs = fresh_state(config, device=devices.cuda(1)), fresh_state(config)
    for step in range(3):
        losses = [train_step(state, torch.arange(16), step)["loss"].item() for state in (ours, theirs)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


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
            assert seen == {("ieee",) * 5}, work
            assert float32_settings() == before
    finally:
        hook.remove()
    assert counts == [1] * 4
