"""Which clips are cut from a video, and what a cache records about how they were made."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from turbovaed_cli.errors import PassingVideoError, SettingsError, VideoError
from turbovaed_cli.files.documents import check_fields
from turbovaed_cli.files.sealed import read_sealed
from turbovaed_cli.latents.cache import ClipSource
from turbovaed_cli.latents.parts import KnownVideo
from turbovaed_cli.latents.pixels import recorded_shares
from turbovaed_cli.models.memory import fit_encoder
from turbovaed_cli.models.teacher import Teacher
from turbovaed_cli.models.tiles import Tiles
from turbovaed_cli.registry.specs import ModelSpec
from turbovaed_cli.reporting import Reporter, quiet
from turbovaed_cli.settings import CacheSettings, check_counts, check_shares
from turbovaed_cli.video import VideoInfo, as_text, probe, reading_identity, sha256_of_video
from turbovaed_cli.video.drawn import VERSION
from turbovaed_cli.video.sources import Videos


def check_cache_settings(spec: ModelSpec, settings: CacheSettings) -> None:
    """Raise SettingsError, ShapeError or FrameCountError for settings that cannot work."""
    check_counts(settings, ("frames", "stride", "batch_size", "shard_mb"))
    if settings.workers < 0:
        raise SettingsError(f"`workers` is {settings.workers}; 0 takes as many as the device needs")
    if settings.clips_per_video < 0:
        raise SettingsError(f"`clips_per_video` is {settings.clips_per_video}; 0 takes all")
    if settings.max_failures is not None and settings.max_failures < 0:
        raise SettingsError(f"`max_failures` is {settings.max_failures}; 0 stops at the first")
    check_shares(settings)
    spec.teacher.check_frames(settings.frames)
    spec.teacher.check_size(*settings.size)


def made_by(teacher: Teacher, settings: CacheSettings) -> dict[str, object]:
    """Return the fields of a cache's manifest that record how its latents are made."""
    encoder = {name: value for name, value in teacher.identity().items() if name != "decoder_inputs"}
    shares = recorded_shares(settings)
    return {
        "teacher": encoder,
        "teacher_name": teacher.name,  # for messages that ask for the teacher that made these latents
        "clip": {"frames": settings.frames, "size": list(settings.size), "stride": settings.stride, **shares},
        "dtype": settings.dtype,
        "reading": reading_identity(settings.hdr),
        **({"drawing": VERSION} if shares else {}),
        **({"tiles": _recorded(teacher.tiles)} if teacher.tiles else {}),
    }


def _recorded(tiles: Tiles) -> dict[str, int]:
    return {name: value for name, value in asdict(tiles).items() if name != "windows"}  # which clips of a cache never take


def settle_tiles(teacher: Teacher, folder: Path, settings: CacheSettings, report: Reporter = quiet) -> None:
    """Give `teacher` the tiles of the cache in `folder`, so that all its latents are made alike; for a new cache, choose them."""
    path = folder / "manifest.json"
    if not path.is_file():
        fit_encoder(teacher, settings.frames, settings.size, clips=settings.batch_size, budget=settings.memory, report=report)
        return
    before = read_sealed(path)
    check_fields(before, {"tiles": dict[str, int] | None}, path)
    teacher.tiles = Tiles(**before["tiles"]) if before.get("tiles") else None


@dataclass(frozen=True)
class PlannedVideo:
    """A video with its record and its clips."""

    name: str
    known: KnownVideo
    clips: list[ClipSource]
    info: VideoInfo | None = None  # if it was probed just now


def plan_video(videos: Videos, settings: CacheSettings, name: str, known: KnownVideo | None = None) -> PlannedVideo:
    """Probe one video and plan its clips. Clips that failed before stay failed while its stamp is that of `known`."""
    stamp = ""
    try:
        stamp = videos.stamp(name)
        failed = known.failed if known is not None and known.stamp == stamp else {}
        info = probe(videos.fetch(name), hdr=settings.hdr)
        now = KnownVideo(stamp, sha256_of_video(info.path), info.num_frames, failed=failed)
        return PlannedVideo(name, now, _clips_of(videos.shown(name), now.sha256, now.frames, settings), info)
    except VideoError as error:
        # A failure that may pass is recorded without a stamp, so that the video is probed again.
        return PlannedVideo(name, KnownVideo("" if isinstance(error, PassingVideoError) else stamp, reason=error.what), [])
    except OSError as error:
        return PlannedVideo(name, KnownVideo("", reason=f"cannot be read: {(error.strerror or str(error)).lower()}"), [])


def still_known(known: Mapping[str, KnownVideo], name: str, settings: CacheSettings) -> KnownVideo | None:
    """Return the record of a video; None if there is none, or if it failed and is to be tried again."""
    found = known.get(as_text(name))
    return None if found is not None and settings.retry_failed and (found.reason or found.failed) else found


def plan_known(videos: Videos, settings: CacheSettings, name: str, known: KnownVideo | None) -> PlannedVideo | None:
    """Plan the clips of a video from its record, without probing it; None if the record is out of date."""
    try:
        if known is None or known.stamp != videos.stamp(name):
            return None
    except VideoError:
        return None
    clips = [] if known.reason else _clips_of(videos.shown(name), known.sha256, known.frames, settings)
    return PlannedVideo(name, known, clips)


def plan_clips(info: VideoInfo, settings: CacheSettings) -> list[ClipSource]:
    """Return the clips of one video."""
    return _clips_of(str(info.path), sha256_of_video(info.path), info.num_frames, settings)


def _clips_of(shown: str, sha256: str, num_frames: int, settings: CacheSettings) -> list[ClipSource]:
    starts = clip_starts(num_frames, settings)
    return [ClipSource(shown, sha256, start, settings.frames, settings.stride, settings.size) for start in starts]


def clip_starts(num_frames: int, settings: CacheSettings) -> list[int]:
    """Return the first frames of a video's clips: all that fit without overlap, or `clips_per_video` spread evenly."""
    span = span_of(settings)
    last = num_frames - span
    starts = list(range(0, last + 1, span))
    if 0 < settings.clips_per_video < len(starts):
        starts = sorted({round(i * last / max(settings.clips_per_video - 1, 1)) for i in range(settings.clips_per_video)})
    return starts


def span_of(settings: CacheSettings) -> int:
    """Return the number of video frames that a clip spans, from its first to its last one."""
    return (settings.frames - 1) * settings.stride + 1
