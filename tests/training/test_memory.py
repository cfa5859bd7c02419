"""The memory that preflight checks measure, and what happens if a GPU has not enough of it."""

import re
from pathlib import Path

import pytest
import torch
from stand_in_device import StandIn
from trainings import KD, recipe, workspace

from kdtrain.api.training import train_part
from kdtrain.errors import UserError
from kdtrain.executors.local import broken_by
from kdtrain.executors.ray_worker import _broken_by
from kdtrain.runtime.memory import is_out_of_memory, peak_memory
from kdtrain.training import trainer
from kdtrain.training.preflight import largest_batch_that_fits, smoke

MIB = 1 << 20


def test_the_peak_of_a_process_counts_its_own_memory() -> None:
    with peak_memory(torch.device("cpu")) as before:
        pass
    status = Path("/proc/self/status").read_text()
    highest, now = (int(re.findall(rf"{name}:\s+(\d+) kB", status)[0]) << 10 for name in ("VmHWM", "VmRSS"))
    with peak_memory(torch.device("cpu")) as peak:
        torch.ones((highest - now + 400 * MIB) // 4)
    assert 350 * MIB < peak.process_bytes - before.process_bytes + 50 * MIB < 500 * MIB
    assert peak.gpu_bytes == 0


def test_a_preflight_check_measures_memory_on_the_device_of_trainings(tmp_path: Path) -> None:
    measured = smoke(recipe(**KD), workspace(tmp_path))
    assert measured["device"].startswith("cpu")
    assert measured["process_bytes"] > 100 * MIB
    assert (measured["gpu_bytes"], measured["gpu_total_bytes"]) == (0, 0)
    if torch.cuda.is_available():
        return
    with StandIn() as devices:
        devices.peak_bytes = {0: 1, 1: 10**12}  # of an earlier trial of the same process
        measured = smoke(recipe(**KD), workspace(tmp_path, device=devices.cuda(1)))
        assert devices.peak_bytes == {0: 1, 1: 0}
    assert (measured["device"], measured["gpu_total_bytes"]) == ("a stand-in", 24 << 30)


def test_only_an_exhausted_gpu_is_out_of_memory() -> None:
    """A machine without memory ends processes, and no other trial on the GPU is at fault."""
    own = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
    assert all(map(is_out_of_memory, (own, RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"))))
    assert not any(map(is_out_of_memory, (MemoryError(), RuntimeError("shapes differ"), OSError(12, "no memory"))))
    assert broken_by(own).out_of_memory
    assert not broken_by(MemoryError()).out_of_memory


def test_one_of_several_workers_that_runs_out_of_memory_is_out_of_memory() -> None:
    from ray.train import WorkerGroupError

    own = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    def fail() -> None:
        raise WorkerGroupError("Traceback ...", {0: RuntimeError("connection closed"), 1: own})

    broken, unfit = _broken_by(fail)
    assert broken is not None
    assert (broken.out_of_memory, unfit) == (True, False)


@pytest.mark.parametrize(("limit", "found"), [(100, (64, 640)), (20, (16, 160)), (1, (1, 10)), (0, None)])
def test_the_batch_size_is_halved_until_it_fits(limit: int, found: tuple[int, int] | None) -> None:
    def needed_bytes(batch_size: int) -> int:
        if batch_size > limit:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return 10 * batch_size

    assert largest_batch_that_fits(64, needed_bytes) == found


def test_a_single_training_that_runs_out_of_memory_is_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def exhausted(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(trainer, "train", exhausted)
    with pytest.raises(UserError, match=r"recipe.batch_size: out of memory on .* with batch_size 16"):
        train_part(recipe(), workspace(tmp_path), None)
