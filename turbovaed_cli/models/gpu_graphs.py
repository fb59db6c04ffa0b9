"""CUDA graphs of decodes: operations of fixed shapes, launched at once instead of one by one from Python."""

import math
import threading
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from turbovaed_cli.machine.devices import empty_cache, is_out_of_memory
from turbovaed_cli.models.gpu_kernels import FusedPreparation
from turbovaed_cli.models.scratch import Kept
from turbovaed_cli.models.stages import StreamConvolution, StreamResidual, StreamStage, WithoutFirst
from turbovaed_cli.models.streaming import FastDecoder, Step

Decode = Callable[[Tensor], Tensor]
_MOST_HELD = 0.1  # of a device's memory: what a graph may keep from everything else there


class FusedDecoder(FastDecoder):
    """A student whose norms, activations and padding in time are one kernel."""

    preparation = FusedPreparation


class GraphDecoder(FusedDecoder):
    """The same, captured in CUDA graphs: whole clips from the second one of a shape, and the pieces of a stream once they repeat.

    A graph holds the memory of its intermediate results. If that is too much, operations are launched one by one.
    """

    _whole: "Graph | None" = None
    _before: torch.Size | None = None  # the shape of the latents before
    _too_large: torch.Size | None = None  # the shape of latents whose graph would hold too much

    def decode(self, latents: Tensor, frames: int = 0, rows: int = 0) -> Tensor:
        if frames or rows or latents.shape == self._too_large:
            return super().decode(latents, frames, rows)
        if self._whole is None or self._whole.shape != latents.shape:
            self._whole = None  # its memory is free for the next one
            is_first, self._before = latents.shape != self._before, latents.shape
            if is_first:  # lays out weights and chooses kernels, which a capture cannot
                return super().decode(latents)
            self._whole = captured(super().decode, latents.to(self.device, self.dtype), self.held())
            if self._whole is None:
                self._too_large = latents.shape
                return super().decode(latents)
        return self._whole(latents)

    def stepper(self, stages: Sequence[StreamStage]) -> Step:
        step = GraphStep(stages, self.held)
        return lambda run, latents: step(run, latents.to(self.device, self.dtype))


class Graph:
    """A decode in a CUDA graph: replays its operations with other latents of the same shape."""

    def __init__(self, decode: Decode, latents: Tensor, held: Sequence[Tensor]) -> None:
        """Capture `decode` of `latents`; `held` is the memory that it uses, which must not be freed before the graph."""
        with torch.inference_mode(False):  # else later calls outside of inference mode could not write there
            self._latents = torch.empty_like(latents)
        self._latents.copy_(latents)
        self._held, self.shape, self._turn = held, latents.shape, threading.Lock()
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.device_of(latents), torch.no_grad():
            stream = (
                torch.cuda.Stream() if latents.is_cuda else None
            )  # of this device: torch's default is that of the first graph
            # Threads that read ahead may allocate memory meanwhile.
            with torch.cuda.graph(self._graph, stream=stream, capture_error_mode="thread_local"):
                self._made = decode(self._latents)

    def __call__(self, latents: Tensor) -> Tensor:
        """Return a copy of what the decode makes of `latents`."""
        with self._turn, torch.no_grad(), torch.cuda.device_of(self._latents):
            self._latents.copy_(latents)
            self._graph.replay()
            return self._made.clone()


def captured(decode: Decode, latents: Tensor, held: Sequence[Tensor]) -> Graph | None:
    """Return the graph of a decode that has run once; None if it does not fit into the memory that a graph may hold."""
    empty_cache(latents.device)
    before, total = reserved_bytes(latents.device)
    try:
        graph = Graph(decode, latents, held)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        return None
    own = reserved_bytes(latents.device)[0] - before + sum(one.nbytes for one in held)
    return graph if own <= _MOST_HELD * total else None


def reserved_bytes(device: torch.device) -> tuple[int, float]:
    """Return the bytes that torch has reserved on `device`, and those of the device; no limit for others than CUDA."""
    if device.type != "cuda":
        return 0, math.inf
    return torch.cuda.memory_reserved(device), torch.cuda.get_device_properties(device).total_memory


class GraphStep:
    """The pieces of one clip: once a piece leaves the stages as it found them, later ones of its shape are replayed.

    Between pieces, stages keep frames, which a piece replaces in place. A graph uses those places, so it is replayed only if
    they are the same as at its capture.
    """

    def __init__(self, stages: Sequence[StreamStage], held: Callable[[], list[Tensor]]) -> None:
        self._stages, self._held = stages, held
        self._last: Hashable = None  # the state before the last piece
        self._graph: Graph | None = None
        self._captured: Hashable = None  # the state at the capture
        self._has_room = True

    def __call__(self, run: Decode, latents: Tensor) -> Tensor:
        """Decode latents (C, n, h, w) to (3, m, H, W); `run` does so without a graph."""
        before = self._state(latents)
        if self._graph is None and self._has_room and before == self._last:
            self._graph, self._captured = captured(run, latents, self._held()), before
            self._has_room = self._graph is not None
        if self._graph is not None and before == self._captured:
            return self._graph(latents)
        self._last = before
        return run(latents)

    def _state(self, latents: Tensor) -> Hashable:
        """Return what decides which operations a piece needs, and on which memory."""
        kept = [(key, frames.data_ptr(), frames.shape) for memory in _memories(self._stages) for key, frames in memory.items()]
        begun = [len(stage.dropped) for stage in self._stages if isinstance(stage, WithoutFirst)]
        return latents.shape, latents.dtype, latents.device, tuple(kept), tuple(begun)


def _memories(stages: Sequence[StreamStage]) -> Iterator[dict[Any, Tensor]]:
    for stage in stages:
        if isinstance(stage, StreamResidual):
            yield from _memories(stage.branch)
        memory = {StreamResidual: "waiting", StreamConvolution: "kept"}.get(type(stage))
        if memory is not None and isinstance(kept := getattr(stage, memory), Kept):
            yield kept
