"""The exact encode in pieces of LTX encoders: each convolution is given the frames that it would have seen in the whole clip."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn

    from turbovaed_cli.registry.family import Keeper


def reach_of(encoder: "nn.Module", downsampler: str, patch_size: int) -> int:
    """Return how many pixels beyond its own a latent of an LTX encoder sees to each side.

    Modules are in the order of the forward pass. A downsampler by shuffling takes its step after its convolution.
    """
    from torch import nn  # noqa: PLC0415

    step, reach = patch_size, 0
    steps_after: dict[Any, int] = {}
    modules: list[Any] = list(encoder.modules())
    for module in modules:
        if type(module).__name__ == downsampler:
            steps_after[next(part for part in module.modules() if isinstance(part, nn.Conv3d))] = module.stride[1]
        elif isinstance(module, nn.Conv3d):
            reach += module.kernel_size[1] // 2 * step
            step *= module.stride[1] * steps_after.get(module, 1)
    return reach


class Seen:
    """The keys and values of the last `most` frames, in a ring: attention does not depend on their order."""

    def __init__(self, like: "Tensor", most: int) -> None:
        """Make an empty ring for frames with keys like `like` (N, p, C)."""
        import torch  # noqa: PLC0415

        several, positions, channels = like.shape
        with torch.inference_mode(False):  # memory that is written in any mode
            self.keys, self.values = (like.new_empty(several, most * positions, channels) for _ in range(2))
        self.most, self.count = most, 0

    def add(self, key: "Tensor", value: "Tensor") -> "tuple[Tensor, Tensor]":
        """Add those (N, p, C) of the next frame, in the place of the oldest if the ring is full; return all there are."""
        positions = key.shape[1]
        begin = self.count % self.most * positions
        self.keys[:, begin : begin + positions], self.values[:, begin : begin + positions] = key, value
        self.count += 1
        filled = min(self.count, self.most) * positions
        return self.keys[:, :filled], self.values[:, :filled]


@dataclass
class Carry:
    """Hooks on an LTX encoder that replace its padding by the real frames, in all pieces after the first.

    A causal convolution pads with its first frame, repeated kernel - 1 times. In a later piece the last kernel - stride frames
    of the piece before take their place. A downsampler by shuffling repeats frames to fill its first group. In a later piece
    it is given a group of filler frames, and its output for them is dropped.
    """

    convolution: str  # the class name of the causal convolutions
    downsampler: str  # the class name of the downsamplers by shuffling
    kept: "Keeper"
    goes_on: bool = False

    def encode(self, vae: Any, posterior: "Callable[[Any, Tensor], tuple[Tensor, Tensor]]", video: "Tensor") -> "Tensor":
        """Encode the next frames (B, 3, n, H, W) in [-1, 1] of a clip to posterior means (B, C, m, h, w)."""
        with self._through(vae.encoder):
            return posterior(vae, video)[0]

    @contextmanager
    def _through(self, encoder: "nn.Module") -> Iterator[None]:
        """Encode the next piece within this context; afterwards the encoder is as it was before."""
        handles: list[Any] = []
        groups: dict[Any, int] = {}
        try:
            modules: list[Any] = list(encoder.modules())
            for module in modules:
                if type(module).__name__ == self.downsampler and (group := self._group(module)):
                    groups[module.conv] = group
                    handles.append(module.register_forward_pre_hook(partial(self._fill_group, group)))
                    handles.append(module.register_forward_hook(self._drop_group))
            for module in modules:
                if type(module).__name__ == self.convolution and module.conv.kernel_size[0] > 1:
                    hook = partial(self._carry, groups.get(module, 0))
                    handles.append(module.conv.register_forward_pre_hook(hook))
            yield
            self.goes_on = True
        finally:
            for handle in handles:
                handle.remove()

    def _group(self, downsampler: Any) -> int:
        """Return the frames that a downsampler puts before a later piece to fill a group, with the one added here; 0: none."""
        return int(downsampler.stride[0]) if downsampler.stride[0] > 1 else 0

    def _carry(self, group: int, convolution: Any, inputs: "tuple[Tensor]") -> "tuple[Tensor]":
        """Replace the repeated frames by those kept from the piece before; `group` leading filler frames stay in front."""
        import torch  # noqa: PLC0415

        (padded,) = inputs
        pad, keep = convolution.kernel_size[0] - 1, convolution.kernel_size[0] - convolution.stride[0]
        if self.goes_on:
            kept, new = self.kept[convolution], padded[:, :, pad + group :]
            padded = torch.cat([padded[:, :, :group], kept, new], dim=2)
        self.kept[convolution] = padded[:, :, padded.shape[2] - keep :]
        return (padded,)

    def _fill_group(self, group: int, _module: "nn.Module", inputs: "tuple[Tensor]") -> "tuple[Tensor]":
        import torch  # noqa: PLC0415

        (x,) = inputs
        return (torch.cat([x[:, :, :1], x], dim=2),) if self.goes_on else (x,)

    def _drop_group(self, _module: "nn.Module", _inputs: "tuple[Tensor]", output: "Tensor") -> "Tensor":
        return output[:, :, 1:] if self.goes_on else output
