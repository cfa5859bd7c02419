"""What a training is told by its teacher: asked live, or read from what the trials of a node have been told before.

Both say the same, on a CPU bit for bit: what a teacher says of an image depends on that image alone (CHUNK_IMAGES), and
a view is a pure function of (seed, epoch, image). N images, K classes.
"""

import logging
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from kdtrain import environment, ranks
from kdtrain.config.recipe import Recipe
from kdtrain.data import Dataset
from kdtrain.data.base import as_floats
from kdtrain.data.mixup import mixed, pairing
from kdtrain.errors import UserError
from kdtrain.feed import batches_of
from kdtrain.files import Row
from kdtrain.identity import NUMERICS
from kdtrain.methods import Batch, Outputs
from kdtrain.methods.base import Reading
from kdtrain.shared import NO_ROOM, Cache, SharedFolder, Tensors
from kdtrain.streams import stream
from kdtrain.teacher import CHUNK_IMAGES, Teacher

UNIT_IMAGES = 8 * CHUNK_IMAGES
EPOCHS_PER_CHECK = 8
"""Every so many epochs something that was read is computed again and compared."""
TOLERANCE = 1e-4
"""Relative and absolute, of that comparison on a GPU; on a CPU the bits must agree."""
Autocast = Callable[[], AbstractContextManager[object]]


class Answers(Protocol):
    """What the loop asks."""

    asked: int
    """Images that this rank has asked about."""
    off: str | None
    """Why nothing is read or kept any more, though that was wanted; None where it is, or was not."""

    @property
    def computed(self) -> int:
        """Images that the network itself answered for here."""
        ...

    @property
    def seconds(self) -> float:
        """Spent on answers; on a GPU without what still runs there."""
        ...

    def begin(self, epoch: int) -> None:
        """Before the first step of an epoch, on every rank."""
        ...

    def of(self, images: Tensor, batch: Batch) -> Outputs:
        """For this rank's views [N, C, H, W] of a batch."""
        ...

    def val_logits(self) -> Tensor:
        """[N, K] of the validation split, float32, on the CPU of every rank."""
        ...

    def close(self) -> None:
        """Nothing more will be asked."""
        ...


class LiveAnswers:
    """The network itself, asked for every batch."""

    def __init__(self, teacher: Teacher, recipe: Recipe, data: Dataset, device: torch.device, autocast: Autocast):
        self.teacher, self.recipe, self.data, self.device, self.autocast = teacher, recipe, data, device, autocast
        self.asked = 0
        self.off: str | None = None
        self.seconds = 0.0

    @property
    def computed(self) -> int:
        return self.teacher.images

    def begin(self, epoch: int) -> None:
        """Nothing to prepare."""

    def of(self, images: Tensor, batch: Batch) -> Outputs:
        self.asked += len(images)
        started = time.perf_counter()
        with self.autocast():
            outputs = self.teacher(images)
        self.seconds += time.perf_counter() - started
        return outputs

    def close(self) -> None:
        """Nothing is held."""

    def val_logits(self) -> Tensor:
        split = self.data.val
        own = ranks.share(torch.arange(len(split)))
        asked = own if len(own) else torch.tensor([0])  # a rank without images gives no row
        rows = torch.cat([self.of_val(indices) for indices in asked.split(UNIT_IMAGES)])
        return ranks.gather_rows(rows[: len(own)], len(split)).cpu()

    def of_val(self, indices: Tensor) -> Tensor:
        """Logits [n, K] of validation images, in float32 throughout."""
        images = self.data.val.images.on(self.device)
        return self.teacher(as_floats(images.eval_view(indices).to(self.device))).logits

    def of_train(self, indices: Tensor, epoch: int) -> Outputs:
        """For the views that training images have in an epoch, mixed where the recipe mixes by image."""
        images, seed, total = self.data.train.images.on(self.device), self.recipe.seed, len(self.data.train)

        def views(wanted: Tensor) -> Tensor:
            return as_floats(images.train_view(wanted, seed, epoch).to(self.device))

        pixels = views(indices)
        if self.recipe.mixup is not None:
            pairs = pairing(self.recipe.mixup, indices, total, seed, epoch, step=0)
            pixels = mixed(pixels, views(pairs.partners), pairs.shares)
        with self.autocast():
            return self.teacher(pixels)


class CachedAnswers:
    """Rows of a node's cache. What is missing there is asked of the network, by whichever trial needs it first.

    Where the cache cannot be written to or has no room, `off` says why, and the network is asked live from then on.
    """

    def __init__(self, live: LiveAnswers, cache: Cache, weights: str, readings: Sequence[Reading]) -> None:
        """weights: the digest of the teacher's. readings: what is kept beside the logits, the recipe's own among it."""
        self.live, self.cache, self.weights, self.readings = live, cache, weights, tuple(readings)
        self.by_batch = any(reading.of_batch for reading in readings)
        self.off: str | None = None
        self.asked = 0
        self._begun_s = 0.0
        self._now: _Kept | None = None
        live.teacher.stages = tuple(dict.fromkeys(reading.stage for reading in readings))

    @property
    def computed(self) -> int:
        return self.live.computed

    @property
    def seconds(self) -> float:
        return self._begun_s + self.live.seconds

    def begin(self, epoch: int) -> None:
        started = time.perf_counter()
        self._begin(epoch)
        self._begun_s += time.perf_counter() - started

    def _begin(self, epoch: int) -> None:
        shown = epoch if views_change(self.live) or self.by_batch else 0
        if self._now is None or self._now.epoch != shown:
            self.close()
            units = self._batches(epoch) if self.by_batch else self._units(len(self.live.data.train))
            self._now = self._kept("train", shown, units, lambda unit: self._rows(unit, shown))
        if self._now is not None and epoch % EPOCHS_PER_CHECK == 0:
            self._check(self._now)

    def of(self, images: Tensor, batch: Batch) -> Outputs:
        self.asked += len(images)
        if self._now is None:
            return self.live.of(images, batch)
        if self.by_batch:
            rows = dict(self._now.loaded[batch.epoch_step])
            own = ranks.share(torch.arange(batch.size)) if batch.count else torch.tensor([0])
            return Outputs(rows.pop("logits")[own.to(self.live.device)], read=rows)
        at = batch.indices.to(self.live.device, non_blocking=True)
        rows = {name: values[at] for name, values in self._now.joined.items()}
        features = {each.stage: rows[each.name] for each in self.readings if each.kind == "features"}
        return Outputs(rows.pop("logits"), features, rows)

    def val_logits(self) -> Tensor:
        units = self._units(len(self.live.data.val))
        kept = self._kept("val", 0, units, lambda unit: {"logits": self.live.of_val(unit)})
        if kept is not None:
            kept.folder.close()
        if ranks.sum_over_ranks(torch.tensor(kept is None, dtype=torch.int, device=self.live.device)):
            return self.live.val_logits()  # all ranks together, or none
        assert kept is not None
        return torch.cat([rows["logits"] for rows in kept.loaded]).cpu()

    def close(self) -> None:
        """Others may make room of what was read here."""
        if self._now is not None:
            self._now.folder.close()
        self._now = None

    def _kept(
        self, split: str, epoch: int, units: list[Tensor], compute: Callable[[Tensor], Tensors]
    ) -> "_Kept | None":
        if self.off is not None:
            return None
        readings = self.readings if split == "train" else ()

        def size() -> int:
            return bytes_of_image(readings, self.live, self.live.recipe.batch_size) * sum(map(len, units))

        folder = None
        try:
            folder = self.cache.folder(self._ingredients(split, epoch), size)
            if folder is None:
                self._turn_off(f"no room within {self.cache.budget_bytes:,} bytes (resources.cache_bytes)")
                return None
            folder.fill(range(len(units)), lambda number: compute(units[number]))
            loaded = [self._on_device(folder.load(number)) for number in range(len(units))]
        except OSError as error:
            if folder is not None:
                folder.close()
            if error.errno not in NO_ROOM:
                raise
            self._turn_off(f"{self.cache.root} cannot be written to ({error.strerror})")
            return None
        return _Kept(folder, epoch, units, loaded)

    def _turn_off(self, reason: str) -> None:
        self.off = reason
        logging.getLogger(__name__).warning("the teacher is asked live from here on: %s", reason)

    def _rows(self, indices: Tensor, epoch: int) -> Tensors:
        """Logits and readings of training images, of a whole batch where the readings are a batch's."""
        outputs = self.live.of_train(indices, epoch)
        made = {each.name: each.make(outputs.features[each.stage]).float() for each in self.readings}
        return {"logits": outputs.logits.float(), **made}

    def _check(self, kept: "_Kept") -> None:
        """Computes a unit's beginning again. Raises UserError where it is not what was read."""
        recipe, device = self.live.recipe, self.live.device
        number = stream(recipe.seed, "cache check", kept.epoch) % len(kept.units)
        count = len(kept.units[number]) if self.by_batch else CHUNK_IMAGES
        again = self._rows(kept.units[number][:count], kept.epoch)
        for name, values in again.items():
            read = kept.loaded[number][name][: len(values)]
            near = torch.equal if device.type == "cpu" else _near
            if not near(values, read):
                largest = (values - read).abs().max().item()
                raise UserError(
                    f"teacher cache: {kept.folder.path}: unit {number} is not what the teacher says ({name} differs by"
                    f" up to {largest:.3g}); remove that folder, or write resources: {{teacher_cache: none}}"
                )

    def _ingredients(self, split: str, epoch: int) -> Row:
        """Everything that a kept row depends on."""
        live, recipe = self.live, self.live.recipe
        assert recipe.teacher is not None
        data = live.data
        images = (data.train if split == "train" else data.val).images
        seen = split == "train" and views_change(live)
        batches = {"size": recipe.batch_size, "seed": recipe.seed, "epoch": epoch} if self.by_batch else None
        return {
            "what": "what a teacher says",
            "numerics": NUMERICS,
            "weights": self.weights,
            "network": recipe.teacher.model_dump(mode="json", include=NETWORK),
            "data": data.fingerprint,
            "set": recipe.data.model_dump(mode="json"),
            "split": split,
            "view": images.described,
            "drawn by": [recipe.seed, epoch] if seen else None,
            "mixup": recipe.mixup.model_dump() if recipe.mixup and split == "train" else None,
            "precision": recipe.precision if split == "train" else "fp32",
            "chunk": CHUNK_IMAGES,
            "unit": UNIT_IMAGES,
            "kept": [each.name for each in self.readings] if split == "train" else [],
            "batches": batches if split == "train" else None,
            "machine": environment.rounding(live.device),
        }

    def _units(self, total: int) -> list[Tensor]:
        return list(torch.arange(total).split(UNIT_IMAGES))

    def _batches(self, epoch: int) -> list[Tensor]:
        return list(batches_of(self.live.recipe, len(self.live.data.train), epoch))

    def _on_device(self, rows: Tensors) -> Tensors:
        return {name: values.to(self.live.device) for name, values in rows.items()}


NETWORK = {"model", "head", "normalization", "channels_last", "compile"}


@dataclass
class _Kept:
    """One epoch's rows: `units` are the indices of each unit's images."""

    folder: SharedFolder
    epoch: int
    units: list[Tensor]
    loaded: list[Tensors]

    def __post_init__(self) -> None:
        names = self.loaded[0] if self.loaded else {}
        same = all(rows[name].shape[1:] == self.loaded[0][name].shape[1:] for rows in self.loaded for name in names)
        self.joined = {name: torch.cat([rows[name] for rows in self.loaded]) for name in names} if same else {}


@dataclass(frozen=True)
class Sharing:
    """How a node's trials share what their teacher says. readings: of all methods of the sweep, image by image, so that
    their trials read the same rows."""

    cache: Cache
    readings: tuple[Reading, ...] = ()


def shared_answers(live: LiveAnswers, sharing: Sharing | None) -> Answers:
    """Cached where that is wanted and `why_not_kept` has no reason against it, else live."""
    teacher, recipe = live.teacher, live.recipe
    if sharing is None or teacher.digest is None:
        return live
    own = recipe.method.readings
    if why_not_kept(recipe, own, live):
        return live
    others = [each for each in sharing.readings if each not in own and not why_not_kept(recipe, (each,), live)]
    readings = own if any(each.of_batch for each in own) else (*own, *(e for e in others if not e.of_batch))
    return CachedAnswers(live, sharing.cache, teacher.digest, sorted(readings, key=lambda each: each.name))


def views_change(live: LiveAnswers) -> bool:
    """Whether training sees other pixels in another epoch, or with another seed."""
    return live.recipe.mixup is not None or live.data.train.images.drawn


def why_not_kept(recipe: Recipe, readings: Sequence[Reading], live: LiveAnswers) -> str | None:
    """The reason why a recipe's teacher is asked live, whatever room there is; None where its answers can be kept."""
    if recipe.mixup is not None and recipe.mixup.convention == "published":
        return "mixup.convention published mixes by batch"
    size = bytes_of_image(readings, live, recipe.batch_size)
    if size > LARGEST_BYTES:
        return f"what {recipe.method.name} reads of an image is {size:,} bytes, more than {LARGEST_BYTES:,}"
    return None


def bytes_of_image(readings: Sequence[Reading], live: LiveAnswers, batch_size: int) -> int:
    """Of what is kept of an image and epoch: logits and readings, in float32."""
    shapes = live.teacher.network.stage_shapes(tuple(each.stage for each in readings))
    numbers = len(live.data.classes)
    for each in readings:
        images = torch.zeros(2, *shapes[each.stage], device="meta")
        numbers += batch_size if each.of_batch else each.make(images)[0].numel()
    return 4 * numbers


LARGEST_BYTES = 10_000
"""Of an image and epoch: whole feature maps are computed again rather than kept."""


def _near(values: Tensor, read: Tensor) -> bool:
    return torch.allclose(values, read, rtol=TOLERANCE, atol=TOLERANCE)
