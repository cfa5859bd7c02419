"""One GPU: what a CPU cannot show. Skipped where there is none."""

from pathlib import Path
from typing import Any

import pytest
import torch
from runs import fresh_state
from trainings import CPU, Trained, equal_weights, recipe, trained

from kdtrain.config.recipe import Recipe
from kdtrain.data.sampling import batches_of
from kdtrain.storage.cache import Cache
from kdtrain.teacher.cached import CachedTeacher, cached_teacher
from kdtrain.training.epoch_metrics import Metrics
from kdtrain.training.loop import train_step
from kdtrain.training.state import TrainState

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
]

RESNETS: dict[str, Any] = {
    "data": {"name": "digits", "resolution": 64, "limit_per_class": 6},
    "teacher": {"model": "resnet50", "weights": None, "epochs": 1},
    "student": {"model": "resnet18", "weights": None},
    "optimizer": {"name": "adam", "lr": 0.001},
    "batch_size": 20,
}
METHODS: dict[str, dict[str, Any]] = {
    "kd": {"name": "kd", "temperature": 4.0, "balance": {"alpha": 0.5}},
    "sp": {"name": "sp", "stages": ["16", "32"], "balance": {"weight": 100.0}},
    "at": {"name": "at", "stages": ["16", "32"], "balance": {"weight": 100.0}},
    "mgd": {"name": "mgd", "stage": "32", "balance": {"weight": 1.0}},
    "logits_discriminator": {
        "name": "logits_discriminator", "balance": {"alpha": 0.5}, "temperature": 1.5,
        "critic_steps": 1, "student_steps": 1,
    },
}  # fmt: skip


def gpu() -> torch.device:
    return torch.device("cuda", torch.cuda.current_device())


def on_gpu(config: Recipe) -> TrainState:
    return fresh_state(config, device=gpu())


def require_equal(ours: Trained, theirs: Trained) -> None:
    assert ours.outcome["state"] == "complete", ours.outcome["reason"]
    assert ours.rows == theirs.rows
    assert equal_weights(ours.weights, theirs.weights)


@pytest.mark.parametrize("teacher", ["live", "cached"])
@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16", "fp16"])
@pytest.mark.parametrize("method", METHODS)
def test_no_step_waits_for_the_device(method: str, precision: str, teacher: str, tmp_path: Path) -> None:
    state = on_gpu(recipe(**RESNETS, method=METHODS[method], precision=precision))
    batches = torch.arange(60).split(20)
    if teacher == "cached":
        state.teacher.digest = "of no file"
        state.teacher_outputs = cached_teacher(state.teacher_outputs, Cache(tmp_path, 1 << 30), (), "a test")
        assert isinstance(state.teacher_outputs, CachedTeacher)
        batches = batches_of(
            0, state.recipe.batch_size, state.data.train.labels, 0, "shuffled"
        )  # SP's are kept as they stand
        state.teacher_outputs.begin(0)
    for step, batch in enumerate(batches[:2]):  # each player's first turn makes its optimizer's state
        train_step(state, batch, step)
        state.step += 1
    torch.cuda.set_sync_debug_mode("error")
    try:
        for step in (2, 3):
            train_step(state, batches[step % 3], step)
            state.step += 1
    finally:
        torch.cuda.set_sync_debug_mode("default")


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
