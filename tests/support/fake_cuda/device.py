"""A fake accelerator: tensors with shapes, dtypes and a device but no contents, and a meter of what their storages hold.

Works in a process that loaded the library of library.py before torch. Values that a program reads back from a tensor are
made up (0.5, 1 or True). Streams, pinned memory and synchronisation do nothing.
"""

import contextlib
import os
from collections.abc import Iterable, Iterator
from typing import Any
from weakref import finalize

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

SMALL = 64  # elements: a tensor of no more may be on the CPU, such as the losses of a step that are read back
_ASK_DEVICE = torch.ops.prim.device.default
_READ_BACK = torch.ops.aten._local_scalar_dense.default
_MODE: list[FakeTensorMode] = []


def kind() -> str:
    """The accelerator that this process has: "cuda" or "mps"."""
    return os.environ.get("FAKE_DEVICE", "cuda")


def device() -> torch.device:
    return torch.device(kind())


def install() -> None:
    """Replace what needs a real device. For the whole process, which does nothing else."""
    from torch.cuda.amp import common

    common.amp_definitely_not_available = lambda: False
    torch.cuda.is_bf16_supported = lambda *_, **__: True
    torch.cuda.Stream = _Stream
    torch.cuda.stream = contextlib.nullcontext
    torch.cuda.current_stream = _Stream
    torch.cuda.synchronize = torch.mps.synchronize = lambda *_: None
    Tensor.pin_memory = lambda self: self
    Tensor.record_stream = lambda self, stream: None
    tolist = Tensor.tolist
    Tensor.tolist = lambda self: _filled(self.shape) if isinstance(self, FakeTensor) else tolist(self)
    nn.Module._apply = _apply
    _MODE.append(FakeTensorMode(allow_non_fake_inputs=True))


def fakes() -> FakeTensorMode:
    """The mode in which every tensor is a fake one; one for the whole process, so that networks can be kept."""
    return _MODE[0]


class _Stream:
    def __init__(self, *_: object) -> None: ...

    def synchronize(self) -> None: ...


def _filled(shape: Iterable[int]) -> Any:
    first, *rest = shape if shape else (None,)
    return 0.5 if first is None else [_filled(rest) for _ in range(first)]


def _apply(module: nn.Module, convert: Any, recurse: bool = True) -> nn.Module:
    """What `nn.Module.to` comes to: fake parameters cannot move in place, so that new ones take their names."""
    for child in module.children():
        child._apply(convert)
    for name, value in [*module._parameters.items(), *module._buffers.items()]:
        if value is None:
            continue
        with torch.no_grad():
            moved = convert(value)
        if moved is not value and name in module._parameters:
            module._parameters[name] = nn.Parameter(moved, value.requires_grad)
        elif moved is not value:
            module._buffers[name] = moved
    return module


class Meter(TorchDispatchMode):
    """Count operations and the bytes of all storages on the device that are alive; refuse what a real device would.

    AssertionError for a float64 tensor on MPS, and within `nothing_on_the_cpu` for work on the CPU.
    """

    def __init__(self, *held: nn.Module) -> None:
        """`held`: networks that are on the device already."""
        super().__init__()
        self.live = self.peak = self.num_ops = 0
        self._refuses_cpu = False
        self._known: dict[int, int] = {}
        for module in held:
            for tensor in [*module.parameters(), *module.buffers()]:
                self._count(tensor)

    @property
    def peak_gb(self) -> float:
        return self.peak / 1e9

    @contextlib.contextmanager
    def nothing_on_the_cpu(self) -> Iterator[None]:
        """Refuse operations that make a tensor of more than SMALL elements on the CPU."""
        self._refuses_cpu = True
        try:
            yield
        finally:
            self._refuses_cpu = False

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is _ASK_DEVICE:  # of fakes alone: half of all that is dispatched, and nothing that a device does
            return args[0].fake_device
        self.num_ops += 1
        if function is _READ_BACK:
            return {torch.bool: True}.get(args[0].dtype, 0.5 if args[0].is_floating_point() else 1)
        made = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor):
                self._look_at(tensor, function)
        return made

    def _look_at(self, tensor: Tensor, function: Any) -> None:
        if tensor.device.type == kind():
            assert kind() != "mps" or tensor.dtype != torch.float64, f"{function} makes float64 on mps, which has none"
            self._count(tensor)
        elif self._refuses_cpu and tensor.device.type == "cpu":
            assert tensor.numel() <= SMALL, f"{function} makes {tuple(tensor.shape)} on the cpu within a step"

    def _count(self, tensor: Tensor) -> None:
        if tensor.device.type != kind():
            return
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key not in self._known:
            self._known[key] = size
            self.live += size
            self.peak = max(self.peak, self.live)
            finalize(storage, self._forget, key)

    def _forget(self, key: int) -> None:
        self.live -= self._known.pop(key, 0)


@contextlib.contextmanager
def metered(*held: nn.Module) -> Iterator[Meter]:
    """Run on the fake device, with a meter that knows `held`."""
    with fakes(), Meter(*held) as meter:
        yield meter
