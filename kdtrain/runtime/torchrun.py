"""The processes that torchrun has started together: their group, this one's device, and who prints.

torch is imported where it is needed: `python -m kdtrain --help` answers without it.
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
"""What torchrun gives its processes; whoever starts them by another launcher sets the same five."""

LONGEST_WAIT = timedelta(minutes=30)
"""For another process of the group, of which nothing is heard: then the waiting one fails, and torchrun ends them all.
One that dies is noticed at once."""

FAREWELL_S = 5.0
LEAVING = "leaving"


class Group:
    """This process among those that train together. One that was started by itself is rank 0 of 1."""

    def __init__(self) -> None:
        self.launched = all(name in os.environ for name in ENVIRONMENT)
        self.rank, self.local_rank, self.size = 0, 0, 1
        if self.launched:
            self.rank, self.local_rank, self.size = (int(os.environ[name]) for name in ENVIRONMENT[:3])
        self._store: Any = None

    @property
    def leads(self) -> bool:
        """The one that prints and writes."""
        return self.rank == 0

    def device(self, written: str | None) -> "torch.device":
        """The device that --device names, or the GPU where there is one; of a group each process has a GPU its own."""
        import torch

        try:
            device = torch.device(written or ("cuda" if torch.cuda.is_available() else "cpu"))
            if self.size > 1 and device.type == "cuda":
                device = self._own_gpu(device)
            torch.zeros(1, device=device).tolist()
        except (RuntimeError, AssertionError) as error:
            raise UserError(f"--device: {written} cannot be used ({str(error).splitlines()[0]})") from None
        return device

    def _own_gpu(self, device: "torch.device") -> "torch.device":
        import torch

        there = torch.cuda.device_count()
        if ":" in str(device):
            raise UserError(f"--device: {device} is one GPU for {self.size} processes; write cuda")
        if self.local_rank >= there:
            raise UserError(
                f"--device: cuda has {there} GPUs here for more than {self.local_rank} processes; start torchrun with "
                f"--nproc-per-node {there} or write --device cpu"
            )
        return torch.device("cuda", self.local_rank)

    @contextmanager
    def joined(self, device: "torch.device") -> Iterator[None]:
        """Inside, torch.distributed reaches the other processes: by gloo from the CPU, by NCCL between GPUs."""
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
            store=self._meeting(), rank=self.rank, world_size=self.size, timeout=LONGEST_WAIT,
            device_id=device if on_gpu else None,
        )  # fmt: skip
        yield
        # only where all went well: NCCL would wait here for the others, who may wait for this one
        dist.destroy_process_group()

    def tell(self, line: str) -> None:
        """Prints a line on stdout, once."""
        if self.leads:
            print(line, flush=True)

    def complain(self, sentence: str) -> None:
        """Before this process ends: prints a sentence on stderr, once where several processes have it to say.
        torchrun's summary, which comes last, shows it too."""
        if not self.launched:
            print(sentence, file=sys.stderr)
            return
        if self._count(f"said: {sentence}", 1) == 1:
            print(sentence, file=sys.stderr, flush=True)
        summary = os.environ.get("TORCHELASTIC_ERROR_FILE")
        if summary:
            reason = {"message": sentence, "extraInfo": {"timestamp": int(time.time())}}
            Path(summary).write_text(json.dumps({"message": reason}))
        self._count(LEAVING, 1)
        deadline = time.monotonic() + FAREWELL_S  # torchrun ends the others as soon as the first has ended
        while self._count(LEAVING, 0) < self.size and time.monotonic() < deadline:
            time.sleep(0.05)

    def left_by_another(self) -> bool:
        """Whether a process of the group has said why it ends: then what this one misses is no news."""
        return self.launched and self._count(LEAVING, 0) > 0

    def _count(self, what: str, more: int) -> int:
        """How often the processes of the group have counted `what`; of a group that is gone, `more`."""
        try:
            return int(self._meeting().add(f"kdtrain/{what}", more))
        except (RuntimeError, OSError):
            return more

    def _meeting(self) -> Any:
        """The store through which the processes find one another, which is torchrun's own."""
        if self._store is None:
            from torch.distributed.rendezvous import rendezvous

            self._store, _, _ = next(iter(rendezvous("env://", timeout=LONGEST_WAIT)))
        return self._store
