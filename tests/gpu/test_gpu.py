"""One GPU: what a CPU cannot show. Skipped where there is none."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from trainings import NO_DATA, equal_weights, recipe, timeless

from kdtrain.config.recipe import Recipe, teacher_recipe
from kdtrain.data.registry import load
from kdtrain.data.sampling import batches_of
from kdtrain.runtime.process import prepare_process
from kdtrain.storage.cache import Cache
from kdtrain.teacher.cached import CachedTeacher, cached_teacher
from kdtrain.teacher.network import Teacher, untrained_teacher
from kdtrain.training.assembly import assemble
from kdtrain.training.epoch_metrics import Metrics
from kdtrain.training.final_evaluation import read_test
from kdtrain.training.loop import train_step
from kdtrain.training.state import TrainState
from kdtrain.training.trainer import train
from kdtrain.trials.store import Store
from kdtrain.trials.workspace import Workspace

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


def fresh_run(config: Recipe) -> TrainState:
    prepare_process(1)
    data = load(config.data, NO_DATA)
    teacher = Teacher(untrained_teacher(config.teacher, data), gpu(), config.method.needed_stages)
    run = assemble(config, data, teacher, gpu())
    run.distiller.train()
    return run


def trained(
    config: Recipe, results: Path, cache: Cache | None = None, **options: Any
) -> tuple[list[Metrics], dict[str, Tensor]]:
    prepare_process(1)
    place = Workspace(Store(results), NO_DATA, gpu(), cache)
    taught_by = teacher_recipe(config)
    assert taught_by is not None
    train(taught_by, place, final=True)
    train(config, place, final=True, **options)
    outcome = read_test(config, place)
    (folder,) = (each for each in place.store.trials() if each.recipe()["teacher"] is not None)
    assert outcome["state"] == "complete", outcome["reason"]
    return [timeless(row) for row in folder.epochs()], load_file(folder.weights)


@pytest.mark.parametrize("answers", ["asked", "read"])
@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16", "fp16"])
@pytest.mark.parametrize("method", METHODS)
def test_no_step_waits_for_the_device(method: str, precision: str, answers: str, tmp_path: Path) -> None:
    run = fresh_run(recipe(**RESNETS, method=METHODS[method], precision=precision))
    batches = torch.arange(60).split(20)
    if answers == "read":
        run.teacher.digest = "of no file"
        run.teacher_outputs = cached_teacher(run.teacher_outputs, Cache(tmp_path, 1 << 30), (), "a test")
        assert isinstance(run.teacher_outputs, CachedTeacher)
        batches = batches_of(run.recipe.seed, run.recipe.batch_size, 60, 0)  # SP's are kept as they stand
        run.teacher_outputs.begin(0)
    for step, batch in enumerate(batches[:2]):  # each player's first turn makes its optimizer's state
        train_step(run, batch, step)
        run.step += 1
    torch.cuda.set_sync_debug_mode("error")
    try:
        for step in (2, 3):
            train_step(run, batches[step % 3], step)
            run.step += 1
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_the_same_recipe_twice_gives_equal_bits(precision: str, tmp_path: Path) -> None:
    config = recipe(**RESNETS, method=METHODS["kd"], precision=precision)
    one, other = (trained(config, tmp_path / name) for name in ("one", "other"))
    assert one[0] == other[0]
    assert equal_weights(one[1], other[1])


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("method", ["kd", "mgd", "logits_discriminator"])
def test_interrupted_in_mid_epoch_and_continued_equals_uninterrupted(
    method: str, precision: str, tmp_path: Path
) -> None:
    config = recipe(**RESNETS, method=METHODS[method], precision=precision, epochs=2, ema={"decay": 0.9})
    straight = trained(config, tmp_path / "straight")

    def stop(metrics: Metrics) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trained(config, tmp_path / "cut", on_epoch=stop, checkpoint_every_steps=2)
    for newest in sorted(tmp_path.glob("cut/trials/*/checkpoint-*"))[-1:]:
        newest.unlink()  # what is left was written in mid-epoch
    continued = trained(config, tmp_path / "cut", checkpoint_every_steps=2)
    assert continued[0] == straight[0]
    assert equal_weights(continued[1], straight[1])


@pytest.mark.parametrize("method", ["kd", "at", "sp", "mgd"])
def test_a_training_that_reads_answers_is_the_one_that_asks_but_for_rounding(method: str, tmp_path: Path) -> None:
    config = recipe(**RESNETS, method=METHODS[method], epochs=2)
    asked = trained(config, tmp_path / "asked")
    read = trained(config, tmp_path / "read", cache=Cache(tmp_path / "cache", 1 << 30))
    for name in ("train/loss", "val/loss", "val/nll"):
        values = [[row[name] for row in rows if name in row] for rows, _ in (asked, read)]
        assert values[1] == pytest.approx(values[0], rel=1e-2), name


def test_float32_on_the_gpu_is_the_cpus_but_for_rounding() -> None:
    config = recipe(**RESNETS, method=METHODS["kd"])
    data = load(config.data, NO_DATA)
    losses = []
    for device in (torch.device("cpu"), gpu()):
        prepare_process(1)
        run = assemble(config, data, Teacher(untrained_teacher(config.teacher, data), device), device)
        run.distiller.train()
        losses.append([train_step(run, torch.arange(20))["loss"].item() for _ in range(1)])
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


def test_compiled_networks_train_like_plain_ones(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "compiled"))
    losses = []
    for compiled in (False, True):
        networks = {name: RESNETS[name] | {"compile": compiled} for name in ("teacher", "student")}
        run = fresh_run(recipe(**RESNETS | networks, method=METHODS["mgd"]))
        losses.append(train_step(run, torch.arange(20))["loss"].item())
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)


def test_tf32_and_float32_differ_and_are_close() -> None:
    losses = {}
    for precision in ("fp32", "tf32"):
        run = fresh_run(recipe(**RESNETS, method=METHODS["kd"], precision=precision))
        losses[precision] = train_step(run, torch.arange(20))["loss"].item()
    assert losses["tf32"] != losses["fp32"]
    assert losses["tf32"] == pytest.approx(losses["fp32"], rel=1e-2)
