"""Decode any length on a device in constant memory: a graph of fixed size with the convolutions' caches as inputs and outputs.

This is exact: the chunks of a clip give the frames of the whole clip. An input gives the position of the latents in the clip,
so one graph serves the beginning, the middle and the end.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor, nn

from turbovaed_cli.export.export_form import FoldedDecoder

Decode = Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]]  # inputs by name to outputs by name: a graph, run

UNKNOWN_END = 2**20  # latent frames: longer than any clip, used while its end is not known


class Chunk:
    """A piece of a clip; x is (T, C, H, W).

    Each convolution is handed the 2 * reach frames before it, so its output lags by `reach` frames, or not at all if causal.

    Frames are counted from the clip's first one. At a convolution, the new frames begin with frame rate * start - delay.
    Frames before the clip's first and after its last are replaced by that frame, wherever it is in the piece.
    """

    def __init__(self, window: Tensor, kept: Sequence[Tensor] | None, *, causal: bool) -> None:
        self.causal = causal
        self.start, self.end = window[0:1], window[1:2]  # latent frames before this piece, and of the whole clip
        self.kept = None if kept is None else iter(kept)  # None: begin with zeros, to learn the shapes
        self.keeps: list[Tensor] = []  # the frames that the next piece is handed
        self.rate, self.delay, self.dropped = 1, 0, 0  # frames per latent frame; frames of lag; missing at the clip's beginning

    def enter(self, x: Tensor, reach: int) -> Tensor:
        before = x.new_zeros(2 * reach, *x.shape[1:]) if self.kept is None else next(self.kept)
        x = torch.cat([before, x])
        count = x.shape[0]
        first = 2 * reach + self.delay - self.rate * self.start  # where in x the clip begins, and where it ends
        last = first + self.rate * self.end - (self.dropped + 1)
        where = torch.arange(count, dtype=torch.int32)
        where = torch.minimum(torch.maximum(where, first), last).clamp(0, count - 1)
        x = x.index_select(0, where)
        self.keeps.append(x[count - 2 * reach :])
        self.delay += 0 if self.causal else reach
        return x

    def taps(self, x: Tensor, reach: int) -> list[Tensor]:
        frames = x.shape[0] - 2 * reach
        return [x[i : i + frames] for i in range(2 * reach + 1)]

    def beside(self, x: Tensor) -> Tensor:
        # Both convolutions of a resnet have the same reach, so its lag is the number of frames that the first was handed.
        handed = self.keeps[-1].shape[0]
        return x[handed:] if self.causal else x[: x.shape[0] - handed]

    def shuffled(self, x: Tensor, factor: int, *, drop: bool) -> Tensor:
        lost = factor - 1 if drop else 0
        self.rate, self.delay, self.dropped = self.rate * factor, self.delay * factor + lost, self.dropped * factor + lost
        return x


@dataclass(frozen=True)
class ChunkPlan:
    """The interface of a graph with inputs `latents`, `window` and `kept_0`... and outputs `video` and `keeps_0`..."""

    latents: tuple[int, ...]  # (1, C, n, h, w): n latent frames at once
    kept: tuple[tuple[int, ...], ...]  # shapes of the caches handed on; zeros before the first chunk
    frames_per_latent: int  # each chunk gives n times this number of pixel frames
    delay: int  # pixel frames of lag: this many at the start of the output are not part of the video
    dropped: int  # pixel frames by which the clip is shorter than frames_per_latent times its latent frames
    stateful: bool = False  # the graph keeps `kept_0`... itself: they are neither inputs nor outputs

    @property
    def input_names(self) -> list[str]:
        """The names of the inputs, in the graph's order."""
        return ["latents", "window", *([] if self.stateful else (f"kept_{i}" for i in range(len(self.kept))))]

    @property
    def output_names(self) -> list[str]:
        """The names of the outputs, in the graph's order."""
        return ["video", *([] if self.stateful else (f"keeps_{i}" for i in range(len(self.kept))))]

    def beginning(self) -> dict[str, Tensor]:
        """Return the caches for the first chunk, zeros in the shapes `kept`; none for a stateful graph.

        Their values do not matter, since there are no frames before the clip.
        """
        return {} if self.stateful else {f"kept_{i}": torch.zeros(shape) for i, shape in enumerate(self.kept)}

    def decode(self, run: Decode, latents: Tensor) -> Tensor:
        """Decode `latents` (1, C, t, h, w), t >= 1, with the graph, chunk by chunk, to video (1, 3, T, H, W)."""
        count, end = self.latents[2], latents.shape[2]
        num_frames = end * self.frames_per_latent - self.dropped
        kept, pieces, made = self.beginning(), [], -self.delay
        for start in range(0, 2**31, count):
            piece = latents[:, :, start : start + count]
            piece = torch.cat([piece, latents.new_zeros(1, latents.shape[1], count - piece.shape[2], *latents.shape[3:])], dim=2)
            # When the latents come one by one, the end may be UNKNOWN_END until the last one is there.
            known = end if start + count >= end else UNKNOWN_END
            found = run({"latents": piece.contiguous(), "window": torch.tensor([start, known], dtype=torch.int32), **kept})
            kept = {f"kept_{i}": found[f"keeps_{i}"] for i in range(len(kept))}
            pieces.append(found["video"])
            made += count * self.frames_per_latent
            if made >= num_frames:
                break
        return torch.cat(pieces, dim=2)[:, :, self.delay : self.delay + num_frames]


class ChunkDecoder(nn.Module):
    """The graph of a chunk: (latents (1, C, n, h, w), window, *kept) to (video (1, 3, n * frames_per_latent, H, W), *keeps).

    `window` is int32, (2,): the latent frames before this chunk, and of the clip.
    """

    def __init__(self, form: FoldedDecoder, latents: tuple[int, int, int, int]) -> None:
        """Build the graph of `form` for latents of shape (C, n, h, w)."""
        super().__init__()
        self.form = form
        piece = torch.zeros(1, *latents, dtype=form.conv_in.bias.dtype)
        # Only shapes matter, so trace one latent cell and multiply its rows and columns.
        with torch.no_grad():
            chunk = Chunk(torch.tensor([0, 1], dtype=torch.int32), None, causal=form.causal)
            self.form.through(piece[:, :, :, :1, :1], chunk)
        _, _, height, width = latents
        kept = tuple(
            (frames, channels, rows * height, columns * width) for frames, channels, rows, columns in map(_four, chunk.keeps)
        )
        self.plan = ChunkPlan((1, *latents), kept, chunk.rate, chunk.delay, chunk.dropped)

    def forward(self, latents: Tensor, window: Tensor, *kept: Tensor) -> tuple[Tensor, ...]:
        chunk = Chunk(window, kept, causal=self.form.causal)
        video = self.form.through(latents, chunk)
        return (video, *chunk.keeps)


class StatefulChunkDecoder(nn.Module):
    """The graph of a chunk that keeps its caches in buffers: (latents (1, C, n, h, w), window (2,)) to video."""

    def __init__(self, decoder: ChunkDecoder) -> None:
        super().__init__()
        self.decoder = decoder
        self.plan = replace(decoder.plan, stateful=True)
        for i, shape in enumerate(decoder.plan.kept):
            self.register_buffer(f"kept_{i}", torch.zeros(shape))

    def forward(self, latents: Tensor, window: Tensor) -> Tensor:
        buffers = [self.get_buffer(f"kept_{i}") for i in range(len(self.plan.kept))]
        video, *keeps = self.decoder(latents, window, *(buffer.clone() for buffer in buffers))
        for buffer, new in zip(buffers, keeps, strict=True):
            buffer.copy_(new)
        return cast(Tensor, video)


def _four(tensor: Tensor) -> tuple[int, int, int, int]:
    frames, channels, rows, columns = tensor.shape
    return frames, channels, rows, columns
