"""`reconstruct`: video in, video out, through the teacher's encoder and the student's decoder; or latents in, video out."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from turbovaed_cli.errors import SettingsError, ShapeError
from turbovaed_cli.latents import read_latents
from turbovaed_cli.models.pair import Pair
from turbovaed_cli.models.streaming import StreamingDecoder
from turbovaed_cli.models.student import StudentDecoder
from turbovaed_cli.models.windows import PIXELS_PER_WINDOW, check_finite, crossfade, reconstruct_window, window_frames, windows_of
from turbovaed_cli.reporting import Reporter, quiet
from turbovaed_cli.settings import ReconstructSettings
from turbovaed_cli.video import VideoWriter, probe, read_frames, to_uint8


@dataclass(frozen=True)
class ReconstructResult:
    """What was written."""

    out: Path
    num_frames: int
    height: int
    width: int
    fps: Fraction


def reconstruct(
    source: Path,
    out: Path,
    pair: Pair,
    settings: ReconstructSettings = ReconstructSettings(),  # noqa: B008 - frozen
    *,
    overwrite: bool = False,
    report: Reporter = quiet,
) -> ReconstructResult:
    """Reconstruct a video, whatever its length, in memory that does not grow with it; or decode a latents .safetensors.

    Every frame comes back: same count, rate, size and sound; what the teacher needs in multiples is padded and cropped
    inside. Raises VideoError where `source` cannot be read, OutputExistsError where `out` is there.
    """
    if source.suffix == ".safetensors":
        return _decode_file(source, out, pair, settings, overwrite=overwrite, report=report)
    assert pair.teacher is not None
    _check_settings(settings)
    info = probe(source)
    if not info.has_constant_rate:
        report.note(
            f"{source.name} has a variable frame rate: every frame is kept and shown at its average, {float(info.fps):.3f}"
        )
    columns = 3 if settings.compare else 1
    with VideoWriter(
        out,
        height=info.height,
        width=info.width * columns,
        fps=info.fps,
        audio_from=info if info.has_audio else None,
        sample_aspect_ratio=info.sample_aspect_ratio,
        crf=settings.crf,
        overwrite=overwrite,
    ) as writer:
        written = 0
        frames = read_frames(info, square_pixels=False)
        for frame in report.track(
            reconstructed_frames(frames, info.height, info.width, pair, settings), "reconstructing", total=info.num_frames
        ):
            writer.write(frame)
            written += 1
    return ReconstructResult(out, written, info.height, info.width * columns, info.fps)


def _check_settings(settings: ReconstructSettings) -> None:
    if settings.overlap < 0 or settings.window < 0:
        raise SettingsError("--overlap and --window cannot be below 0")
    if not 0 < settings.fps < math.inf:
        raise SettingsError(f"--fps {settings.fps} is not a frame rate", "a number above 0, such as 24")


def reconstructed_frames(
    frames: Iterator[np.ndarray], height: int, width: int, pair: Pair, settings: ReconstructSettings
) -> Iterator[np.ndarray]:
    """Frames (H, W, 3) uint8 in, as many out; with `compare` each is (H, 3W, 3): source, teacher, student, and says so."""
    for frame in decoded_frames(frames, height, width, pair, settings):
        yield _labelled(frame, ("source", "teacher", "student")) if settings.compare else frame


def decoded_frames(
    frames: Iterator[np.ndarray], height: int, width: int, pair: Pair, settings: ReconstructSettings
) -> Iterator[np.ndarray]:
    """`reconstructed_frames` without words drawn on them: what `eval` measures, and `reconstruct` writes."""
    assert pair.teacher is not None
    teacher, student = pair.teacher, pair.student
    length = window_frames(teacher.spec, height, width, settings.window, settings.overlap)

    def decoded() -> Iterator[tuple[Tensor, bool]]:
        for window, is_last in windows_of(frames, length, settings.overlap):
            videos = reconstruct_window(window, teacher, student, with_teacher=settings.compare)
            if settings.compare:
                videos.insert(0, torch.from_numpy(window).permute(3, 0, 1, 2) / 127.5 - 1)
            yield torch.cat(videos, dim=3), is_last

    for stretch in crossfade(decoded(), settings.overlap):
        yield from to_uint8(stretch)


def _labelled(frame: np.ndarray, labels: tuple[str, ...]) -> np.ndarray:
    """Write each label in the top left corner of its column, white on black."""
    image = Image.fromarray(frame)
    draw = ImageDraw.Draw(image)
    for i, label in enumerate(labels):
        left = i * frame.shape[1] // len(labels)
        draw.rectangle((left, 0, left + 8 + 6 * len(label), 14), fill="black")
        draw.text((left + 4, 2), label, fill="white")
    return np.asarray(image)


def _decode_file(
    source: Path, out: Path, pair: Pair, settings: ReconstructSettings, *, overwrite: bool, report: Reporter
) -> ReconstructResult:
    _check_settings(settings)
    latents = read_latents(source)
    student = pair.student
    if latents.shape[0] != student.config.latent_channels:
        raise ShapeError(
            f"{source.name} holds latents of {latents.shape[0]} channels; {pair.name} decodes {student.config.latent_channels}",
            "name the model they belong to: --model NAME",
        )
    if settings.compare:
        raise SettingsError("--compare needs the source video, and latents have none", "give the video instead")
    height, width = (int(size * student.spatial_compression_ratio) for size in latents.shape[2:])
    fps = Fraction(settings.fps).limit_denominator(1001)
    total = student.pixel_frames(latents.shape[1])
    with VideoWriter(out, height=height, width=width, fps=fps, crf=settings.crf, overwrite=overwrite) as writer:
        written = 0
        for frame in report.track(_frames_of(latents, student), "decoding", total=total):
            writer.write(frame)
            written += 1
    return ReconstructResult(out, written, height, width, fps)


def _frames_of(latents: Tensor, student: StudentDecoder) -> Iterator[np.ndarray]:
    """Decode (C, t, h, w) of any length to frames (H, W, 3) uint8: those of a decode of the whole, in bounded memory."""
    height, width = latents.shape[2:]
    pixels_per_latent = height * width * student.spatial_compression_ratio**2 * student.temporal_compression_ratio
    length = max(PIXELS_PER_WINDOW // pixels_per_latent, 1)
    decoder = StreamingDecoder(student)
    for piece in latents.split(length, dim=1):
        yield from _checked(decoder.push(piece[None].to(student.device, student.dtype)))
    yield from _checked(decoder.finish())


def _checked(video: Tensor) -> np.ndarray:
    """(1, 3, T, H, W) as frames (T, H, W, 3) uint8; NonFiniteError where a value is none."""
    check_finite([video])
    return to_uint8(video[0])
