"""Decode with any decoder: the shape of a clip's latents, whole decodes, streams, and their memory by a dry run."""

from collections.abc import Iterable, Iterator
from typing import cast

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from turbovaed_cli.errors import FrameCountError, SettingsError, ShapeError
from turbovaed_cli.models.decoder import Decoder
from turbovaed_cli.models.metering import metered
from turbovaed_cli.models.network import StudentNetwork, num_params
from turbovaed_cli.models.streaming import FastDecoder, StreamingDecoder

_MOST_LATENT_FRAMES = 4096  # of a clip whose length in latent frames is looked for


def module_of(decoder: Decoder) -> nn.Module:
    """Return the torch module that a decoder is."""
    assert isinstance(decoder, nn.Module), f"{type(decoder).__name__} is no module"
    return decoder


def num_params_of(decoder: Decoder) -> int:
    """Return the number of parameters of a decoder."""
    return num_params(module_of(decoder))


def latent_shape(decoder: Decoder, frames: int, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """Return (C, t, h, w) of the latents that `decoder` makes `frames` pixel frames of `size` (height, width) of.

    Raises FrameCountError or ShapeError with the nearest possible values.
    """
    if isinstance(decoder, StudentNetwork):
        return decoder.latent_shape(frames, size)
    made = {t: num for t in range(1, min(frames, _MOST_LATENT_FRAMES) + 1) if (num := pixel_frames(decoder, t)) is not None}
    fewest = next((t for t, num in made.items() if num == frames), None)
    if fewest is None:
        nearest = sorted(made.values(), key=lambda num: abs(num - frames))[:2]
        raise FrameCountError(
            f"this decoder ({decoder.family}) does not make {frames} frames",
            f"nearest: `frames` {' or '.join(map(str, sorted(nearest)))}" if nearest else "at least 1",
        )
    space = int(decoder.spatial_compression_ratio)
    height, width = size
    if height % space or width % space or min(size) < space:
        rounded = [max(round(pixels / space), 1) * space for pixels in (width, height)]
        raise ShapeError(
            f"this decoder ({decoder.family}) makes multiples of {space} pixels, not {width}x{height}",
            f"nearest: `size` {rounded[0]}x{rounded[1]}",
        )
    return decoder.latent_channels, fewest, height // space, width // space


def streams(decoder: Decoder) -> bool:
    """Whether a decoder decodes a clip piece by piece."""
    return isinstance(decoder, StudentNetwork) or decoder.stream() is not None


def lookahead_frames(decoder: Decoder) -> int | None:
    """Return the number of pixel frames by which a student's stream lags its input, 0 if it is causal; None for other decoders.

    Only the config counts; weights are not read.
    """
    if not isinstance(decoder, StudentNetwork):
        return None
    with torch.device("meta"):
        same = type(decoder).from_config(decoder.config).requires_grad_(False)
    return StreamingDecoder(FastDecoder(same)).lookahead_frames


def pixel_frames(decoder: Decoder, latent_frames: int) -> int | None:
    """Return the number of pixel frames that it makes of t latent frames; None for a t that it cannot decode."""
    try:
        return decoder.pixel_frames(latent_frames)
    except FrameCountError:
        return None


@torch.no_grad()
def decode_without_gradients(decoder: Decoder, latents: Tensor) -> Tensor:
    """Decode latents (B, C, t, h, w) of any precision to video (B, 3, T, H, W) in the decoder's precision and on its device."""
    return cast(Tensor, decoder.decode(latents.to(decoder.device, decoder.dtype), return_dict=False)[0])


@torch.no_grad()
def decode_in_pieces(decoder: Decoder, latents: Iterable[Tensor]) -> Iterator[Tensor]:
    """Yield the frames (B, 3, m, H, W) of one clip, whose latents come in pieces (B, C, n, h, w), from a decoder that streams."""
    stream = decoder.stream()
    assert stream is not None, f"{decoder.family} does not stream"
    for piece in latents:
        yield stream.push(piece.to(decoder.device, decoder.dtype))
    yield stream.finish()


def stream_bytes(decoder: Decoder, size: tuple[int, int], frames: int) -> int:
    """Predict the peak bytes of a stream of latents of `size` (h, w), `frames` latent frames at once, without the weights."""
    with FakeTensorMode(allow_non_fake_inputs=True), metered() as meter, torch.no_grad():
        stream = decoder.stream()
        assert stream is not None, f"{decoder.family} does not stream"
        latents = torch.empty(1, decoder.latent_channels, frames, *size, dtype=decoder.dtype, device=decoder.device)
        lag = stream.lookahead_frames // int(decoder.temporal_compression_ratio)
        for _ in range(-(-lag // frames) + 2):  # the last piece has kept frames and makes output, as all later ones do
            stream.push(latents).float()
    return meter.peak_on_cpu if decoder.device.type == "cpu" else meter.peak


def check_same_space(decoder: Decoder, other: Decoder, name: str, other_name: str) -> None:
    """Raise SettingsError unless two decoders take latents of the same channels, ratios and, if both are known, statistics."""
    shapes = [
        (one.latent_channels, int(one.temporal_compression_ratio), int(one.spatial_compression_ratio)) for one in (decoder, other)
    ]
    if shapes[0] != shapes[1]:
        described = [f"{channels} channels, {time}x{space}x{space}" for channels, time, space in shapes]
        raise SettingsError(
            f"{name} decodes latents of {described[0]}; {other_name} decodes {described[1]}",
            "only decoders of the same latents can be compared",
        )
    spaces = (decoder.space, other.space)
    if spaces[0] is None or spaces[1] is None or spaces[0].is_normalised or spaces[1].is_normalised:
        return
    zero = torch.zeros(shapes[0][0], 1, 1, 1)
    if not torch.allclose(spaces[0].raw(zero), spaces[1].raw(zero), atol=1e-3) or not torch.allclose(
        spaces[0].spread, spaces[1].spread, rtol=1e-3
    ):
        raise SettingsError(
            f"{name} and {other_name} decode different latents: their means or standard deviations differ",
            "only decoders of the same latents can be compared",
        )
