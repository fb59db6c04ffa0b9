"""Core ML: an mlprogram of one fixed shape. Converts everywhere; runs on a Mac, or op by op in torch (mil_interpreter.py)."""

import math
import platform
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from turbovaed_cli.errors import UnavailableError
from turbovaed_cli.exporters import Anatomy, Exporter, hushed
from turbovaed_cli.exporters.mil_interpreter import interpret


def _coremltools() -> Any:
    try:
        with hushed():
            import coremltools  # noqa: PLC0415 - four seconds that only this format needs
    except ImportError as error:
        raise UnavailableError(
            "coremltools is not on this machine", "it has no build for Windows or Python >= 3.14; convert elsewhere"
        ) from error
    return coremltools


def runs_here() -> bool:
    """Whether Core ML itself is on this machine."""
    return platform.system() == "Darwin"


def write(module: nn.Module, latents: Tensor, path: Path, precision: str, metadata: Mapping[str, str]) -> None:
    """Write `module` as an .mlpackage for iOS 17 and macOS 14 on: `latents` of exactly this shape in, `video` out, fp32 both."""
    coremltools = _coremltools()
    with hushed(), torch.no_grad():
        program = torch.export.export(module, (latents,)).run_decompositions({})
        model = coremltools.convert(
            program,
            inputs=[coremltools.TensorType(name="latents", shape=tuple(latents.shape))],
            outputs=[coremltools.TensorType(name="video")],
            convert_to="mlprogram",
            minimum_deployment_target=coremltools.target.iOS17,
            compute_precision=coremltools.precision.FLOAT16 if precision == "fp16" else coremltools.precision.FLOAT32,
            skip_model_load=True,
        )
        model.short_description = "Turbo-VAED student decoder: latents to video in [-1, 1]"
        model.license = metadata.get("licence", "")
        model.user_defined_metadata.update({f"turbovaed.{name}": value for name, value in metadata.items()})
        model.save(str(path))


def saved_program(path: Path) -> Any:
    """The MIL program of a saved package, weights included, as coremltools' own classes."""
    coremltools = _coremltools()
    with hushed():
        from coremltools.converters.mil.frontend.milproto import load  # noqa: PLC0415

        model = coremltools.models.MLModel(str(path), skip_model_load=True)
        spec = model.get_spec()
        return load.load(spec, spec.specificationVersion, model.weights_dir)


def run(path: Path, latents: Tensor) -> Tensor:
    """Decode with Core ML on a Mac; elsewhere walk the saved program in torch, each value rounded to its declared type."""
    if runs_here():
        model = _coremltools().models.MLModel(str(path))
        return torch.from_numpy(model.predict({"latents": latents.numpy()})["video"])
    return interpret(saved_program(path), {"latents": latents})["video"]


def anatomy(path: Path) -> Anatomy:
    """Operators, multiply-accumulates of convolutions, highest rank."""
    operators: Counter[str] = Counter()
    macs, rank = 0, 0
    for op in saved_program(path).functions["main"].operations:
        if op.op_type == "const":
            continue
        operators[op.op_type] += 1
        rank = max(rank, *(len(out.shape) for out in op.outputs))
        if op.op_type == "conv":
            _, per_group, *kernel = op.weight.val.shape
            macs += math.prod(op.outputs[0].shape) * per_group * math.prod(kernel)
    return Anatomy(operators, macs / 1e9, rank)


def verified_by() -> str:
    """What `run` is on this machine."""
    return "ran in Core ML" if runs_here() else "saved program run in torch; Core ML itself needs a Mac"


EXPORTER = Exporter("coreml", ".mlpackage", ("fp16", "fp32"), False, write, run, verified_by)
