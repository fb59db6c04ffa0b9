"""One decode within a limit of memory, on the device of the latents, collected in one tensor."""

from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import torch
from torch import Tensor, nn

from turbovaed_cli.errors import FrameCountError, SettingsError, ShapeError
from turbovaed_cli.machine.devices import empty_cache, give_back_free_memory
from turbovaed_cli.models.bounded import pieces_within
from turbovaed_cli.models.decoder import Decoder
from turbovaed_cli.models.memory import free_memory_bytes, pixels_per_piece
from turbovaed_cli.models.streaming import decode_as_memory_allows
from turbovaed_cli.models.student import StudentDecoder
from turbovaed_cli.reporting import Reporter, quiet

_FREE_SHARE = 0.7  # of the free memory, without a limit
_SAME = 0.1  # a plan is used again if the memory for it has shrunk by at most this share; margins are wider

# Latent frames at once, latent rows of them (0: all), and whether cached frames are on disk.
Way = tuple[int, int, bool]
# For a shape, precision and device of latents: the bytes that were planned with, and the way.
Plans = dict[tuple[object, ...], tuple[int, Way]]


def decode_collected(
    decoder: Decoder, latents: Tensor, memory: int = 0, *, plans: Plans | None = None, report: Reporter = quiet
) -> Tensor:
    """Decode latents (B, C, t, h, w) of any length to video (B, 3, T, H, W) in [-1, 1], in the precision of the latents.

    The decoder is moved to the device of the latents and keeps its precision. Students are decoded in pieces, clip by clip, so
    that the decode takes at most `memory` bytes there, besides what the device holds already; 0 allows 70 % of what is free.
    If the video takes more than half of that, it is collected on the CPU. Other decoders decode in short pieces if they stream.
    `plans` keeps the pieces for the next latents of the same shape.
    Raises SettingsError if `memory` is too little for the smallest pieces, ShapeError for latents of another shape, and
    FrameCountError if they hold no frame.
    """
    if latents.ndim != 5 or latents.shape[1] != decoder.latent_channels:
        wanted = f"(batch, {decoder.latent_channels}, frames, height, width)"
        raise ShapeError(f"latents are {tuple(latents.shape)}: this decoder takes {wanted}")
    if latents.shape[2] < 1:
        raise FrameCountError("latents hold no frame")
    device = latents.device
    nn.Module.to(cast("nn.Module", decoder), device=device)  # diffusers' own `to` warns about an empty list of layers to keep
    shape = _video_shape(decoder, latents)
    size = torch.Size(shape).numel() * latents.element_size()
    if memory == 0:
        empty_cache(device)  # what torch keeps for reuse is free
    allowed = memory or int(_FREE_SHARE * free_memory_bytes(device))
    holds_video = device.type == "cpu" or size <= allowed // 2
    way = None
    if isinstance(decoder, StudentDecoder):
        way = _way(decoder, latents, allowed - size if holds_video else allowed, plans, must_fit=bool(memory))
        report.note(_in_words(way))
    video = torch.empty(shape, dtype=latents.dtype, device=device if holds_video else "cpu")
    for clip, out in zip(latents.split(1), video.split(1), strict=True):
        done = 0
        for made in _decoded(decoder, clip, way, report):
            out[:, :, done : done + made.shape[2]] = made
            done += made.shape[2]
        assert done == shape[2], (done, shape)
    give_back_free_memory()
    return video


def _video_shape(decoder: Decoder, latents: Tensor) -> tuple[int, int, int, int, int]:
    batch, _, frames, height, width = latents.shape
    ratio = int(decoder.spatial_compression_ratio)
    return batch, 3, decoder.pixel_frames(frames), height * ratio, width * ratio


def _way(student: StudentDecoder, latents: Tensor, allowed: int, plans: Plans | None, *, must_fit: bool) -> Way:
    """Return a way to decode that takes at most `allowed` bytes, or without `must_fit` at worst the leanest one."""
    key = (tuple(latents.shape), student.dtype, str(latents.device))
    before, way = (plans or {}).get(key, (0, None))
    if way is not None and allowed >= (1 - _SAME) * before:
        return way
    _, _, length, height, width = latents.shape
    try:
        way = pieces_within(student, (height, width), max(allowed, 0), length)
    except SettingsError as error:
        if must_fit:
            raise SettingsError(
                f"`memory` is too little to decode {student.pixel_frames(length)} frames: without the video itself, {error.what}",
                "more `memory`, or 0 to take what is free; the latents are kept in `attached.latents`",
            ) from None
        way = (1, 1, True)
    if plans is not None:
        plans[key] = allowed, way
    return way


def _in_words(way: Way) -> str:
    frames, rows, spill = way
    stripes = f", {rows} latent row{'s' * (rows > 1)} at a time" if rows else ""
    return f"decoding {frames} latent frame{'s' * (frames > 1)} at once{stripes}{', the rest on disk' * spill}"


def _decoded(decoder: Decoder, clip: Tensor, way: Way | None, report: Reporter) -> Iterator[Tensor]:
    """Yield the frames (1, 3, n, H, W) of one clip, in order."""

    def smaller(before: int, now: int) -> None:
        report.note(f"{before} latent frames at once do not fit in memory: going on with {now}")

    if way is not None:
        frames, rows, spill = way
        with TemporaryDirectory(prefix="turbovaed-") if spill else nullcontext() as folder:
            yield from decode_as_memory_allows(
                cast("StudentDecoder", decoder),
                [clip],
                frames,
                rows=rows,
                spill=Path(folder) if folder else None,
                smaller=smaller,
            )
        return
    clip = clip.to(decoder.dtype)
    stream = decoder.stream()
    if stream is None:
        yield cast("Any", decoder.decode(clip, return_dict=False))[0]
        return
    pixels = clip[0, 0, 0].numel() * int(decoder.spatial_compression_ratio) ** 2 * int(decoder.temporal_compression_ratio)
    for part in clip.split(max(pixels_per_piece(clip.device.type) // pixels, 1), dim=2):
        yield stream.push(part)
    yield stream.finish()
