"""The images, networks, settings and hyperparameters that the three sweeps of `sweep_cost.py` share."""

import json
import random
from collections import OrderedDict
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torchvision
from torch import nn
from torch.utils.data import Dataset, Subset
from torchvision.transforms import v2

EPOCHS = 3
HELD_OUT = 5_000


class Setup(NamedTuple):
    """A pair of networks, by their names in a recipe; images is the number of training images."""

    name: str
    data: str
    px: int
    class_count: int
    batch_size: int
    images: int
    teacher: str
    student: str
    trials: int = 16

    def text(self) -> str:
        """Return the setup as a command-line argument, which `setup_from` reads."""
        return json.dumps(self)


def setup_from(text: str) -> Setup:
    return Setup(*json.loads(text))


SETUPS = {
    "mnist": Setup("mnist", "mnist", 32, 10, 128, 55_000, "lenet5_teacher", "lenet5_student"),
    "mnist_small": Setup("mnist_small", "mnist", 32, 10, 128, 12_800, "lenet5_teacher", "lenet5_student"),
    "mnist_tiny": Setup("mnist_tiny", "mnist", 32, 10, 128, 640, "lenet5_teacher", "lenet5_student"),
    "resnet50": Setup("resnet50", "flowers102", 64, 102, 64, 1_020, "resnet50", "mobilenetv2"),
    "efficientnet": Setup("efficientnet", "flowers102", 64, 102, 64, 1_020, "efficientnet_v2_s", "mobilenetv2"),
    "bit": Setup("bit", "flowers102", 64, 102, 64, 510, "bit_resnet50x1", "resnet50v2"),
}


def hyperparameters(trials: int) -> list[dict[str, float]]:
    """Draw the hyperparameters, the same for all three sweeps."""
    draw = random.Random(0)
    return [
        {"lr": 10 ** draw.uniform(-3, -1.5), "temperature": 20 ** draw.uniform(0, 1), "alpha": draw.uniform(0, 1)}
        for _ in range(trials)
    ]


def network(name: str, classes: int) -> nn.Module:
    """Return the libraries' own network with random weights."""
    if name.startswith("lenet5"):
        return lenet5(*{"lenet5_teacher": (16, 120, 84), "lenet5_student": (12, 90, 64)}[name], classes)
    if name in ("bit_resnet50x1", "resnet50v2"):
        import timm

        plain = {"bit_resnet50x1": "resnetv2_50x1_bit", "resnet50v2": "resnetv2_50"}[name]
        return timm.create_model(plain, num_classes=classes)  # type: ignore[no-any-return]
    if name == "mobilenetv2":
        return torchvision.models.mobilenet_v2(num_classes=classes, dropout=0.0)  # as the recipe has it
    return torchvision.models.get_model(name, num_classes=classes)


def lenet5(channels: int, first: int, second: int, classes: int) -> nn.Module:
    """Return LeNet5 (LeCun et al. 1998) as the MNIST document has it."""
    first_stage = (nn.Conv2d(1, 6, 3), nn.MaxPool2d(2), nn.ReLU())
    encoder = nn.Sequential(*first_stage, nn.Conv2d(6, channels, 3), nn.MaxPool2d(2), nn.ReLU(), nn.Flatten())
    head = (nn.Linear(channels * 36, first), nn.ReLU(), nn.Linear(first, second), nn.ReLU(), nn.Linear(second, classes))
    return nn.Sequential(OrderedDict(encoder=encoder, head=nn.Sequential(*head)))


def image_sets(setup: Setup, root: Path) -> tuple[Dataset[Any], Dataset[Any]]:
    """Return training and validation images, by torchvision's own datasets and transforms."""
    if setup.data == "mnist":
        views = v2.Compose([v2.Resize(setup.px), v2.ToImage(), v2.ToDtype(torch.float32, scale=True)])
        whole = torchvision.datasets.MNIST(root, transform=views)
        held_out = range(60_000 - min(HELD_OUT, setup.images), 60_000)  # a limit of kdtrain's is each split's
        return Subset(whole, range(setup.images)), Subset(whole, held_out)
    to_tensor = [
        v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    ]  # fmt: skip
    larger = setup.px * 5 // 4
    train = v2.Compose([v2.Resize((larger, larger)), v2.RandomCrop(setup.px), v2.RandomHorizontalFlip(), *to_tensor])
    evaluation = v2.Compose([v2.Resize((larger, larger)), v2.CenterCrop(setup.px), *to_tensor])
    sets = [torchvision.datasets.Flowers102(root, *each) for each in (("train", train), ("val", evaluation))]
    return Subset(sets[0], range(setup.images)), Subset(sets[1], range(setup.images))


def sweep(setup: Setup, teacher_file: Path) -> dict[str, Any]:
    """Return the same trainings as the content of a sweep file; the drawn hyperparameters are its published points."""
    every = {"mnist": 55_000, "flowers102": 1_020}[setup.data]
    limit = {} if setup.images == every else {"limit_per_class": setup.images // setup.class_count}
    recipe = {
        "data": {"name": setup.data, "resolution": setup.px, **limit},
        "teacher": {"model": setup.teacher, "trained": str(teacher_file)},
        "student": {"model": setup.student, "weights": None},
        "method": {"name": "kd", "balance": {"alpha": {"uniform": [0, 1]}}, "temperature": {"loguniform": [1, 20]}},
        "optimizer": {"name": "sgd", "lr": {"loguniform": [0.001, 0.0317]}, "momentum": 0.9},
        "lr_schedule": {"name": "constant"},
        "batch_size": setup.batch_size,
        "epochs": EPOCHS,
    }
    points = [
        {
            "method": {"balance": {"alpha": own["alpha"]}, "temperature": own["temperature"]},
            "optimizer": {"lr": own["lr"]},
        }
        for own in hyperparameters(setup.trials)
    ]
    study = {
        "trials": setup.trials,
        "published": points,
        "select": {"candidates": 2},
        "confirm": {"seeds": 1},
    }
    return {"recipe": recipe, "study": study}
