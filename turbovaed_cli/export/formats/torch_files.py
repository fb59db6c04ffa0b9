"""Files for torch itself: an exported program (.pt2), and the weights with everything a loader needs (.safetensors)."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from turbovaed_cli.export.chunks import Decode
from turbovaed_cli.export.format import Anatomy, Exporter, Graph, num_conv3d
from turbovaed_cli.export.formats.tracing import exported_program
from turbovaed_cli.reporting import hushed


def write_program(
    graphs: Sequence[Graph], path: Path, precision: str, metadata: Mapping[str, str], _calibration: Sequence[Tensor]
) -> None:
    """Write a torch.export archive of the first graph: latents (1, C, t, h, w) to video (1, 3, T, H, W), fp32, or a chunk.

    For whole clips t, h and w stay dynamic. `metadata` becomes extra files of the archive.
    """
    (graph, *_) = graphs
    with hushed(), torch.no_grad():
        torch.export.save(
            exported_program(graph, precision), str(path), extra_files={name: str(value) for name, value in metadata.items()}
        )


def load_program(path: Path, graph: Graph) -> Decode:
    """Load an archive and return a function that runs it."""
    with hushed():
        module = torch.export.load(str(path)).module()

    @torch.no_grad()
    def decode(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        found = module(*(inputs[name] for name in graph.inputs))
        return dict(zip(graph.outputs, (found,) if isinstance(found, Tensor) else found, strict=True))

    return decode


def anatomy_of_program(path: Path) -> Anatomy:
    """Return the ATen operators of an archive."""
    with hushed():
        nodes = [node for node in torch.export.load(str(path)).graph.nodes if node.op == "call_function"]
    ranks = [node.meta["val"].ndim for node in nodes if hasattr(node.meta.get("val"), "ndim")]
    convolutions = [node.args[1].meta["val"].shape for node in nodes if "conv" in str(node.target)]
    return Anatomy(Counter(str(node.target) for node in nodes), num_conv3d(convolutions), max(ranks, default=None))


def write_weights(
    graphs: Sequence[Graph], path: Path, precision: str, metadata: Mapping[str, str], _calibration: Sequence[Tensor]
) -> None:
    """Write the student's weights under the published keys, in their shapes and in `precision`.

    Config and licence (`metadata`) are in the header.
    """
    dtype = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[precision]
    state = {name: value.detach().to(dtype).contiguous() for name, value in graphs[0].module.state_dict().items()}
    save_file(state, path, metadata={"format": "pt", **metadata})


def load_weights(path: Path, _graph: Graph) -> Decode:
    """Return a function that runs the student that `load_student` loads from the file alone."""
    from turbovaed_cli.models.loading import load_student

    student = load_student(path)

    @torch.no_grad()
    def decode(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {"video": student(inputs["latents"])}

    return decode


def anatomy_of_weights(_path: Path) -> Anatomy:
    """Return no operators: the file holds weights only."""
    return Anatomy(Counter(), 0)


def _by_torch() -> str:
    return f"ran in torch {torch.__version__}, CPU"


def _by_load_student() -> str:
    return f"loaded again and ran in torch {torch.__version__}, CPU"


EXPORTERS = (
    Exporter(
        "torch-export", ".pt2", ("fp32", "fp16"), write_program, load_program, _by_torch, anatomy_of_program, dynamic=True
    ),
    Exporter(
        "safetensors", ".safetensors", ("fp16", "fp32", "bf16"), write_weights, load_weights, _by_load_student,
        anatomy_of_weights, dynamic=True, is_graph=False,
    ),
)  # fmt: skip
