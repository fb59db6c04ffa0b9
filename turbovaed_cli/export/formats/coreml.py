"""Core ML: an mlprogram of fixed shapes. It converts everywhere, and runs on a Mac or op by op in torch (mil_interpreter.py)."""

import platform
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from turbovaed_cli.errors import UnavailableError
from turbovaed_cli.export.chunks import Decode
from turbovaed_cli.export.format import Anatomy, Exporter, Graph, num_conv3d
from turbovaed_cli.export.formats.mil_interpreter import interpret
from turbovaed_cli.export.formats.sensitivity import sensitive_weights
from turbovaed_cli.reporting import hushed

BITS = {"int8": 8, "6bit": 6}  # of weights


def coremltools() -> Any:
    """Import and return coremltools. Raises UnavailableError if it is not installed."""
    try:
        with hushed():
            import coremltools
    except ImportError as error:
        raise UnavailableError(
            "coremltools is not on this machine", "it has no build for Windows or Python >= 3.14; convert elsewhere"
        ) from error
    return coremltools


def runs_here() -> bool:
    """Whether this machine has Core ML itself."""
    return platform.system() == "Darwin"


def write(
    graphs: Sequence[Graph], path: Path, precision: str, metadata: Mapping[str, str], calibration: Sequence[Tensor]
) -> None:
    """Write an .mlpackage with fp32 inputs and outputs of exactly the graphs' shapes: latents (1, C, t, h, w) to a video.

    One graph needs iOS 17 or macOS 14. Several become functions of one package that share their weights, and a stateful one
    holds Core ML states: both need iOS 18 or macOS 15. int8 and 6bit compress the weights of an fp16 program, except those
    of sensitive convolutions, which are found on the latents `calibration`. Raises UnavailableError without coremltools.
    """
    tools = coremltools()
    sensitive = sensitive_weights(graphs[0].module, calibration, BITS[precision]) if precision in BITS else set()
    models = [_convert(graph, precision, sensitive, several=len(graphs) > 1) for graph in graphs]
    with hushed(), tempfile.TemporaryDirectory() as folder:
        if len(models) == 1:
            _describe(models[0], metadata).save(str(path))
            return
        functions = tools.utils.MultiFunctionDescriptor()
        for number, (graph, model) in enumerate(zip(graphs, models, strict=True)):
            part = str(Path(folder) / f"{number}.mlpackage")
            model.save(part)
            functions.add_function(part, "main", function_name(graph))
        functions.default_function_name = function_name(graphs[0])
        joined = str(Path(folder) / "joined.mlpackage")
        tools.utils.save_multifunction(functions, joined)
        _describe(tools.models.MLModel(joined, skip_model_load=True), metadata).save(str(path))


def function_name(graph: Graph) -> str:
    """Return the name of a size's function in a package of several, by its latents, such as t3_h16_w16."""
    _, _, frames, height, width = graph.inputs["latents"].shape
    return f"t{frames}_h{height}_w{width}"


def _convert(graph: Graph, precision: str, sensitive: set[str], *, several: bool) -> Any:
    tools = coremltools()
    half = precision != "fp32"
    with hushed(), torch.no_grad():
        program = torch.export.export(graph.module, tuple(graph.inputs.values())).run_decompositions({})
        model = tools.convert(
            program,
            # Given for each: an fp16 program defaults to fp16 inputs, in which not every frame number above 2048 is exact.
            inputs=[
                tools.TensorType(name=name, shape=tuple(value.shape), dtype=np.float32 if value.is_floating_point() else np.int32)
                for name, value in graph.inputs.items()
            ],
            outputs=[tools.TensorType(name=name, dtype=np.float32) for name in graph.outputs],
            convert_to="mlprogram",
            minimum_deployment_target=tools.target.iOS18 if several or graph.stateful else tools.target.iOS17,
            compute_precision=tools.precision.FLOAT16 if half else tools.precision.FLOAT32,
            skip_model_load=True,
        )
        return _compressed(model, precision, sensitive) if precision in BITS else model


def _compressed(model: Any, precision: str, sensitive: set[str]) -> Any:
    """Compress the weights to few bits, except the sensitive ones; computation stays fp16."""
    compress = coremltools().optimize.coreml
    # The converter names the parameter `conv_in.weights.0` p_conv_in_weights_0, and its fp16 copy ..._to_fp16.
    stay = {f"p_{name.replace('.', '_')}_to_fp16": None for name in sensitive}
    config: Any
    if precision == "int8":
        config = compress.OpLinearQuantizerConfig(mode="linear_symmetric", weight_threshold=512)
    else:
        config = compress.OpPalettizerConfig(mode="kmeans", nbits=BITS[precision], weight_threshold=512)
    settings = compress.OptimizationConfig(global_config=config, op_name_configs=stay)
    shrink = compress.linear_quantize_weights if precision == "int8" else compress.palettize_weights
    return shrink(model, config=settings)


def _describe(model: Any, metadata: Mapping[str, str]) -> Any:
    model.short_description = "Turbo-VAED student decoder: latents to video in [-1, 1]"
    model.license = metadata.get("licence", "")
    model.user_defined_metadata.update({f"turbovaed.{name}": value for name, value in metadata.items()})
    return model


def saved_program(path: Path) -> Any:
    """Return the MIL program of a saved package, with its weights, in coremltools' classes."""
    tools = coremltools()
    with hushed():
        from coremltools.converters.mil.frontend.milproto import load

        model = tools.models.MLModel(str(path), skip_model_load=True)
        spec = model.get_spec()
        return load.load(spec, spec.specificationVersion, model.weights_dir)


def load(path: Path, graph: Graph) -> Decode:
    """Return a function that runs a package: in Core ML on a Mac, else in torch, each value rounded to its declared type."""
    if runs_here():
        tools = coremltools()
        several = len(saved_program(path).functions) > 1
        model = tools.models.MLModel(str(path), **({"function_name": function_name(graph)} if several else {}))

        held = model.make_state() if graph.stateful else None

        def predict(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
            found = model.predict({name: value.numpy() for name, value in inputs.items()}, state=held)
            return {name: torch.from_numpy(found[name]) for name in graph.outputs}

        return predict
    program = saved_program(path)
    name = "main" if "main" in program.functions else function_name(graph)
    state: dict[str, Tensor] = {}
    return lambda inputs: interpret(program, inputs, name, state=state)


def anatomy(path: Path) -> Anatomy:
    """Return the operators of the first function."""
    operators: Counter[str] = Counter()
    convolutions: list[tuple[int, ...]] = []
    rank = 0
    functions = saved_program(path).functions
    for op in next(iter(functions.values())).operations:
        if op.op_type == "const":
            continue
        operators[op.op_type] += 1
        if not op.op_type.startswith("constexpr"):
            rank = max(rank, *(len(out.shape) for out in op.outputs))
        if op.op_type == "conv":
            convolutions.append(tuple(op.weight.shape))
    return Anatomy(operators, num_conv3d(convolutions), rank, sorted(functions) if len(functions) > 1 else [])


def first_non_finite(path: Path, graph: Graph) -> str | None:
    """Return the first operator whose value is not finite on the graph's example inputs, as "name (type)"; None on a Mac."""
    if runs_here():
        return None
    program = saved_program(path)
    found: list[str] = []

    def watch(name: str, kind: str, value: Any) -> None:
        if not found and isinstance(value, Tensor) and value.is_floating_point() and not bool(torch.isfinite(value).all()):
            found.append(f"{name} ({kind})")

    interpret(program, graph.inputs, "main" if "main" in program.functions else function_name(graph), watch)
    return found[0] if found else None


def verified_by() -> str:
    """Return a description of how packages are run on this machine."""
    return "ran in Core ML" if runs_here() else "saved program run in torch; Core ML itself needs a Mac"


EXPORTER = Exporter(
    "coreml",
    ".mlpackage",
    ("fp16", "fp32", "int8", "6bit"),
    write,
    load,
    verified_by,
    anatomy,
    multisize=True,
    stateful=True,
    is_package=True,
    first_non_finite=first_non_finite,
)
