"""Which of a teacher's answers are kept for other trials, and how many bytes they are."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from kdtrain.methods.base import TeacherReading
from kdtrain.storage.cache import Cache
from kdtrain.teacher.outputs import LiveTeacher

SMALL_BYTES = 10_000
"""Of an image and view: logits, attention maps and similarities are kept while there is room. What is larger, whole
feature maps, is kept only where all views of a training fit: else the first views would make room for the last ones,
and the next trial would find nothing."""


@dataclass(frozen=True)
class CachePolicy:
    """How a node's trials share what their teacher says. readings: of all methods of the sweep, image by image, so that
    their trials read the same rows."""

    cache: Cache
    readings: tuple[TeacherReading, ...] = ()


def cached_readings(live: LiveTeacher, sharing: CachePolicy) -> tuple[TeacherReading, ...]:
    """What is kept beside the logits: what the recipe's method reads, and, as far as there is room, what the sweep's
    other methods do. Only for a recipe whose own are kept. (A compiled teacher gives the stages that it was compiled
    for.)"""
    kept, teacher = live.recipe.method.readings, live.recipe.teacher
    if any(each.of_batch for each in kept) or (teacher is not None and teacher.compile):
        return kept
    for each in sharing.readings:
        if each not in kept and not each.of_batch:
            more = (*kept, each)
            if reason_not_cached(live, more, len(live.data.train), sharing.cache.budget_bytes) is None:
                kept = more
    return kept


def reason_not_cached(
    live: LiveTeacher, readings: Sequence[TeacherReading], images: int, budget_bytes: int
) -> str | None:
    """The reason why a teacher of `images` training images is asked live whatever else lies in the cache; None where
    its answers can be kept."""
    recipe = live.recipe
    if recipe.mixup is not None and recipe.mixup.convention == "published":
        return "mixup.convention published mixes by batch"
    size = bytes_per_image(live, readings)
    by_batch = any(each.of_batch for each in readings)
    views = recipe.epochs if recipe.data.random_views or recipe.mixup is not None or by_batch else 1
    if size > SMALL_BYTES and size * images * views > budget_bytes:
        return (
            f"what {recipe.method.name} reads takes {size:,} bytes of an image and view, {size * images * views:,} in"
            f" all: more than {budget_bytes:,} (resources.cache_bytes)"
        )
    return None


def bytes_per_image(live: LiveTeacher, readings: Sequence[TeacherReading]) -> int:
    """Of what is kept of an image and view: logits and readings, in float32."""
    shapes = live.teacher.network.stage_shapes(tuple(each.stage for each in readings))
    numbers = len(live.data.classes)
    for each in readings:
        images = torch.zeros(2, *shapes[each.stage], device="meta")
        numbers += live.recipe.batch_size if each.of_batch else each.make(images)[0].numel()
    return 4 * numbers
