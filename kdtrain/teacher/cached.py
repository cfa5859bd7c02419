"""Teacher outputs read from a node's cache, bit for bit what the teacher would compute; see `outputs`.

N images, K classes.
"""

import logging
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from kdtrain.methods.base import Batch, Outputs, TeacherReading
from kdtrain.runtime import distributed
from kdtrain.runtime.device import to_device
from kdtrain.runtime.rng import stream
from kdtrain.storage.cache import Cache, Tensors
from kdtrain.storage.folder import Row
from kdtrain.teacher.cache_check import EPOCHS_PER_CHECK, chunk_to_check, require_equal
from kdtrain.teacher.cache_key import train_key, val_key
from kdtrain.teacher.cache_policy import bytes_per_image, cached_readings, reads_whole_batch, reason_not_cached
from kdtrain.teacher.cache_rows import CachedRows, to_stored
from kdtrain.teacher.outputs import UNIT_IMAGES, LiveTeacher, TeacherOutputs


def cached_teacher(
    live: LiveTeacher, cache: Cache | None, shared: Sequence[TeacherReading], check_seed: str
) -> TeacherOutputs:
    """Return cached outputs if wanted and possible, else the live teacher, whose `off_reason` then has the reason.

    `shared` are the readings of all methods of the sweep, so that their trials read the same rows. `check_seed` names
    this training's draws of what is checked, e.g. its trial_id.
    """
    if cache is None or live.teacher.digest is None:
        return live
    live.off_reason = reason_not_cached(live, live.use.readings, len(live.data.train), cache.budget_bytes)
    if live.off_reason is not None:
        return live
    readings = cached_readings(live, shared, cache.budget_bytes)
    return CachedTeacher(live, cache, live.teacher.digest, readings, check_seed)


class CachedTeacher:
    """Outputs from a node's cache. The network computes what is missing there, in whichever trial needs it first.

    If the cache cannot be written or has no room, `off_reason` has the reason, and outputs are computed live.
    """

    def __init__(
        self, live: LiveTeacher, cache: Cache, weights: str, readings: Sequence[TeacherReading], check_seed: str
    ) -> None:
        """weights: digest of the teacher's. readings: what is cached beside the logits, the method's own included."""
        self.live, self.cache, self.weights, self.readings = live, cache, weights, tuple(readings)
        self.by_batch = reads_whole_batch(readings)
        self.wanted = ("logits", *(reading.name for reading in live.use.readings))
        self.off_reason: str | None = None
        self.requested = self.checked = 0
        self._check_seed = check_seed
        self._reading_s = 0.0
        self._current: CachedRows | None = None
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
        view_epoch = epoch if self.live.views_change or self.by_batch else 0
        if self._current is None or self._current.epoch != view_epoch:
            self.close()
            self._current = self._open_train(view_epoch)
        if self._current is not None and epoch % EPOCHS_PER_CHECK == 0:
            self._check(self._current, epoch)
        self._reading_s += time.perf_counter() - started

    def of(self, images: Tensor, batch: Batch) -> Outputs:
        self.requested += len(images)
        if self._current is None:
            return self.live.of(images, batch)
        if self.by_batch:
            rows = self._current.unit(batch.epoch_step)
            own = distributed.share(torch.arange(batch.size)) if batch.count else torch.tensor([0])
            return Outputs(rows.pop("logits").index_select(0, to_device(own, self.live.device)), readings=rows)
        rows = self._current.rows(batch.indices)
        features = {each.stage: rows[each.name] for each in self.live.use.readings if each.kind == "features"}
        return Outputs(rows.pop("logits"), features, rows)

    def val_logits(self) -> Tensor:
        started = time.perf_counter()
        units = list(torch.arange(len(self.live.data.val)).split(UNIT_IMAGES))
        rows = self._open(
            val_key(self.live, self.weights), 0, units, lambda unit: {"logits": self.live.val_unit(unit)}, readings=()
        )
        self._reading_s += time.perf_counter() - started
        if rows is None:
            return self.live.val_logits()
        rows.folder.close()
        return torch.cat([unit["logits"] for unit in rows.loaded])

    def close(self) -> None:
        """Release the rows in use, so that they may be evicted."""
        if self._current is not None:
            self._current.folder.close()
        self._current = None

    def _open_train(self, epoch: int) -> CachedRows | None:
        use, labels = self.live.use, self.live.data.train.labels
        if self.by_batch:
            units = list(use.drawing.batches(labels, epoch))
        else:
            units = list(torch.arange(len(labels)).split(UNIT_IMAGES))
        key = train_key(self.live, self.weights, self.readings, epoch)
        return self._open(key, epoch, units, lambda unit: self._train_rows(unit, epoch), readings=self.readings)

    def _open(
        self, key: Row, epoch: int, units: list[Tensor], compute: Callable[[Tensor], Tensors],
        readings: Sequence[TeacherReading],
    ) -> CachedRows | None:  # fmt: skip
        """Open the cache on every rank or on none.

        A live teacher runs collective operations (e.g. SP's batch), so one rank falling back alone would deadlock.
        """
        if self.off_reason is not None:
            return None
        folder = self.cache.filled_folder(
            key,
            lambda: bytes_per_image(self.live, readings) * sum(map(len, units)),
            len(units),
            lambda number: compute(units[number]),
        )
        failed = torch.tensor(isinstance(folder, str), dtype=torch.int, device=self.live.device)
        if distributed.sum_over_ranks(failed):
            if not isinstance(folder, str):
                folder.close()
                folder = "another worker could not read or write it"
            self._turn_off(folder)
            return None
        assert not isinstance(folder, str)
        loaded = [folder.load(number) for number in range(len(units))]
        wanted = self.wanted if key["split"] == "train" else ()
        return CachedRows(folder, epoch, units, loaded, wanted, self.live.device, self.by_batch)

    def _turn_off(self, reason: str) -> None:
        self.off_reason = reason
        self.close()
        self.live.teacher.stages = self.live.use.stages
        logging.getLogger(__name__).warning("teacher outputs are computed live from here on: %s", reason)

    def _train_rows(self, indices: Tensor, epoch: int) -> Tensors:
        """Compute logits and readings of training images as they are stored; a whole batch if the readings need one."""
        outputs = self.live.train_unit(indices, epoch)
        made = (to_stored(each.name, each.compute(outputs.features[each.stage]).float()) for each in self.readings)
        return {"logits": outputs.logits.float(), **dict(made)}

    def _check(self, rows: CachedRows, epoch: int) -> None:
        """Compute a chunk or a batch again, another one in each trial and epoch, and compare it with what was read."""
        draw = stream(self.live.use.seed, f"cache check {self._check_seed}", epoch)
        unit, first, indices = chunk_to_check(rows.units, draw, whole_unit=self.by_batch)
        before = self.live.computed
        again = self._train_rows(indices, rows.epoch)
        self.checked += self.live.computed - before
        require_equal(again, rows, unit, first, self.live.device)
