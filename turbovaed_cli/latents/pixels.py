"""The pixels of a cache's clips: read from a video, perhaps in other colours, or drawn; and which clips are drawn.

The number of drawn clips of a part follows from the number of its filmed ones, and each is drawn from its number. So they do
not depend on the number of workers, on kills, or on the order of work.
"""

import math
import random

import numpy as np

from turbovaed_cli.errors import VideoError
from turbovaed_cli.latents.cache import ClipSource
from turbovaed_cli.settings import CacheSettings
from turbovaed_cli.video import VideoInfo, read_clip_uint8
from turbovaed_cli.video.drawn import VERSION, draw_clip, recoloured

_GOLDEN = (math.sqrt(5) - 1) / 2  # spreads what parts round up or down, so that all together are right


def recorded_shares(settings: CacheSettings) -> dict[str, object]:
    """Return the fields of a manifest's "clip" for shares of changed and drawn clips; none if there are no such clips."""
    if not (settings.augment or settings.synthetic):
        return {}
    return {"augment": settings.augment, "synthetic": settings.synthetic, "seed": settings.seed}


def num_drawn(part: int, filmed: int, share: float) -> int:
    """Return the number of drawn clips of part number `part` with `filmed` other clips, so that they are `share` of all clips."""
    return math.floor(filmed * share / (1 - share) + (0.5 + part * _GOLDEN) % 1)


def drawn_clip(part: int, number: int, settings: CacheSettings) -> ClipSource:
    """Return drawn clip `number` of a part; in place of a video's hash it has the text that it is drawn from."""
    name = f"{part:03}-{number:06}"
    text = f"drawn/{VERSION}/{settings.seed}/{name}"
    return ClipSource(f"synthetic/{name}", text, 0, settings.frames, 1, settings.size)


def is_drawn(video_sha256: str) -> bool:
    """Whether this is the `video_sha256` of a drawn clip."""
    return video_sha256.startswith("drawn/")


def pixels_of(clip: ClipSource, info: VideoInfo | None, settings: CacheSettings) -> np.ndarray | str:
    """Return the frames of a clip for a cache, (T, H, W, 3) uint8, or the reason why it cannot be read; no `info`: it is drawn."""
    if info is None:
        return draw_clip(clip.video_sha256, clip.frames, clip.size)
    frames = read_clip_of((clip, info))
    if isinstance(frames, str) or random.Random(f"augment/{settings.seed}/{clip.key}").random() >= settings.augment:
        return frames
    return recoloured(f"{settings.seed}/{clip.key}", frames)


def read_clip_of(clip_of: tuple[ClipSource, VideoInfo]) -> np.ndarray | str:
    """Return the frames of a clip as they are in its video, (T, H, W, 3) uint8, or the reason why it cannot be read."""
    clip, info = clip_of
    try:
        return read_clip_uint8(info, clip.frames, clip.size, start=clip.start, stride=clip.stride)
    except VideoError as error:
        return error.what
