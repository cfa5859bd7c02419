"""The feed: loader processes change nothing of what is learned, and nothing of them is left behind."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from made_up_data import cub200, flowers102
from torch import Tensor
from trainings import CPU, NO_DATA, recipe, timeless, workspace

from kdtrain.config.recipe import Recipe
from kdtrain.config.study_settings import Resources
from kdtrain.data.base import Dataset, as_floats
from kdtrain.data.registry import load
from kdtrain.data.sampling import batches_of
from kdtrain.errors import UserError
from kdtrain.runtime.process import prepare_process
from kdtrain.study.capacity import concurrent_trials, per_worker
from kdtrain.training.assembly import assemble
from kdtrain.training.loader import BatchLoader, part_of
from kdtrain.training.loop import fit
from kdtrain.training.trainer import train

BIRDS = {"data": {"name": "cub200", "resolution": 20}, "student": {"model": "lenet5_student"}, "batch_size": 8}
MIXED = {"mixup": {}}
PUBLISHED = {"mixup": {"convention": "published"}}


@pytest.fixture(autouse=True)
def no_process_is_left() -> Iterator[None]:
    prepare_process(1)
    yield
    deadline = time.monotonic() + 60
    while multiprocessing.active_children() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert multiprocessing.active_children() == []


def birds(root: Path, **changes: Any) -> tuple[Recipe, Dataset]:
    if not (root / "CUB_200_2011").exists():
        cub200(root)
    config = recipe(**BIRDS | changes)
    return config, config.data.load(root)


def fed(
    config: Recipe, data: Dataset, loaders: int, start: tuple[int, int] = (0, 0), device: torch.device = CPU
) -> list[tuple[Tensor, Tensor | None]]:
    """All batches from an epoch's step on, to the training's end."""
    feed = BatchLoader(config, data.train, device, loaders)
    total = len(data.train)
    step = 0
    found = []
    for epoch in range(config.epochs):
        for epoch_step, indices in enumerate(batches_of(config.seed, config.batch_size, total, epoch)):
            if (epoch, epoch_step) >= start:
                part = part_of(config, indices, total, epoch, step)
                found.append(feed.images(part, epoch, epoch_step, step))
            step += 1
    feed.close()
    return found


def require_equal(one: list[tuple[Tensor, Tensor | None]], other: list[tuple[Tensor, Tensor | None]]) -> None:
    assert len(one) == len(other)
    for (images, partners), (their_images, their_partners) in zip(one, other, strict=True):
        assert torch.equal(images, their_images)
        assert (partners is None) == (their_partners is None)
        assert partners is None or torch.equal(partners, their_partners)


@pytest.mark.parametrize("mixup", [{}, MIXED, PUBLISHED], ids=["alone", "mixed", "mixed as published"])
def test_any_number_of_loaders_gives_the_same_batches(mixup: dict[str, Any], tmp_path: Path) -> None:
    config, data = birds(tmp_path, epochs=3, **mixup)
    alone = fed(config, data, 0)
    for loaders in (1, 2):
        require_equal(fed(config, data, loaders), alone)


def test_a_feed_begins_at_any_step_and_goes_on_over_the_ends_of_epochs(tmp_path: Path) -> None:
    config, data = birds(tmp_path, epochs=3, **PUBLISHED)
    steps_per_epoch = len(batches_of(config.seed, config.batch_size, len(data.train), 0))
    require_equal(fed(config, data, 2, start=(1, 1)), fed(config, data, 0)[steps_per_epoch + 1 :])


def test_a_step_out_of_order_gets_its_own_batch(tmp_path: Path) -> None:
    config, data = birds(tmp_path, epochs=2)
    total = len(data.train)
    feed = BatchLoader(config, data.train, CPU, 1)
    steps_per_epoch = len(batches_of(config.seed, config.batch_size, total, 0))
    for epoch, epoch_step in ((0, 0), (1, 1), (0, 1), (0, 1)):
        indices = batches_of(config.seed, config.batch_size, total, epoch)[epoch_step]
        step = epoch * steps_per_epoch + epoch_step
        images, _ = feed.images(part_of(config, indices, total, epoch, step), epoch, epoch_step, step)
        assert torch.equal(images, as_floats(data.train.images.train_view(indices, config.seed, epoch)))
    feed.close()


def trained(config: Recipe, data: Dataset, loaders: int) -> tuple[list[dict[str, float]], bytes]:
    run = assemble(config, data, None, CPU, loaders=loaders)
    rows: list[dict[str, float]] = []
    fit(run, config.epochs, lambda metrics, run: rows.append(metrics))
    run.loader.close()
    rows = [timeless(row) for row in rows]
    run.progress.seconds = 0.0
    return rows, run.checkpoint()


def test_a_training_is_the_same_with_any_number_of_loaders(tmp_path: Path) -> None:
    config, data = birds(tmp_path, epochs=2, student={"model": "test_resnet", "weights": None}, **MIXED)
    rows, checkpoint = trained(config, data, 0)
    for loaders in (1, 2):
        assert trained(config, data, loaders) == (rows, checkpoint)


def test_where_whole_batches_come_from_memory_no_loader_is_started(tmp_path: Path) -> None:
    flowers102(tmp_path)
    digits = recipe()
    flowers = recipe(**BIRDS | {"data": {"name": "flowers102", "resolution": 20}})
    for config, data in ((digits, load(digits.data, NO_DATA)), (flowers, flowers.data.load(tmp_path))):
        feed = BatchLoader(config, data.train, CPU, 2)
        indices = batches_of(config.seed, config.batch_size, len(data.train), 0)[0]
        images, _ = feed.images(part_of(config, indices, len(data.train), 0, 0), 0, 0, 0)
        assert multiprocessing.active_children() == []
        assert torch.equal(images, as_floats(data.train.images.train_view(indices, config.seed, 0)))


def first_batch(feed: BatchLoader, config: Recipe, data: Dataset) -> Tensor:
    total = len(data.train)
    part = part_of(config, batches_of(config.seed, config.batch_size, total, 0)[0], total, 0, 0)
    return feed.images(part, 0, 0, 0)[0]


def test_a_file_damaged_after_the_check_is_named_by_one_sentence_whoever_finds_it(tmp_path: Path) -> None:
    config, data = birds(tmp_path)
    for file in (tmp_path / "CUB_200_2011" / "images").rglob("*.png"):
        file.write_bytes(file.read_bytes()[:100])
    for loaders in (0, 2):
        feed = BatchLoader(config, data.train, CPU, loaders)
        with pytest.raises(UserError, match="is not a whole image") as caught:
            first_batch(feed, config, data)
        assert len(caught.value.problems) == 1
        assert "Traceback" not in caught.value.problems[0]
        feed.close()


def test_a_file_that_is_gone_is_an_error_of_its_own_kind(tmp_path: Path) -> None:
    config, data = birds(tmp_path)
    for file in (tmp_path / "CUB_200_2011" / "images").rglob("*.png"):
        file.unlink()
    told = []
    for loaders in (0, 1):
        feed = BatchLoader(config, data.train, CPU, loaders)
        with pytest.raises((UserError, OSError)) as caught:
            first_batch(feed, config, data)
        told.append((type(caught.value), str(caught.value)))
        feed.close()
    assert told[0] == told[1]


def test_a_killed_loader_ends_the_training_with_one_sentence_and_without_waiting_for_ever(tmp_path: Path) -> None:
    config, data = birds(tmp_path, epochs=200)
    feed = BatchLoader(config, data.train, CPU, 2)
    first_batch(feed, config, data)
    for child in multiprocessing.active_children():
        os.kill(child.pid, signal.SIGKILL)
    total = len(data.train)
    steps_per_epoch = len(batches_of(config.seed, config.batch_size, total, 0))

    def go_on() -> None:
        for step in range(1, 200):
            epoch, epoch_step = divmod(step, steps_per_epoch)
            indices = batches_of(config.seed, config.batch_size, total, epoch)[epoch_step]
            feed.images(part_of(config, indices, total, epoch, step), epoch, epoch_step, step)

    with pytest.raises(UserError, match="loaders: a loader process was killed"):
        go_on()
    feed.close()


def test_a_killed_loader_does_not_interrupt_what_is_going_on(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGCHLD)
    config, data = birds(tmp_path)
    feed = BatchLoader(config, data.train, CPU, 1)
    first_batch(feed, config, data)
    assert signal.getsignal(signal.SIGCHLD) == before
    feed.close()


def test_a_loader_draws_nothing_from_the_training_and_uses_one_thread(tmp_path: Path) -> None:
    config, data = birds(tmp_path)
    state = torch.random.get_rng_state()
    feed = BatchLoader(config, data.train, CPU, 1)
    first_batch(feed, config, data)
    assert torch.equal(torch.random.get_rng_state(), state)
    (child,) = multiprocessing.active_children()
    threads = len(list(Path(f"/proc/{child.pid}/task").iterdir()))
    assert threads <= 3  # its own, the queue's and at most one of the system's
    feed.close()


def test_loaders_take_a_cpu_each() -> None:
    resources = Resources(workers=2, cpus_per_worker=1, loaders=3)
    assert per_worker(resources) == {"cpu": 4.0}
    assert concurrent_trials(resources, [{"CPU": 17}]) == 2
    with pytest.raises(UserError, match="2 workers of 4"):
        concurrent_trials(resources, [{"CPU": 7}])


@pytest.mark.gpu
@pytest.mark.parametrize("mixup", [{}, MIXED], ids=["alone", "mixed"])
def test_batches_on_a_gpu_are_those_of_the_cpu_with_any_number_of_loaders(
    mixup: dict[str, Any], tmp_path: Path
) -> None:
    config, data = birds(tmp_path, epochs=2, **mixup)
    expected = fed(config, data, 0)
    for loaders in (0, 2):
        on_gpu = fed(config, data, loaders, device=torch.device("cuda"))
        assert all(images.is_cuda for images, _ in on_gpu)
        require_equal([(each.cpu(), other.cpu() if other is not None else None) for each, other in on_gpu], expected)


def test_a_training_ended_by_an_error_leaves_no_process(tmp_path: Path) -> None:
    cub200(tmp_path)
    config = recipe(**BIRDS | {"epochs": 2})

    def stop(metrics: dict[str, float]) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(config, workspace(tmp_path / "results", tmp_path), on_epoch=stop, loaders=2)
    outcome = train(config, workspace(tmp_path / "results", tmp_path), loaders=1)
    assert outcome["state"] == "complete"


# the real command, killed


@contextmanager
def command(root: Path, epochs: int) -> Iterator[tuple[subprocess.Popen[str], list[int]]]:
    """A training with two loaders in a process of its own, after its first epoch; and the processes of its loaders."""
    cub200(root)
    file = root / "recipe.yaml"
    file.write_text(json.dumps(recipe(**BIRDS | {"epochs": epochs}).model_dump(mode="json")))
    arguments = [str(file), "--data", str(root), "--results", str(root / "results"), "--loaders", "2"]
    process = subprocess.Popen(
        [sys.executable, "-m", "kdtrain", *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("epoch"):
                break
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        loaders = [int(child) for child in children if running(int(child))]
        assert len(loaders) == 2
        yield process, loaders
    finally:
        process.kill()
        process.communicate()


def running(process: int) -> bool:
    """There, and no zombie."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def require_gone(processes: list[int]) -> None:
    deadline = time.monotonic() + 60  # a loader looks every 5 s whether its parent lives
    while any(map(running, processes)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(map(running, processes))


@pytest.mark.slow
def test_loaders_end_where_their_training_is_killed(tmp_path: Path) -> None:
    with command(tmp_path, 100_000) as (process, loaders):
        process.kill()
        process.wait()
        require_gone(loaders)


@pytest.mark.slow
def test_a_killed_loader_ends_the_command_with_one_sentence_and_its_checkpoint_stays(tmp_path: Path) -> None:
    with command(tmp_path, 100_000) as (process, loaders):
        os.kill(loaders[0], signal.SIGKILL)
        _, told = process.communicate(timeout=120)
        assert process.returncode == 2
        assert told.startswith("loaders: a loader process was killed (")
        assert len(told.splitlines()) == 1
        require_gone(loaders)
    (rows,) = (tmp_path / "results" / "trials").glob("*/epochs.jsonl")
    assert not (rows.parent / "outcome.json").exists()
    assert list(rows.parent.glob("*checkpoint*")) or list(rows.parent.glob("*.safetensors"))
