"""Small inputs for the criterion of every method: made-up outputs of two networks, and configs of every kind.

N images, K classes, C channels.
"""

import math
from typing import Any

import torch
from pydantic import TypeAdapter
from torch import Tensor

from kdtrain.methods.base import Batch, Criterion, MethodConfig, MethodContext, Outputs, Shape, weighted_sum
from kdtrain.methods.registry import Method
from kdtrain.runtime.rng import generator

CLASSES = 7
STUDENT: dict[str, Shape] = {"4": (2, 8, 6), "8": (3, 7, 5), "16": (3, 5, 4), "32": (4, 3, 2), "pool": (4,)}
TEACHER: dict[str, Shape] = {"4": (3, 8, 6), "8": (2, 7, 5), "16": (5, 5, 4), "32": (3, 3, 2), "pool": (6,)}

ONE: dict[str, Any] = {"balance": {"weight": 3.0}}
CONFIGS: dict[str, dict[str, Any]] = {
    "kd": {"name": "kd", "temperature": 4.0, **ONE},
    "kd standardised": {"name": "kd", "temperature": 2.0, "standardise": True, **ONE},
    "kd mnist": {"name": "kd", "temperature": 4.0, "convention": "published_mnist", **ONE},
    "kd cifar10": {"name": "kd", "temperature": 4.0, "convention": "published_cifar10", **ONE},
    "kd flowers": {"name": "kd", "temperature": 4.0, "convention": "published_flowers", **ONE},
    "logit_mse": {"name": "logit_mse", **ONE},
    "rkd_distance": {"name": "rkd_distance", **ONE},
    "rkd_distance logits": {"name": "rkd_distance", "features": "logits", **ONE},
    "rkd_distance published": {"name": "rkd_distance", "features": "logits", "convention": "published", **ONE},
    "rkd_angle": {"name": "rkd_angle", **ONE},
    "rkd_angle logits": {"name": "rkd_angle", "features": "logits", **ONE},
    "at": {"name": "at", **ONE},
    "sp": {"name": "sp", **ONE},
    "sp published": {"name": "sp", "convention": "published", **ONE},
    "mgd": {"name": "mgd", "mask_ratio": 0.4, "alpha": 0.01, **ONE},
    "dkd": {"name": "dkd", **ONE},
    "dkd standardised": {"name": "dkd", "standardise": True, "warmup_epochs": 0, **ONE},
    "dist": {"name": "dist", **ONE},
}
DISCRIMINATOR: dict[str, Any] = {
    "name": "logits_discriminator", "temperature": 1.5, "critic_steps": 1, "student_steps": 1, **ONE
}  # fmt: skip
ALL_CONFIGS: dict[str, dict[str, Any]] = {
    "none": {"name": "none"},
    **CONFIGS,
    "logits_discriminator": DISCRIMINATOR,
    "logits_discriminator clipping": DISCRIMINATOR | {"critic_training": {"lipschitz": {"name": "clipping"}}},
    "logits_discriminator published": DISCRIMINATOR | {"convention": "published"},
}
"""Every registered method and its variants; the last three need ten classes and take turns with a critic."""
RELATIONAL = [label for label in CONFIGS if label.split()[0] in ("rkd_distance", "rkd_angle", "sp", "dist")]


def method(written: dict[str, Any]) -> MethodConfig:
    return TypeAdapter(Method).validate_python(written)


def context(**other: Any) -> MethodContext:
    measured = {"student_shapes": STUDENT, "teacher_shapes": TEACHER}
    return MethodContext(**{"classes": CLASSES, "batch_size": 5, **measured, **other})


def criterion(written: dict[str, Any], dtype: torch.dtype = torch.float64, **other: Any) -> Criterion:
    made: Criterion = method(written).criterion(context(**other))
    return made.to(dtype)


def normal(*shape: int, purpose: str, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=generator(0, purpose), dtype=torch.float64).to(dtype)


def outputs(
    whose: str, count: int = 5, *, classes: int = CLASSES, dtype: torch.dtype = torch.float64, grad: bool = False
) -> Outputs:
    """Return logits of scale 3 and rectified maps of `student` or `teacher`, each a leaf."""
    shapes = STUDENT if whose == "student" else TEACHER
    logits = 3 * normal(count, classes, purpose=f"{whose} logits", dtype=dtype)
    maps = {stage: normal(count, *shape, purpose=f"{whose} {stage}", dtype=dtype) for stage, shape in shapes.items()}
    leaf = Outputs(logits, {stage: each.relu() if each.ndim > 2 else each for stage, each in maps.items()})
    for each in (leaf.logits, *leaf.features.values()):
        each.requires_grad_(grad)
    return leaf


def order(of: Outputs, by: Tensor) -> Outputs:
    """Return the outputs of the images `by`, in that order."""
    return Outputs(of.logits[by], {stage: each[by] for stage, each in of.features.items()})


def leaves(of: Outputs) -> dict[str, Tensor]:
    return {"logits": of.logits, **of.features}


def batch(count: int = 5, *, classes: int = CLASSES, **other: Any) -> Batch:
    target = (3 * torch.arange(count) + 1) % classes
    return Batch(**{"target": target, "indices": torch.arange(count) * 11, "size": count, "count": count, **other})


def loss_and_gradients(made: Criterion, student: Outputs, teacher: Outputs, of: Batch) -> tuple[float, list[Tensor]]:
    """Return the loss, and its gradients in the student's outputs and in the criterion's parameters."""
    wanted = [*leaves(student).values(), *made.parameters()]
    loss = weighted_sum(made(student, teacher, of))
    found = torch.autograd.grad(loss, wanted, allow_unused=True)
    return loss.item(), [torch.zeros_like(w) if g is None else g for w, g in zip(wanted, found, strict=True)]


def smooth_l1(a: float, b: float) -> float:
    gap = abs(a - b)
    return 0.5 * gap**2 if gap < 1 else gap - 0.5


def softened(row: list[float], temperature: float) -> list[float]:
    exponentials = [math.exp(value / temperature) for value in row]
    return [value / math.fsum(exponentials) for value in exponentials]


def kl_of_rows(p: list[float], q: list[float]) -> float:
    """sum_k p_k log(p_k / q_k), in nats."""
    return math.fsum(p_k * math.log(p_k / q_k) for p_k, q_k in zip(p, q, strict=True))
