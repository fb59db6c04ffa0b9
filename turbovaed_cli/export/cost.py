"""The cost of one run of a graph, whatever its format: multiply-accumulates, activation memory, highest rank."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from turbovaed_cli.export.format import Graph
from turbovaed_cli.reporting import hushed

# Operators that a runtime runs without copying: the result is a view of the same memory.
_VIEWS = ("view", "reshape", "permute", "transpose", "slice", "squeeze", "unsqueeze", "alias", "select", "expand", "split")


@dataclass(frozen=True)
class Cost:
    """The cost of one run at the shape of the graph's example inputs."""

    gmacs: float  # of convolutions, in 10^9
    peak_activation_bytes: int  # alive at once when run in order; inputs and outputs included, weights excluded
    max_rank: int


def cost(graph: Graph, itemsize: int) -> Cost:
    """Return the cost of a graph by tracing it, without running it; floating-point values take `itemsize` bytes."""
    with hushed(), torch.no_grad():
        program = torch.export.export(graph.module, tuple(graph.inputs.values()))
    nodes = list(program.graph.nodes)
    owner: dict[Node, Node] = {}
    last_use: dict[Node, int] = {}
    for place, node in enumerate(nodes):
        is_view = node.op == "call_function" and any(f"aten.{name}" in str(node.target) for name in _VIEWS)
        owner[node] = owner[node.all_input_nodes[0]] if is_view else node
        for source in node.all_input_nodes:
            last_use[owner[source]] = place
    weights = {*program.graph_signature.inputs_to_parameters, *program.graph_signature.inputs_to_buffers}
    live = peak = macs = rank = 0
    leaving: dict[int, list[Node]] = {}
    for node, place in last_use.items():
        leaving.setdefault(place, []).append(node)
    for place, node in enumerate(nodes):
        value = node.meta.get("val")
        if isinstance(value, Tensor) and node.name not in weights:
            rank = max(rank, value.ndim)
            if owner[node] is node:
                live += _bytes(value, itemsize)
                peak = max(peak, live)
        if node.op == "call_function" and ".conv" in str(node.target):
            macs += math.prod(value.shape) * math.prod(node.args[1].meta["val"].shape[1:])
        for gone in leaving.get(place, []):
            if gone.name not in weights:
                live -= _bytes(gone.meta.get("val"), itemsize)
    return Cost(macs / 1e9, peak, rank)


def _bytes(value: Any, itemsize: int) -> int:
    if not isinstance(value, Tensor):
        return 0
    return value.numel() * (itemsize if value.is_floating_point() else value.element_size())
