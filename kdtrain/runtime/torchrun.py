"""The processes that torchrun starts together: their process group, the device of this one, and who prints.

torch is imported inside functions, so that `python -m kdtrain --help` does not load it.
"""

import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdtrain.errors import UserError

if TYPE_CHECKING:
    import torch

ENVIRONMENT = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""The variables that torchrun sets for its processes; another launcher must set the same five."""

LONGEST_WAIT = timedelta(minutes=30)
"""The time after which a process that waits for another one fails, and torchrun ends them all. A process that has ended
is noticed at once."""

ERROR_WAIT_S = 5.0
"""The time that a process waits, before it ends with an error, for the others to print theirs."""


class Group:
    """This process among those that train together; alone it is rank 0 of 1. `launched`: torchrun has started it."""

    def __init__(self) -> None:
        self.launched = all(name in os.environ for name in ENVIRONMENT)
        self.rank, self.local_rank, self.size = 0, 0, 1
        if self.launched:
            self.rank, self.local_rank, self.size = (int(os.environ[name]) for name in ENVIRONMENT[:3])
        self._store: Any = None

    @property
    def is_main(self) -> bool:
        """True in the process that prints and writes."""
        return self.rank == 0

    def device(self, written: str | None) -> "torch.device":
        """Return the device of --device, by default a GPU of this process's own if there is one, else the CPU.

        Apple's GPU counts for a process that trains alone.

        Raises:
            UserError: The device cannot be used, or there are fewer GPUs than processes.
        """
        import torch

        from kdtrain.runtime.device import best_device, gpus_that_torch_lacks

        try:
            device = best_device() if written is None else torch.device(written)
            if written is None and (unusable := gpus_that_torch_lacks()):
                raise UserError(
                    f"--device: torch {torch.__version__} cannot use {', '.join(unusable)} of this machine: install a"
                    " torch built with CUDA or a newer driver, or write --device cpu"
                )
            if self.size > 1 and device.type == "mps":
                if written is not None:
                    raise UserError(f"--device: mps is one GPU for {self.size} processes; write cpu")
                device = torch.device("cpu")
            if self.size > 1 and device.type == "cuda":
                device = self._own_gpu(device)
            torch.zeros(1, device=device).tolist()
        except (RuntimeError, AssertionError) as error:
            raise UserError(f"--device: {written} cannot be used ({str(error).splitlines()[0]})") from None
        return device

    def _own_gpu(self, device: "torch.device") -> "torch.device":
        import torch

        gpus = torch.cuda.device_count()
        if ":" in str(device):
            raise UserError(f"--device: {device} is one GPU for {self.size} processes; write cuda")
        if self.local_rank >= gpus:
            raise UserError(
                f"--device: cuda has {gpus} GPUs here for more than {self.local_rank} processes; start torchrun with "
                f"--nproc-per-node {gpus} or write --device cpu"
            )
        return torch.device("cuda", self.local_rank)

    @contextmanager
    def process_group(self, device: "torch.device") -> Iterator[None]:
        """Initialise torch.distributed in the context if launched: gloo for CPUs, NCCL between GPUs."""
        if not self.launched:
            yield
            return
        import torch.distributed as dist

        on_gpu = device.type == "cuda"
        if on_gpu:
            import torch

            torch.cuda.set_device(device)
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if on_gpu else "gloo",
            store=self._rendezvous(), rank=self.rank, world_size=self.size, timeout=LONGEST_WAIT,
            device_id=device if on_gpu else None,
        )  # fmt: skip
        yield
        # Only without an exception: NCCL would wait here for the others, which may wait for this process.
        dist.destroy_process_group()

    def print_once(self, line: str) -> None:
        """Print a line on stdout, in the main process only."""
        if self.is_main:
            print(line, flush=True)

    def print_error(self, sentence: str) -> None:
        """Print a sentence on stderr before this process ends, once per group, and write it to torchrun's summary."""
        if not self.launched:
            print(sentence, file=sys.stderr)
            return
        if self._count(f"said: {sentence}", 1) == 1:
            print(sentence, file=sys.stderr, flush=True)
        summary = os.environ.get("TORCHELASTIC_ERROR_FILE")
        if summary:
            reason = {"message": sentence, "extraInfo": {"timestamp": int(time.time())}}
            Path(summary).write_text(json.dumps({"message": reason}))
        self._count("leaving", 1)
        deadline = time.monotonic() + ERROR_WAIT_S  # torchrun ends the others as soon as the first has ended
        while self._count("leaving", 0) < self.size and time.monotonic() < deadline:
            time.sleep(0.05)

    def has_failed(self) -> bool:
        """Return True if a process of the group has printed its error; errors that follow from it are no news."""
        return self.launched and self._count("leaving", 0) > 0

    def _count(self, key: str, more: int) -> int:
        """Add `more` to a counter of the group and return its value; return `more` if the group's store is gone."""
        try:
            return int(self._rendezvous().add(f"kdtrain/{key}", more))
        except (RuntimeError, OSError):
            return more

    def _rendezvous(self) -> Any:
        """Return torchrun's key-value store, through which the processes find each other."""
        if self._store is None:
            from torch.distributed.rendezvous import rendezvous

            self._store, _, _ = next(iter(rendezvous("env://", timeout=LONGEST_WAIT)))
        return self._store
