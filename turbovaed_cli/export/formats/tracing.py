"""Trace a graph with torch.export, for the converters that start from its program."""

from typing import Any

import torch
from torch import Tensor, nn

from turbovaed_cli.export.format import Graph

_MOST_FRAMES, _MOST_CELLS = 8192, 2048  # the most latent frames, and latent rows or columns, that the graph takes


class _HalfInside(nn.Module):
    """A module with fp32 inputs and outputs that computes in fp16; integer inputs stay as they are."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner.half()

    def forward(self, *inputs: Tensor) -> Tensor | tuple[Tensor, ...]:
        outputs = self.inner(*(item.half() if item.is_floating_point() else item for item in inputs))
        return outputs.float() if isinstance(outputs, Tensor) else tuple(item.float() for item in outputs)


def exported_program(graph: Graph, precision: str, *, any_size: bool = True) -> torch.export.ExportedProgram:
    """Trace `graph`, with fp16 inside for the precision "fp16".

    With `any_size`, t, h and w of whole clips stay dynamic, unless the graph is one of fixed size.
    """
    example, sizes = tuple(graph.inputs.values()), None
    if any_size and graph.whole_clip and graph.any_size:
        latents, open_sizes = _dynamic_example(graph)
        example, sizes = (latents,), (open_sizes,)
    if precision != "fp16":
        return _without_paths(torch.export.export(graph.module, example, dynamic_shapes=sizes))
    # _HalfInside takes *inputs, whose sizes are given as one tuple.
    return _without_paths(torch.export.export(_HalfInside(graph.module), example, dynamic_shapes=(sizes,) if sizes else None))


def _without_paths(program: torch.export.ExportedProgram) -> torch.export.ExportedProgram:
    """Remove the paths of this machine's source files from a program, as writers would put them into their files."""
    for module in program.graph_module.modules():
        for node in module.graph.nodes if isinstance(module, torch.fx.GraphModule) else ():
            node.meta.pop("stack_trace", None)
    return program


def _dynamic_example(graph: Graph) -> tuple[Tensor, dict[int, Any]]:
    """Return small latents to trace with, and their dynamic sizes."""
    _, channels, frames, height, width = graph.inputs["latents"].shape
    sizes = {3: torch.export.Dim("h", min=1, max=_MOST_CELLS), 4: torch.export.Dim("w", min=1, max=_MOST_CELLS)}
    if frames > 1:
        sizes[2] = torch.export.Dim("t", min=2, max=_MOST_FRAMES)
    # A size of 1 would be taken for a constant: trace with at least two of each.
    return torch.zeros(1, channels, min(frames, 3), max(2, min(height, 4)), max(3, min(width, 5))), sizes
