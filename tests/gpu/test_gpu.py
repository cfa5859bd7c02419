"""A GPU: what a CPU and the stand-in of tests/stand_in_device.py cannot show. Skipped without one."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from losses import ALL_CONFIGS as METHODS
from runs import changed, float32_settings, fresh_state, state_of
from torch.nn.modules.module import register_module_forward_hook
from trainings import CPU, Trained, equal_weights, recipe, trained, with_teacher, workspace

from kdtrain.config.recipe import Recipe
from kdtrain.data.sampling import Drawing
from kdtrain.storage.cache import Cache
from kdtrain.teacher.cached import CachedTeacher, cached_teacher
from kdtrain.training.epoch_metrics import Metrics
from kdtrain.training.final_evaluation import read_test
from kdtrain.training.loop import train_step
from kdtrain.training.precision import backend_settings
from kdtrain.training.preflight import smoke
from kdtrain.training.state import TrainState
from kdtrain.training.trainer import train

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
]
needs_two = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")

RESNETS: dict[str, Any] = {
    "data": {"name": "digits", "resolution": 64, "limit_per_class": 6},
    "teacher": {"model": "resnet50", "weights": None, "epochs": 1},
    "student": {"model": "resnet18", "weights": None},
    "optimizer": {"name": "adam", "lr": 0.001},
    "batch_size": 20,
}
LENET = {"model": "lenet5_student"}
"""Without batch normalization, whose statistics move in a skipped step too."""
OPTIMIZERS: dict[str, dict[str, Any]] = {
    "sgd": {"name": "sgd", "lr": 0.05, "momentum": 0.9},
    "adam": {"name": "adam", "lr": 0.01},
    "adamw": {"name": "adamw", "lr": 0.01, "weight_decay": 0.1},
    "adamw nothing": {"name": "adamw", "lr": 0.01, "weight_decay": 0.1, "decay_times": "nothing"},
}
OPTIONS: dict[str, dict[str, Any]] = {
    "bf16": {"precision": "bf16"},
    "tf32": {"precision": "tf32"},
    "clipping of tensors": {"clipping": {"norm": 0.1, "over": "tensor"}, "precision": "fp16"},
    "ema": {"ema": {"decay": 0.9}},
    "class weights": {"class_weights": "balanced", "sampler": "class_balanced"},
    "mixup": {"mixup": {}, "label_smoothing": 0.1},
    "dropout": {"student": {"model": "resnet18", "weights": None, "dropout": 0.5}},
}


def gpu() -> torch.device:
    return torch.device("cuda", torch.cuda.current_device())


def on_gpu(config: Recipe) -> TrainState:
    return fresh_state(config, device=gpu())


def require_equal(ours: Trained, theirs: Trained) -> None:
    assert ours.outcome["state"] == "complete", ours.outcome["reason"]
    assert ours.rows == theirs.rows
    assert equal_weights(ours.weights, theirs.weights)


def distilled(label: str, **changes: Any) -> Recipe:
    networks = {key: value for key, value in RESNETS.items() if label != "none" or key != "teacher"}
    return recipe(**networks | changes | {"method": METHODS[label]})


@contextmanager
def waits_are_errors() -> Iterator[None]:
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def require_no_wait(state: TrainState, batches: Any = None) -> None:
    """Make two steps in which a wait is an error; the two before them make the state of each player's optimizer."""
    batches = torch.arange(60).split(20) if batches is None else batches
    for step in range(4):
        with waits_are_errors() if step >= 2 else nullcontext():
            train_step(state, batches[step % 3], step % 3)
        state.step += 1


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("label", METHODS)
def test_no_step_of_a_method_waits_for_the_device(label: str, precision: str) -> None:
    require_no_wait(on_gpu(distilled(label, precision=precision, clipping={"norm": 1.0})))


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_no_step_of_an_optimizer_waits_under_a_gradient_scaler(optimizer: str) -> None:
    require_no_wait(on_gpu(distilled("none", optimizer=OPTIMIZERS[optimizer], precision="fp16")))


@pytest.mark.parametrize("option", OPTIONS)
def test_no_step_of_an_option_waits_for_the_device(option: str) -> None:
    require_no_wait(on_gpu(distilled("kd", **OPTIONS[option])))


@pytest.mark.parametrize("label", ["kd", "at", "sp", "mgd"])
def test_no_step_that_reads_cached_outputs_waits(label: str, tmp_path: Path) -> None:
    state = on_gpu(distilled(label))
    state.teacher.digest = "of no file"
    state.teacher_outputs = cached_teacher(state.teacher_outputs, Cache(tmp_path, 1 << 30), (), "a test")
    assert isinstance(state.teacher_outputs, CachedTeacher)
    state.teacher_outputs.begin(0)
    # SP's are cached as they stand
    require_no_wait(state, Drawing(0, state.recipe.batch_size).batches(state.data.train.labels, 0))


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_the_same_recipe_twice_gives_equal_bits(precision: str, tmp_path: Path) -> None:
    config = recipe(**RESNETS, method=METHODS["kd"], precision=precision)
    require_equal(trained(config, tmp_path, device=gpu()), trained(config, device=gpu()))


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("method", ["kd", "mgd", "logits_discriminator"])
def test_interrupted_in_mid_epoch_and_continued_equals_uninterrupted(
    method: str, precision: str, tmp_path: Path
) -> None:
    config = recipe(**RESNETS, method=METHODS[method], precision=precision, epochs=2, ema={"decay": 0.9})

    def stop(metrics: Metrics) -> None:
        raise KeyboardInterrupt

    often = {"device": gpu(), "checkpoint_every_steps": 2}
    with pytest.raises(KeyboardInterrupt):
        trained(config, tmp_path, on_epoch=stop, **often)
    for newest in sorted(tmp_path.glob("trials/*/checkpoint-*"))[-1:]:
        newest.unlink()  # what is left was written in mid-epoch
    require_equal(trained(config, tmp_path, **often), trained(config, device=gpu()))


@pytest.mark.parametrize("method", ["kd", "at", "sp", "mgd"])
def test_a_training_that_reads_the_cache_is_the_live_one_but_for_rounding(method: str, tmp_path: Path) -> None:
    config = recipe(**RESNETS, method=METHODS[method], epochs=2)
    live = trained(config, device=gpu())
    cached = trained(config, tmp_path, device=gpu(), cache=Cache(tmp_path / "cache", 1 << 30))
    for name in ("train/loss", "val/loss", "val/nll"):
        values = [[row[name] for row in each.rows if name in row] for each in (live, cached)]
        assert values[1] == pytest.approx(values[0], rel=1e-2), name


def first_loss(config: Recipe, device: torch.device) -> float:
    return train_step(fresh_state(config, device=device), torch.arange(20))["loss"].item()


def test_float32_on_the_gpu_is_the_cpus_but_for_rounding() -> None:
    config = recipe(**RESNETS, method=METHODS["kd"])
    assert first_loss(config, gpu()) == pytest.approx(first_loss(config, CPU), rel=1e-4)


def test_compiled_networks_train_like_plain_ones(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "compiled"))
    losses = []
    for compiled in (False, True):
        networks = {name: RESNETS[name] | {"compile": compiled} for name in ("teacher", "student")}
        losses.append(first_loss(recipe(**RESNETS | networks, method=METHODS["mgd"]), gpu()))
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)


def test_tf32_and_float32_differ_and_are_close() -> None:
    configs = [recipe(**RESNETS, method=METHODS["kd"], precision=precision) for precision in ("fp32", "tf32")]
    fp32, tf32 = (first_loss(config, gpu()) for config in configs)
    assert tf32 != fp32
    assert tf32 == pytest.approx(fp32, rel=1e-2)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_an_overflow_skips_the_whole_update(optimizer: str) -> None:
    state = on_gpu(distilled("none", optimizer=OPTIMIZERS[optimizer], precision="fp16", student=LENET))
    state.learner.scaler = torch.amp.GradScaler("cuda", init_scale=2.0**40)
    skipped: list[float] = []
    while not skipped or skipped[-1]:
        before = state_of(state.distiller)
        skipped.append(train_step(state, torch.arange(20))["skipped_steps"].item())
        assert bool(changed(before, state_of(state.distiller))) != bool(skipped[-1])
    assert len(skipped) > 1


def test_peak_memory_begins_anew_with_each_training(tmp_path: Path) -> None:
    large_bytes = 4 << 30
    torch.empty(large_bytes, dtype=torch.uint8, device=gpu())  # of an earlier trial of the same process
    assert torch.cuda.max_memory_allocated(gpu()) >= large_bytes
    peaks = [row["peak_memory_bytes"] for row in trained(distilled("none"), tmp_path, device=gpu()).folder.epochs()]
    assert 0 < peaks[0] <= peaks[-1] < large_bytes


@pytest.mark.parametrize("precision", ["fp32", "tf32"])
@pytest.mark.parametrize("allowed", [False, True])
def test_numbers_are_made_with_the_recipes_precision_whatever_the_process_has_set(
    allowed: bool, precision: str, tmp_path: Path
) -> None:
    config, place = distilled("kd", precision=precision), workspace(tmp_path, device=gpu())
    with_teacher(config, tmp_path, device=gpu())
    seen: set[tuple[str, ...]] = set()
    with backend_settings("fp32", gpu()):
        torch.set_float32_matmul_precision("medium" if allowed else "highest")
        torch.backends.cudnn.allow_tf32 = allowed
        hook = register_module_forward_hook(lambda module, inputs, output: seen.add(float32_settings()))
        try:
            smoke(config, place)
            train(config, place, final=True)
            read_test(config, place)
        finally:
            hook.remove()
    assert seen == {("tf32" if precision == "tf32" else "ieee", *["ieee"] * 4)}


def test_the_test_split_is_read_alike_whatever_the_process_has_set(tmp_path: Path) -> None:
    logits = []
    for allowed in (True, False):
        results = tmp_path / str(allowed)
        with backend_settings("fp32", gpu()):
            torch.backends.cudnn.allow_tf32 = allowed
            folder = trained(distilled("none"), results, device=gpu()).folder
        with np.load(folder.predictions) as arrays:
            logits.append(arrays["test_logits"])
    assert np.array_equal(*logits)


def second_gpu() -> torch.device:
    return torch.device("cuda", 1)


@needs_two
def test_a_training_on_the_second_gpu_equals_that_on_the_first(tmp_path: Path) -> None:
    if torch.cuda.get_device_name(0) != torch.cuda.get_device_name(1):
        pytest.skip("the GPUs are of two kinds")
    config = distilled("kd", **OPTIONS["dropout"])
    ours, theirs = (trained(config, tmp_path / str(index), device=torch.device("cuda", index)) for index in (1, 0))
    require_equal(ours, theirs)


@needs_two
def test_dropout_of_the_second_gpu_is_seeded_by_the_step() -> None:
    losses = []
    for seed in (1, 2):
        torch.cuda.manual_seed_all(seed)
        state = fresh_state(distilled("none", **OPTIONS["dropout"]), device=second_gpu())
        losses.append(train_step(state, torch.arange(20))["loss"].item())
    assert losses[0] == losses[1]


@needs_two
def test_a_training_on_the_second_gpu_leaves_the_first_alone(tmp_path: Path) -> None:
    torch.cuda.reset_peak_memory_stats(0)
    before = torch.cuda.memory_allocated(0), torch.cuda.get_rng_state(0), torch.cuda.get_rng_state(1)
    trained(distilled("logits_discriminator"), tmp_path, device=second_gpu())
    assert torch.cuda.max_memory_allocated(0) == before[0]
    assert torch.cuda.current_device() == 0
    assert all(torch.equal(torch.cuda.get_rng_state(index), before[1 + index]) for index in (0, 1))
