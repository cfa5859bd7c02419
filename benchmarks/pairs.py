"""The pairs of teacher and student of the five setups, as kdtrain's TrainState and for the plain loop."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from plain_loop import Answer, Plain, kd, mgd, plain_epoch
from torch import Tensor, nn
from torch.nn import functional

from kdtrain.config.recipe import Recipe
from kdtrain.config.sweep import load_recipe
from kdtrain.config.training import Adam, AdamW, Sgd
from kdtrain.data.base import Dataset, TensorImages, tensor_dataset
from kdtrain.models.classifier import Classifier
from kdtrain.models.registry import MODELS
from kdtrain.runtime.rng import generator
from kdtrain.teacher.network import Teacher, untrained_teacher
from kdtrain.training.assembly import assemble
from kdtrain.training.epoch_metrics import EpochProgress
from kdtrain.training.loop import train_epoch

RECIPES = Path(__file__).parent.parent / "recipes"
RANDOM = ("student.weights=null", "teacher.weights=null", "lr_schedule={name: constant}")
LAYOUTS = {True: torch.channels_last, False: torch.contiguous_format}
AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Pair:
    """A changed recipe of `recipes/`; small_px is the size of its images on a CPU, own_px on a GPU."""

    setup: int
    title: str
    recipe: str
    changes: tuple[str, ...]
    classes: int
    small_px: int
    own_px: int
    batches: int
    channels: int = 3
    large: bool = False

    def resolved(self, px: int, changes: list[str]) -> Recipe:
        return load_recipe(RECIPES / f"{self.recipe}.yaml", [*RANDOM, *self.changes, f"data.resolution={px}", *changes])


UNFROZEN = ("student.freeze=none", "teacher.freeze=none")
FROZEN = ("student.allow_random_frozen=true",)
BIT_50X1 = ("teacher.model=bit_resnet50x1",)
PAIRS = [
    Pair(1, "ResNet50 -> ResNet18, kd", "cifar10_kd", UNFROZEN, 10, 64, 128, 4),
    Pair(2, "ResNet50 -> ResNet18 frozen, logit_mse", "hymenoptera_mse", FROZEN, 2, 64, 224, 4),
    Pair(2, "ResNet50 -> ResNet18, logit_mse", "hymenoptera_mse", UNFROZEN, 2, 64, 224, 4),
    Pair(3, "LeNet5 -> LeNet5, kd", "mnist_kd", (), 10, 32, 32, 25, channels=1),
    Pair(4, "ResNet50 -> MobileNetV2, kd", "cub_softtarget", (), 200, 64, 224, 2),
    Pair(4, "ResNet50 -> MobileNetV2, mgd", "cub_mgd", (), 200, 64, 224, 2),
    Pair(5, "BiT 50x1 -> ResNet50V2, kd, mixup", "flowers_funmatch", BIT_50X1, 102, 64, 128, 2),
    Pair(5, "BiT 101x3 -> ResNet50V2, kd, mixup", "flowers_funmatch", (), 102, 64, 128, 2, large=True),
]


def made_up(pair: Pair, px: int, images: int) -> Dataset:
    """Return a data set of random bytes, classes in turn. Validation and test are two images; nobody reads them."""
    pixels = torch.randint(0, 256, (images, pair.channels, px, px), dtype=torch.uint8)
    few, names, labels = torch.arange(2), tuple(map(str, range(pair.classes))), torch.arange(images) % pair.classes
    return tensor_dataset("made up", pixels, labels, names, (torch.arange(images), few, few))


class Ours:
    """kdtrain's own training, one epoch per call."""

    def __init__(self, recipe: Recipe, data: Dataset, device: torch.device) -> None:
        assert recipe.teacher is not None
        self.network = untrained_teacher(recipe.teacher, data)
        self.fresh_teacher = copy.deepcopy(self.network)
        self.state = assemble(recipe, data, [Teacher(self.network, device, recipe.method.needed_stages)], device)
        self.fresh_distiller = copy.deepcopy(self.state.distiller)

    def epoch(self) -> float:
        loss = train_epoch(self.state)["train/loss"]
        self.state.epoch += 1
        self.state.progress = EpochProgress(self.state.epoch)
        return loss


class ByHand:
    """The plain loop over the same images in the same order, from the same weights."""

    def __init__(self, ours: Ours) -> None:
        state, recipe = ours.state, ours.state.recipe
        self.state, self.epochs = state, 0
        student, criterion = ours.fresh_distiller.student, ours.fresh_distiller.criterion
        assert recipe.teacher is not None
        stage = next(iter(recipe.method.needed_stages), None)
        own = Tapped(student, stage, LAYOUTS[recipe.student.channels_last]).to(state.device)
        wanted = Tapped(ours.fresh_teacher.eval(), stage, LAYOUTS[recipe.teacher.channels_last]).to(state.device)
        trained = nn.ModuleList([own, criterion.to(state.device)])
        self.plain = Plain(
            student=torch.compile(own) if recipe.student.compile else own,
            teacher=torch.compile(wanted) if recipe.teacher.compile else wanted,
            loss=loss_of(recipe, criterion),
            trained=trained,
            optimizer=optimizer_of(recipe, trained),
            device=state.device,
            normalization=(student.mean, student.std) if student.has_normalization else None,
            layout=own.layout,
            autocast=AUTOCAST.get(recipe.precision),
            mixup=recipe.mixup is not None,
            clip_norm=recipe.clipping.norm if recipe.clipping else None,
        )
        images = state.data.train.images
        assert isinstance(images, TensorImages)
        self.pixels, self.labels = images.pixels.to(state.device), state.data.train.labels.to(state.device)

    def epoch(self) -> float:
        order = torch.randperm(len(self.labels), generator=generator(self.state.recipe.seed, "order", self.epochs))
        batches = order.to(self.labels.device).split(self.state.recipe.batch_size)
        self.epochs += 1
        return plain_epoch(self.plain, ((self.pixels[batch], self.labels[batch]) for batch in batches))


class Tapped(nn.Module):
    """A library's network without kdtrain: it returns logits, and the map at a stage if one is named."""

    def __init__(self, network: Classifier, stage: str | None, layout: torch.memory_format) -> None:
        super().__init__()
        self.encoder, self.head = network.encoder, network.head
        self.to(memory_format=layout)
        self.keeps_statistics, self.layout = network.freeze_statistics, layout
        self.kept: Tensor | None = None
        if stage is not None:
            self.encoder.get_submodule(MODELS[network.name].taps[stage]).register_forward_hook(self._keep)

    def forward(self, images: Tensor) -> Answer:
        logits = self.head(self.encoder(images.contiguous(memory_format=self.layout)))
        return logits, self.kept

    def train(self, mode: bool = True) -> "Tapped":
        super().train(mode)
        if self.keeps_statistics:
            self.encoder.eval()
        return self

    def _keep(self, module: nn.Module, inputs: Any, output: Tensor) -> None:
        self.kept = output


def loss_of(recipe: Recipe, criterion: Any) -> Any:
    """Return the loss written by hand: cross-entropy and the method's own term with the recipe's weights."""
    method: Any = recipe.method
    hard, soft = method.balance.weights
    own: dict[str, Callable[[Any, Any], Tensor]] = {
        "kd": lambda student, teacher: kd(student[0], teacher[0], method.temperature),
        "logit_mse": lambda student, teacher: functional.mse_loss(student[0].float(), teacher[0].float()),
        "mgd": lambda student, teacher: mgd(
            student[1], teacher[1], criterion.align, criterion.generation, method.mask_ratio, method.alpha
        ),
    }
    term = own[method.name]

    def loss(student: Answer, teacher: Answer, classes: Tensor) -> Tensor:
        distillation: Tensor = soft * term(student, teacher)
        if not hard:
            return distillation
        labels = functional.cross_entropy(student[0].float(), classes, label_smoothing=recipe.label_smoothing)
        return distillation.add(labels, alpha=hard)

    return loss


def optimizer_of(recipe: Recipe, module: nn.Module) -> torch.optim.Optimizer:
    """Return torch's own fused optimizer."""
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    config = recipe.optimizer
    if isinstance(config, Sgd):
        return torch.optim.SGD(trained, config.lr, config.momentum, weight_decay=config.weight_decay, fused=True)
    if isinstance(config, Adam):
        return torch.optim.Adam(trained, config.lr, weight_decay=config.weight_decay, fused=True)
    assert isinstance(config, AdamW)
    decay = config.weight_decay / config.lr if config.decay_times == "relative_lr" else config.weight_decay
    spared = [parameter for parameter in trained if parameter.ndim <= 1 and config.decay_on == "weights"]
    decayed = [parameter for parameter in trained if parameter.ndim > 1 or config.decay_on == "all"]
    groups = [{"params": decayed, "weight_decay": decay}, {"params": spared, "weight_decay": 0.0}]
    return torch.optim.AdamW([group for group in groups if group["params"]], config.lr, fused=True)
