"""Batches of training views on the device, made ahead of time by loader processes if there are any.

Views are pure functions of (seed, epoch, image), so the number of loader processes cannot change a result.
"""

import logging
import multiprocessing
import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from kdtrain.data.base import Images, Split, as_floats
from kdtrain.data.mixup import Mixup, Pairing, pairing
from kdtrain.data.sampling import Drawing, by_turn
from kdtrain.errors import UserError
from kdtrain.runtime import distributed
from kdtrain.runtime.device import to_device
from kdtrain.storage.cache import NO_ROOM

BATCHES_AHEAD = 2
"""Batches that each loader process has ready or is making."""

LOST = ("exited unexpectedly", "received 0 items of ancdata")
"""Parts of the RuntimeErrors by which DataLoader reports that a process or its shared memory is gone."""

PRELOAD = ["kdtrain.training.loader", "torchvision.transforms.v2"]
"""The fork server of this process imports these once, and loader processes share their memory. Otherwise each imports
them: loaders after the first need 6 to 10 s instead of 0.5 s for a batch, and two take 0.4 GB more memory."""

Pixels = tuple[Tensor, Tensor | None]
"""Views uint8 [N, C, H, W] of a batch's images, and of their partners if images are mixed."""
Plan = tuple[list[int], list[int], list[int] | None]
"""(turns, images, partners) of a batch: the message to a loader process."""


@dataclass(frozen=True)
class RankBatch:
    """This rank's part of a global batch: image indices int64 [N]; with mixup, their partners and shares (`Pairing`).

    `turns`, int64 [N], draw the views (`Drawing.turns`). `count` is N, or 0 on a rank that joins a short last batch
    with weight 0. `all_pairs` is the pairing of the whole global batch.
    """

    indices: Tensor
    count: int
    turns: Tensor
    partners: Tensor | None = None
    shares: Tensor | None = None
    all_pairs: Pairing | None = None


class BatchLoader:
    """The views of this rank's batches. Loader processes, if there are any, make those of the following steps ahead.

    The processes come from a fork server, so a script that trains with loaders needs `if __name__ == "__main__":`.
    With loaders=0 this process makes the views, as it does if the images make whole batches (`Images.batched`).
    """

    def __init__(
        self, split: Split, device: torch.device, drawing: Drawing, mixup: Mixup | None = None, loaders: int = 0
    ) -> None:  # fmt: skip
        self._split, self._device, self._loaders = split, device, loaders
        self._drawing, self._mixup = drawing, mixup
        self._pool = drawing.pool(split.labels)
        self._processes: _LoaderProcesses | None = None
        self.seconds = 0.0
        """The time spent on making views or waiting for them; work that a GPU has not finished is not in it."""

    def batches(self, epoch: int) -> tuple[Tensor, ...]:
        """Return the image indices of each global batch of an epoch."""
        return self._drawing.batches(self._split.labels, epoch)

    def part(self, indices: Tensor, epoch: int, epoch_step: int, step: int) -> RankBatch:
        """Return this rank's part of the step's global batch."""
        turns = self._drawing.turns(self._split.labels, epoch, epoch_step, len(indices))
        images = len(distributed.share(indices))

        def own(whole: Tensor) -> Tensor:  # a rank without images still takes part in the gradients' reduction
            return distributed.share(whole) if images else whole[:1]

        if self._mixup is None:
            return RankBatch(own(indices), images, own(turns))
        pool, seed = self._pool, self._drawing.seed
        pairs = pairing(self._mixup, torch.searchsorted(pool, indices), len(pool), seed, turns, step)
        pairs = Pairing(pool[pairs.partners], pairs.shares)
        return RankBatch(own(indices), images, own(turns), own(pairs.partners), own(pairs.shares), pairs)

    def images(self, part: RankBatch, epoch: int, epoch_step: int, step: int) -> tuple[Tensor, Tensor | None]:
        """Return the views of the step's batch and of its partners (None without mixup), float32 [N, C, H, W].

        A UserError tells of a damaged image or a killed loader process.
        """
        started = time.perf_counter()
        pixels, partners = self._pixels(part, epoch, epoch_step, step)
        views = self._floats(pixels), self._floats(partners) if partners is not None else None
        self.seconds += time.perf_counter() - started
        return views

    def close(self) -> None:
        """End the loader processes. The next batch would start new ones."""
        if self._processes is not None:
            self._processes.close()
        self._processes = None

    def _pixels(self, part: RankBatch, epoch: int, epoch_step: int, step: int) -> Pixels:
        images = self._split.images.for_device(self._device)
        if images.batched or not self._loaders:
            return _PlannedViews(images, self._drawing.seed).views(part.turns, part.indices, part.partners)
        if self._processes is None or self._processes.next_step != step:
            self.close()
            plans = self._plans(epoch, epoch_step, step)
            dataset = _PlannedViews(images, self._drawing.seed)
            self._processes = _LoaderProcesses(dataset, plans, self._loaders, step, pin=self._device.type == "cuda")
        indices, views, partners = self._processes.next()
        assert torch.equal(indices, part.indices), "the batch is not the one of this step"
        return views, partners

    def _plans(self, epoch: int, epoch_step: int, step: int) -> Iterator[Plan]:
        """Yield this rank's batches from a step on; the next epoch's are made while this one is evaluated."""
        for each in count(epoch):
            for number, indices in enumerate(self.batches(each)[epoch_step:], epoch_step):
                part = self.part(indices, each, number, step)
                partners = part.partners.tolist() if part.partners is not None else None
                yield part.turns.tolist(), part.indices.tolist(), partners
                step += 1
            epoch_step = 0

    def _floats(self, pixels: Tensor) -> Tensor:
        return as_floats(to_device(pixels, self._device))


class _LoaderProcesses:
    """Loader processes that make the batches of `plans` in order, the first one for `next_step`."""

    def __init__(
        self, dataset: "_PlannedViews", plans: Iterator[Plan], loaders: int, next_step: int, pin: bool
    ) -> None:
        self.next_step = next_step
        self._folder = TemporaryDirectory(prefix="kdtrain-images-")
        _move_to_files(dataset.images, Path(self._folder.name))
        # a fork server: a fork of this process would copy locked locks of Ray, torch's threads or CUDA
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOAD)
        loader: DataLoader[Any] = DataLoader(
            dataset, batch_size=None, sampler=plans, num_workers=loaders, prefetch_factor=BATCHES_AHEAD,
            pin_memory=pin, multiprocessing_context=context,
            worker_init_fn=partial(_end_with_training, self._folder.name),
            generator=torch.Generator(),  # else DataLoader draws a number from the training's generator
        )  # fmt: skip
        with _unchanged_child_handler():
            self._iterator: Iterator[Any] | None = iter(loader)

    def close(self) -> None:
        """End the processes, even if the traceback of an error still refers to this object."""
        self._iterator = None
        self._folder.cleanup()

    def next(self) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return the image indices of the next step, their views, and their partners' views."""
        assert self._iterator is not None
        lost = None
        made: tuple[Tensor, Tensor, Tensor | None] | Exception
        try:
            made = next(self._iterator)
        except (RuntimeError, OSError, EOFError) as error:  # errors of views come as values
            if isinstance(error, RuntimeError) and not any(sign in str(error) for sign in LOST):
                raise
            lost = " ".join(str(error).split())[:200] or type(error).__name__
        if lost is not None:  # raised outside the handler, since the error's traceback would hold the processes
            raise UserError(
                f"loaders: a loader process was killed ({lost}), as happens if memory, shared memory (/dev/shm) or "
                "open files run out; the same command continues the training, if need be with fewer loaders"
            )
        if isinstance(made, Exception):
            raise made
        self.next_step += 1
        return made


def _end_with_training(folder: str, loader: int) -> None:
    """In a loader process: end it and remove the folder if the training's process ends, however that happens.

    DataLoader's own check looks at the parent process, but that is the fork server, which waits for its children.
    """
    training = multiprocessing.parent_process()
    assert training is not None

    def wait() -> None:
        training.join()
        shutil.rmtree(folder, ignore_errors=True)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, daemon=True).start()


class _PlannedViews(Dataset[Any]):
    """The views of plans; in a loader process an error becomes a value, so that it arrives as it was raised."""

    def __init__(self, images: Images, seed: int) -> None:
        self.images, self.seed = images, seed

    def __getitem__(self, plan: Plan) -> tuple[Tensor, Tensor, Tensor | None] | Exception:
        turns, images, partners = plan
        indices = torch.tensor(images)
        others = torch.tensor(partners) if partners is not None else None
        try:
            return indices, *self.views(torch.tensor(turns), indices, others)
        except (UserError, OSError) as error:
            return error

    def views(self, turns: Tensor, indices: Tensor, partners: Tensor | None) -> Pixels:
        return self._of(turns, indices), self._of(turns, partners) if partners is not None else None

    def _of(self, turns: Tensor, indices: Tensor) -> Tensor:
        views = [self.images.train_view(own, self.seed, turn) for turn, own in by_turn(turns, indices)]
        return views[0] if len(views) == 1 else torch.cat(views)


def _move_to_files(images: Images, folder: Path) -> None:
    try:
        images.move_to_files(folder)
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        logging.getLogger(__name__).warning(
            "%s: has no room for the decoded images (%s), so loader processes decode them again in every epoch",
            folder.parent, error.strerror,
        )  # fmt: skip


@contextmanager
def _unchanged_child_handler() -> Iterator[None]:
    """Keep the handler of SIGCHLD: DataLoader's would raise anywhere in the program if any child process ends."""
    before = signal.getsignal(signal.SIGCHLD)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread() and before is not None:
            signal.signal(signal.SIGCHLD, before)
