"""Classifier: every network of this program, as one thing: it normalises pixels, gives logits and named features."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from kdtrain.errors import UserError
from kdtrain.models.config import Freeze
from kdtrain.models.feature_taps import ExitHooks, dry_forward, evaluating, measured_taps
from kdtrain.models.freezing import BATCH_NORMS, freeze
from kdtrain.models.source import ImageShape, Normalization

MEAN_AND_STD: dict[Normalization, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "half": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
}


class Classifier(nn.Module):
    """Images [N, C, H, W] in [0, 1] -> logits [N, K]: head(encoder(normalised images)).

    A grey channel is repeated where the encoder takes three. The stage "pool" is what the head takes, [N, C]; the
    others are maps [N, C, H, W] of the encoder. mean and std are no part of the state dict: they are the recipe's.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        name: str,
        encoder: nn.Module,
        head: nn.Module,
        image_shape: ImageShape,
        *,
        channels: int = 3,
        normalization: Normalization = "none",
        taps: dict[str, str] | None = None,
        freezing: Freeze = "none",
        keep_statistics: bool = False,
        channels_last: bool = False,
        compiled: bool = False,
    ) -> None:
        """compiled: `outputs` is compiled when first called, for each shape by itself, so that no order of calls
        changes what is computed."""
        super().__init__()
        if image_shape[0] not in (1, channels):
            raise UserError(f"{name} takes images of {channels} channels or one, got {image_shape[0]}")
        self.name = name
        self.encoder = encoder
        self.head = head
        self.image_shape = image_shape
        self.channels = channels
        self.keep_statistics = keep_statistics
        self.normalises = normalization != "none"
        if normalization != "none":
            for kind, values in zip(("mean", "std"), MEAN_AND_STD[normalization], strict=True):
                self.register_buffer(kind, torch.tensor(values).view(1, -1, 1, 1), persistent=False)
        self._taps = taps
        freeze(encoder, freezing, name)
        self.layout = torch.channels_last if channels_last else torch.contiguous_format
        self.to(memory_format=self.layout)
        self.compiled = compiled
        self._features: dict[str, Tensor] = {}
        self._run: Callable[[Tensor], tuple[Tensor, Tensor]] = self._pooled_and_logits
        self._tapped: tuple[str, ...] | None = None

    def forward(self, images: Tensor) -> Tensor:
        return self._pooled_and_logits(images)[1]

    def outputs(self, images: Tensor, stages: tuple[str, ...] = ()) -> tuple[Tensor, dict[str, Tensor]]:
        """Logits [N, K] and the named stages' features, of one forward.

        The hooks are this forward's alone: a deep copy of a hooked network would write into its original's features.
        A compiled forward has its hooks for good.
        """
        if self.compiled:
            return self._compiled_outputs(images, stages)
        modules = self._modules_at(stages)
        features: dict[str, Tensor] = {}
        with ExitHooks() as hooks:
            for stage, module in modules.items():
                hooks.add(module, lambda _, inputs, output, stage=stage: features.__setitem__(stage, output))
            features["pool"], logits = self._pooled_and_logits(images)
        return logits, {stage: features[stage] for stage in stages}

    def normalised(self, images: Tensor) -> Tensor:
        if images.shape[1] != self.channels:
            images = images.expand(-1, self.channels, -1, -1)
        images = (images - self.mean) / self.std if self.normalises else images
        return images.contiguous(memory_format=self.layout)

    def _compiled_outputs(self, images: Tensor, stages: tuple[str, ...]) -> tuple[Tensor, dict[str, Tensor]]:
        if self._tapped is None:
            for stage, module in self._modules_at(stages).items():
                module.register_forward_hook(lambda _, inputs, output, stage=stage: self._keep(stage, output))
            self._run, self._tapped = torch.compile(self._pooled_and_logits, dynamic=False), stages
        assert self._tapped == stages, "a compiled network gives the stages it was first asked for"
        self._features = {}  # the hooks note evaluation's features too, and what stands here is compiled for
        pooled, logits = self._run(images)
        features, self._features = {**self._features, "pool": pooled}, {}
        return logits, {stage: features[stage] for stage in stages}

    def _pooled_and_logits(self, images: Tensor) -> tuple[Tensor, Tensor]:
        pooled = self.encoder(self.normalised(images))
        return pooled, self.head(pooled)

    def _keep(self, stage: str, output: Tensor) -> None:
        self._features[stage] = output

    @property
    def stages(self) -> tuple[str, ...]:
        return (*self._measured(), "pool")

    def module_at(self, stage: str) -> nn.Module:
        """The module of the encoder whose output is the stage's map."""
        return self._modules_at((stage,))[stage]

    def stage_shapes(self, stages: tuple[str, ...]) -> dict[str, tuple[int, ...]]:
        """One image's shape at every stage, (C, H, W) or (C,), from a dry forward that computes and moves nothing."""
        if not stages:
            return {}
        modules = self._modules_at(stages)
        shapes: dict[str, tuple[int, ...]] = {}
        with ExitHooks() as hooks:
            for stage, module in modules.items():
                hooks.add(
                    module, lambda _, inputs, output, stage=stage: shapes.__setitem__(stage, tuple(output.shape[1:]))
                )
            shapes["pool"] = tuple(dry_forward(self.encoder, (self.channels, *self.image_shape[1:])).shape[1:])
        return {stage: shapes[stage] for stage in stages}

    def norm_over_images(self) -> str | None:
        """The first batch normalisation that, in training, has one value per channel of an image (a head's, or one of
        1 x 1 maps): of one image it has no statistics. By a dry forward."""
        found: list[str] = []

        def note(name: str, images: Tensor) -> None:
            if images.shape[2:].numel() == 1:
                found.append(name)

        with evaluating(self):  # it restores every module's own mode
            self.train()
            norms = [(name, m) for name, m in self.named_modules() if isinstance(m, BATCH_NORMS) and m.training]
        with ExitHooks() as hooks:
            for name, module in norms:
                hooks.add(module, lambda _, inputs, output, name=name: note(name, inputs[0]))
            dry_forward(self, (self.channels, *self.image_shape[1:]))
        return found[0] if found else None

    @property
    def frozen(self) -> frozenset[str]:
        """The names of the parameters that do not train."""
        return frozenset(name for name, parameter in self.named_parameters() if not parameter.requires_grad)

    def train(self, mode: bool = True) -> "Classifier":
        super().train(mode)
        if self.keep_statistics:
            for module in self.encoder.modules():
                if isinstance(module, BATCH_NORMS):
                    module.eval()
        return self

    def _measured(self) -> dict[str, str]:
        if self._taps is None:
            self._taps = measured_taps(self.encoder, self.channels, self.image_shape[1:])
        return self._taps

    def _modules_at(self, stages: tuple[str, ...]) -> dict[str, nn.Module]:
        if set(stages) <= {"pool"}:
            return {}
        unknown = [stage for stage in stages if stage not in self.stages]
        if unknown:
            raise UserError(f"{self.name} has no stage '{unknown[0]}'; it has {', '.join(self.stages)}")
        return {stage: self.encoder.get_submodule(self._measured()[stage]) for stage in stages if stage != "pool"}
