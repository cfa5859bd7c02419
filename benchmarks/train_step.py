"""One training epoch of kdtrain against a plain well-written loop with the same settings, in the same process.

    python benchmarks/train_step.py [--rounds 5] [--images 12800]

Both train LeNet5 with kd from the larger LeNet5 on made-up 32x32 images, batch 128, SGD, one thread. The rounds are
interleaved; printed are images/s (median, range) and the ratio of each round, kdtrain / plain.
"""

import argparse
import statistics
import time

import torch
from torch import Tensor
from torch.nn import functional

from kdtrain.config import Recipe
from kdtrain.data.base import tensor_dataset
from kdtrain.environment import prepare_process
from kdtrain.loop import train_epoch
from kdtrain.models import Network, build
from kdtrain.run import Run
from kdtrain.teacher import Teacher

TEMPERATURE, ALPHA, LR, MOMENTUM, BATCH = 4.0, 0.5, 0.01, 0.9, 128
CPU = torch.device("cpu")


def plain_epoch(
    student: torch.nn.Module,
    teacher: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    pixels: Tensor,
    labels: Tensor,
) -> float:
    """What anyone would write by hand, with care: no .item() in the loop, no gradient for the teacher."""
    student.train()
    total = torch.zeros(())
    for batch in torch.randperm(len(pixels)).split(BATCH):
        images, target = pixels[batch].float().div_(255), labels[batch]
        with torch.inference_mode():
            soft = functional.softmax(teacher(images) / TEMPERATURE, dim=1)
        logits = student(images)
        distillation = functional.kl_div(
            functional.log_softmax(logits / TEMPERATURE, dim=1), soft.clone(), reduction="batchmean"
        )
        loss = ALPHA * TEMPERATURE**2 * distillation + (1 - ALPHA) * functional.cross_entropy(logits, target)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        total += loss.detach() * len(batch)
    return float(total) / len(pixels)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", type=int, default=12_800)
    chosen = parser.parse_args()
    prepare_process(1)
    pixels = torch.randint(0, 256, (chosen.images + 20, 1, 32, 32), dtype=torch.uint8)
    labels = torch.arange(len(pixels)) % 10
    splits = (torch.arange(chosen.images), torch.arange(chosen.images, len(pixels)), torch.arange(10))
    data = tensor_dataset("made up", pixels, labels, tuple("0123456789"), splits)
    recipe = Recipe.model_validate(
        {
            "data": {"name": "mnist"},
            "teacher": {"model": "lenet5_teacher"},
            "student": {"model": "lenet5_student"},
            "method": {"name": "kd", "temperature": TEMPERATURE, "balance": {"alpha": ALPHA}},
            "optimizer": {"name": "sgd", "lr": LR, "momentum": MOMENTUM},
            "lr_schedule": {"name": "constant"},
            "batch_size": BATCH,
            "epochs": 1,
        }
    )
    network = build(Network(model="lenet5_teacher"), data.image_shape, 10, 0)
    run = Run(recipe, data, Teacher(network, CPU), CPU)
    student = build(Network(model="lenet5_student"), data.image_shape, 10, 0)
    optimizer = torch.optim.SGD(student.parameters(), LR, MOMENTUM)
    own, plain = [], []
    for number in range(chosen.rounds + 1):
        started = time.perf_counter()
        train_epoch(run)
        between = time.perf_counter()
        plain_epoch(student, network, optimizer, pixels[: chosen.images], labels[: chosen.images])
        ended = time.perf_counter()
        if number:  # the first round warms up
            own.append(chosen.images / (between - started))
            plain.append(chosen.images / (ended - between))
    for name, rates in (("kdtrain", own), ("plain loop", plain)):
        print(f"{name:<11} {statistics.median(rates):>9,.0f} images/s ({min(rates):,.0f} to {max(rates):,.0f})")
    ratios = [a / b for a, b in zip(own, plain, strict=True)]
    print(f"ratio       {statistics.median(ratios):>9.3f} ({min(ratios):.3f} to {max(ratios):.3f})")


if __name__ == "__main__":
    main()
