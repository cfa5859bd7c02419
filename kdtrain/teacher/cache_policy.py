"""Which of a teacher's outputs are cached for other trials, and how many bytes they take."""

from collections.abc import Sequence

import torch

from kdtrain.methods.base import TeacherReading
from kdtrain.teacher.outputs import LiveTeacher

SMALL_BYTES = 10_000
"""Per image and view. Logits, attention maps and similarities are smaller and are cached while there is room. Whole
feature maps are larger and are cached only if all views of a training fit: else the last views would evict the first
ones, and the next trial would find nothing."""


def reads_whole_batch(readings: Sequence[TeacherReading]) -> bool:
    """Return True if a reading depends on all images of a batch, so that batches are cached in place of images."""
    return any(each.whole_batch for each in readings)


def cached_readings(
    live: LiveTeacher, shared: Sequence[TeacherReading], budget_bytes: int
) -> tuple[TeacherReading, ...]:
    """Return what is cached beside the logits: the method's own readings and, if there is room, those of `shared`."""
    cached = live.use.readings
    if reads_whole_batch(cached) or live.use.network.compile:  # compiled: it returns its own stages only
        return cached
    for each in shared:
        if each not in cached and not each.whole_batch:
            more = (*cached, each)
            if reason_not_cached(live, more, len(live.data.train), budget_bytes) is None:
                cached = more
    return cached


def reason_not_cached(
    live: LiveTeacher, readings: Sequence[TeacherReading], images: int, budget_bytes: int
) -> str | None:
    """Return the reason why outputs for `images` training images cannot be cached, or None if they can."""
    use = live.use
    if use.mixup is not None and use.mixup.convention == "published":
        return "mixup.convention published mixes by batch"
    size = bytes_per_image(live, readings)
    changing = use.data.random_views or use.mixup is not None or reads_whole_batch(readings)
    views = use.epochs if changing else 1
    if size > SMALL_BYTES and size * images * views > budget_bytes:
        return (
            f"what {use.method} reads takes {size:,} bytes per image and view, {size * images * views:,} in all: more"
            f" than {budget_bytes:,} (resources.cache_bytes)"
        )
    return None


def bytes_per_image(live: LiveTeacher, readings: Sequence[TeacherReading]) -> int:
    """Return the bytes of what is cached per image and view: logits and readings, in float32."""
    shapes = live.teacher.network.stage_shapes(tuple(each.stage for each in readings))
    numbers = len(live.data.classes)
    for each in readings:
        images = torch.zeros(2, *shapes[each.stage], device="meta")
        numbers += live.use.drawing.batch_size if each.whole_batch else each.compute(images)[0].numel()
    return 4 * numbers
