"""Distillation as a careful person writes it by hand: `train_step.py` compares kdtrain with it.

Nothing waits for the device within an epoch, the teacher runs in inference mode, gradients are set to None.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

Answer = tuple[Tensor, Tensor | None]
"""Logits [N, K], and a feature map [N, C, H, W] if the loss reads one."""


@dataclass
class Plain:
    student: Callable[[Tensor], Answer]
    teacher: Callable[[Tensor], Answer]
    loss: Callable[[Answer, Answer, Tensor], Tensor]
    trained: nn.Module
    optimizer: torch.optim.Optimizer
    device: torch.device
    normalization: tuple[Tensor, Tensor] | None
    layout: torch.memory_format = torch.contiguous_format
    autocast: torch.dtype | None = None
    mixup: bool = False
    clip_norm: float | None = None

    def __post_init__(self) -> None:
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.autocast == torch.float16)


def plain_epoch(plain: Plain, batches: Iterable[tuple[Tensor, Tensor]]) -> float:
    """Update once for each batch of pixels, uint8 [N, C, H, W], and classes [N]; return the mean loss of an image."""
    plain.trained.train()
    total, count = torch.zeros((), device=plain.device), 0
    parameters = [each for group in plain.optimizer.param_groups for each in group["params"]]
    for pixels, classes in batches:
        target = classes.to(plain.device, non_blocking=True)
        images = pixels.to(plain.device, non_blocking=True).float().div_(255)
        if plain.normalization is not None:
            mean, std = plain.normalization
            images = (images - mean) / std
        images = images.contiguous(memory_format=plain.layout)
        if plain.mixup:
            share = torch.rand(len(images), 1, 1, 1, device=plain.device)
            images = images.roll(1, 0).lerp(images, torch.maximum(share, 1 - share))
        with torch.autocast(plain.device.type, plain.autocast, enabled=plain.autocast is not None):
            with torch.inference_mode():
                logits, maps = plain.teacher(images)
            wanted = logits.clone(), maps.clone() if maps is not None else None  # backward may keep copies only
            loss = plain.loss(plain.student(images), wanted, target)
        plain.optimizer.zero_grad(set_to_none=True)
        plain.scaler.scale(loss).backward()
        if plain.clip_norm is not None:
            plain.scaler.unscale_(plain.optimizer)
            torch.nn.utils.clip_grad_norm_(parameters, plain.clip_norm)
        plain.scaler.step(plain.optimizer)
        plain.scaler.update()
        total += loss.detach() * len(classes)
        count += len(classes)
    return total.item() / count


def kd(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    soft = functional.softmax(teacher.float() / temperature, dim=1)
    log_student = functional.log_softmax(student.float() / temperature, dim=1)
    return temperature**2 * functional.kl_div(log_student, soft, reduction="batchmean")


def mgd(student: Tensor, teacher: Tensor, align: nn.Module, generator: nn.Module, mask: float, alpha: float) -> Tensor:
    aligned = align(student)
    kept = torch.rand(*aligned.shape[:2], 1, 1, device=aligned.device) >= mask
    masked = aligned * kept.to(aligned.dtype)
    generated = generator(masked.contiguous() if masked.device.type == "cpu" else masked)  # as its weights lie
    return alpha * functional.mse_loss(generated.float(), teacher.float(), reduction="sum") / len(teacher)
