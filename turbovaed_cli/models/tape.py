"""The latents of a clip, of which the last ones can be decoded again."""

from collections import deque
from collections.abc import Iterable, Iterator

from torch import Tensor


class Tape:
    """The latents (B, C, n, h, w) of one clip; the last ones are kept, so that they can be decoded again."""

    def __init__(self, latents: Iterable[Tensor], most: int) -> None:
        self._latents, self._most = iter(latents), most
        self._kept: deque[Tensor] = deque()  # on the CPU
        self._num_kept = 0  # latent frames
        self.start = 0  # latent frames before those kept
        self.has_failed = False  # whether the latents themselves raised an error

    def pieces(self, frames: int) -> Iterator[Tensor]:
        """Yield the latents that are kept, then the new ones, `frames` at most at once."""
        for kept in list(self._kept):
            yield from kept.split(frames, dim=2)
        while (new := self._next()) is not None:
            yield from new.split(frames, dim=2)

    def _next(self) -> Tensor | None:
        self.has_failed = True
        piece = next(self._latents, None)
        self.has_failed = False
        if piece is not None:
            self._kept.append(piece.cpu())
            self._num_kept += piece.shape[2]
        while self._kept and self._num_kept - self._kept[0].shape[2] >= self._most:
            length = self._kept.popleft().shape[2]
            self._num_kept, self.start = self._num_kept - length, self.start + length
        return piece
