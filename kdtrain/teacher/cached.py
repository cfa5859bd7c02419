"""Answers read from a node's cache, bit for bit what the teacher would say; see `answers`.

N images, K classes.
"""

import logging
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from kdtrain.data.sampling import batches_of
from kdtrain.errors import UserError
from kdtrain.methods.base import Batch, Outputs, TeacherReading
from kdtrain.runtime import distributed, process
from kdtrain.runtime.rng import stream
from kdtrain.storage.cache import NO_ROOM, Cache, Tensors, key_of
from kdtrain.storage.folder import Row
from kdtrain.teacher.cache_policy import CachePolicy, bytes_per_image, cached_readings, reason_not_cached
from kdtrain.teacher.cache_rows import CachedRows, to_stored
from kdtrain.teacher.network import CHUNK_IMAGES, folds
from kdtrain.teacher.outputs import UNIT_IMAGES, LiveTeacher, TeacherOutputs, views_change
from kdtrain.trials.identity import NUMERICS

EPOCHS_PER_CHECK = 8
"""Every so many epochs something that was read is computed again and compared."""
TOLERANCE = 1e-4
"""Relative and absolute, of that comparison on a GPU; on a CPU the bits must agree."""


def cached_teacher(live: LiveTeacher, sharing: CachePolicy | None) -> TeacherOutputs:
    """Cached where that is wanted and there is no reason against it, else live; then `off` says the reason."""
    if sharing is None or live.teacher.digest is None:
        return live
    own = live.recipe.method.readings
    live.off = reason_not_cached(live, own, len(live.data.train), sharing.cache.budget_bytes)
    if live.off is not None:
        return live
    return CachedTeacher(live, sharing.cache, live.teacher.digest, cached_readings(live, sharing))


class CachedTeacher:
    """Rows of a node's cache. What is missing there is asked of the network, by whichever trial needs it first.

    Where the cache cannot be written to or has no room, `off` says why, and the network is asked live from then on.
    """

    def __init__(self, live: LiveTeacher, cache: Cache, weights: str, readings: Sequence[TeacherReading]) -> None:
        """weights: the digest of the teacher's. readings: what is kept beside the logits, the recipe's own among it."""
        self.live, self.cache, self.weights, self.readings = live, cache, weights, tuple(readings)
        self.by_batch = any(reading.of_batch for reading in readings)
        self.wanted = ("logits", *(reading.name for reading in live.recipe.method.readings))
        self.off: str | None = None
        self.asked = self.checked = 0
        self._reading_s = 0.0
        self._now: CachedRows | None = None
        live.teacher.stages = tuple(dict.fromkeys(reading.stage for reading in readings))

    @property
    def computed(self) -> int:
        return self.live.computed - self.checked

    @property
    def seconds(self) -> float:
        return self._reading_s + self.live.seconds

    @property
    def forward_seconds(self) -> float:
        return self.live.forward_seconds

    def begin(self, epoch: int) -> None:
        started = time.perf_counter()
        self._begin(epoch)
        self._reading_s += time.perf_counter() - started

    def _begin(self, epoch: int) -> None:
        shown = epoch if views_change(self.live) or self.by_batch else 0
        if self._now is None or self._now.epoch != shown:
            self.close()
            units = self._batches(epoch) if self.by_batch else self._units(len(self.live.data.train))
            self._now = self._kept("train", shown, units, lambda unit: self._rows(unit, shown))
        if self._now is not None and epoch % EPOCHS_PER_CHECK == 0:
            self._check(self._now, epoch)

    def of(self, images: Tensor, batch: Batch) -> Outputs:
        self.asked += len(images)
        if self._now is None:
            return self.live.of(images, batch)
        if self.by_batch:
            rows = self._now.unit(batch.epoch_step)
            own = distributed.share(torch.arange(batch.size)) if batch.count else torch.tensor([0])
            own = own.to(self.live.device, non_blocking=True)
            return Outputs(rows.pop("logits").index_select(0, own), read=rows)
        rows = self._now.rows(batch.indices)
        read = self.live.recipe.method.readings
        features = {each.stage: rows[each.name] for each in read if each.kind == "features"}
        return Outputs(rows.pop("logits"), features, rows)

    def val_logits(self) -> Tensor:
        started = time.perf_counter()
        units = self._units(len(self.live.data.val))
        kept = self._kept("val", 0, units, lambda unit: {"logits": self.live.of_val(unit)})
        self._reading_s += time.perf_counter() - started
        if kept is None:
            return self.live.val_logits()
        kept.folder.close()
        return torch.cat([rows["logits"] for rows in kept.loaded])

    def close(self) -> None:
        """Others may make room of what was read here."""
        if self._now is not None:
            self._now.folder.close()
        self._now = None

    def _kept(
        self, split: str, epoch: int, units: list[Tensor], compute: Callable[[Tensor], Tensors]
    ) -> CachedRows | None:
        """On all ranks, or on none: asked live, ranks talk to one another."""
        if self.off is not None:
            return None
        kept = self._own_kept(split, epoch, units, compute)
        if distributed.sum_over_ranks(torch.tensor(kept is None, dtype=torch.int, device=self.live.device)):
            if kept is not None:
                kept.folder.close()
                self._turn_off("another worker could not read or write it")
            return None
        return kept

    def _own_kept(
        self, split: str, epoch: int, units: list[Tensor], compute: Callable[[Tensor], Tensors]
    ) -> CachedRows | None:
        readings = self.readings if split == "train" else ()

        def size() -> int:
            return bytes_per_image(self.live, readings) * sum(map(len, units))

        folder = None
        try:
            folder = self.cache.folder(self._ingredients(split, epoch), size)
            if folder is None:
                self._turn_off(self.cache.no_room)
                return None
            folder.fill(range(len(units)), lambda number: compute(units[number]))
            loaded = [folder.load(number) for number in range(len(units))]
        except BaseException as error:
            if folder is not None:
                folder.close()
            if isinstance(error, OSError) and error.errno in NO_ROOM:
                self._turn_off(self.cache.unwritable(error))
                return None
            raise
        wanted = self.wanted if split == "train" else ()
        return CachedRows(folder, epoch, units, loaded, wanted, self.live.device, self.by_batch)

    def _turn_off(self, reason: str) -> None:
        self.off = reason
        self.close()
        self.live.teacher.stages = self.live.recipe.method.needed_stages
        logging.getLogger(__name__).warning("the teacher is asked live from here on: %s", reason)

    def _rows(self, indices: Tensor, epoch: int) -> Tensors:
        """As they are kept: logits and readings of training images, which are a whole batch where the readings are."""
        outputs = self.live.of_train(indices, epoch)
        made = (to_stored(each.name, each.make(outputs.features[each.stage]).float()) for each in self.readings)
        return {"logits": outputs.logits.float(), **dict(made)}

    def _check(self, kept: CachedRows, epoch: int) -> None:
        """Computes a chunk again, or a batch: each trial and epoch another. Raises UserError where it is not what was
        read."""
        recipe, device = self.live.recipe, self.live.device
        drawn = stream(recipe.seed, f"cache check {key_of(recipe.model_dump(mode='json'))}", epoch)
        number = drawn % len(kept.units)
        indices, first = kept.units[number], 0
        if not self.by_batch:
            first = CHUNK_IMAGES * (drawn // len(kept.units) % -(-len(indices) // CHUNK_IMAGES))
            indices = indices[first : first + CHUNK_IMAGES]
        before = self.live.computed
        again = self._rows(indices, kept.epoch)
        self.checked += self.live.computed - before
        for name, values in again.items():
            read = kept.loaded[number][name][first : first + len(values)].to(device)
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
            "folded": folds(recipe),
            "data": data.fingerprint,
            "files written": data.mtime_digest,
            "set": recipe.data.model_dump(mode="json"),
            "split": split,
            "view": images.transform_repr,
            "drawn by": [recipe.seed, epoch] if seen else None,
            "mixup": recipe.mixup.model_dump() if recipe.mixup and split == "train" else None,
            # autocast is training's; TF32 is the convolutions' wherever they run
            "precision": recipe.precision if split == "train" or recipe.precision == "tf32" else "fp32",
            "chunk": CHUNK_IMAGES,
            "unit": UNIT_IMAGES,
            "kept": sorted(each.name for each in self.readings) if split == "train" else [],
            "batches": batches if split == "train" else None,
            "machine": process.rounding(live.device),
        }

    def _units(self, total: int) -> list[Tensor]:
        return list(torch.arange(total).split(UNIT_IMAGES))

    def _batches(self, epoch: int) -> list[Tensor]:
        return list(batches_of(self.live.recipe.seed, self.live.recipe.batch_size, len(self.live.data.train), epoch))


NETWORK = {"model", "head", "normalization", "channels_last", "compile"}


def _near(values: Tensor, read: Tensor) -> bool:
    return torch.allclose(values, read, rtol=TOLERANCE, atol=TOLERANCE)
