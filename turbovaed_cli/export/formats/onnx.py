"""ONNX: one graph for every frame count and size, run by ONNX Runtime."""

import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from turbovaed_cli.errors import UnavailableError
from turbovaed_cli.export.chunks import Decode
from turbovaed_cli.export.format import Anatomy, Exporter, Graph
from turbovaed_cli.export.formats.sensitivity import sensitive_weights
from turbovaed_cli.export.formats.tracing import exported_program
from turbovaed_cli.reporting import hushed

OPSET = 18


def write(
    graphs: Sequence[Graph], path: Path, precision: str, metadata: Mapping[str, str], calibration: Sequence[Tensor]
) -> None:
    """Write ONNX opset 18: for whole clips, `latents` (1, C, t, h, w) to `video` (1, 3, T, H, W), both fp32.

    There t, h and w are dynamic, except that a graph made with one latent frame (t = 1) takes only one, and one of a decoder
    that is no student takes the shape that it was made with. int8 is static, in
    QDQ form: the scales of the convolutions' inputs are measured on the latents `calibration`.
    """
    if precision != "int8":
        _write(graphs[0], path, precision, metadata)
        return
    with tempfile.TemporaryDirectory() as folder:
        wide = Path(folder) / "fp32.onnx"
        _write(graphs[0], wide, "fp32", metadata)
        _quantize(wide, path, calibration, sensitive_weights(graphs[0].module, calibration, bits=8))


def _write(graph: Graph, path: Path, precision: str, metadata: Mapping[str, str]) -> None:
    import onnx

    with hushed(), torch.no_grad():
        program = exported_program(graph, precision)
        converted = torch.onnx.export(
            program,
            program.example_inputs[0],
            dynamo=True,
            opset_version=OPSET,
            input_names=list(graph.inputs),
            output_names=list(graph.outputs),
            external_data=False,
            verbose=False,
        )
    assert converted is not None
    proto = converted.model_proto
    if graph.whole_clip and graph.any_size:
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


def _quantize(wide: Path, path: Path, calibration: Sequence[Tensor], sensitive: set[str]) -> None:
    """Quantise convolutions to static int8, per channel, as QDQ pairs, which every ONNX runtime takes; `sensitive` stay fp32."""
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_static

    class Reader(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime ships no types
        def __init__(self) -> None:
            self.items: Iterator[Tensor] = iter(calibration)

        def get_next(self) -> dict[str, Any] | None:
            item = next(self.items, None)
            return None if item is None else {"latents": item.numpy()}

    proto = onnx.load(str(wide))
    convolutions = [node for node in proto.graph.node if node.op_type == "Conv"]
    # The last convolution writes the picture, where eight bits would be visible.
    stay = [node.name for node in convolutions if node.input[1] in sensitive or node is convolutions[-1]]
    with hushed():
        quantize_static(
            str(wide),
            str(path),
            Reader(),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=["Conv"],
            nodes_to_exclude=stay,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.MinMax,
            extra_options={"ActivationSymmetric": False, "WeightSymmetric": True},
        )


def session(path: Path, threads: int = 0, providers: Sequence[str] = ("CPUExecutionProvider",)) -> Any:
    """Return an ONNX Runtime session on exactly these providers. Raises UnavailableError if one is missing."""
    import onnxruntime

    missing = [name for name in providers if name not in onnxruntime.get_available_providers()]
    if missing:
        raise UnavailableError(
            f"ONNX Runtime has no {missing[0]} here", f"it has: {', '.join(onnxruntime.get_available_providers())}"
        )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(path), options, providers=list(providers))


def load(path: Path, _graph: Graph) -> Decode:
    """Return a function that runs the file in ONNX Runtime on the CPU."""
    running = session(path)
    names = [output.name for output in running.get_outputs()]

    def decode(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        found = running.run(None, {name: value.numpy() for name, value in inputs.items()})
        return {name: torch.from_numpy(value) for name, value in zip(names, found, strict=True)}

    return decode


def anatomy(path: Path) -> Anatomy:
    """Return the operators of the file, and the ranks of its weights and values."""
    import onnx

    graph = onnx.load(str(path)).graph
    ranks = {item.name: len(item.dims) for item in graph.initializer}
    made_by = {output: node for node in graph.node for output in node.output}

    def rank_of(name: str) -> int:
        while name not in ranks and name in made_by:  # go back through DequantizeLinear
            name = made_by[name].input[0]
        return ranks.get(name, 0)

    known = [len(value.type.tensor_type.shape.dim) for value in (*graph.value_info, *graph.input, *graph.output)]
    return Anatomy(
        Counter(node.op_type for node in graph.node),
        sum(rank_of(node.input[1]) == 5 for node in graph.node if node.op_type == "Conv"),
        max(known, default=None),
    )


def first_non_finite(path: Path, graph: Graph) -> str | None:
    """Return the first operator whose output is not finite on the graph's example inputs, as "name (type)", or None."""
    import numpy as np
    import onnx

    proto = onnx.load(str(path))
    produced = [(node.op_type, node.name, output) for node in proto.graph.node for output in node.output]
    there = {output.name for output in proto.graph.output}
    proto.graph.output.extend(onnx.ValueInfoProto(name=name) for _, _, name in produced if name not in there)
    with tempfile.TemporaryDirectory() as folder:
        onnx.save(proto, str(Path(folder) / "all.onnx"))
        running = session(Path(folder) / "all.onnx")
        names = [output.name for output in running.get_outputs()]
        found = dict(zip(names, running.run(None, {key: value.numpy() for key, value in graph.inputs.items()}), strict=True))
    for kind, name, output in produced:
        value = found[output]
        if value.dtype.kind == "f" and not np.isfinite(value).all():
            return f"{name} ({kind})"
    return None


def verified_by() -> str:
    """Return a description of how files are run on this machine."""
    import onnxruntime

    return f"opset {OPSET}, ran in ONNX Runtime {onnxruntime.__version__}, CPU"


EXPORTER = Exporter(
    "onnx",
    ".onnx",
    ("fp32", "fp16", "int8"),
    write,
    load,
    verified_by,
    anatomy,
    dynamic=True,
    calibrated=("int8",),
    first_non_finite=first_non_finite,
)
