"""The pixels of a training's batches on its device, made ahead by loader processes where the recipe's user has some.

Views are pure functions of (seed, epoch, image), so nothing here can change what is learned.
"""

import signal
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from kdtrain.config.recipe import Recipe
from kdtrain.data.base import Images, Split, as_floats
from kdtrain.data.mixup import pairing
from kdtrain.data.sampling import batches_of
from kdtrain.errors import UserError
from kdtrain.runtime import distributed

AHEAD = 2
"""Batches that each loader process has made or is making."""

LOST = ("exited unexpectedly", "received 0 items of ancdata")
"""How a RuntimeError of torch's DataLoader says that a process or its memory is gone."""


@dataclass(frozen=True)
class Part:
    """This rank's part of a global batch: image indices int64 [N], and whom they are mixed with where they are.

    count: how many of them count; 0 on a rank that joins a short last batch with weight 0.
    """

    mine: Tensor
    count: int
    partners: Tensor | None = None
    shares: Tensor | None = None


def part_of(recipe: Recipe, indices: Tensor, total: int, epoch: int, step: int) -> Part:
    """This rank's part of a global batch out of `total` training images."""
    count = len(distributed.share(indices))

    def own(whole: Tensor) -> Tensor:  # a short last batch: this rank joins the reduction with weight 0
        return distributed.share(whole) if count else whole[:1]

    if recipe.mixup is None:
        return Part(own(indices), count)
    pairs = pairing(recipe.mixup, indices, total, recipe.seed, epoch, step)
    return Part(own(indices), count, own(pairs.partners), own(pairs.shares))


class BatchLoader:
    """Gives any part's pixels; those of the steps that follow one another are made ahead."""

    def __init__(self, recipe: Recipe, split: Split, device: torch.device, loaders: int = 0) -> None:
        """loaders: processes that make views; 0: this process does. Where whole batches come from memory at once, no
        process is started whatever their number."""
        self._recipe, self._split, self._device, self._loaders = recipe, split, device, loaders
        self._ahead: _Ahead | None = None
        self.seconds = 0.0
        """Spent on views, or on waiting for them; on a GPU without what still runs there."""

    def images(self, part: Part, epoch: int, epoch_step: int, step: int) -> tuple[Tensor, Tensor | None]:
        """The views of a part's images and of their partners, float32 [N, C, H, W] in [0, 1] on the device.

        The part must be this rank's of that step. Raises UserError for a damaged file and for a loader that was killed.
        """
        started = time.perf_counter()
        pixels, partners = self._pixels(part, epoch, epoch_step, step)
        views = self._floats(pixels), self._floats(partners) if partners is not None else None
        self.seconds += time.perf_counter() - started
        return views

    def close(self) -> None:
        """Ends the loader processes; the next batch would start new ones."""
        if self._ahead is not None:
            self._ahead.close()
        self._ahead = None

    def _pixels(self, part: Part, epoch: int, epoch_step: int, step: int) -> "Pixels":
        images = self._split.images.on(self._device)
        views = _Views(images, self._recipe.seed)
        if images.at_once or not self._loaders:
            return views.of(epoch, part.mine, part.partners)
        if self._ahead is None or self._ahead.next_step != step:
            self.close()
            plans = _plans(self._recipe, len(self._split), epoch, epoch_step, step)
            self._ahead = _Ahead(views, plans, self._loaders, step, pin=self._device.type == "cuda")
        mine, pixels = self._ahead.next()
        assert torch.equal(mine, part.mine), "the batch is not the one of this step"
        return pixels

    def _floats(self, pixels: Tensor) -> Tensor:
        if self._device.type == "cuda" and pixels.device.type == "cpu":
            pixels = pixels.pin_memory()  # returns what the loaders have pinned already
        return as_floats(pixels.to(self._device, non_blocking=True))


Pixels = tuple[Tensor, Tensor | None]
Plan = tuple[int, list[int], list[int] | None]
"""(epoch, own images, partners): what is sent to a loader process."""


def _plans(recipe: Recipe, total: int, epoch: int, epoch_step: int, step: int) -> Iterator[Plan]:
    """This rank's parts from a step on, over the ends of epochs: the next one's begin while this one is evaluated."""
    for each in range(epoch, max(recipe.epochs, epoch + 1)):
        for indices in batches_of(recipe.seed, recipe.batch_size, total, each)[epoch_step:]:
            part = part_of(recipe, indices, total, each, step)
            yield each, part.mine.tolist(), part.partners.tolist() if part.partners is not None else None
            step += 1
        epoch_step = 0


class _Ahead:
    """Loader processes that make batches in order. They end when this object does."""

    def __init__(self, views: "_Views", plans: Iterator[Plan], loaders: int, step: int, pin: bool) -> None:
        self.next_step = step
        loader: DataLoader[Any] = DataLoader(
            views, batch_size=None, sampler=_Sequence(plans), num_workers=loaders, prefetch_factor=AHEAD,
            pin_memory=pin, generator=torch.Generator(),  # torch's own, else a number is drawn from the caller's
            multiprocessing_context="fork",  # the decoded images are shared, not copied
        )  # fmt: skip
        with _same_child_handler():
            self._iterator: Iterator[Any] | None = iter(loader)

    def close(self) -> None:
        """Ends the processes, though the traceback of an error may still hold this object."""
        self._iterator = None

    def next(self) -> tuple[Tensor, Pixels]:
        """The images of the next step and their pixels."""
        assert self._iterator is not None
        broken = None
        try:
            made = next(self._iterator)
        except (RuntimeError, OSError, EOFError) as error:  # what a view raises comes as a value, see _Views
            if isinstance(error, RuntimeError) and not any(sign in str(error) for sign in LOST):
                raise
            broken = " ".join(str(error).split())[:200] or type(error).__name__
        if broken is not None:  # outside the handler: the error's traceback would hold the processes
            raise UserError(
                f"loaders: a loader process was killed ({broken}), as happens where memory, shared memory (/dev/shm) "
                "or open files run out; the same command continues the training, if need be with fewer loaders"
            )
        if isinstance(made, _Failed):
            raise UserError(*made.problems)
        if isinstance(made, OSError):
            raise made
        self.next_step += 1
        indices, pixels, partners = made
        return indices, (pixels, partners)


@dataclass(frozen=True)
class _Failed:
    """What a loader process could not do: the sentences of its UserError."""

    problems: Sequence[str]


class _Views(Dataset[Any]):
    """In a loader process: the views of one plan."""

    def __init__(self, images: Images, seed: int) -> None:
        self.images_of_split = images
        self.seed = seed

    def of(self, epoch: int, mine: Tensor, partners: Tensor | None) -> Pixels:
        views = self.images_of_split.train_view(mine, self.seed, epoch)
        return views, self.images_of_split.train_view(partners, self.seed, epoch) if partners is not None else None

    def __getitem__(self, plan: Plan) -> tuple[Tensor, Tensor, Tensor | None] | _Failed | OSError:
        epoch, mine, partners = plan
        indices = torch.tensor(mine)
        try:
            return indices, *self.of(epoch, indices, torch.tensor(partners) if partners is not None else None)
        except UserError as error:
            return _Failed(error.problems)
        except OSError as error:
            return error


class _Sequence:
    """A sampler of plans."""

    def __init__(self, plans: Iterator[Plan]) -> None:
        self.plans = plans

    def __iter__(self) -> Iterator[Plan]:
        return self.plans


class _same_child_handler:
    """DataLoader makes every killed loader raise wherever the program happens to be, even in an update of weights;
    the next batch tells it just as well, so the handler of ended child processes stays what it was."""

    def __enter__(self) -> None:
        self.before = signal.getsignal(signal.SIGCHLD)

    def __exit__(self, *_: object) -> None:
        if threading.current_thread() is threading.main_thread() and self.before is not None:
            signal.signal(signal.SIGCHLD, self.before)
