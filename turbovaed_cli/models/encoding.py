"""Encode videos of any length to the teacher's latents, piece by piece, in bounded memory.

Teachers whose family has a `piecewise` encode (causal encoders) give the latents of a whole-clip encode, within rounding. If they
have attention over all earlier frames, they do so up to a length, after which attention sees the last frames only.
Others (attention, norms over time, convolutions that look ahead) are encoded in overlapping windows that are cross-faded,
which is an approximation.
"""

from collections.abc import Callable, Generator, Iterable, Iterator
from functools import partial

import torch
from torch import Tensor

from turbovaed_cli.errors import FrameCountError
from turbovaed_cli.models.fast_encoder import EncoderStream, mean_and_std
from turbovaed_cli.models.scratch import Kept
from turbovaed_cli.models.teacher import Teacher
from turbovaed_cli.models.tiles import in_tiles
from turbovaed_cli.registry.family import Piecewise
from turbovaed_cli.registry.specs import TeacherSpec

WINDOW = 33  # pixel frames of a window, unless asked otherwise
_SHORTER_WINDOW = 17  # if memory is short
OVERLAP = 4  # latent frames that neighbouring windows share; at most half of a window


def encodes_exactly(teacher: Teacher) -> bool:
    """Whether `encoded` gives the latents of a whole-clip encode, within rounding; if not, it cross-fades windows.

    Teachers whose Piecewise has `exact_frames` do so up to that length.
    """
    return _piecewise(teacher) is not None


def _piecewise(teacher: Teacher) -> Piecewise | None:
    """Return the exact encode in pieces; None if the class has none, or if the teacher's tiles keep nothing between pieces."""
    in_windows = teacher.tiles is not None and teacher.tiles.windows
    return None if in_windows else teacher.family.piecewise(teacher.vae)


def approximation_of(teacher: Teacher, frames: int, num_frames: int = 0) -> str | None:
    """Return a sentence on how `encoded` approximates the latents of a whole-clip encode; None if it does not.

    `frames` pixel frames are encoded at once, of a video of `num_frames` (0: not known).
    """
    pieces, name = _piecewise(teacher), teacher.spec.class_name
    if pieces is None and not 0 < num_frames <= frames:
        longest = piece_lengths(teacher, 0)[0]
        why = f" ({longest} do not fit in memory)" if frames < longest else ""
        return f"{name} encodes in windows of {frames} frames{why} that fade into each other"
    exact = pieces.exact_frames if pieces else None
    if exact is not None and not 0 < num_frames <= exact:
        return f"{name} encodes the first {exact} frames exactly, and later ones with attention to the last {exact} only"
    return None


def piece_lengths(teacher: Teacher, most: int, num_frames: int = 0) -> list[int]:
    """Return the numbers of pixel frames that `encoded` may take at once, from the most (about `most`) to the fewest.

    For a teacher that encodes in windows these are the window lengths, whatever `most` is; shorter ones approximate worse.
    `num_frames` is the length of the video; 0 if it is not known.
    """
    spec, pieces = teacher.spec, _piecewise(teacher)
    if pieces is None:
        return window_lengths(spec, num_frames)
    if pieces.fixed:
        return [pieces.multiple]
    whole = -(-(num_frames - 1) // pieces.multiple) if num_frames else WINDOW  # groups of frames, after the first frame
    groups = max(min(min(most, WINDOW) // pieces.multiple, whole), 1)
    lengths = [groups * pieces.multiple]
    while groups > 1:
        groups //= 2
        lengths.append(groups * pieces.multiple)
    return lengths


def window_lengths(spec: TeacherSpec, num_frames: int = 0) -> list[int]:
    """Return the lengths of windows in pixel frames, from the longest; `num_frames` is that of the video, 0 if not known."""
    asked = (min(length, num_frames or length) for length in (WINDOW, _SHORTER_WINDOW, 1))
    return list(dict.fromkeys(_window_length(spec, length) for length in asked))


def _window_length(spec: TeacherSpec, frames: int) -> int:
    """Return the length of a window of about `frames` pixel frames: at least two latents, so that it can share one."""
    return spec.frames.at_least(max(frames, spec.pixel_frames(2)))


def encoded(teacher: Teacher, videos: Iterable[Tensor], frames: int = 0) -> Generator[Tensor]:
    """Yield the posterior means (B, C, n, h, w) of a video that comes as `videos` (B, 3, m, H, W) in [-1, 1], of any m.

    H and W are multiples of the teacher's ratio. The last frame is repeated up to a number of frames that the teacher takes.
    About `frames` pixel frames are encoded at once (0: eight if the teacher encodes exactly, else 33). Raises
    FrameCountError if there is no frame.
    """
    source = _Frames(videos)
    if source.ended:
        raise FrameCountError("there is no frame to encode")
    pieces = _piecewise(teacher)
    if pieces is None:
        yield from _by_windows(teacher, source, frames or WINDOW)
        return
    multiple, encode = pieces.multiple, _begun(teacher, pieces)
    step = multiple if pieces.fixed else max(frames // multiple, 1) * multiple
    first, least = step + teacher.spec.frames.first, teacher.spec.frames.at_least
    yield _encoded(teacher, encode, source.take(first), least)
    while not source.ended:
        yield _encoded(teacher, encode, source.take(step), lambda frames: -(-frames // multiple) * multiple)


def _begun(teacher: Teacher, pieces: Piecewise) -> Callable[[Tensor], Tensor]:
    """Return the function that encodes the pieces of one video in order; of a teacher with tiles, each tile as a video of its own."""
    fast = teacher.fast_encoder()

    def begin() -> Callable[[Tensor], Tensor]:
        return _fast(EncoderStream(fast)) if fast else pieces.begin(Kept())

    tiles = teacher.tiles
    if tiles is None:
        return begin()
    each: list[Callable[[Tensor], Tensor]] = []

    def encode(video: Tensor) -> Tensor:
        if not each:
            each.extend(begin() for _ in range(tiles.count(video.shape[3:])))
        encoders = (partial(_alone, one) for one in each)
        return in_tiles(tiles, teacher.spec.space_ratio, video, encoders)[0]

    return encode


def _alone(encode: Callable[[Tensor], Tensor], video: Tensor) -> tuple[Tensor]:
    return (encode(video),)


def _fast(stream: EncoderStream) -> Callable[[Tensor], Tensor]:
    return lambda video: mean_and_std(stream.push(video))[0]


@torch.no_grad()
def _encoded(teacher: Teacher, encode: Callable[[Tensor], Tensor], video: Tensor, frames_for: Callable[[int], int]) -> Tensor:
    """Encode a video (B, 3, T, H, W), made up to `frames_for(T)` frames."""
    return encode(_made_up(video, frames_for(video.shape[2])).to(teacher.device, teacher.dtype))


class _Frames:
    """A video that comes in pieces of any length and is taken in pieces of other lengths."""

    def __init__(self, pieces: Iterable[Tensor]) -> None:
        self._pieces = iter(pieces)
        self._held: list[Tensor] = []

    @property
    def ended(self) -> bool:
        """Whether no frame is left."""
        while not self._held:
            piece = next(self._pieces, None)
            if piece is None:
                return True
            self._held = [piece] if piece.shape[2] else []
        return False

    def take(self, count: int) -> Tensor:
        """Return the next `count` frames (B, 3, count, H, W), or those that are left."""
        taken: list[Tensor] = []
        while count and not self.ended:
            piece = self._held.pop()
            taken.append(piece[:, :, :count])
            if piece.shape[2] > count:
                self._held = [piece[:, :, count:]]
            count -= taken[-1].shape[2]
        return torch.cat(taken, dim=2)


def _made_up(video: Tensor, frames: int) -> Tensor:
    """Repeat the last frame of a video (B, 3, T, H, W) until there are `frames`."""
    return torch.cat([video, video[:, :, -1:].expand(-1, -1, frames - video.shape[2], -1, -1)], dim=2)


# --- in windows ---------------------------------------------------------------------------------------------------


def _by_windows(teacher: Teacher, source: _Frames, frames: int) -> Iterator[Tensor]:
    """Encode windows of `frames` that share OVERLAP latent frames, at most half of theirs, and cross-fade these."""
    spec = teacher.spec
    length = _window_length(spec, frames)
    overlap = min(OVERLAP, spec.latent_frames(length) // 2)
    step = (spec.latent_frames(length) - overlap) * spec.time_ratio
    # With a causal teacher the first latent of a window stands for one frame only: its weight is zero.
    fade = torch.arange(overlap) / overlap if spec.frames.first else (torch.arange(overlap) + 1) / (overlap + 1)
    weight = fade.view(-1, 1, 1)
    window, tail = source.take(length), None
    while True:
        made = teacher.encode(_made_up(window, spec.frames.at_least(window.shape[2]))).mean
        if tail is not None:
            weight = weight.to(made)
            made = torch.cat([tail * (1 - weight) + made[:, :, :overlap] * weight, made[:, :, overlap:]], dim=2)
        if source.ended:
            yield made
            return
        yield made[:, :, :-overlap]
        tail = made[:, :, -overlap:]
        window = torch.cat([window[:, :, step:], source.take(step)], dim=2)
