"""The videos of a folder that can be used, and the reasons why the rest cannot."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from turbovaed_cli.errors import SettingsError, VideoError
from turbovaed_cli.reporting import Reporter, quiet
from turbovaed_cli.settings import ClipSettings
from turbovaed_cli.video import VideoInfo, as_text, list_videos, notes_on, probe, read_clip


@dataclass(frozen=True)
class Skipped:
    """An input that could not be used, with the reason."""

    path: str
    reason: str

    @property
    def reason_alone(self) -> str:
        """The reason without the path of the video, with which many reasons begin; `path` may name a frame after it."""
        return self.reason.removeprefix(self.path.partition(" (from frame ")[0]).lstrip(": ")


def usable_videos(
    data: Path, num_frames: int, report: Reporter = quiet, *, first: int | None = None, hdr: str = ClipSettings.hdr
) -> tuple[list[VideoInfo], list[Skipped]]:
    """Probe every video under `data` and return the usable ones, and those unreadable or shorter than `num_frames` as skipped.

    With `first`, stop at that number of usable videos, and decode their first `num_frames` frames to be sure. Raises
    SettingsError if none is usable.
    """
    usable: list[VideoInfo] = []
    skipped: list[Skipped] = []
    for path in report.track(list_videos(data, report), "probing videos"):
        if len(usable) == first:
            break
        try:
            info = probe(path, hdr=hdr)
            if first is not None and info.num_frames >= num_frames:
                read_clip(info, num_frames, (8, 8))
        except VideoError as error:
            skipped.append(Skipped(as_text(path), error.what))
            continue
        if info.num_frames < num_frames:
            skipped.append(Skipped(str(path), too_short(info.num_frames, num_frames)))
        else:
            usable.append(info)
    if not usable:
        raise no_usable_video(skipped)
    for note in notes_on(usable):
        report.note(note)
    return usable, skipped


def too_short(num_frames: int, needed: int) -> str:
    """Return the reason why a video is too short for a clip."""
    return f"{num_frames} frames, {needed} needed"


def no_usable_video(skipped: Sequence[Skipped]) -> SettingsError:
    """Return the error for a folder of which every video was skipped."""
    reasons = "; ".join(f"{Path(item.path).name}: {item.reason_alone}" for item in skipped[:3])
    return SettingsError(
        f"none of {len(skipped)} videos can be used ({reasons})",
        "give readable videos of at least that many frames, or lower `frames`",
    )
