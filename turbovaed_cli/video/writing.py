"""Write videos: a file appears whole, once every frame is in it at its time, or not at all.

The picture is encoded from our own frames first; tracks of the source file are added afterwards. Damage in these tracks
cannot stop the picture.
"""

import contextlib
import errno
import os
import signal
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from types import TracebackType

import numpy as np
from torch import Tensor

from turbovaed_cli.errors import DiskFullError, OutputExistsError, SettingsError, TurboVaedError, VideoError
from turbovaed_cli.files.locks import temporary_file
from turbovaed_cli.files.places import check_place
from turbovaed_cli.files.whole import fsync_folder
from turbovaed_cli.reporting import Reporter, quiet
from turbovaed_cli.video import ffmpeg, messages
from turbovaed_cli.video.codecs import DEFAULT_CODEC, DEFAULT_CRF, find_codec
from turbovaed_cli.video.colour import SWS
from turbovaed_cli.video.pixels import to_uint8, to_uint16
from turbovaed_cli.video.probing import VideoInfo, probe
from turbovaed_cli.video.timing import NANOSECONDS, Timing, frame_head, stream_head
from turbovaed_cli.video.tracks import NEW_SOUND, TrackPlan, mapped, name_of, plan_tracks

_MKV_TICKS = 1000  # per second, of the times in an .mkv
_VISIBLE_S = 0.020  # a larger offset to the sound can be noticed
_ADDING_STALL_S = 600.0  # ffmpeg is silent while it moves the index of a large file to the front
_FULL = {errno.ENOSPC, errno.EFBIG, errno.EDQUOT}
_SIGNS_OF_FULL = tuple(os.strerror(number) for number in sorted(_FULL))


class VideoWriter:
    """Write frames (H, W, 3) to a file that appears whole, once every frame is in it, or not at all.

    Frames are uint8; with `bits` of 10, uint16 over its whole range. `fps` is an even rate, or a Timing with the time of every
    frame. The file has the matrix and tags of BT.709. Frames are never rescaled: odd sizes become 4:4:4, which can hold them.
    Sound, subtitles and chapters are taken from `tracks_from`. Use it as a context manager; after an error there is no file.

    Raises SettingsError and MissingError as `find_codec` does, OutputExistsError and UnwritableError as `check_output` does,
    DiskFullError, and VideoError if ffmpeg fails.
    """

    def __init__(
        self,
        path: Path,
        *,
        height: int,
        width: int,
        fps: Fraction | Timing,
        tracks_from: VideoInfo | None = None,
        sound: bool = True,
        sample_aspect_ratio: Fraction = Fraction(1),
        codec: str = DEFAULT_CODEC,
        bits: int | None = None,
        crf: int | None = None,
        overwrite: bool = False,
        report: Reporter = quiet,
    ) -> None:
        self.path = Path(path)
        self.num_frames = 0
        self._codec = find_codec(codec, bits=bits, crf=crf, path=self.path)
        self._bits = bits or self._codec.bits[0]
        self._suffix = self.path.suffix.lower()
        self._timing = fps if isinstance(fps, Timing) else Timing(fps)
        self._source = tracks_from if tracks_from and not tracks_from.images else None
        self._report = report
        self._plan = plan_tracks(self._source, self._suffix, sound=sound) if self._source else TrackPlan()
        self.shape = (height, width, 3)
        self.dtype = np.dtype(np.uint8 if self._bits == 8 else np.uint16)
        check_output(self.path, overwrite=overwrite)
        self._ticks_per_s = _MKV_TICKS if self._suffix == ".mkv" and self._timing.ticks else self._timing.ticks_per_s
        self._times = self._timing.on_grid(self._ticks_per_s)
        self._note_losses()
        self._open = contextlib.ExitStack()
        with self._open:
            self._temporary = self._open.enter_context(temporary_file(self.path.parent, self.path.suffix))
            # The source's tracks are added to the picture in a second pass, from a container that holds exact times.
            exact = ".mov" if ".mov" in self._codec.suffixes else ".mkv"
            self._picture = self._temporary
            if self._source:
                self._picture = self._open.enter_context(temporary_file(self.path.parent, exact))
            self._child = self._open.enter_context(
                ffmpeg.Child(self._picture_arguments(crf, sample_aspect_ratio), feed=True, may_write=True)
            )
            self._feed(stream_head(height, width, self._timing.fps, 3 * self.dtype.itemsize))
            self._open = self._open.pop_all()

    def write(self, frame: np.ndarray) -> None:
        """Add one frame (H, W, 3) of the writer's `dtype`; raises VideoError or DiskFullError."""
        assert frame.shape == self.shape and frame.dtype == self.dtype, (frame.shape, frame.dtype)
        if self._codec.is_rgb and self._bits == 10:  # rounded here: ffmpeg drops the lower bits
            frame = ((frame.astype(np.uint32) * 1023 + 32767) // 65535 << 6).astype(np.uint16)
        self._feed(frame_head(self._time_ns(self.num_frames), frame.nbytes))
        self._feed(np.ascontiguousarray(frame).data.cast("B"))
        self.num_frames += 1

    def close(self) -> None:
        """Finish the file, check its frames and their times, and rename it to `path`.

        Raises VideoError if frames or times in the file are wrong, DiskFullError if the disk is full.
        """
        if self.num_frames == 0:
            raise VideoError(f"{self.path}: there was no frame to write")
        if self._child.finish() != 0:
            raise self._failure(self._child)
        if self._source is not None:
            self._add_tracks(self._source)
            self._picture.unlink()
        self.written = replace(self._checked(probe(self._temporary)), path=self.path)
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

    def _feed(self, data: bytes | memoryview) -> None:
        try:
            self._child.write(data)
        except VideoError as error:
            raise self._failure(self._child) from error

    def _failure(self, child: ffmpeg.Child) -> TurboVaedError:
        """Return the error for a failed write: DiskFullError if ffmpeg names a full disk, else VideoError."""
        reason = messages.first_error(child.messages)
        code = child.process.returncode or 0
        what = f"{self.path} could not be written: {reason or f'ffmpeg ended with {code}'}"
        if _is_about_a_full_disk(child):
            return DiskFullError(what, "free some space; the same command begins again")
        return VideoError(what)

    def _time_ns(self, index: int) -> int:
        if self._timing.ticks:
            return round(Fraction(self._times[index] * NANOSECONDS, self._ticks_per_s))
        return round(self._timing.after_first(index) * NANOSECONDS)

    def _note_losses(self) -> None:
        """Report in one note what the output loses of its source."""
        losses = self._plan.describe()
        off_s = max(
            (abs(Fraction(time, self._ticks_per_s) - self._timing.after_first(i)) for i, time in enumerate(self._times)),
            default=0,
        )
        if off_s > _VISIBLE_S:
            late = f"{self._suffix} cannot hold its times: frames are up to {float(off_s):.3f} s late"
            losses = f"{losses}; {late}" if losses else late
        if losses and self._source is not None:
            self._report.note(f"{self._source.path.name}: {losses}")

    def _picture_arguments(self, crf: int | None, sample_aspect_ratio: Fraction) -> list[str]:
        """Return ffmpeg's arguments from the pipe to a file with the picture alone."""
        height, width, _ = self.shape
        codec = self._codec
        pixel_format = codec.pixel_format(self._bits, height % 2 == 0 and width % 2 == 0)
        aspect = f"setsar={sample_aspect_ratio.numerator}/{sample_aspect_ratio.denominator}"
        if codec.is_rgb:
            matrix, colours = "rgb", f"format={pixel_format}"
        else:
            matrix, colours = "bt709", f"scale=out_color_matrix=bt709:out_range=tv:flags={SWS},format={pixel_format}"
        levels = "pc" if codec.is_rgb else "tv"
        # The encoder takes its tags from the frames. Primaries and transfer are stated too: browsers would guess them.
        tags = f"setparams=colorspace={'gbr' if codec.is_rgb else matrix}:color_primaries=bt709:color_trc=bt709:range={levels}"
        start = ["-itsoffset", f"{float(self._timing.start):.6f}"] if self._picture == self._temporary else []
        return [
            *("-loglevel", "error", "-y"),
            *("-probesize", "32", "-analyzeduration", "0", "-fpsprobesize", "0", *start, "-f", "matroska", "-i", "pipe:0"),
            *(
                "-vf",
                f"{colours},{aspect},{tags}",
                "-c:v",
                codec.encoder,
                *codec.options(self._bits, min(height, width)),
                "-pix_fmt",
                pixel_format,
            ),
            *(("-crf", str(DEFAULT_CRF if crf is None else crf)) if codec.has_crf else ()),
            *("-fps_mode", "passthrough", "-enc_time_base", f"1/{self._ticks_per_s}"),
            *("-colorspace", matrix, "-color_primaries", "bt709", "-color_trc", "bt709", "-color_range", levels),
            *self._container_arguments(self._picture),
        ]

    def _container_arguments(self, path: Path) -> list[str]:
        """Return the options of the container, and the file."""
        arguments = []
        if path.suffix.lower() != ".mkv":
            # A late start is in an edit list, which counts in units of the movie's own scale.
            arguments = ["-video_track_timescale", str(self._ticks_per_s), "-movie_timescale", str(self._ticks_per_s)]
            arguments += ["-tag:v", "hvc1"] if self._codec.name == "h265" else []  # needed by Apple's players
            arguments += ["-movflags", "+faststart"] if path == self._temporary else []
        return [*arguments, f"file:{path}"]

    def _add_tracks(self, source: VideoInfo) -> None:
        """Put the picture and the kept tracks of `source` into the output; tracks that it does not accept are reported."""
        plan = self._plan
        is_written, complaint = self._mux(source, plan)
        if not is_written and plan.kept:
            plan = self._what_fits(source)
            is_written, complaint = self._mux(source, plan)
        if not is_written:
            plan = TrackPlan()
            is_written, complaint = self._mux(None, plan)
        if not is_written:
            raise VideoError(f"{self.path} could not be written: {complaint}")
        left = [name_of(kept.track) for kept in self._plan.kept if kept.track not in [other.track for other in plan.kept]]
        losses = [f"left out, as {self._suffix} did not take it: {'; '.join(left)}"] if left else []
        losses += [f"sound or subtitles are damaged: {complaint}"] if complaint else []
        if losses:
            self._report.note(f"{source.path.name}: {'; '.join(losses)}", warning=True)

    def _what_fits(self, source: VideoInfo) -> TrackPlan:
        """Return the tracks that the output accepts if they are tried one by one, sound also re-encoded."""
        fitting = []
        for kept in self._plan.kept:
            tried = [kept, replace(kept, how=NEW_SOUND)] if kept.track.kind == "audio" else [kept]
            fitting += [one for one in tried if self._mux(source, replace(self._plan, kept=(one,)))[0]][:1]
        return replace(self._plan, kept=tuple(fitting))

    def _mux(self, source: VideoInfo | None, plan: TrackPlan) -> tuple[bool, str]:
        """Write the output from the picture and these tracks; returns (whether it worked, ffmpeg's first complaint or "")."""
        start = f"{float(self._timing.start):.6f}"
        arguments = ["-loglevel", "error", "-y", "-copyts", "-itsoffset", start, "-i", f"file:{self._picture}"]
        outputs = ["-map", "0:v:0"]
        with contextlib.ExitStack() as opened:
            descriptors = []
            if source is not None:
                try:
                    file = opened.enter_context(ffmpeg.open_regular(source.path))
                except VideoError as error:  # gone since its picture was read
                    return False, error.what
                descriptors = [file.fileno()]
                arguments += ["-itsoffset", f"{-float(plan.start):.6f}", *ffmpeg.input_options(file.fileno())]
                outputs += mapped(plan.kept, self._suffix)
            outputs += ["-map_metadata:g", "-1", "-c:v", "copy", "-max_error_rate", "1", "-progress", "pipe:1"]
            outputs += self._container_arguments(self._temporary)
            child = opened.enter_context(
                ffmpeg.Child([*arguments, *outputs], descriptors=descriptors, may_write=True, patience_s=_ADDING_STALL_S)
            )
            while child.read(1 << 16, whole=False):
                pass
            code = child.finish()
            if code and _is_about_a_full_disk(child):
                raise self._failure(child)
            complaint = messages.first_error(child.messages)
        return code == 0, complaint or (f"ffmpeg ended with {code}" if code else "")

    def _checked(self, written: VideoInfo) -> VideoInfo:
        """Return `written`; raises VideoError if frames are missing, or the first or the last is not at its time."""
        if written.num_frames != self.num_frames:
            raise VideoError(f"{self.path}: {written.num_frames} of {self.num_frames} frames arrived in the file")
        slack_s = Fraction(2, self._ticks_per_s) + (Fraction(2, _MKV_TICKS) if self._suffix == ".mkv" else 0)
        first, last = (written.ticks[i] * written.time_base for i in (0, -1))
        wanted = Fraction(self._time_ns(self.num_frames - 1), NANOSECONDS)
        if abs(last - first - wanted) > slack_s:
            raise VideoError(f"{self.path}: its last frame is at {float(last - first):.4f} s, not {float(wanted):.4f} s")
        # Copied sound may begin before the file's zero, and Matroska then moves all of its tracks.
        if abs(first - self._timing.start) > slack_s + (Fraction(1, 10) if self._plan.kept else 0):
            raise VideoError(f"{self.path}: its first frame is at {float(first):.4f} s, not {float(self._timing.start):.4f} s")
        return written


def _is_about_a_full_disk(child: ffmpeg.Child) -> bool:
    """Whether ffmpeg names a full disk, or was killed for a file beyond this process's limit."""
    beyond_limit = -getattr(signal, "SIGXFSZ", 0) or None  # not on Windows
    return child.process.returncode == beyond_limit or any(sign in line for line in child.messages for sign in _SIGNS_OF_FULL)


def check_output(path: Path, *, overwrite: bool = False) -> None:
    """Make the folder of an output.

    Raises UnwritableError if nothing can be written there, OutputExistsError if the output exists and `overwrite` is False.
    """
    check_place(path)
    if path.exists() and not overwrite:
        raise OutputExistsError(f"{path} is there already", "add `overwrite` to replace it")
    path.parent.mkdir(parents=True, exist_ok=True)


def write_video(
    path: Path,
    frames: Tensor | np.ndarray,
    *,
    fps: float | Fraction,
    codec: str = DEFAULT_CODEC,
    bits: int | None = None,
    crf: int | None = None,
    overwrite: bool = False,
) -> VideoInfo:
    """Write one clip, a tensor (3, T, H, W) in [-1, 1] or an array (T, H, W, 3) of uint8; returns the facts about the file.

    `bits` are per channel, 8 or 10; `crf` is the quality of h264 and h265, 0 (best) to 51. Raises SettingsError for other
    frames, rates or codecs, OutputExistsError if `path` exists, and otherwise as VideoWriter does.
    """
    is_video = frames.ndim == 4 and frames.shape[0] == 3 and isinstance(frames, Tensor) and frames.is_floating_point()
    is_bytes = isinstance(frames, np.ndarray) and frames.ndim == 4 and frames.shape[3] == 3 and frames.dtype == np.uint8
    if not is_video and not is_bytes:
        raise SettingsError(
            f"frames are {tuple(frames.shape)} of {frames.dtype}", "give floats (3, T, H, W) in [-1, 1], or uint8 (T, H, W, 3)"
        )
    if not 0 < fps < float("inf"):
        raise SettingsError(f"{fps} is not a frame rate", "give a number above 0, such as 24")
    height, width = frames.shape[2:] if is_video else frames.shape[1:3]
    rate = fps if isinstance(fps, Fraction) else Fraction(fps).limit_denominator(1001)
    with VideoWriter(path, height=height, width=width, fps=rate, codec=codec, bits=bits, crf=crf, overwrite=overwrite) as writer:
        for i in range(frames.shape[1] if is_video else frames.shape[0]):
            writer.write(_frame_of(frames, i, writer.dtype))
    return writer.written


def _frame_of(frames: Tensor | np.ndarray, index: int, dtype: np.dtype) -> np.ndarray:
    """Return frame `index` of a clip as the writer takes it: (H, W, 3) uint8 or uint16."""
    if isinstance(frames, np.ndarray):
        frame: np.ndarray = frames[index]
        return frame if dtype == np.uint8 else frame.astype(np.uint16) * 257
    return (to_uint8 if dtype == np.uint8 else to_uint16)(frames[:, index : index + 1])[0]
