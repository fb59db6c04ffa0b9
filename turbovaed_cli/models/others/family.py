"""The base of other people's decoders: latents, teachers, streams, and strict loading."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn

from turbovaed_cli.errors import FrameCountError, ShapeError, WeightFileError
from turbovaed_cli.models.decoder import DecoderOutput, Stream
from turbovaed_cli.models.latent_space import LatentSpace
from turbovaed_cli.registry.specs import ModelSpec

_SHOWN = 4  # keys that an error lists
_MOST_CHANNELS = 65_536


class OtherDecoder(nn.Module):
    """A decoder of another family: latents (B, C, t, h, w) to video (B, 3, T, H, W) in [-1, 1].

    Without a teacher, it takes latents in the convention of its file, `own_latents`. With one, it takes raw latents and
    converts them by the teacher's statistics. A family implements `frames_of`, and what differs from the defaults here.
    """

    family: ClassVar[str]
    teachers: ClassVar[tuple[str, ...]] = ()  # the registry names whose latents it may take; none: all that fit
    own_latents: str = "normalised"  # what `frames_of` takes
    clamps: ClassVar[bool] = True  # whether `decode` limits pixels to [-1, 1], as the family's own code does
    latent_channels: int
    temporal_compression_ratio: int
    spatial_compression_ratio: int
    licence: str
    teacher: str | None = None
    space: LatentSpace | None = None
    latents: str = "normalised"

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """The precision of the weights."""
        return next(self.parameters()).dtype

    def take_raw(self, spec: ModelSpec, name: str | None, space: LatentSpace) -> None:
        """Take raw latents of the teacher `spec` from now on. `name` is its registry name, `space` its statistics."""
        self.teacher, self.space, self.latents = name, space, "raw"

    def pixel_frames(self, latent_frames: int) -> int:
        """Return T, the number of pixel frames that it makes of t latent frames."""
        return (latent_frames - 1) * self.temporal_compression_ratio + 1

    def check_latents(self, latents: Tensor) -> None:
        """Raise ShapeError unless `latents` are (B, latent_channels, t, h, w)."""
        if latents.ndim != 5 or latents.shape[1] != self.latent_channels:
            raise ShapeError(
                f"latents are {tuple(latents.shape)}: this decoder takes (batch, {self.latent_channels}, frames, height, width)"
            )

    def own(self, latents: Tensor) -> Tensor:
        """Convert latents as `decode` takes them to those of `frames_of`, on the device and in the precision of the weights."""
        latents = latents.to(self.device, self.dtype)
        if self.latents == self.own_latents:
            return latents
        assert self.space is not None, "take_raw needs statistics"
        return self.space.normalised(latents) if self.own_latents == "normalised" else self.space.raw(latents)

    def frames_of(self, latents: Tensor, memory: "Memory | None" = None) -> Tensor:
        """Decode latents in the file's own convention to video in [-1, 1], not clamped.

        `memory` is that of a stream, whose next latents these are; None decodes a whole clip.
        """
        raise NotImplementedError

    def forward(self, latents: Tensor) -> Tensor:
        """Decode latents (B, C, t, h, w), as `decode` takes them, to video (B, 3, T, H, W) in [-1, 1], not clamped."""
        return self.frames_of(self.own(latents))

    def decode(self, z: Tensor, temb: Tensor | None = None, return_dict: bool = True) -> DecoderOutput | tuple[Tensor]:
        """Decode `z` (B, C, t, h, w), raw or normalised as `latents` says, to `.sample` (B, 3, T, H, W) in [-1, 1].

        `temb` is not used. Raises ShapeError for another shape, FrameCountError for a number of frames that cannot be decoded.
        """
        self.check_latents(z)
        if z.shape[2] < 1:
            raise FrameCountError("latents hold no frame")
        self.pixel_frames(z.shape[2])  # raises if the family cannot decode this number
        sample = self.limited(self(z))
        return DecoderOutput(sample=sample) if return_dict else (sample,)

    def limited(self, video: Tensor) -> Tensor:
        """Return the video as `decode` does: in [-1, 1] for a family that clamps."""
        return video.clamp(-1, 1) if self.clamps else video

    @property
    def lookahead_frames(self) -> int:
        """The number of pixel frames by which a stream lags."""
        return 0

    def stream(self) -> Stream | None:
        """Return a new stream of one clip; None for a family that only decodes whole clips."""
        return None


@dataclass
class Memory:
    """What the layers of one stream keep of the frames before, by layer."""

    kept: dict[nn.Module, Tensor] = field(default_factory=dict)
    num_latents: int = 0  # latent frames so far
    ends: bool = False  # whether the end of the clip follows these latents

    def before(self, layer: nn.Module) -> Tensor | None:
        """Return what the layer kept; None at the start of a clip."""
        return self.kept.get(layer)

    def keep(self, layer: nn.Module, frames: Tensor) -> None:
        """Keep a copy of `frames` for the layer's next call: a view would keep the whole piece."""
        self.kept[layer] = frames.clone()


class MemoryStream:
    """A stream of a decoder whose layers keep the few frames that their next outputs need."""

    def __init__(self, decoder: OtherDecoder) -> None:
        self._decoder = decoder
        self._start()

    def _start(self) -> None:
        self._memory, self._first = Memory(), torch.Size()

    @property
    def lookahead_frames(self) -> int:
        """The number of pixel frames by which the output lags; `finish` returns them."""
        return self._decoder.lookahead_frames

    @torch.no_grad()
    def push(self, latents: Tensor) -> Tensor:
        """Take the next latent frames (B, C, n, h, w); return the pixel frames (B, 3, m, H, W) that they determine.

        Raises ShapeError if they do not fit the decoder or the latents before them.
        """
        self._decoder.check_latents(latents)
        shape = latents.shape[:2] + latents.shape[3:]
        if self._first and shape != self._first:
            raise ShapeError(f"latents are {tuple(latents.shape)}: only the frames may differ from those before them")
        self._first = shape
        if not latents.shape[2]:
            return self._nothing()
        video = self._decoder.frames_of(self._decoder.own(latents), self._memory)
        self._memory.num_latents += latents.shape[2]
        return self._decoder.limited(video)

    @torch.no_grad()
    def finish(self) -> Tensor:
        """Return the remaining frames (B, 3, m, H, W); afterwards the next clip can begin.

        Raises FrameCountError if no latent frame was pushed.
        """
        if not self._memory.num_latents:
            raise FrameCountError("no latents were pushed, so there is nothing to finish")
        try:
            if not self.lookahead_frames:
                return self._nothing()
            self._memory.ends = True
            batch, channels, height, width = self._first
            empty = torch.empty(batch, channels, 0, height, width, device=self._decoder.device, dtype=self._decoder.dtype)
            return self._decoder.limited(self._decoder.frames_of(empty, self._memory))
        finally:
            self._start()

    def _nothing(self) -> Tensor:
        batch, _, height, width = self._first
        ratio = self._decoder.spatial_compression_ratio
        return torch.empty(batch, 3, 0, height * ratio, width * ratio, device=self._decoder.device, dtype=self._decoder.dtype)


def load_exactly(module: nn.Module, state: Mapping[str, Tensor], source: Path, unused: "Shapes | None" = None) -> None:
    """Give `module`, made on the meta device, the tensors of `state`, in fp32.

    `unused` are the keys and shapes of what a file holds besides the decoder, such as its encoder: all of them, or none. Raises
    WeightFileError with the missing, unexpected and misshapen keys (the first few of each, and their number), for tensors
    that are not floating point, and for NaN and infinity.
    """
    own = shapes_of(module.state_dict())
    besides = unused if unused and not unused.keys().isdisjoint(state) else {}
    check_keys({**own, **besides}, shapes_of(state), source)
    state = {key: state[key] for key in own}
    whole = [key for key, value in state.items() if not value.is_floating_point()]
    if whole:
        raise WeightFileError(f"{source.name}: {_listed(whole)} not floating point", "give fp32, fp16 or bf16 weights")
    broken = [
        key for key, value in state.items() if value.numel() and not torch.isfinite(torch.stack(torch.aminmax(value))).all()
    ]
    if broken:
        raise WeightFileError(f"{source.name}: NaN or infinity in {_listed(broken)}", "get the weights from their source again")
    module.load_state_dict({key: value.float() for key, value in state.items()}, assign=True)
    module.requires_grad_(False).eval()


def check_keys(wanted: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[int, ...]], source: Path) -> None:
    """Raise WeightFileError if the keys or shapes of a file are not those of its family; every kind of difference is counted."""
    misshapen = [f"{key} {found[key]} instead of {wanted[key]}" for key in wanted if key in found and found[key] != wanted[key]]
    differences = {
        "missing": sorted(set(wanted) - set(found)),
        "unexpected": sorted(set(found) - set(wanted)),
        "of another shape": misshapen,
    }
    parts = [f"{len(keys)} {what}: {_listed(keys)}" for what, keys in differences.items() if keys]
    if parts:
        raise WeightFileError(f"{source.name} has other keys than its family: {'; '.join(parts)}", "get it from its source again")


def _listed(keys: Iterable[str]) -> str:
    keys = list(keys)
    more = f" and {len(keys) - _SHOWN} more" if len(keys) > _SHOWN else ""
    return ", ".join(keys[:_SHOWN]) + more


def shapes_of(state: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Return the shape of each tensor by its key."""
    return {key: tuple(value.shape) for key, value in state.items()}


def size_in(shapes: "Shapes", key: str, axis: int) -> int:
    """Return a size of the tensor `key`; 1 if there is no such tensor or axis, or no such channels: strict loading names it."""
    shape = shapes.get(key, ())
    return shape[axis] if axis < len(shape) and 0 < shape[axis] <= _MOST_CHANNELS else 1


Shapes = Mapping[str, tuple[int, ...]]
