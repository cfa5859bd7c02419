"""Flops: what the operations within it cost, by torch's own formulas."""

from typing import Any

from torch.utils.flop_counter import flop_registry

from kdtrain.models.operations import Operations


class Flops(Operations):
    """Counts 2 for each multiply-add of products and convolutions, as torch's FlopCounterMode does; that one imports
    torch's compiler first, which takes a process 2 CPU s."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def note(self, operation: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        formula = flop_registry.get(operation.overloadpacket)
        if formula is not None:
            self.total += int(formula(*args, **kwargs, out_val=out))
