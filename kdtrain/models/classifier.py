"""Classifier: every network of this program, as one module with logits and named features.

N images, C channels, H x W pixels, K classes.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from kdtrain.errors import UserError
from kdtrain.models.config import Freeze
from kdtrain.models.feature_taps import ForwardHooks, dry_forward, evaluation_mode, measure_taps
from kdtrain.models.freezing import BATCH_NORMS, freeze
from kdtrain.models.source import ImageShape, Normalization

MEAN_AND_STD: dict[Normalization, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "half": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
}


class Classifier(nn.Module):
    """A network from images [N, C, H, W] in [0, 1] to logits [N, K]: head(encoder(normalized images)).

    Images of another size are resized to the network's own: a teacher may have another resolution than its student,
    whose view it sees. A grey channel is repeated if the encoder takes three. The stage "pool" is the input of the
    head, [N, C]; the other stages are maps [N, C, H, W] of the encoder. The state dict has no mean and std: the recipe
    defines them.
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
        freeze_statistics: bool = False,
        channels_last: bool = False,
        compiled: bool = False,
        max_norm: float | None = None,
    ) -> None:
        """Assemble the network.

        Args:
            name: of the model, for errors.
            encoder: images [N, channels, H, W] -> features [N, C].
            head: features [N, C] -> logits [N, K].
            image_shape: (C, H, W) of the images.
            channels: input channels of the encoder.
            normalization: of the pixels.
            taps: {stage: module path in the encoder}; None measures them when they are first needed.
            freezing: which parameters of the encoder do not train.
            freeze_statistics: True keeps the encoder's batch normalizations in evaluation mode during training.
            channels_last: memory layout of maps and weights.
            compiled: True compiles `outputs` at its first call, for each input shape separately, so that the order of
                calls does not change the result.
            max_norm: upper bound of the L2 norm of each row of a linear layer's weights; see `constrain`.

        Raises:
            UserError: if the network cannot take images of so many channels, or nothing can be frozen.
        """
        super().__init__()
        if image_shape[0] not in (1, channels):
            raise UserError(f"{name} takes images of {channels} channels or one, got {image_shape[0]}")
        self.name = name
        self.encoder = encoder
        self.head = head
        self.image_shape = image_shape
        self.channels = channels
        self.freeze_statistics = freeze_statistics
        self.has_normalization = normalization != "none"
        if normalization != "none":
            for kind, values in zip(("mean", "std"), MEAN_AND_STD[normalization], strict=True):
                self.register_buffer(kind, torch.tensor(values).view(1, -1, 1, 1), persistent=False)
        self._taps = taps
        freeze(encoder, freezing, name)
        self.layout = torch.channels_last if channels_last else torch.contiguous_format
        self.to(memory_format=self.layout)
        self.compiled = compiled
        self.max_norm = max_norm
        self._features: dict[str, Tensor] = {}
        self._run: Callable[[Tensor], tuple[Tensor, Tensor]] = self._pooled_and_logits
        self._compiled_stages: tuple[str, ...] | None = None

    def forward(self, images: Tensor) -> Tensor:
        """Return logits [N, K] of images [N, C, H, W] in [0, 1]."""
        return self._pooled_and_logits(images)[1]

    def outputs(self, images: Tensor, stages: tuple[str, ...] = ()) -> tuple[Tensor, dict[str, Tensor]]:
        """Return logits [N, K] and the features of the named stages, all from one forward.

        Args:
            images: [N, C, H, W] in [0, 1].
            stages: names from `self.stages`. A compiled network must get the same ones at every call.

        Raises:
            UserError: if the network has no such stage.
        """
        if self.compiled:
            return self._compiled_outputs(images, stages)
        modules = self._modules_at(stages)
        features: dict[str, Tensor] = {}
        # The hooks are removed after this forward: a deep copy of a hooked network (an EMA) shares the hooks' closures
        # and would write into this network's features.
        with ForwardHooks() as hooks:
            for stage, module in modules.items():
                hooks.add(module, lambda _, inputs, output, stage=stage: features.__setitem__(stage, output))
            features["pool"], logits = self._pooled_and_logits(images)
        return logits, {stage: features[stage] for stage in stages}

    def normalize(self, images: Tensor) -> Tensor:
        """Return the input of the encoder, [N, channels, H, W], for images [N, C, H, W] in [0, 1] of any size."""
        if images.shape[2:] != self.image_shape[1:]:
            images = resized(images, self.image_shape[1:])
        if images.shape[1] != self.channels:
            images = images.expand(-1, self.channels, -1, -1)
        images = (images - self.mean) / self.std if self.has_normalization else images
        return images.contiguous(memory_format=self.layout)

    def _compiled_outputs(self, images: Tensor, stages: tuple[str, ...]) -> tuple[Tensor, dict[str, Tensor]]:
        if self._compiled_stages is None:
            for stage, module in self._modules_at(stages).items():
                module.register_forward_hook(lambda _, inputs, output, stage=stage: self._record(stage, output))
            self._run, self._compiled_stages = torch.compile(self._pooled_and_logits, dynamic=False), stages
        assert self._compiled_stages == stages, "a compiled network returns the stages of its first call"
        # An uncompiled forward in between records features too. If they stayed, the compiler's guards on this dict
        # would fail and it would compile again.
        self._features = {}
        pooled, logits = self._run(images)
        features, self._features = {**self._features, "pool": pooled}, {}
        return logits, {stage: features[stage] for stage in stages}

    def _pooled_and_logits(self, images: Tensor) -> tuple[Tensor, Tensor]:
        pooled = self.encoder(self.normalize(images))
        return pooled, self.head(pooled)

    def _record(self, stage: str, output: Tensor) -> None:
        self._features[stage] = output

    @property
    def stages(self) -> tuple[str, ...]:
        """Names of all stages of this network."""
        return (*self._measured_taps(), "pool")

    def module_at(self, stage: str) -> nn.Module:
        """Return the module of the encoder whose output is the stage's map.

        Raises:
            UserError: if the network has no such stage.
        """
        return self._modules_at((stage,))[stage]

    def stage_shapes(self, stages: tuple[str, ...]) -> dict[str, tuple[int, ...]]:
        """Return the shape of one image at every stage, (C, H, W) or (C,), from a dry forward.

        Raises:
            UserError: if the network has no such stage.
        """
        if not stages:
            return {}
        modules = self._modules_at(stages)
        shapes: dict[str, tuple[int, ...]] = {}
        with ForwardHooks() as hooks:
            for stage, module in modules.items():
                hooks.add(
                    module, lambda _, inputs, output, stage=stage: shapes.__setitem__(stage, tuple(output.shape[1:]))
                )
            shapes["pool"] = tuple(dry_forward(self.encoder, (self.channels, *self.image_shape[1:])).shape[1:])
        return {stage: shapes[stage] for stage in stages}

    def norm_over_images(self) -> str | None:
        """Return the name of the first batch normalization that sees one value per channel of an image, or None.

        It is a head's, or one of 1 x 1 maps; in training it has no statistics if the batch is one image. Only
        modules that compute statistics in training count. Measured by a dry forward.
        """
        found: list[str] = []

        def note(name: str, images: Tensor) -> None:
            if images.shape[2:].numel() == 1:
                found.append(name)

        with evaluation_mode(self):  # it restores the mode of every module
            self.train()
            norms = [(name, m) for name, m in self.named_modules() if isinstance(m, BATCH_NORMS) and m.training]
        with ForwardHooks() as hooks:
            for name, module in norms:
                hooks.add(module, lambda _, inputs, output, name=name: note(name, inputs[0]))
            dry_forward(self, (self.channels, *self.image_shape[1:]))
        return found[0] if found else None

    @torch.no_grad()
    def constrain(self) -> None:
        """Scale down the incoming weights of each unit whose L2 norm is above `max_norm`; called after each update.

        These are the rows of the weights of every linear layer that trains (Hinton et al. 2012, arXiv:1207.0580;
        Srivastava et al. 2014, section 5.1). Biases are free.
        """
        if self.max_norm is None:
            return
        for module in self.modules():
            if isinstance(module, nn.Linear) and module.weight.requires_grad:
                module.weight.renorm_(2, 0, self.max_norm)

    @property
    def frozen(self) -> frozenset[str]:
        """Names of the parameters that do not train."""
        return frozenset(name for name, parameter in self.named_parameters() if not parameter.requires_grad)

    def train(self, mode: bool = True) -> "Classifier":
        """Set training mode, except for batch normalizations whose statistics are frozen."""
        super().train(mode)
        if self.freeze_statistics:
            for module in self.encoder.modules():
                if isinstance(module, BATCH_NORMS):
                    module.eval()
        return self

    def _measured_taps(self) -> dict[str, str]:
        if self._taps is None:
            self._taps = measure_taps(self.encoder, self.channels, self.image_shape[1:])
        return self._taps

    def _modules_at(self, stages: tuple[str, ...]) -> dict[str, nn.Module]:
        if set(stages) <= {"pool"}:
            return {}
        unknown = [stage for stage in stages if stage not in self.stages]
        if unknown:
            raise UserError(f"{self.name} has no stage '{unknown[0]}'; it has {', '.join(self.stages)}")
        taps = self._measured_taps()
        return {stage: self.encoder.get_submodule(taps[stage]) for stage in stages if stage != "pool"}


def resized(images_NCHW: Tensor, size: tuple[int, int]) -> Tensor:
    """Return images resized to (H, W): bilinear, and antialiased if a side becomes shorter."""
    shrinks = any(new < old for new, old in zip(size, images_NCHW.shape[2:], strict=True))
    # contiguous: the kernel, and with it the rounding, depends on the layout, which differs between live and cached
    return functional.interpolate(
        images_NCHW.contiguous(), size, mode="bilinear", antialias=shrinks, align_corners=False
    )
