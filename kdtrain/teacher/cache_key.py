"""The key of cached teacher outputs: everything that they depend on."""

from collections.abc import Sequence
from dataclasses import asdict

from kdtrain.methods.base import TeacherReading
from kdtrain.runtime import process
from kdtrain.runtime.source_code import code_digest
from kdtrain.storage.folder import Row
from kdtrain.teacher.cache_policy import reads_whole_batch
from kdtrain.teacher.network import CHUNK_IMAGES
from kdtrain.teacher.outputs import UNIT_IMAGES, LiveTeacher
from kdtrain.trials.identity import NUMERICS

NETWORK = {"model", "hidden", "stem", "head", "normalization", "channels_last", "compile"}
"""The fields of a teacher's config that change its forward pass. Its weights are in the key by their digest."""


def train_key(live: LiveTeacher, weights: str, readings: Sequence[TeacherReading], epoch: int) -> Row:
    """Return the key of outputs for an epoch's training views; the epoch counts if views or batches change."""
    use = live.use
    return {
        **_common(live, weights),
        "split": "train",
        "view": live.data.train.images.transform_repr,
        "random views of": [use.seed, epoch] if live.views_change else None,
        "mixup": use.mixup.model_dump() if use.mixup else None,
        "precision": use.precision,
        "readings": sorted([each.name, code_digest(each.module)] for each in readings),
        "batches": [asdict(use.drawing), epoch] if reads_whole_batch(readings) else None,
    }


def val_key(live: LiveTeacher, weights: str) -> Row:
    """Return the key of the logits of the validation split. Autocast is training's, TF32 holds everywhere."""
    precision = "tf32" if live.use.precision == "tf32" else "fp32"
    return {
        **_common(live, weights),
        "split": "val",
        "view": live.data.val.images.transform_repr,
        "precision": precision,
    }


def _common(live: LiveTeacher, weights: str) -> Row:
    return {
        "what": "teacher outputs",
        "numerics": NUMERICS,
        "weights": weights,
        "image shape": list(live.teacher.network.image_shape),
        "network": live.use.network.model_dump(mode="json", include=NETWORK),
        "data": live.data.fingerprint,
        "data config": live.use.data.model_dump(mode="json"),
        "chunk": CHUNK_IMAGES,
        "unit": UNIT_IMAGES,
        "machine": process.rounding(live.device),
    }
