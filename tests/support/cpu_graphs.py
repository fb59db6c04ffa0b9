"""CUDA graphs on a CPU: a capture records operations and changes nothing; a replay repeats them on the same memory."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class CpuGraph:
    """In place of torch.cuda.CUDAGraph. `made` and `replays` count over all graphs."""

    made = replays = 0

    def __init__(self) -> None:
        CpuGraph.made += 1
        self.calls: list[tuple[Any, Any, Any, Any]] = []

    def replay(self) -> None:
        CpuGraph.replays += 1
        for function, args, kwargs, made in self.calls:
            again = function(*args, **kwargs)
            if not any(result.alias_info for result in function._schema.returns):  # else it is the memory of an argument
                for old, new in zip(tree_leaves(made), tree_leaves(again), strict=True):
                    if isinstance(old, Tensor):
                        old.copy_(new)


class _Recorder(TorchDispatchMode):
    def __init__(self, graph: CpuGraph) -> None:
        super().__init__()
        self.graph, self.before = graph, {}

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        for number, argument in enumerate(function._schema.arguments):
            if argument.alias_info and argument.alias_info.is_write:
                storage = (args[number] if number < len(args) else kwargs[argument.name]).untyped_storage()
                self.before.setdefault(storage.data_ptr(), (storage, storage.clone()))
        made = function(*args, **kwargs)
        self.graph.calls.append((function, args, kwargs, made))
        return made


@contextlib.contextmanager
def capture(graph: CpuGraph, stream: None, capture_error_mode: str) -> Iterator[None]:
    """In place of torch.cuda.graph."""
    assert stream is None and capture_error_mode == "thread_local"
    with _Recorder(graph) as recorder:
        yield
    for storage, clone in recorder.before.values():
        storage.copy_(clone)


def install(monkeypatch: Any) -> type[CpuGraph]:
    """Let torch.cuda capture on the CPU."""
    CpuGraph.made = CpuGraph.replays = 0
    monkeypatch.setattr(torch.cuda, "CUDAGraph", CpuGraph)
    monkeypatch.setattr(torch.cuda, "graph", capture)
    return CpuGraph
