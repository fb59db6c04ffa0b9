"""LiteRT (formerly TensorFlow Lite): a .tflite of fixed shapes, for Android's CPUs, GPUs and NPUs."""

from collections import Counter
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from turbovaed_cli.export.chunks import Decode
from turbovaed_cli.export.format import Anatomy, Exporter, Graph, quietly
from turbovaed_cli.reporting import hushed

_SIGNATURE = "serving_default"


def write(
    graphs: Sequence[Graph], path: Path, _precision: str, _metadata: Mapping[str, str], _calibration: Sequence[Tensor]
) -> None:
    """Write a .tflite in fp32 of exactly the graph's shapes: args_0... in, output_0... out.

    Whole clips are latents (1, C, t, h, w) to video (1, 3, T, H, W). A GPU delegate may compute it in fp16 if allowed.
    """
    (graph, *_) = graphs
    converter = quietly("litert_torch")
    with hushed(), torch.no_grad():
        converter.convert(graph.module, tuple(graph.inputs.values())).export(str(path))


def interpreter(path: Path, threads: int = 0) -> Any:
    """Load a file and allocate its tensors. `threads` is the number of threads; 0: that of torch."""
    runtime = quietly("ai_edge_litert.interpreter")
    with hushed():
        loaded = runtime.Interpreter(model_path=str(path), num_threads=threads or torch.get_num_threads())
        loaded.allocate_tensors()
    return loaded


def load(path: Path, graph: Graph) -> Decode:
    """Return a function that runs the file in the LiteRT runtime, on the CPU."""
    run = interpreter(path).get_signature_runner(_SIGNATURE)

    def decode(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        found = run(**{f"args_{i}": inputs[name].numpy() for i, name in enumerate(graph.inputs)})
        return {name: torch.from_numpy(found[f"output_{i}"]) for i, name in enumerate(graph.outputs)}

    return decode


def anatomy(path: Path) -> Anatomy:
    """Return the operators of the file, without those of the delegate that runs it here."""
    runtime = quietly("ai_edge_litert.interpreter")
    with hushed():
        plain = runtime.OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
        loaded = runtime.Interpreter(model_path=str(path), experimental_op_resolver_type=plain)
        loaded.allocate_tensors()
    operators = Counter(item["op_name"] for item in loaded._get_ops_details())
    ranks = [len(item["shape"]) for item in loaded.get_tensor_details()]
    return Anatomy(operators, operators["CONV_3D"], max(ranks, default=None))


def verified_by() -> str:
    """Return a description of how files are run on this machine."""
    return f"ran in LiteRT {version('ai-edge-litert')}, XNNPACK on the CPU"


EXPORTER = Exporter(
    "litert", ".tflite", ("fp32",), write, load, verified_by, anatomy,
    layouts=("4d-cat", "4d-sum"),  # its converter crashes on grouped 3-D convolutions
    needs=("litert_torch", "ai_edge_litert"), extra="litert",
)  # fmt: skip
