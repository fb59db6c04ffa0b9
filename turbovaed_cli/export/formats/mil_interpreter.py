"""Run a saved Core ML program (MIL) in torch, op by op, so that Linux can check its numbers.

Every value is rounded to the type that the program declares for it, so fp16 overflow shows. Core ML's accumulation inside an
operation is not imitated. Source: the MIL operation set of coremltools, iOS 17.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from turbovaed_cli.errors import UnavailableError

Inputs = Mapping[str, Any]


def interpret(
    program: Any,
    inputs: Mapping[str, Tensor],
    function: str = "main",
    watch: Callable[[str, str, Any], None] = lambda _name, _kind, _value: None,
    state: dict[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """Run a function of `program` on `inputs` by name, in its declared shapes, and return its outputs by name, fp32.

    For whole clips these are latents (1, C, t, h, w) and video (1, 3, T, H, W). `watch` is called with the name, type and value
    of each operation. `state` holds the program's states and is updated. Raises UnavailableError for an operation that is not
    in OPERATIONS.
    """
    main = program.functions[function]
    values: dict[str, Any] = {name: _declared(main.inputs[name], value) for name, value in inputs.items()}
    last_used, state = _last_used(main), {} if state is None else state
    for op in main.operations:
        if op.op_type == "const":
            continue
        if op.op_type.startswith("constexpr_"):  # compressed weights, which Core ML unpacks the same way
            values[op.outputs[0].name] = _plain(op.materialized_val_inference())
            continue
        if op.op_type in ("read_state", "coreml_update_state"):  # zeros at first, as in Core ML
            variable = op.inputs["input" if op.op_type == "read_state" else "state"]
            if op.op_type == "coreml_update_state":
                state[variable.name] = _value_of(op.inputs["value"], values)
            values[op.outputs[0].name] = state.setdefault(variable.name, torch.zeros(tuple(variable.shape)))
            continue
        if op.op_type not in OPERATIONS:
            raise UnavailableError(f"the program has a {op.op_type}, which the interpreter does not support", "check it on a Mac")
        arguments = {name: _value_of(variable, values) for name, variable in op.inputs.items() if variable is not None}
        result = OPERATIONS[op.op_type](arguments)
        # Computed in fp32, then rounded to the declared type, as values between two operations are.
        values[op.outputs[0].name] = result.half().float() if _is_half(op.outputs[0]) else result
        watch(op.name, op.op_type, values[op.outputs[0].name])
        del arguments, result
        for name in last_used.get(op.name, ()):
            values.pop(name, None)
    return {output.name: values[output.name] for output in main.outputs}


def _last_used(main: Any) -> dict[str, list[str]]:
    """Return, by operation, the values that no later operation uses."""
    last: dict[str, str] = {}
    for op in main.operations:
        for variable in op.inputs.values():
            for item in variable if isinstance(variable, tuple | list) else [variable]:
                if item is not None:
                    last[item.name] = op.name
    kept = {output.name for output in main.outputs}
    gone: dict[str, list[str]] = {}
    for value, name in last.items():
        if value not in kept:
            gone.setdefault(name, []).append(value)
    return gone


def _declared(variable: Any, value: Tensor) -> Tensor:
    """Round an input to the type that the program declares."""
    if _is_half(variable):
        return value.half().float()
    return value.float() if value.is_floating_point() else value


def _is_half(variable: Any) -> bool:
    from coremltools.converters.mil.mil import types

    return bool(types.builtin_to_string(variable.dtype) == "fp16")


def _value_of(variable: Any, values: Mapping[str, Any]) -> Any:
    """Return a computed tensor, a constant as a tensor, or a plain Python value (sizes, flags, names)."""
    if isinstance(variable, tuple | list):
        return [_value_of(item, values) for item in variable]
    if variable.name in values:
        return values[variable.name]
    value = variable.val
    assert value is not None, f"{variable.name} is neither computed nor constant"
    return _plain(value)


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return torch.from_numpy(value.astype(np.float32)) if value.dtype.kind == "f" else value.tolist()
    if isinstance(value, np.floating):
        return float(value)
    return value.item() if isinstance(value, np.generic) else value


def _conv(a: Inputs) -> Tensor:
    x, weight = a["x"], a["weight"]
    rank = weight.ndim - 2
    pad = a.get("pad_type", "valid")
    if pad == "custom":
        sides = a["pad"]
        x = functional.pad(x, [side for i in reversed(range(rank)) for side in (sides[2 * i], sides[2 * i + 1])])
    elif pad == "same":
        reach = [(size - 1) // 2 for size in weight.shape[2:]]
        x = functional.pad(x, [side for size in reversed(reach) for side in (size, size)])
    convolve: Callable[..., Tensor] = functional.conv3d if rank == 3 else functional.conv2d
    return convolve(x, weight, a.get("bias"), a.get("strides", 1), 0, a.get("dilations", 1), a.get("groups", 1))


def _slice(a: Inputs) -> Tensor:
    x = a["x"]
    count = x.ndim
    begin_mask, end_mask, squeeze = (a.get(name) or [False] * count for name in ("begin_mask", "end_mask", "squeeze_mask"))
    stride = a.get("stride") or [1] * count
    index: list[Any] = []
    for i in range(count):
        if squeeze[i]:
            index.append(a["begin"][i])
        else:
            index.append(slice(None if begin_mask[i] else a["begin"][i], None if end_mask[i] else a["end"][i], stride[i]))
    return x[tuple(index)]


def _batch_norm(a: Inputs) -> Tensor:
    """Apply a channel-wise affine map; the converter makes it of multiplications and additions by constants."""
    return functional.batch_norm(a["x"], a["mean"], a["variance"], a.get("gamma"), a.get("beta"), eps=a.get("epsilon", 1e-5))


def _layer_norm(a: Inputs) -> Tensor:
    x, axes = a["x"], a["axes"]
    x = x - x.mean(axes, keepdim=True)
    x = x * torch.rsqrt(x.square().mean(axes, keepdim=True) + a["epsilon"])
    shape = [x.shape[i] if i in [axis % x.ndim for axis in axes] else 1 for i in range(x.ndim)]
    for name, combine in (("gamma", torch.mul), ("beta", torch.add)):
        if name in a:
            x = combine(x, a[name].reshape(shape))
    return x


def _reshape(a: Inputs) -> Tensor:
    shape = [a["x"].shape[i] if size == 0 else size for i, size in enumerate(a["shape"])]
    return a["x"].reshape(shape)


OPERATIONS: dict[str, Callable[[Inputs], Tensor]] = {
    "add": lambda a: _tensor(a["x"]) + _tensor(a["y"]),
    "batch_norm": _batch_norm,
    "cast": lambda a: _cast(_tensor(a["x"]), a["dtype"]),
    "concat": lambda a: torch.cat(a["values"], dim=a["axis"]),
    "conv": _conv,
    "expand_dims": lambda a: a["x"].reshape(_with_ones(a["x"], a["axes"])),
    "gather": lambda a: a["x"].index_select(a.get("axis", 0), _tensor(a["indices"]).long()),
    "greater_equal": lambda a: _tensor(a["x"]) >= _tensor(a["y"]),
    "identity": lambda a: a["x"],
    "layer_norm": _layer_norm,
    "maximum": lambda a: torch.maximum(_tensor(a["x"]), _tensor(a["y"])),
    "minimum": lambda a: torch.minimum(_tensor(a["x"]), _tensor(a["y"])),
    "mul": lambda a: _tensor(a["x"]) * _tensor(a["y"]),
    "pixel_shuffle": lambda a: functional.pixel_shuffle(a["x"], a["upscale_factor"]),
    "real_div": lambda a: a["x"] / a["y"],
    "reduce_mean": lambda a: a["x"].mean(a["axes"], keepdim=a.get("keep_dims", False)),
    "relu": lambda a: functional.relu(a["x"]),
    "reshape": _reshape,
    "rsqrt": lambda a: torch.rsqrt(a["x"] + a.get("epsilon", 1e-12)),
    "select": lambda a: torch.where(a["cond"], _tensor(a["a"]), _tensor(a["b"])),
    "silu": lambda a: functional.silu(a["x"]),
    "slice_by_index": _slice,
    "sqrt": lambda a: torch.sqrt(a["x"]),
    "square": lambda a: a["x"].square(),
    "squeeze": lambda a: a["x"].squeeze(tuple(a["axes"])),
    "sub": lambda a: _tensor(a["x"]) - _tensor(a["y"]),
    "transpose": lambda a: a["x"].permute(a["perm"]),
}


def _tensor(value: Any) -> Tensor:
    """Return a value as a tensor: integer constants are plain numbers and lists, except as operands of tensors."""
    return value if isinstance(value, Tensor) else torch.as_tensor(value)


def _cast(x: Tensor, dtype: str) -> Tensor:
    if dtype.startswith(("int", "uint")):
        return x.int()
    return x.half().float() if dtype == "fp16" else x.float()


def _with_ones(x: Tensor, axes: list[int]) -> list[int]:
    rank = x.ndim + len(axes)
    sizes = iter(x.shape)
    positions = {axis % rank for axis in axes}
    return [1 if i in positions else next(sizes) for i in range(rank)]
