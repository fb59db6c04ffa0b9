"""ONNX: one graph for every frame count and size, run by ONNX Runtime."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from turbovaed_cli.errors import UnavailableError
from turbovaed_cli.exporters import Exporter, hushed

OPSET = 18
_MOST_FRAMES, _MOST_CELLS = 8192, 2048  # latent frames, and latent rows or columns, that the graph promises to take


class _HalfInside(nn.Module):
    """fp32 latents in, fp32 video out, everything between in fp16."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner.half()

    def forward(self, latents: Tensor) -> Tensor:
        return cast(Tensor, self.inner(latents.half())).float()


def write(module: nn.Module, latents: Tensor, path: Path, precision: str, metadata: Mapping[str, str]) -> None:
    """Write `module` as ONNX opset 18 with inputs `latents` (1, C, t, h, w) and outputs `video` (1, 3, T, H, W), fp32 both.

    t, h and w are dynamic, except that one latent frame (t = 1) makes a graph of its own.
    """
    import onnx  # noqa: PLC0415 - only this format needs it

    module = _HalfInside(module) if precision == "fp16" else module
    sizes = {3: torch.export.Dim("h", min=1, max=_MOST_CELLS), 4: torch.export.Dim("w", min=1, max=_MOST_CELLS)}
    if latents.shape[2] > 1:
        sizes[2] = torch.export.Dim("t", min=2, max=_MOST_FRAMES)
    # A size of 1 would be taken for a constant: trace with at least two of each.
    example = torch.zeros(
        1, latents.shape[1], min(latents.shape[2], 3), max(2, min(latents.shape[3], 4)), max(3, min(latents.shape[4], 5))
    )
    with hushed(), torch.no_grad():
        program = torch.export.export(module, (example,), dynamic_shapes=(sizes,))
        converted = torch.onnx.export(
            program,
            (example,),
            dynamo=True,
            opset_version=OPSET,
            input_names=["latents"],
            output_names=["video"],
            external_data=False,
            verbose=False,
        )
    assert converted is not None
    proto = converted.model_proto
    for value, names in (
        (proto.graph.input[0], (None, None, "t", "h", "w")),
        (proto.graph.output[0], (None, None, "T", "H", "W")),
    ):
        for dimension, name in zip(value.type.tensor_type.shape.dim, names, strict=True):
            if name and not dimension.dim_value:
                dimension.dim_param = name
    onnx.helper.set_model_props(proto, dict(metadata))
    onnx.checker.check_model(proto)
    onnx.save(proto, str(path))


def session(path: Path, threads: int = 0, providers: Sequence[str] = ("CPUExecutionProvider",)) -> Any:
    """An ONNX Runtime session on exactly these providers; UnavailableError where one is not there."""
    import onnxruntime  # noqa: PLC0415

    missing = [name for name in providers if name not in onnxruntime.get_available_providers()]
    if missing:
        raise UnavailableError(
            f"ONNX Runtime has no {missing[0]} here", f"it has: {', '.join(onnxruntime.get_available_providers())}"
        )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(path), options, providers=list(providers))


def run(path: Path, latents: Tensor) -> Tensor:
    """Decode with ONNX Runtime on the CPU."""
    return torch.from_numpy(session(path).run(None, {"latents": latents.numpy()})[0])


def verified_by() -> str:
    """What `run` is."""
    import onnxruntime  # noqa: PLC0415

    return f"ran in ONNX Runtime {onnxruntime.__version__}, CPU"


EXPORTER = Exporter("onnx", ".onnx", ("fp32", "fp16"), True, write, run, verified_by)
