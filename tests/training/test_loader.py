"""Loader processes change no bit of a training, and none is left at its end."""

import errno
import json
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from kills import children, is_running
from made_up_data import cub200, flowers102
from torch import Tensor
from trainings import CPU, NO_DATA, recipe, trained, workspace

from kdtrain.config.recipe import Recipe
from kdtrain.config.study_settings import Resources
from kdtrain.data.base import Dataset, as_floats
from kdtrain.data.registry import load
from kdtrain.errors import UserError
from kdtrain.storage.cache import Cache
from kdtrain.study.capacity import placement
from kdtrain.training.loader import BatchLoader
from kdtrain.training.trainer import train

BIRDS = {"data": {"name": "cub200", "resolution": 20}, "student": {"model": "lenet5_student"}, "batch_size": 8}
MIXED = {"mixup": {}}
Batch = tuple[Tensor, Tensor | None]
PUBLISHED = {"mixup": {"convention": "published"}}


@pytest.fixture(autouse=True)
def no_process_is_left() -> Iterator[None]:
    yield
    deadline = time.monotonic() + 60
    while multiprocessing.active_children() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert multiprocessing.active_children() == []


def birds(root: Path, **changes: Any) -> tuple[Recipe, Dataset]:
    if not (root / "CUB_200_2011").exists():
        cub200(root)
    config = recipe(**BIRDS | changes)
    return config, load(config.data, root)


def loader_of(config: Recipe, data: Dataset, loaders: int, device: torch.device = CPU) -> BatchLoader:
    return BatchLoader(data.train, device, config.drawing, config.mixup, loaders)


def batch(loader: BatchLoader, config: Recipe, data: Dataset, step: int = 0) -> Batch:
    epoch, epoch_step = divmod(step, -(-len(data.train) // config.batch_size))
    part = loader.part(loader.batches(epoch)[epoch_step], epoch, epoch_step, step)
    return loader.images(part, epoch, epoch_step, step)


def all_batches(
    config: Recipe, data: Dataset, loaders: int, first_step: int = 0, device: torch.device = CPU
) -> list[Batch]:
    steps = config.epochs * -(-len(data.train) // config.batch_size)
    with closing(loader_of(config, data, loaders, device)) as loader:
        return [batch(loader, config, data, step) for step in range(first_step, steps)]


def require_equal(batches: list[Batch], others: list[Batch]) -> None:
    for (images, partners), (other_images, other_partners) in zip(batches, others, strict=True):
        assert torch.equal(images, other_images)
        assert (partners is None) == (other_partners is None)
        assert partners is None or torch.equal(partners, other_partners)


FLOWERS = {"name": "flowers102", "resolution": 20}  # whole batches from memory, which the views of birds are not
WITH_OTHERS = {"data": BIRDS["data"] | {"augment": {"rotate_degrees": 30}, "transfer": FLOWERS}}


@pytest.mark.parametrize(
    "changes", [{}, MIXED, PUBLISHED, WITH_OTHERS], ids=["alone", "mixed", "mixed as published", "with others"]
)
def test_any_number_of_loaders_gives_the_same_batches_from_any_step(changes: dict[str, Any], tmp_path: Path) -> None:
    flowers102(tmp_path)
    config, data = birds(tmp_path, epochs=3, **changes)
    alone = all_batches(config, data, 0)
    require_equal(all_batches(config, data, 1), alone)
    require_equal(all_batches(config, data, 2, first_step=4), alone[4:])  # within the second epoch


def test_a_step_out_of_order_gets_its_own_batch(tmp_path: Path) -> None:
    config, data = birds(tmp_path, epochs=2)
    alone = all_batches(config, data, 0)
    with closing(loader_of(config, data, 1)) as loader:
        for step in (0, 4, 1, 1):
            require_equal([batch(loader, config, data, step)], [alone[step]])


def test_decoded_images_are_shared_through_files_and_not_copied_to_loaders(tmp_path: Path, monkeypatch) -> None:
    """The temporary files are removed at the end, though the images can still be read from them."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    config, data = birds(tmp_path)
    alone = all_batches(config, data, 0)
    data.train.images.check()
    with closing(loader_of(config, data, 1)) as loader:
        require_equal([batch(loader, config, data)], alone[:1])
        (child,) = multiprocessing.active_children()
        assert "kdtrain-images-" in Path(f"/proc/{child.pid}/maps").read_text()
        decoded = sum(pixels.nbytes for pixels in data.train.images.source.decoded.values())
        assert len(pickle.dumps(data.train.images)) < 8_000 < decoded
    assert not list(tmp_path.glob("kdtrain-images-*"))
    require_equal(all_batches(config, data, 0), alone)
    require_equal(all_batches(config, data, 1), alone)


def test_loaders_read_the_files_of_the_nodes_cache(tmp_path: Path) -> None:
    config, data = birds(tmp_path)
    alone = all_batches(config, data, 0)
    data = config.data.load(tmp_path)
    assert data.share(Cache(tmp_path / "cache", 1 << 20)) is None
    with closing(loader_of(config, data, 1)) as loader:
        require_equal([batch(loader, config, data)], alone[:1])
        (child,) = multiprocessing.active_children()
        assert str(tmp_path / "cache") in Path(f"/proc/{child.pid}/maps").read_text()


def test_loaders_decode_images_if_the_disk_has_no_room(tmp_path: Path, monkeypatch, caplog) -> None:
    def full(self: Path, data: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    config, data = birds(tmp_path)
    data.train.images.check()
    monkeypatch.setattr(Path, "write_bytes", full)
    require_equal(all_batches(config, data, 1), all_batches(config, data, 0))
    assert "No space left on device" in caplog.text


def test_a_training_is_the_same_with_any_number_of_loaders(tmp_path: Path) -> None:
    config, _ = birds(tmp_path, epochs=2, student={"model": "test_resnet", "weights": None}, **MIXED)
    alone, *others = (
        trained(config, tmp_path / str(loaders), data_root=tmp_path, loaders=loaders) for loaders in (0, 1, 2)
    )
    for other in others:
        assert other.rows == alone.rows
        assert other.checkpoints == alone.checkpoints


def test_no_loader_is_started_if_whole_batches_come_from_memory(tmp_path: Path) -> None:
    flowers102(tmp_path)
    digits = recipe()
    flowers = recipe(**BIRDS | {"data": {"name": "flowers102", "resolution": 20}})
    for config, data in ((digits, load(digits.data, NO_DATA)), (flowers, flowers.data.load(tmp_path))):
        indices = config.drawing.batches(data.train.labels, 0)[0]
        images, _ = batch(loader_of(config, data, 2), config, data)
        assert multiprocessing.active_children() == []
        assert torch.equal(images, as_floats(data.train.images.train_view(indices, config.seed, 0)))


@pytest.mark.parametrize("damage", ["cut", "absent"])
def test_an_unreadable_file_raises_the_same_error_with_and_without_loaders(damage: str, tmp_path: Path) -> None:
    config, data = birds(tmp_path)
    for file in (tmp_path / "CUB_200_2011" / "images").rglob("*.png"):
        if damage == "cut":
            file.write_bytes(file.read_bytes()[:100])
        else:
            file.unlink()
    raised = []
    for loaders in (0, 2):
        with closing(loader_of(config, data, loaders)) as loader, pytest.raises(UserError) as caught:
            batch(loader, config, data)
        raised.append(caught.value.problems)
    assert raised[0] == raised[1]
    assert len(raised[0]) == 1
    assert "is not a whole image" in raised[0][0]


def test_a_killed_loader_is_an_error_of_the_next_batches(tmp_path: Path) -> None:
    config, data = birds(tmp_path)
    with closing(loader_of(config, data, 2)) as loader:
        batch(loader, config, data)
        for child in multiprocessing.active_children():
            os.kill(child.pid, signal.SIGKILL)
        with pytest.raises(UserError, match="loaders: a loader process was killed"):
            [batch(loader, config, data, step) for step in range(1, 200)]


def test_a_loader_changes_neither_random_numbers_nor_signal_handlers_and_uses_one_thread(tmp_path: Path) -> None:
    config, data = birds(tmp_path)
    state, handler = torch.random.get_rng_state(), signal.getsignal(signal.SIGCHLD)
    with closing(loader_of(config, data, 1)) as loader:
        batch(loader, config, data)
        assert torch.equal(torch.random.get_rng_state(), state)
        assert signal.getsignal(signal.SIGCHLD) == handler
        (child,) = multiprocessing.active_children()
        threads = list(Path(f"/proc/{child.pid}/task").iterdir())
        assert len(threads) <= 4  # also the queue's, the watchdog's and one of the system


def test_loaders_take_a_cpu_each() -> None:
    resources = Resources(workers=2, cpus_per_worker=1, loaders=3)
    place = placement(resources, [{"CPU": 17}])
    assert (place.worker, place.at_once) == ({"CPU": 4.0}, 2)
    with pytest.raises(UserError, match="2 workers of 4"):
        placement(resources, [{"CPU": 7}])


@pytest.mark.gpu
@pytest.mark.parametrize("mixup", [{}, MIXED], ids=["alone", "mixed"])
def test_batches_on_a_gpu_are_those_of_the_cpu_with_any_number_of_loaders(
    mixup: dict[str, Any], tmp_path: Path
) -> None:
    config, data = birds(tmp_path, epochs=2, **mixup)
    expected = all_batches(config, data, 0)
    for loaders in (0, 2):
        on_gpu = all_batches(config, data, loaders, device=torch.device("cuda"))
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
    """Start the command with two loaders; give its process, after the first epoch, and the loaders' processes."""
    cub200(root)
    file = root / "recipe.yaml"
    file.write_text(json.dumps(recipe(**BIRDS | {"epochs": epochs}).model_dump(mode="json")))
    arguments = [str(file), "--data", str(root), "--results", str(root / "results"), "--loaders", "2"]
    process = subprocess.Popen(
        [sys.executable, "-m", "kdtrain", *arguments],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "TMPDIR": str(root)},
    )  # fmt: skip
    try:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("epoch"):
                break
        loaders = [loader for helper in children(process.pid) for loader in children(helper)]
        assert len(loaders) == 2
        yield process, loaders
    finally:
        process.kill()
        process.communicate()


def require_gone(processes: list[int]) -> None:
    deadline = time.monotonic() + 60  # a loader checks every 5 s if its parent has ended
    while any(map(is_running, processes)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(map(is_running, processes))


@pytest.mark.slow
def test_loaders_end_if_their_training_is_killed(tmp_path: Path) -> None:
    with command(tmp_path, 100_000) as (process, loaders):
        assert list(tmp_path.glob("kdtrain-images-*"))
        process.kill()
        process.wait()
        require_gone(loaders)
    assert not list(tmp_path.glob("kdtrain-images-*"))


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
