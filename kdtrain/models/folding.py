"""Batch normalisation folded into the convolutions before it, where a network only answers."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.utils._pytree import tree_leaves

from kdtrain.models.classifier import Classifier
from kdtrain.models.feature_taps import ExitHooks, dry_forward
from kdtrain.models.operations import Operations
from kdtrain.models.sync_batch_norm import is_known

Modules = dict[str, nn.Module]
"""By their names in a network."""
Pairs = tuple[tuple[str, str], ...]
"""The names of a convolution and of the batch normalisation that alone reads what it gives."""


@contextmanager
def folded(network: nn.Module) -> Iterator[None]:
    """Within, a Classifier in evaluation mode gives the same up to rounding, with the weights that it has on entering.
    Afterwards it is what it was."""
    own = fold(network)
    try:
        yield
    finally:
        _put(network, own)


def fold(network: nn.Module) -> Modules:
    """Puts other modules in places of a Classifier, which is in evaluation mode, and gives those that stood there. A
    compiled network is left as it is.

    Of Wx + b, and (y - mean) / deviation * scale + shift of that, it makes one convolution, whose weights are
    W * scale / deviation (Jacob et al. 2018, arXiv:1712.05877, section 3.2).
    """
    if not isinstance(network, Classifier) or network.compiled:
        return {}
    own: Modules = {}
    others: Modules = {}
    for of_convolution, of_norm in _pairs(network):
        convolution, norm = network.get_submodule(of_convolution), network.get_submodule(of_norm)
        assert isinstance(convolution, nn.Conv2d)
        assert isinstance(norm, _BatchNorm)
        own |= {of_convolution: convolution, of_norm: norm}
        others |= {of_convolution: fuse_conv_bn_eval(convolution, norm), of_norm: _after(norm)}
    _put(network, others)
    return own


def _put(network: nn.Module, modules: Modules) -> None:
    for name, module in modules.items():
        network.set_submodule(name, module)


def _after(norm: _BatchNorm) -> nn.Module:
    """What timm's BatchNormAct2d does after normalising; nothing in a plain one."""
    after = [getattr(norm, name) for name in ("drop", "act") if hasattr(norm, name)]
    return nn.Sequential(*after) if after else nn.Identity()


_known: dict[tuple[object, ...], Pairs] = {}
"""By a network's name, structure and images: one process trains many of a kind, and a dry forward takes 55 ms."""


def _pairs(network: Classifier) -> Pairs:
    structure = tuple((name, type(module)) for name, module in network.named_modules())
    key = network.name, network.image_shape, structure
    if key not in _known:
        _known[key] = _found(network)
    return _known[key]


@torch.inference_mode()  # which operations there are depends on it
def _found(network: Classifier) -> Pairs:
    """By a dry forward: a residual may read what a convolution gives, too. What has two names, or is called twice, is
    left. (A stage is never such a convolution's output: the last map at a stride counts, and the norm's comes later.)
    """
    named = list(network.named_modules(remove_duplicate=False))
    names = Counter(id(module) for _, module in named)
    once = {name: module for name, module in named if names[id(module)] == 1}
    convolutions = {name: each for name, each in once.items() if type(each) is nn.Conv2d}
    norms = {
        name: each
        for name, each in once.items()
        if isinstance(each, _BatchNorm) and is_known(each) and each.track_running_stats
    }
    if not norms:
        return ()
    calls: Counter[str] = Counter()
    pairs: list[tuple[str, str, int]] = []

    def note_convolution(name: str, output: Tensor) -> None:
        calls[name] += 1
        reads.given[id(output)] = name, output

    def note_norm(name: str, taken: Tensor) -> None:
        calls[name] += 1
        if id(taken) in reads.given:
            pairs.append((reads.given[id(taken)][0], name, id(taken)))

    with ExitHooks() as hooks, _Reads() as reads:
        for name, convolution in convolutions.items():
            hooks.add(convolution, lambda _, inputs, output, name=name: note_convolution(name, output))
        for name, norm in norms.items():
            hooks.add(norm, lambda _, inputs, output, name=name: note_norm(name, inputs[0]))
        dry_forward(network, network.image_shape)
    return tuple(
        (of_convolution, of_norm)
        for of_convolution, of_norm, taken in pairs
        if calls[of_convolution] == calls[of_norm] == 1 and reads.of[taken] == 1
    )


class _Reads(Operations):
    """Counts the operations that read a tensor which a convolution has given; it keeps these, and so their ids."""

    def __init__(self) -> None:
        super().__init__()
        self.given: dict[int, tuple[str, Tensor]] = {}
        self.of: Counter[int] = Counter()

    def note(self, operation: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        self.of.update(self.given.keys() & {id(each) for each in tree_leaves((args, kwargs))})
