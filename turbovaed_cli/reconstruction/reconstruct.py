"""`reconstruct`: video in, video out, through the teacher's encoder and the student's decoder; or latents in, video out."""

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from turbovaed_cli.errors import SettingsError, ShapeError
from turbovaed_cli.latents.latent_files import is_latents_file, read_latents
from turbovaed_cli.machine.devices import give_back_free_memory
from turbovaed_cli.machine.threads import Background
from turbovaed_cli.models.encoding import approximation_of, encoded
from turbovaed_cli.models.memory import Pieces, in_tiles_in_words, plan_pieces
from turbovaed_cli.models.pair import Pair
from turbovaed_cli.models.streaming import decode_as_memory_allows
from turbovaed_cli.models.student import StudentDecoder
from turbovaed_cli.reconstruction.windows import check_finite, crossfade, pad_size, reconstruct_window, window_frames, windows_of
from turbovaed_cli.reporting import Reporter, quiet
from turbovaed_cli.settings import ReconstructSettings, check_reconstruct
from turbovaed_cli.video import (
    Timing,
    VideoWriter,
    find_codec,
    probe,
    read_frames,
    to_model,
    to_uint8,
    to_uint16,
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
    check_reconstruct_settings(settings, out)
    networks = [network for network in (pair.student, pair.teacher) if network is not None]
    before = [network.fast for network in networks]
    try:
        for network in networks:
            network.fast = network.fast if settings.fast else False
        way = _decode_file if is_latents_file(source) else _reconstruct
        return way(source, out, pair, settings, overwrite=overwrite, report=report)
    finally:
        for network, fast in zip(networks, before, strict=True):
            network.fast = fast


def _reconstruct(
    source: Path, out: Path, pair: Pair, settings: ReconstructSettings, *, overwrite: bool, report: Reporter
) -> ReconstructResult:
    assert pair.teacher is not None
    info = probe(source, hdr=settings.hdr, fps=_fps_of(settings))
    if info.notes:
        report.note(f"{source.name}: {'; '.join(info.notes)}")
    columns = 3 if settings.compare else 1
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


def check_reconstruct_settings(settings: ReconstructSettings, out: Path | None = None) -> None:
    """Raise SettingsError for settings that cannot work, alone or for this output."""
    check_reconstruct(settings)
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
    With `compare` each frame is (H, 3W, 3), labelled: source, teacher, student.
    """
    if settings.compare:
        for frame in decoded_frames(frames, height, width, pair, settings):
            yield _labelled(frame, ("source", "teacher", "student"))
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
    to_pixels = _to_pixels(settings)
    with teacher.in_tiles(pieces.tiles):
        for video in _streamed(pair.student, latents, pieces, aside, report):
            stretch = to_pixels(video[0, :, : num_read - num_made, :height, :width])  # without the frames that were padded
            num_made += len(stretch)
            yield from stretch


def decoded_frames(
    frames: Iterator[np.ndarray], height: int, width: int, pair: Pair, settings: ReconstructSettings
) -> Iterator[np.ndarray]:
    """Yield the student's frames (H, W, 3), or with `compare` (H, 3W, 3): source, teacher, student. Windows are cross-faded.

    A clip of one window is decoded as a whole. `eval` measures short clips this way, and `reconstruct --compare` uses it.
    """
    assert pair.teacher is not None
    teacher, student = pair.teacher, pair.student
    length = window_frames(teacher.spec, height, width, settings.window, settings.overlap)

    def decoded() -> Iterator[tuple[Tensor, bool]]:
        for window, is_last in windows_of(frames, length, settings.overlap):
            videos = reconstruct_window(window, teacher, student, with_teacher=settings.compare)
            if settings.compare:
                videos.insert(0, to_model(window))
            yield torch.cat(videos, dim=3), is_last

    to_pixels = _to_pixels(settings)
    for stretch in crossfade(decoded(), settings.overlap):
        yield from to_pixels(stretch)


def _to_pixels(settings: ReconstructSettings) -> Callable[[Tensor], np.ndarray]:
    """Return the function that converts a video in [-1, 1] to frames of the written bit depth."""
    return to_uint8 if (settings.bits or find_codec(settings.codec).bits[0]) == 8 else to_uint16


def _labelled(frame: np.ndarray, labels: tuple[str, ...]) -> np.ndarray:
    """Write each label in the top left corner of its column, white on black; frames are uint8 or uint16."""
    frame = frame.copy()
    for i, label in enumerate(labels):
        left = i * frame.shape[1] // len(labels)
        corner = frame[:15, left : left + 9 + 6 * len(label)]
        image = Image.new("L", (corner.shape[1], corner.shape[0]))
        ImageDraw.Draw(image).text((4, 2), label, fill=255)
        corner[:] = np.asarray(image)[:, :, None].astype(frame.dtype) * (1 if frame.dtype == np.uint8 else 257)
    return frame


def _latents_of(source: Path, student: StudentDecoder, settings: ReconstructSettings, report: Reporter = quiet) -> Tensor:
    """Read the raw latents (C, t, h, w) of a file."""
    space = student.space
    return read_latents(source, space, latents_are=settings.latents_are, shape=settings.latents_shape, report=report).latents


def _decode_file(
    source: Path, out: Path, pair: Pair, settings: ReconstructSettings, *, overwrite: bool, report: Reporter
) -> ReconstructResult:
    student = pair.student
    latents = _latents_of(source, student, settings, report)
    if latents.shape[0] != student.config.latent_channels:
        raise ShapeError(
            f"{source.name} holds latents of {latents.shape[0]} channels; {pair.name} decodes {student.config.latent_channels}",
            "name the model they belong to: `model` NAME",
        )
    if settings.compare:
        raise SettingsError("`compare` needs the source video, and latents have none", "give the video instead")
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
        pieces = plan_pieces(replace(pair, teacher=None), (height, width), settings.memory, total)
        report.note(f"decoding {pieces}")
        made = _frames_of(latents, student, pieces, writer.path.parent, _to_pixels(settings), report)
        _write_meanwhile(writer, report.track(made, "decoding", total=total))
    return ReconstructResult(out, writer.num_frames, height, width, fps)


def _frames_of(
    latents: Tensor,
    student: StudentDecoder,
    pieces: Pieces,
    aside: Path,
    to_pixels: Callable[[Tensor], np.ndarray],
    report: Reporter,
) -> Iterator[np.ndarray]:
    """Decode (C, t, h, w) of any length to frames (H, W, 3) in bounded memory; they equal those of decoding it at once."""
    for video in _streamed(student, latents[None].split(pieces.frames, dim=2), pieces, aside, report):
        yield from to_pixels(video[0])


def _streamed(
    student: StudentDecoder, latents: Iterable[Tensor], pieces: Pieces, aside: Path, report: Reporter
) -> Iterator[Tensor]:
    """Decode latents (1, C, n, h, w) piece by piece to video (1, 3, m, H, W); if a piece does not fit, smaller ones follow."""

    def smaller(before: int, now: int) -> None:
        report.note(f"{before} latent frames at once do not fit in memory: going on with {now}")

    spill = aside if pieces.spill else None
    decoded = decode_as_memory_allows(student, latents, pieces.frames, rows=pieces.rows, spill=spill, smaller=smaller)
    for number, video in enumerate(decoded):
        check_finite([video])
        yield video
        if number % _PIECES_PER_TRIM == 0:
            give_back_free_memory()
