"""A stand-in for GPUs: tensors that compute on the CPU and report another device, and a count of the host's waits.

    with StandIn() as devices:
        state = fresh_state(config, device=devices.cuda(1))
        with devices.counting() as waits:
            train_step(state, indices)
    assert not waits

Inside the context `device="cuda:0"`, `"cuda:1"` and `"mps:0"` exist. Operations raise as CUDA does if devices mix
(0-dimensional CPU tensors may join), each device has its own random generator, and `mps` refuses float64. A wait is
what makes the host wait until the device has finished: reading a value (`item`, `tolist`, `bool`), a shape that
depends on values (`nonzero`, a boolean index), a blocking copy between host and device, a copy from memory that is
not pinned (the driver may stage it), a tensor made on the device from Python numbers.

Results equal those of the CPU bit for bit, so a training on the stand-in must repeat the CPU's rows.

What it cannot see:

* the numbers of GPU kernels: their rounding, cuDNN, TF32, cuBLAS and whether they are deterministic;
* what C++ chooses by the device, since C++ takes all tensors for the CPU's: autocast's list of operations, the kernels
  of batch normalization, dropout and attention;
* memory: peaks are counters that the tests set; there is no out of memory and no allocator;
* streams and races: a copy is done at once, so memory that is reused too early shows no wrong value;
* waits inside a kernel, in C++ (an operation that reads its own result), and those of `torch.compile`, NCCL and DDP;
* real pinned memory, and loader processes that pin it;
* time.
"""

import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode  # the name under which torch documents it
from torch.utils._pytree import tree_map  # torch has no public name for it; without it lists are unwrapped by hand

CPU = torch.device("cpu")
FROM_PYTHON = ("tensor", "as_tensor", "asarray", "scalar_tensor", "new_tensor")
NOT_MIXED = ("cat", "stack")
"""Operations that refuse a 0-dimensional CPU tensor among the device's."""
READS_SHAPE = (torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape)


class DeviceTensor(torch.Tensor):
    """A tensor of a stand-in device. `inner` holds its values on the CPU; C++ takes it for a CPU tensor too."""

    inner: torch.Tensor
    own_device: torch.device
    in_context: "ClassVar[StandIn]"
    """Set by the context, since a data set that a test session loads once keeps its tensors beyond one context."""
    __torch_function__ = torch._C._disabled_torch_function_impl  # otherwise every result is wrapped once more

    @staticmethod
    def __new__(cls, inner: torch.Tensor, device: torch.device) -> "DeviceTensor":
        made = torch.Tensor._make_wrapper_subclass(  # torch documents __torch_dispatch__ with it, and no public name
            cls, inner.shape, strides=inner.stride(), storage_offset=inner.storage_offset(), dtype=inner.dtype,
            device=CPU,
        )  # fmt: skip
        made.inner, made.own_device = inner, device
        return made

    @property
    def device(self) -> torch.device:
        return self.own_device

    @property
    def is_cuda(self) -> bool:
        return self.own_device.type == "cuda"

    @property
    def is_cpu(self) -> bool:
        return False

    @property
    def data(self) -> torch.Tensor:
        return self.detach()

    def untyped_storage(self) -> torch.UntypedStorage:
        return self.inner.untyped_storage()

    def __deepcopy__(self, memo: dict) -> "DeviceTensor":
        made = DeviceTensor(self.inner.detach().clone(), self.own_device)
        made.requires_grad_(self.requires_grad)
        if isinstance(self, torch.nn.Parameter):
            made._is_param = True
        memo[id(self)] = made
        return made

    def __repr__(self) -> str:
        return f"DeviceTensor({tuple(self.shape)}, {self.dtype}, {self.own_device})"

    @classmethod
    def __torch_dispatch__(
        cls, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        found: list[torch.Tensor] = []
        tree_map(lambda x: found.append(x) if isinstance(x, torch.Tensor) else None, (args, kwargs or {}))
        own = [each for each in found if isinstance(each, DeviceTensor)]
        devices, device = cls.in_context, own[0].device
        name = func.overloadpacket.__name__
        if name in ("copy_", "_foreach_copy_"):
            device = devices.check_copy(name, args, kwargs or {})
        else:
            devices.check_operation(name, func, found, args)
        wrapper_of = {id(each.inner): each for each in own}

        def plain(value: Any) -> Any:
            return value.inner if isinstance(value, DeviceTensor) else value

        def wrapped(value: Any) -> Any:
            if not isinstance(value, torch.Tensor) or device == CPU:
                return value
            known = wrapper_of.get(id(value))
            return devices.wrap(value, device) if known is None else known

        draws = device != CPU and torch.Tag.nondeterministic_seeded in func.tags
        with devices.generator(device) if draws else nullcontext():
            result = func(*tree_map(plain, args), **tree_map(plain, kwargs or {}))
        # a view of a tensor that autograd tracks is tracked in inference mode too
        with torch.inference_mode(
            torch.is_inference_mode_enabled() and not (func.is_view and not own[0].is_inference())
        ):
            return tree_map(wrapped, result)


class StandIn(TorchFunctionMode):
    """Two CUDA devices and an MPS device, as a context; `waits` names what made the host wait, with our line."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[str] = []
        self.current = 0
        self.peak_bytes: dict[int, int] = {0: 0, 1: 0}
        seeded = {"cuda:0": 10, "cuda:1": 11, "mps:0": 12}
        self._states = {name: torch.Generator().manual_seed(seed).get_state() for name, seed in seeded.items()}
        self._stack = ExitStack()

    def cuda(self, index: int = 0) -> torch.device:
        return torch.device("cuda", index)

    @contextmanager
    def counting(self) -> Iterator[list[str]]:
        """Return the list that gets the waits inside the context."""
        before, self.waits = self.waits, []
        try:
            yield self.waits
        finally:
            self.waits = before

    def __enter__(self) -> "StandIn":
        patch = self._stack.enter_context(pytest.MonkeyPatch.context())
        self._stack.enter_context(torch.autograd.set_multithreading_enabled(False))
        kept = torch.__future__.get_overwrite_module_params_on_conversion()
        # Module.to would set `parameter.data`, which replaces the C++ tensor but not `inner`
        torch.__future__.set_overwrite_module_params_on_conversion(True)
        self._stack.callback(torch.__future__.set_overwrite_module_params_on_conversion, kept)
        for module, functions in self._driver().items():
            for name, function in functions.items():
                patch.setattr(module, name, function)
        DeviceTensor.in_context = self
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._stack.close()

    # the driver: what torch.cuda and torch.mps answer

    def _driver(self) -> dict[Any, dict[str, Any]]:
        def state(device: Any = "cuda") -> torch.Tensor:
            return self._states[self._name(device)].clone()

        def set_state(new: torch.Tensor, device: Any = "cuda") -> None:
            self._states[self._name(device)] = new.clone()

        def seed(number: int, device: Any = "cuda") -> None:
            set_state(torch.Generator().manual_seed(number).get_state(), device)

        def seed_all(number: int) -> None:
            for name in self._states:
                seed(number, name)

        def reset_peak(device: Any = None) -> None:
            self.peak_bytes[self._index(device)] = 0

        return {
            torch: {"autocast": _CpuAutocast},
            torch.cuda: {
                "is_available": lambda: True,
                "device_count": lambda: 2,
                "current_device": lambda: self.current,
                "set_device": lambda device: setattr(self, "current", self._index(device)),
                "device": self._selected,
                "manual_seed": seed,
                "manual_seed_all": seed_all,
                "get_rng_state": state,
                "set_rng_state": set_state,
                "get_device_name": lambda device=None: "a stand-in",
                "get_device_capability": lambda device=None: (9, 0),
                "is_current_stream_capturing": lambda: False,
                "max_memory_allocated": lambda device=None: self.peak_bytes[self._index(device)],
                "max_memory_reserved": lambda device=None: self.peak_bytes[self._index(device)],
                "get_device_properties": lambda device=None: SimpleNamespace(total_memory=24 << 30),
                "reset_peak_memory_stats": reset_peak,
                "synchronize": lambda device=None: self.wait("synchronize"),
            },
            torch.mps: {
                "manual_seed": lambda number: seed(number, "mps:0"),
                "get_rng_state": lambda: state("mps:0"),
                "set_rng_state": lambda new: set_state(new, "mps:0"),
                "driver_allocated_memory": lambda: 0,
            },
            torch.accelerator: {"current_accelerator": lambda check_available=False: None},  # no graphs are captured
            # optimizers and clipping group tensors in C++, for which all of them are on the CPU
            torch._C: {"_group_tensors_by_device_and_dtype": _grouped},
        }

    @contextmanager
    def _selected(self, device: Any) -> Iterator[None]:
        before, self.current = self.current, self._index(device)
        try:
            yield
        finally:
            self.current = before

    def _index(self, device: Any) -> int:
        if isinstance(device, int):
            return device
        index = torch.device(device).index if device is not None else None
        return self.current if index is None else index

    def _name(self, device: Any) -> str:
        if isinstance(device, int):
            return f"cuda:{device}"
        return str(self.placed(torch.device(device)))

    def placed(self, device: torch.device) -> torch.device:
        """Return a device with its index."""
        if device.type not in ("cuda", "mps") or device.index is not None:
            return device
        return torch.device(device.type, self.current if device.type == "cuda" else 0)

    # what happens to tensors

    def wait(self, what: str) -> None:
        """Count a wait, with the innermost line of kdtrain."""
        frames = [frame for frame in traceback.extract_stack() if "/kdtrain/" in frame.filename]
        place = f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else "outside"
        self.waits.append(f"{place} {what}")

    def wrap(self, values: torch.Tensor, device: torch.device) -> torch.Tensor:
        """Return values of the CPU as a tensor of the device."""
        if device.type == "mps" and values.dtype == torch.float64:
            raise TypeError("Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support float64")
        return DeviceTensor(values, device)

    def move(self, values: torch.Tensor, device: torch.device, non_blocking: bool) -> torch.Tensor:
        """Return a copy on another device."""
        if torch.is_grad_enabled() and values.requires_grad:
            raise NotImplementedError("the stand-in copies no tensor with gradient between devices")
        source = values.device
        inner = values.inner if isinstance(values, DeviceTensor) else values
        if device.type == "meta":
            return inner.to("meta")
        if CPU in (source, device):
            self._check_transfer("to", values, non_blocking)
        with torch.no_grad():
            copied = inner.detach().clone()
        return copied if device == CPU else self.wrap(copied, device)

    def check_copy(self, name: str, args: Sequence[Any], kwargs: dict[str, Any]) -> torch.device:
        """Count the waits of copy_ and return the device of its result."""
        targets, sources = (list(each) if isinstance(each, (list, tuple)) else [each] for each in args[:2])
        non_blocking = kwargs.get("non_blocking", args[2] if len(args) > 2 else False)
        for target, source in zip(targets, sources, strict=True):
            if CPU in (target.device, source.device) and target.device != source.device:
                self._check_transfer(name, source if source.device == CPU else target, non_blocking)
        return targets[0].device

    def _check_transfer(self, name: str, host: torch.Tensor, non_blocking: bool) -> None:
        if not non_blocking:
            self.wait(f"{name}, blocking")
        elif host.device == CPU and not getattr(host, "is_in_pinned_memory", False):
            self.wait(f"{name}, {host.nbytes} bytes of memory that is not pinned")

    def check_operation(self, name: str, func: Any, found: Sequence[torch.Tensor], args: Sequence[Any]) -> None:
        """Raise if devices mix; count a wait if the operation reads values."""
        indices: list[torch.Tensor] = []
        if name in ("index", "index_put", "index_put_", "_index_put_impl_"):
            indices = [each for each in args[1] if each is not None]
        for each in indices:
            if each.dtype in (torch.bool, torch.uint8):
                self.wait(f"{name} by a mask")
            if each.device == CPU:
                self.wait(f"{name} by an index of the CPU")
        on = {each.device for each in found if not any(each is index for index in indices) and not _scalar(name, each)}
        if len(on) > 1:
            both = " and ".join(sorted(map(str, on)))
            raise RuntimeError(
                f"Expected all tensors to be on the same device, but found at least two: {both} ({name})"
            )
        if not indices and any(tag in func.tags for tag in READS_SHAPE):
            self.wait(name)

    @contextmanager
    def generator(self, device: torch.device) -> Iterator[None]:
        """Let what is drawn inside the context come from the device's own generator."""
        kept, name = torch.default_generator.get_state(), str(device)
        torch.default_generator.set_state(self._states[name])
        try:
            yield
        finally:
            self._states[name] = torch.default_generator.get_state()
            torch.default_generator.set_state(kept)

    # Python's calls

    def __torch_function__(
        self, func: Callable, types: Sequence[type], args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        name = getattr(func, "__name__", "")
        if func in (torch.Tensor.to, torch.Tensor.cpu, torch.Tensor.cuda):
            return self._to(name, *args, **kwargs)
        if func is torch.Tensor.pin_memory:
            pinned = args[0].clone()
            pinned.is_in_pinned_memory = True
            return pinned
        if func is torch.Tensor.is_pinned:
            return getattr(args[0], "is_in_pinned_memory", False)
        if func in (torch.Tensor.backward, torch.autograd.grad):
            first = args[0] if isinstance(args[0], torch.Tensor) else args[0][0]
            with _Backward(self, first.device):
                return func(*args, **kwargs)
        if args and isinstance(args[0], DeviceTensor):
            if func is torch.Tensor.numpy:
                raise TypeError(f"can't convert {args[0].device} device type tensor to numpy")
            if func is torch.Tensor.tolist:
                self.wait("tolist")
                return args[0].inner.tolist()
        if kwargs.get("device") is None:
            return func(*args, **kwargs)
        device = self.placed(torch.device(kwargs.pop("device")))
        plain = tree_map(lambda x: x.inner if isinstance(x, DeviceTensor) else x, args)
        if device.type not in ("cuda", "mps"):
            return func(*plain, device=device, **kwargs)
        if name in FROM_PYTHON:
            self.wait(name)
        needs_grad = kwargs.pop("requires_grad", False)
        with self.generator(device):
            made = func(*plain, device=CPU, **kwargs)
        return self.wrap(made, device).requires_grad_(needs_grad)

    def _to(self, name: str, values: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        device, dtype, flags = kwargs.pop("device", None), kwargs.pop("dtype", None), []
        for each in args:
            if isinstance(each, torch.Tensor):
                device, dtype = each.device, each.dtype
            elif isinstance(each, torch.dtype):
                dtype = each
            elif isinstance(each, bool):
                flags.append(each)
            elif each is not None:
                device = each
        device = name if name in ("cpu", "cuda") and device is None else device
        non_blocking = kwargs.pop("non_blocking", flags[0] if flags else False)
        device = values.device if device is None else self.placed(torch.device(device))
        if device != values.device:
            values = self.move(values, device, non_blocking)
        made: torch.Tensor = torch.Tensor.to(values, dtype=dtype or values.dtype, **kwargs)
        return made


class _Backward(TorchDispatchMode):
    """Puts the zeros on the device that autograd makes in C++, for which all tensors are on the CPU."""

    def __init__(self, devices: StandIn, device: torch.device) -> None:
        super().__init__()
        self.devices, self.device = devices, device

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        from_nothing = isinstance(result, torch.Tensor) and not any(isinstance(x, torch.Tensor) for x in args)
        on_device = from_nothing and self.device != CPU and not isinstance(result, DeviceTensor)
        return self.devices.wrap(result, self.device) if on_device else result


class _CpuAutocast(torch.autocast):
    """autocast of any device by that of the CPU, as which C++ sees the stand-in's tensors."""

    def __init__(self, device_type: str, dtype: torch.dtype | None = None, enabled: bool = True) -> None:
        super().__init__("cpu", dtype, enabled)


def _scalar(name: str, values: torch.Tensor) -> bool:
    return values.device == CPU and values.dim() == 0 and name not in NOT_MIXED


def _grouped(lists: list[list[torch.Tensor | None]], with_indices: bool = False) -> dict:
    """Group tensors by device and type, as torch's function in C++ does."""
    groups: dict = {}
    for index, row in enumerate(zip(*(each or [None] * len(lists[0]) for each in lists), strict=True)):
        first = row[0]
        assert first is not None
        columns, indices = groups.setdefault((first.device, first.dtype), ([[] for _ in lists], []))
        for column, value, whole in zip(columns, row, lists, strict=True):
            if whole:
                column.append(value)
        indices.append(index)
    return {key: (columns, indices if with_indices else []) for key, (columns, indices) in groups.items()}
