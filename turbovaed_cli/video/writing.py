"""Write videos: a file appears whole, once every frame is in it, or not at all."""

import contextlib
import os
import tempfile
from fractions import Fraction
from pathlib import Path
from types import TracebackType

import numpy as np

from turbovaed_cli.errors import OutputExistsError, SettingsError, VideoError
from turbovaed_cli.rundir import fsync_folder
from turbovaed_cli.video import ffmpeg, messages
from turbovaed_cli.video.colour import SWS
from turbovaed_cli.video.probing import VideoInfo, probe

WRITABLE_SUFFIXES = (".mp4", ".m4v", ".mov", ".mkv")
# Sound that each container takes as it is; other sound becomes AAC.
_COPIED_AUDIO = {
    ".mp4": ("aac", "mp3", "ac3", "eac3", "alac", "opus", "flac"),
    ".m4v": ("aac", "ac3", "alac"),
    ".mov": ("aac", "mp3", "ac3", "alac"),
    ".mkv": ("aac", "mp3", "ac3", "eac3", "alac", "opus", "flac", "vorbis"),
}


class VideoWriter:
    """Write frames (H, W, 3) uint8 to an H.264 file that appears whole, once every frame is in it, or not at all.

    bt709 matrix and tags; never rescaled: odd sizes become 4:4:4, which can hold them. `audio_from` lends its sound. Use
    as a context manager; leaving it with an error leaves no file.
    """

    def __init__(
        self,
        path: Path,
        *,
        height: int,
        width: int,
        fps: Fraction,
        audio_from: VideoInfo | None = None,
        sample_aspect_ratio: Fraction = Fraction(1),
        crf: int = 16,
        overwrite: bool = False,
    ) -> None:
        self.path = Path(path)
        if self.path.suffix.lower() not in WRITABLE_SUFFIXES:
            raise SettingsError(f"{self.path.name} is no name this can write to", f"videos end in {', '.join(WRITABLE_SUFFIXES)}")
        if self.path.exists() and not overwrite:
            raise OutputExistsError(f"{self.path} is there already", "add --overwrite to replace it")
        if not 0 <= crf <= 51:
            raise SettingsError(f"--crf {crf} is not a quality", "0 (lossless) to 51")
        self.shape = (height, width, 3)
        self.num_frames = 0
        self._open = contextlib.ExitStack()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{self.path.stem}.", suffix=self.path.suffix, dir=self.path.parent)
        os.close(handle)
        self._temporary = Path(name)
        self._open.callback(self._temporary.unlink, missing_ok=True)
        pixel_format = "yuv420p" if height % 2 == 0 and width % 2 == 0 else "yuv444p"
        filters = f"scale=out_color_matrix=bt709:out_range=tv:flags={SWS},format={pixel_format},setsar={sample_aspect_ratio.numerator}/{sample_aspect_ratio.denominator}"
        # The encoder takes its tags from the frames; a matrix without primaries and transfer is guessed at by browsers.
        filters += ",setparams=colorspace=bt709:color_primaries=bt709:color_trc=bt709:range=tv"
        arguments = [
            "-loglevel",
            "error",
            "-y",
            "-f",
            "rawvideo",
            "-pix_fmt",
            "rgb24",
            "-s",
            f"{width}x{height}",
            "-r",
            str(fps),
            "-i",
            "pipe:0",
        ]
        descriptors = []
        if audio_from is not None:
            file = self._open.enter_context(ffmpeg.open_regular(audio_from.path))
            descriptors.append(file.fileno())
            arguments += ffmpeg.input_options(file.fileno())
            copied = audio_from.audio_codec in _COPIED_AUDIO[self.path.suffix.lower()]
            arguments += ["-map", "0:v:0", "-map", "1:a:0", *(["-c:a", "copy"] if copied else ["-c:a", "aac", "-b:a", "192k"])]
        arguments += [
            "-vf",
            filters,
            "-c:v",
            "libx264",
            "-preset",
            "medium",
            "-crf",
            str(crf),
            "-pix_fmt",
            pixel_format,
            "-fps_mode",
            "passthrough",
        ]
        arguments += ["-colorspace", "bt709", "-color_primaries", "bt709", "-color_trc", "bt709", "-color_range", "tv"]
        arguments += [] if self.path.suffix == ".mkv" else ["-movflags", "+faststart"]
        self._child = self._open.enter_context(
            ffmpeg.Child([*arguments, str(self._temporary)], descriptors=descriptors, feed=True, may_write=True)
        )

    def write(self, frame: np.ndarray) -> None:
        """Add one frame (H, W, 3) uint8."""
        assert frame.shape == self.shape and frame.dtype == np.uint8, (frame.shape, frame.dtype)
        self._child.write(np.ascontiguousarray(frame).data.cast("B"))
        self.num_frames += 1

    def close(self) -> None:
        """Finish the file, count its frames, and give it its name. Raises VideoError where it is not what was written."""
        if self.num_frames == 0:
            raise VideoError(f"{self.path}: there was no frame to write")
        code = self._child.finish()
        if code != 0:
            raise VideoError(
                f"{self.path} could not be written: {messages.first_error(self._child.messages)}", "is the disk full?"
            )
        written = probe(self._temporary).num_frames
        if written != self.num_frames:
            raise VideoError(f"{self.path}: {written} of {self.num_frames} frames arrived in the file")
        self._temporary.chmod(0o644)
        with self._temporary.open("rb") as file:
            os.fsync(file.fileno())
        self._temporary.replace(self.path)
        fsync_folder(self.path.parent)

    def __enter__(self) -> "VideoWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        with self._open:
            if kind is None:
                self.close()
