"""`reconstruct`: video in, video out, through the teacher's encoder and the student's decoder; or latents in, video out."""

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from turbovaed_cli.errors import SettingsError, ShapeError
from turbovaed_cli.latents.latent_files import is_latents_file, read_latents_for
from turbovaed_cli.machine.devices import give_back_free_memory
from turbovaed_cli.machine.threads import Background
from turbovaed_cli.models.decoder import Decoder
from turbovaed_cli.models.decoding import decode_in_pieces, streams
from turbovaed_cli.models.encoding import approximation_of, encoded
from turbovaed_cli.models.memory import Pieces, in_tiles_in_words, plan_pieces
from turbovaed_cli.models.pair import Pair
from turbovaed_cli.models.streaming import decode_as_memory_allows
from turbovaed_cli.models.student import StudentDecoder
from turbovaed_cli.reconstruction.columns import (
    LATENTS_AT_ONCE,
    LATENTS_SHARED,
    column_labels,
    decoded_frames,
    decoded_latents,
    is_one_window,
    labelled,
    pixels_of,
    windowed_in_words,
)
from turbovaed_cli.reconstruction.windows import check_finite, pad_size
from turbovaed_cli.reporting import Reporter, quiet
from turbovaed_cli.settings import ReconstructSettings, check_reconstruct
from turbovaed_cli.video import (
    Timing,
    VideoWriter,
    find_codec,
    probe,
    read_frames,
    to_model,
)

_PIECES_PER_TRIM = 4  # for small videos, each piece would cost 7 % of the time; every fourth costs 3 % and hardly raises the peak


@dataclass(frozen=True)
class ReconstructResult:
    """The video that was written."""

    out: Path
    num_frames: int
    height: int
    width: int
    fps: Fraction


def reconstruct(
    source: Path,
    out: Path,
    pair: Pair,
    settings: ReconstructSettings = ReconstructSettings(),
    *,
    overwrite: bool = False,
    report: Reporter = quiet,
) -> ReconstructResult:
    """Reconstruct a video of any length in memory that does not grow with it; or decode a latents file.

    The output has the same frame count, times, size and sound. Padding to the sizes that the teacher takes is cropped again.
    Raises VideoError if `source` cannot be read, OutputExistsError if `out` exists.
    """
    check_reconstruct_settings(settings, out, side_by_side=bool(pair.beside))
    _check_windows(pair, settings)
    networks: list[Any] = [network for network in (*pair.decoders, pair.teacher) if hasattr(network, "fast")]
    before = [network.fast for network in networks]
    try:
        for network in networks:
            network.fast = network.fast if settings.fast else False
        way = _decode_file if is_latents_file(source) else _reconstruct
        return way(source, out, pair, settings, overwrite=overwrite, report=report)
    finally:
        for network, fast in zip(networks, before, strict=True):
            network.fast = fast


def _check_windows(pair: Pair, settings: ReconstructSettings) -> None:
    """Raise SettingsError if the memory is limited and a decoder decodes in windows."""
    if settings.memory and not streams(pair.student):
        raise SettingsError(
            f"{pair.name} ({pair.student.family}) decodes whole clips only, in windows whose memory is not planned",
            "leave out `memory`",
        )


def _reconstruct(
    source: Path, out: Path, pair: Pair, settings: ReconstructSettings, *, overwrite: bool, report: Reporter
) -> ReconstructResult:
    assert pair.teacher is not None
    info = probe(source, hdr=settings.hdr, fps=_fps_of(settings))
    if info.notes:
        report.note(f"{source.name}: {'; '.join(info.notes)}")
    columns = len(column_labels(pair, settings)) or 1
    with VideoWriter(
        out,
        height=info.height,
        width=info.width * columns,
        fps=Timing.of(info),
        tracks_from=info,
        sound=settings.sound == "keep",
        sample_aspect_ratio=info.sample_aspect_ratio,
        codec=settings.codec,
        bits=settings.bits or None,
        crf=settings.crf,
        overwrite=overwrite,
        report=report,
    ) as writer:
        frames = read_frames(info, square_pixels=False, report=report)
        made = reconstructed_frames(
            frames, info.height, info.width, pair, settings, num_frames=info.num_frames, aside=writer.path.parent, report=report
        )
        _write_meanwhile(writer, report.track(made, "reconstructing", total=info.num_frames))
    return ReconstructResult(out, writer.num_frames, info.height, info.width * columns, info.fps)


def num_frames_of(source: Path, pair: Pair, settings: ReconstructSettings) -> int:
    """Return the number of frames that the output of an input will have. Raises what reading the input raises."""
    if is_latents_file(source):
        return int(pair.student.pixel_frames(_latents_of(source, pair.student, settings).shape[1]))
    return probe(source, hdr=settings.hdr, fps=_fps_of(settings)).num_frames


def output_path(source: Path, out: Path | None, settings: ReconstructSettings) -> Path:
    """Return the path that one input is written to: `out`, or a file of the default name in it or in the current folder."""
    if out is not None and not os.path.isdir(out):  # noqa: PTH112 - a name that is too long is no folder
        return out
    name = f"{source.stem}-turbovaed{find_codec(settings.codec).suffixes[0]}"
    return Path(name) if out is None else out / name


def _fps_of(settings: ReconstructSettings) -> Fraction:
    return Fraction(settings.fps).limit_denominator(1001)


def _write_meanwhile(writer: VideoWriter, frames: Iterable[np.ndarray]) -> None:
    """Write frames in a background thread, so that the next ones are decoded meanwhile."""
    with Background(writer.write, most_waiting=8, drops_on_error=True) as write:
        for frame in frames:
            write(frame)


def check_reconstruct_settings(settings: ReconstructSettings, out: Path | None = None, *, side_by_side: bool = False) -> None:
    """Raise SettingsError for settings that cannot work, alone, for this output, or with further decoders `side_by_side`."""
    check_reconstruct(settings, side_by_side=side_by_side)
    find_codec(settings.codec, bits=settings.bits or None, crf=settings.crf, path=out)


def reconstructed_frames(
    frames: Iterator[np.ndarray],
    height: int,
    width: int,
    pair: Pair,
    settings: ReconstructSettings,
    *,
    num_frames: int = 0,
    aside: Path = Path(),
    report: Reporter = quiet,
) -> Iterator[np.ndarray]:
    """Yield a reconstructed frame (H, W, 3), uint8 or (10 bits) uint16, for each of `frames` (H, W, 3) uint8, in bounded memory.

    `num_frames` is their number, for the memory plan; 0 if it is not known. Cached frames may go to disk in the folder `aside`.
    With `compare` each frame is (H, 3W, 3), labelled: source, teacher, student. Decoders beside the pair's add a column each.
    """
    if labels := column_labels(pair, settings):
        for frame in decoded_frames(frames, height, width, pair, settings):
            yield labelled(frame, labels)
        return
    if not streams(pair.student):
        if approximation := windowed_in_words(pair, height, width, settings, num_frames):
            report.note(approximation)
        yield from decoded_frames(frames, height, width, pair, settings)
        return
    yield from _streamed_frames(frames, height, width, pair, settings, num_frames, aside, report)


def _streamed_frames(
    frames: Iterator[np.ndarray],
    height: int,
    width: int,
    pair: Pair,
    settings: ReconstructSettings,
    num_frames: int,
    aside: Path,
    report: Reporter,
) -> Iterator[np.ndarray]:
    """Encode frames as they come and yield decoded ones as soon as they are final.

    If the teacher encodes exactly, they equal those of encoding and decoding the whole clip at once.
    """
    assert pair.teacher is not None
    ratio = pair.teacher.spec.space_ratio
    padded = height + -height % ratio, width + -width % ratio
    pieces = plan_pieces(pair, padded, settings.memory, num_frames)
    report.note(f"decoding {pieces}")
    with pair.teacher.in_tiles(pieces.tiles):
        approximation = approximation_of(pair.teacher, pieces.encode_frames, num_frames)
    if approximation:
        report.note(approximation)
    if pieces.tiles is not None:
        report.note(in_tiles_in_words(pair.teacher, pieces.tiles))
    teacher, num_read = pair.teacher, 0

    def videos() -> Iterator[Tensor]:
        nonlocal num_read
        while batch := list(islice(frames, pieces.encode_frames)):
            num_read += len(batch)
            yield pad_size(to_model(np.stack(batch), teacher.device), padded)[None]

    latents = (
        part for made in encoded(pair.teacher, videos(), pieces.encode_frames) for part in made.split(pieces.frames, dim=2)
    )
    num_made = 0
    to_pixels = pixels_of(settings)
    with teacher.in_tiles(pieces.tiles):
        for video in _streamed(pair.student, latents, pieces, aside, report):
            stretch = to_pixels(video[0, :, : num_read - num_made, :height, :width])  # without the frames that were padded
            num_made += len(stretch)
            yield from stretch


def _latents_of(source: Path, decoder: Decoder, settings: ReconstructSettings, report: Reporter = quiet) -> Tensor:
    """Read the latents (C, t, h, w) of a file, as the decoder takes them."""
    taken = read_latents_for(source, decoder, latents_are=settings.latents_are, shape=settings.latents_shape, report=report)
    return taken.latents


def _decode_file(
    source: Path, out: Path, pair: Pair, settings: ReconstructSettings, *, overwrite: bool, report: Reporter
) -> ReconstructResult:
    student = pair.student
    latents = _latents_of(source, student, settings, report)
    if latents.shape[0] != student.latent_channels:
        raise ShapeError(
            f"{source.name} holds latents of {latents.shape[0]} channels; {pair.name} decodes {student.latent_channels}",
            "name the model they belong to: `model` NAME",
        )
    if settings.compare or pair.beside:
        name = "compare" if settings.compare else "against"
        raise SettingsError(f"`{name}` needs the source video, and latents have none", "give the video instead")
    height, width = (int(size * student.spatial_compression_ratio) for size in latents.shape[2:])
    fps = _fps_of(settings)
    total = student.pixel_frames(latents.shape[1])
    with VideoWriter(
        out,
        height=height,
        width=width,
        fps=fps,
        codec=settings.codec,
        bits=settings.bits or None,
        crf=settings.crf,
        overwrite=overwrite,
    ) as writer:
        if not streams(student):
            made = _frames_of_windows(latents, pair, settings, report)
        else:
            pieces = plan_pieces(replace(pair, teacher=None), (height, width), settings.memory, total)
            report.note(f"decoding {pieces}")
            made = _frames_of(latents, student, pieces, writer.path.parent, pixels_of(settings), report)
        _write_meanwhile(writer, report.track(made, "decoding", total=total))
    return ReconstructResult(out, writer.num_frames, height, width, fps)


def _frames_of_windows(latents: Tensor, pair: Pair, settings: ReconstructSettings, report: Reporter) -> Iterator[np.ndarray]:
    """Decode (C, t, h, w) with a decoder that only takes whole clips to frames (H, W, 3)."""
    if not is_one_window(latents):
        report.note(
            f"{pair.name} ({pair.student.family}) decodes whole clips only: windows of {LATENTS_AT_ONCE} latent frames fade over "
            f"{LATENTS_SHARED}, which is an approximation"
        )
    to_pixels = pixels_of(settings)
    for stretch in decoded_latents(pair.student, latents):
        yield from to_pixels(stretch)


def _frames_of(
    latents: Tensor,
    student: Decoder,
    pieces: Pieces,
    aside: Path,
    to_pixels: Callable[[Tensor], np.ndarray],
    report: Reporter,
) -> Iterator[np.ndarray]:
    """Decode (C, t, h, w) of any length to frames (H, W, 3) in bounded memory; they equal those of decoding it at once."""
    for video in _streamed(student, latents[None].split(pieces.frames, dim=2), pieces, aside, report):
        yield from to_pixels(video[0])


def _streamed(student: Decoder, latents: Iterable[Tensor], pieces: Pieces, aside: Path, report: Reporter) -> Iterator[Tensor]:
    """Decode latents (1, C, n, h, w) piece by piece to video (1, 3, m, H, W).

    If a piece does not fit, smaller ones follow, from a student.
    """

    def smaller(before: int, now: int) -> None:
        report.note(f"{before} latent frames at once do not fit in memory: going on with {now}")

    spill = aside if pieces.spill else None
    if isinstance(student, StudentDecoder):
        decoded = decode_as_memory_allows(student, latents, pieces.frames, rows=pieces.rows, spill=spill, smaller=smaller)
    else:
        decoded = decode_in_pieces(student, latents)
    for number, video in enumerate(decoded):
        check_finite([video])
        yield video
        if number % _PIECES_PER_TRIM == 0:
            give_back_free_memory()
