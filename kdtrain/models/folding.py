"""Batch normalisation folded into the convolutions before it, where a network only answers."""

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from kdtrain.models.batch_norm import is_known
from kdtrain.models.classifier import Classifier
from kdtrain.models.stages import ExitHooks, dry_forward

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
    """For good; gives the modules in whose places it has put others. A compiled network is left as it is.

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
    return nn.Sequential(*(getattr(norm, name) for name in ("drop", "act") if hasattr(norm, name)))


_known: dict[tuple[str, str, tuple[int, ...]], Pairs] = {}
"""By a network's name, structure and images: one process trains many of a kind, and a dry forward takes 55 ms."""


def _pairs(network: Classifier) -> Pairs:
    key = network.name, repr(network), network.image_shape
    if key not in _known:
        _known[key] = _found(network)
    return _known[key]


def _found(network: Classifier) -> Pairs:
    """By a dry forward: a residual, or a stage, may read what a convolution gives, too."""
    norms = {name: each for name, each in network.named_modules() if isinstance(each, _BatchNorm)}
    if not norms:
        return ()
    given: dict[int, tuple[str, Tensor]] = {}
    calls: Counter[str] = Counter()
    pairs = []

    def note_convolution(name: str, output: Tensor) -> None:
        calls[name] += 1
        given[id(output)] = name, output
        reads.of.pop(id(output), None)  # of one that is gone

    def note_norm(name: str, taken: Tensor) -> None:
        calls[name] += 1
        if id(taken) in given:
            pairs.append((given[id(taken)][0], name, id(taken)))

    with ExitHooks() as hooks, _Reads() as reads:
        for name, module in network.named_modules():
            if type(module) is nn.Conv2d:
                hooks.add(module, lambda _, inputs, output, name=name: note_convolution(name, output))
        for name, norm in norms.items():
            if is_known(norm) and norm.track_running_stats:
                hooks.add(norm, lambda _, inputs, output, name=name: note_norm(name, inputs[0]))
        dry_forward(network, network.image_shape)
    return tuple(
        (convolution, norm)
        for convolution, norm, taken in pairs
        if calls[convolution] == calls[norm] == 1 and reads.of[taken] == 1
    )


class _Reads(TorchDispatchMode):
    """Counts the operations that read a tensor."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.of: Counter[int] = Counter()

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self.of.update({id(each) for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)})
        return func(*args, **(kwargs or {}))
