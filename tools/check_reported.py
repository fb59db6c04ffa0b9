"""Check the videos of a folder of reported inputs against what is right for each, and print one line a file.

    python tools/check_reported.py ../shared/videos/reported

Each is probed, read whole and from every start, and written again with its timing and tracks as `reconstruct` writes it: the
output's frames are as far from the sound as the source's within 20 ms, and notes name what is lost. Ends with 1 if a line is wrong.
"""

import argparse
import hashlib
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np

from turbovaed_cli.errors import TurboVaedError
from turbovaed_cli.video import Timing, VideoInfo, VideoWriter, list_videos, probe, read_frames

MOST_PIXELS = 400 * 300  # larger frames are read scaled down from every start: all of them are kept for comparison


@dataclass(frozen=True)
class Right:
    """What is right for one file."""

    frames: int
    fps: str = ""
    delay_s: float = 0.0  # of the picture after the sound
    is_constant: bool | None = True
    says: str = ""  # in a note of reading or writing
    pixel: tuple[float, float, int, int, int] | None = None  # where (of the height and width), and R'G'B' there in frame 0
    refused: str = ""  # the reason


RIGHT = {
    "cfr-23.976.mkv": Right(70, "24000/1001"), "cfr-30-vp9.webm": Right(70, "30"), "real-av1-30.mkv": Right(30, "30"),
    "vfr-24-then-30.mp4": Right(216, is_constant=False), "vfr-burst-60-rest-10.mp4": Right(90, is_constant=False),
    "vfr-one-late-frame.mkv": Right(90, is_constant=None), "x264-open-gop.mp4": Right(70, "30"),
    "x264-open-gop-fragmented.mp4": Right(70, "30"), "x265-open-gop.mp4": Right(70, "30"), "tick-per-frame-30.mp4": Right(70, "30"),
    "fragmented-b-frames.mp4": Right(70, "30"), "real-mv-hevc.mov": Right(5, "90"), "real-samsung-slow-motion.mp4": Right(63, "30"),
    "real-iphone-dolby-vision.MOV": Right(4, "30", says="HLG"), "real-vp9-10bit.webm": Right(72, "24000/1001", says="BT.2020"),
    "trimmed-end.mp4": Right(56, "30"), "real-edit-list-1s.mp4": Right(270, "30", delay_s=1.0), "video-late-0.7.mp4": Right(50, "25", 0.7),
    "video-late-0.7.mkv": Right(50, "25", 0.743), "video-late-0.7.ts": Right(50, "25", 0.731), "hdr-pq.mp4": Right(25, says="PQ"),
    "hdr-hlg.mov": Right(25, says="HLG"), "untagged-hd-709.mp4": Right(5, pixel=(0.5, 0.5, 32, 192, 64)),
    "alpha-vp9.webm": Right(25, says="transparent", pixel=(0.5, 0.2, 0, 0, 0)),
    "alpha-prores.mov": Right(25, says="transparent", pixel=(0.5, 0.2, 0, 0, 0)), "interlaced.mp4": Right(25, says="deinterlaced"),
    "turned-vp8.webm": Right(50, says="frame size"), "music-with-cover.mp4": Right(0, refused="no video in it"),
    "two-audio-subs.mp4": Right(25, says=""), "real-unknown-audio.mp4": Right(30, says="sound"), "short-59.94.mkv": Right(12, "60000/1001"),
    "flat-gray.mp4": Right(50), "camera.mts": Right(25, "25"),
}  # fmt: skip


class Notes(list[str]):
    """A reporter that keeps what it is told."""

    def track(self, items, label, total=None, start=0):  # type: ignore[no-untyped-def]
        yield from items

    def note(self, text: str = "", *, warning: bool = False, **values: object) -> None:
        self.append(text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    options = parser.parse_args()
    wrong = 0
    for path in list_videos(options.folder):
        right = RIGHT.get(path.name)
        notes = Notes()
        with tempfile.TemporaryDirectory() as room:
            mistakes = list(mistakes_in(path, right, Path(room), notes)) if right else ["nothing is known of it"]
        wrong += bool(mistakes)
        print(
            f"{'WRONG' if mistakes else 'right':6} {path.name}: {'; '.join(mistakes or notes) or 'nothing to note'}", flush=True
        )
    print(f"\n{len(RIGHT)} files known, {wrong} wrong")
    sys.exit(1 if wrong else 0)


def mistakes_in(path: Path, right: Right, room: Path, notes: Notes) -> Iterator[str]:
    """What is wrong with how a file is read and written; `notes` get what is said of it."""
    try:
        info = probe(path)
        notes += [*info.notes]
        whole = hashes(info)
    except TurboVaedError as error:
        notes.append(f"refused: {error.what.removeprefix(f'{path}: ')}")
        if not right.refused or right.refused not in error.what:
            yield notes[-1]
        return
    if info.num_frames != right.frames or len(whole) != right.frames:
        yield f"{info.num_frames} frames, {len(whole)} read, {right.frames} are right"
    if right.fps and info.fps != Fraction(right.fps):
        yield f"{info.fps} a second"
    if abs(info.times_s[0] - right.delay_s) > 0.001:
        yield f"the picture starts at {info.times_s[0]:.3f} s"
    if right.is_constant is not None and info.has_constant_rate != right.is_constant:
        yield f"constant rate: {info.has_constant_rate}"
    for start in range(info.num_frames):
        if hashes(info, start=start, count=min(4, info.num_frames - start)) != whole[start : start + 4]:
            yield f"start {start} gives other frames"
    if right.pixel:
        frame = next(read_frames(info))
        found = frame[int(right.pixel[0] * frame.shape[0]), int(right.pixel[1] * frame.shape[1])].astype(int)
        if np.abs(found - right.pixel[2:]).max() > 5:  # of what was drawn, before it was coded
            yield f"R'G'B' {found}"
    yield from mistakes_in_output(info, room, notes)
    if right.says and not any(right.says in note for note in notes):
        yield f"no note of {right.says!r}: {list(notes)}"


def mistakes_in_output(info: VideoInfo, room: Path, notes: Notes) -> Iterator[str]:
    """The same frames, small, written as `reconstruct` writes them: their times, and the sound beside them."""
    with VideoWriter(room / "out.mp4", height=48, width=64, fps=Timing.of(info), tracks_from=info, report=notes) as writer:
        for frame in read_frames(info, size=(48, 64)):
            writer.write(frame)
    out = probe(room / "out.mp4")
    apart = max(abs(before - after) for before, after in zip(info.times_s, out.times_s, strict=True))
    if apart > 0.020:
        yield f"frames are up to {apart:.3f} s from where they were"
    kept = [track for track in info.tracks if track.kind == "audio" and track.codec != "none"]
    if len([track for track in out.tracks if track.kind == "audio"]) < len(kept):
        yield f"of {len(kept)} sound tracks, {len(out.tracks) - 1} came"
    if info.audio and out.audio and info.audio.language != out.audio.language:
        yield f"the default sound is {out.audio.language}"
    if not info.has_constant_rate:
        notes.append("variable rate, kept")
    if right_delay := info.times_s[0]:
        notes.append(f"picture {right_delay:.3f} s after the sound, kept")


def hashes(info: VideoInfo, **where: int) -> list[str]:
    size = {} if info.width * info.height <= MOST_PIXELS else {"size": (90, 160)}
    return [hashlib.md5(frame.tobytes(), usedforsecurity=False).hexdigest() for frame in read_frames(info, **size, **where)]


if __name__ == "__main__":
    main()
