"""The device that a plain process takes, and what is refused instead of training on the CPU without a word."""

from pathlib import Path

import pytest
import torch

from kdtrain.config.study_settings import Resources
from kdtrain.errors import UserError
from kdtrain.executors.local import device_for
from kdtrain.runtime import device
from kdtrain.runtime.torchrun import ENVIRONMENT, Group

ON_CPU = pytest.mark.skipif(torch.cuda.is_available() or torch.backends.mps.is_available(), reason="there is a GPU")


@ON_CPU
def test_a_process_without_a_gpu_takes_the_cpu() -> None:
    assert Group().device(None) == device_for(Resources()) == torch.device("cpu")


def test_a_sweep_in_this_process_trains_on_what_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    assert device_for(Resources(gpus_per_worker=0)) == torch.device("cpu")
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match="gpus_per_worker: torch has no GPU here, got 1; write auto or 0"):
            device_for(Resources(gpus_per_worker=1))


def test_apples_gpu_is_no_device_for_several_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in zip(ENVIRONMENT, ("0", "0", "2", "localhost", "1"), strict=True):
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match="--device: mps is one GPU for 2 processes; write cpu"):
        Group().device("mps")


@pytest.mark.skipif(torch.cuda.is_available(), reason="torch can use the GPU")
def test_gpus_that_torch_cannot_use_are_named_unless_they_are_hidden(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("nvidia0", "nvidia10", "nvidiactl", "nvidia-uvm"):
        (tmp_path / name).touch()
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert device.gpus_that_torch_lacks(tmp_path) == ["nvidia0", "nvidia10"]
    assert device.gpus_that_torch_lacks(tmp_path / "absent") == []
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert device.gpus_that_torch_lacks(tmp_path) == []
