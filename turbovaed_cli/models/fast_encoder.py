"""The encoders of causal video VAEs in their fastest form, piece by piece: the latents of a whole-clip encode.

The classes of diffusers stay as they are; their weights are read once, into the layouts of kernels.py. Covered are LTX-Video,
LTX-2, Wan 2.1 and 2.2, and Qwen-Image.
"""

import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from turbovaed_cli.errors import ShapeError
from turbovaed_cli.models.causal import (
    NOTHING,
    REPEAT,
    ZEROS,
    AveragedShortcut,
    CausalConvolution,
    CausalMaker,
    CausalResidual,
    FrameAttention,
    ShuffledDownsampling,
    TimeDownsampling,
    patches,
    run_causal,
)
from turbovaed_cli.models.kernels import LAYOUT_ALONE, Convolution, Preparation, Speedups, packs, state_of
from turbovaed_cli.models.scratch import Scratch
from turbovaed_cli.models.stages import StreamShortcut

_PIXELS_PER_PIECE = 2**19  # a whole clip is encoded in pieces of about this many pixels: more is no faster
_WORTH_TILES = 16  # channels from which the transforms of convolutions in time are worth their time
# Elements of a weight up to which tiles in time, whose weights take up to three times as much, are worth that; and tiles in
# space, with four times as much, which would else raise the least memory in which a video can be encoded.
_WORTH_MEMORY, _WORTH_MEMORY_IN_SPACE = 2**22, 2**19
_APPROXIMATE = ("use_tiling", "use_framewise_encoding", "use_framewise_decoding")  # settings of the classes
_PLAIN = Preparation()


class _NotCoveredError(Exception):
    """Raised for a part of an encoder that has no fast form."""


class FastEncoder:
    """The encoder of a VAE that `fast_encoder` covers, with its weights in the fastest layouts, in `dtype`, on the VAE's device.

    The weights must not change any more. Encode piece by piece with `EncoderStream`, or a whole clip with `encode`. `speedups`
    None takes those that are known to be faster on the device: all on a CPU, only the layout elsewhere.
    """

    def __init__(self, vae: nn.Module, dtype: torch.dtype | None = None, speedups: Speedups | None = None) -> None:
        weight = next(vae.parameters())
        self.dtype, self.device = dtype or weight.dtype, weight.device
        speedups = speedups or (
            Speedups(winograd_channels=_WORTH_TILES, winograd_elements=_WORTH_MEMORY, space_elements=_WORTH_MEMORY_IN_SPACE)
            if self.device.type == "cpu"
            else LAYOUT_ALONE
        )
        self.speedups = replace(speedups, packed=speedups.packed and packs(self.dtype))
        self.sums = self.speedups.sums_in(self.dtype)
        self.scratch = Scratch()
        self._kernels: list[Convolution] = []
        self.patch_size, makers, self.expand = _FAMILIES[type(vae).__name__](self, cast(Any, vae))
        self._makers = list(makers)

    def stages(self) -> list[Callable[[Tensor], Tensor]]:
        """Return the encoder as new stages, which keep frames of one clip; weights are shared."""
        return [make() for make in self._makers]

    def forget(self) -> None:
        """Drop the prepared weights and the reused memory; the next encode makes them again."""
        self.scratch.clear()
        for kernel in self._kernels:
            kernel.forget()

    @torch.no_grad()
    def encode(self, video: Tensor, frames: int = 0) -> Tensor:
        """Encode video (B, 3, T, H, W) in [-1, 1] to moments (B, 2C, t, h, w): means, then log variances, as the class gives.

        It works on `frames` pixel frames at a time (0: as many as are useful).
        """
        stream = EncoderStream(self)
        frames = frames or max(_PIXELS_PER_PIECE // (video.shape[3] * video.shape[4]) // 8, 1) * 8
        first, rest = video[:, :, : frames + 1], video[:, :, frames + 1 :]
        made = [stream.push(piece) for piece in (first, *rest.split(frames, dim=2)) if piece.shape[2]]
        return torch.cat(made, dim=2)

    # --- the parts of the networks: each takes modules and returns makers of stages

    def kernel(self, convolution: nn.Module) -> Convolution:
        """Return the kernel of a Conv3d or Conv2d without padding of its own."""
        inner = cast(nn.Conv3d, convolution)
        if inner.padding_mode != "zeros" or any(step != 1 for step in inner.dilation):
            raise _NotCoveredError(f"{inner}")
        weight = inner.weight.detach()
        bias = inner.bias.detach() if inner.bias is not None else weight.new_zeros(weight.shape[0])
        stride = inner.stride
        if weight.ndim == 4:  # 2-D: a convolution of one frame
            weight, stride = weight.unsqueeze(2), (1, *inner.stride)
        stride = cast(tuple[int, int, int], tuple(stride))
        self._kernels.append(Convolution(weight, bias, inner.groups, self.dtype, self.speedups, self.scratch, stride))
        return self._kernels[-1]

    def convolution(self, convolution: nn.Module, prepare: Preparation, before: str, after: int = 0) -> CausalMaker:
        """Return the maker of a causal convolution."""
        kernel = self.kernel(convolution)
        if kernel.taps == 1 and kernel.stride == (1, 1, 1) and prepare is _PLAIN:
            pointwise = partial(kernel, pad_height=True)
            return lambda: pointwise
        return lambda: CausalConvolution(kernel, prepare, self.scratch, before, after)

    def silu(self, activation: nn.Module) -> None:
        """Raise _NotCoveredError for another activation than SiLU."""
        if not isinstance(activation, nn.SiLU):
            raise _NotCoveredError(f"{activation}")


Family = tuple[int, Iterator[CausalMaker], Callable[[Tensor], Tensor]]


# --- LTX-Video and LTX-2 ------------------------------------------------------------------------------------------


def _ltx(fast: FastEncoder, vae: Any) -> Family:
    config, encoder = vae.config, vae.encoder
    if not config.encoder_causal or encoder.patch_size_t != 1:
        raise _NotCoveredError("the encoder looks ahead")

    def expand(moments: Tensor) -> Tensor:  # one log variance serves all channels
        return torch.cat([moments, moments[:, -1:].expand(-1, moments.shape[1] - 2, -1, -1, -1)], dim=1)

    return encoder.patch_size, _ltx_makers(fast, encoder), expand


def _ltx_makers(fast: FastEncoder, encoder: Any) -> Iterator[CausalMaker]:
    yield fast.convolution(encoder.conv_in.conv, _PLAIN, REPEAT)
    for block in encoder.down_blocks:
        for resnet in block.resnets:
            yield _ltx_residual(fast, resnet)
        for downsampler in block.downsamplers or ():
            yield _ltx_downsampling(fast, downsampler)
        if getattr(block, "conv_out", None) is not None:
            yield _ltx_residual(fast, block.conv_out)
    for resnet in encoder.mid_block.resnets:
        yield _ltx_residual(fast, resnet)
    fast.silu(encoder.conv_act)
    yield fast.convolution(encoder.conv_out.conv, _ltx_norm(encoder.norm_out), REPEAT)


def _ltx_norm(norm: Any) -> Preparation:
    if getattr(norm, "elementwise_affine", False):
        raise _NotCoveredError("a norm with weights")
    return Preparation("silu", eps=norm.eps)


def _ltx_residual(fast: FastEncoder, resnet: Any) -> CausalMaker:
    fast.silu(resnet.nonlinearity)
    if resnet.per_channel_scale1 is not None or resnet.scale_shift_table is not None:
        raise _NotCoveredError("noise or a timestep")
    branch = [
        fast.convolution(resnet.conv1.conv, _ltx_norm(resnet.norm1), REPEAT),
        fast.convolution(resnet.conv2.conv, _ltx_norm(resnet.norm2), REPEAT),
    ]
    shortcut = None
    if resnet.conv_shortcut is not None:
        pointwise = fast.kernel(getattr(resnet.conv_shortcut, "conv", resnet.conv_shortcut))
        shortcut = StreamShortcut(resnet.norm3, partial(pointwise, pad_height=True), fast.sums)
    return lambda: CausalResidual([make() for make in branch], shortcut, fast.sums)


def _ltx_downsampling(fast: FastEncoder, downsampler: Any) -> CausalMaker:
    convolution = fast.convolution(downsampler.conv, _PLAIN, REPEAT) if isinstance(downsampler.conv, nn.Conv3d) else None
    if convolution is not None:
        return convolution
    convolution = fast.convolution(downsampler.conv.conv, _PLAIN, REPEAT)
    stride, out_channels = downsampler.stride, downsampler.conv.out_channels
    time, rows, columns = stride
    out_channels *= time * rows * columns
    return lambda: ShuffledDownsampling(convolution(), stride, out_channels)


# --- Wan and Qwen-Image -------------------------------------------------------------------------------------------


def _wan(fast: FastEncoder, vae: Any) -> Family:
    return getattr(vae.config, "patch_size", None) or 1, _wan_makers(fast, vae), lambda moments: moments


def _wan_makers(fast: FastEncoder, vae: Any) -> Iterator[CausalMaker]:
    encoder = vae.encoder
    yield fast.convolution(encoder.conv_in, _PLAIN, ZEROS)
    for part in encoder.down_blocks:
        yield from _wan_part(fast, part)
    resnets = iter(encoder.mid_block.resnets)
    yield from _wan_part(fast, next(resnets))
    for attention, resnet in zip(encoder.mid_block.attentions, resnets, strict=True):
        yield from _wan_part(fast, attention)
        yield from _wan_part(fast, resnet)
    fast.silu(encoder.nonlinearity)
    yield fast.convolution(encoder.conv_out, _wan_norm(fast, encoder.norm_out, "silu"), ZEROS)
    yield fast.convolution(vae.quant_conv, _PLAIN, NOTHING)


def _wan_part(fast: FastEncoder, part: Any) -> Iterator[CausalMaker]:
    """Yield the makers of a module of Wan's encoder: a residual block, an attention, a downsampling or a block of these."""
    kind = type(part).__name__.removeprefix("Wan").removeprefix("QwenImage")
    if kind == "ResidualBlock":
        yield _wan_residual(fast, part)
    elif kind == "AttentionBlock":
        prepare, qkv, proj = _wan_norm(fast, part.norm, "none"), fast.kernel(part.to_qkv), fast.kernel(part.proj)
        yield lambda: FrameAttention(prepare, qkv, proj, fast.scratch)
    elif kind == "Resample":
        yield from _wan_downsampling(fast, part)
    elif kind == "ResidualDownBlock":
        yield _wan_block(fast, part)
    else:
        raise _NotCoveredError(kind)


def _wan_norm(fast: FastEncoder, norm: Any, activation: str) -> Preparation:
    if not norm.channel_first or isinstance(norm.bias, Tensor):
        raise _NotCoveredError("a norm with a bias")
    gamma = norm.gamma.detach().flatten().to(fast.dtype)
    return Preparation(activation, eps=0.0, least=1e-24 / len(gamma), gamma=gamma)


def _wan_residual(fast: FastEncoder, block: Any) -> CausalMaker:
    fast.silu(block.nonlinearity)
    branch = [
        fast.convolution(block.conv1, _wan_norm(fast, block.norm1, "silu"), ZEROS),
        fast.convolution(block.conv2, _wan_norm(fast, block.norm2, "silu"), ZEROS),
    ]
    shortcut = None
    if not isinstance(block.conv_shortcut, nn.Identity):
        shortcut = partial(fast.kernel(block.conv_shortcut), pad_height=True)
    return lambda: CausalResidual([make() for make in branch], shortcut, fast.sums)


def _wan_downsampling(fast: FastEncoder, part: Any) -> Iterator[CausalMaker]:
    if part.mode not in ("downsample2d", "downsample3d"):
        raise _NotCoveredError(part.mode)
    yield fast.convolution(part.resample[1], _PLAIN, NOTHING, after=1)
    if part.mode == "downsample3d":
        convolution = fast.convolution(part.time_conv, _PLAIN, NOTHING)
        yield lambda: TimeDownsampling(convolution())


def _wan_block(fast: FastEncoder, block: Any) -> CausalMaker:
    parts = [*block.resnets, *([] if block.downsampler is None else [block.downsampler])]
    branch = [maker for part in parts for maker in _wan_part(fast, part)]
    average = block.avg_shortcut
    stride = (average.factor_t, average.factor_s, average.factor_s)
    return lambda: CausalResidual([make() for make in branch], AveragedShortcut(stride, average.out_channels), fast.sums)


_FAMILIES: dict[str, Callable[[FastEncoder, Any], Family]] = {
    "AutoencoderKLLTXVideo": _ltx,
    "AutoencoderKLLTX2Video": _ltx,
    "AutoencoderKLWan": _wan,
    "AutoencoderKLQwenImage": _wan,
}


class EncoderStream:
    """Encode a clip piece by piece, equal to the class's encode of the whole clip.

        stream = EncoderStream(fast)
        for piece in pieces:                   # (B, 3, n, H, W) in [-1, 1], any n
            moments = stream.push(piece)       # (B, 2C, m, h, w): means, then log variances; m may be 0

    Memory is needed for the longest piece and for the few frames that every convolution keeps. Raises ShapeError if a piece does
    not fit the pieces before it.
    """

    def __init__(self, fast: FastEncoder) -> None:
        self.fast = fast
        self._clips: list[list[Callable[[Tensor], Tensor]]] = []
        self._first: torch.Size | None = None

    @torch.no_grad()
    def push(self, video: Tensor) -> Tensor:
        """Take the next frames (B, 3, n, H, W); return the moments (B, 2C, m, h, w) of the latents that they determine."""
        if self._first is None:
            self._first = video.shape
            self._clips = [self.fast.stages() for _ in range(video.shape[0])]
        if (video.shape[:2] + video.shape[3:]) != (self._first[:2] + self._first[3:]):
            raise ShapeError(
                f"frames are {tuple(video.shape)}, and those before them {tuple(self._first)}: only their number may differ"
            )
        made = [self._clip(stages, clip) for stages, clip in zip(self._clips, video, strict=True)]
        return self.fast.expand(torch.stack(made))

    def _clip(self, stages: list[Callable[[Tensor], Tensor]], video: Tensor) -> Tensor:
        frames = patches(video.to(self.fast.device), self.fast.patch_size, self.fast.dtype)
        return run_causal(stages, frames).movedim(0, 1).to(self.fast.dtype).contiguous()


def mean_and_std(moments: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation (B, C, t, h, w) from moments (B, 2C, t, h, w), limited as the classes limit them."""
    mean, log_variance = moments.chunk(2, dim=1)
    return mean, torch.exp(0.5 * log_variance.clamp(-30.0, 20.0))


def posterior_of(fast: FastEncoder, video: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation (B, C, t, h, w) of video (B, 3, T, H, W) in [-1, 1]."""
    return mean_and_std(fast.encode(video))


_ready: "weakref.WeakKeyDictionary[nn.Module, tuple[object, FastEncoder | None]]" = weakref.WeakKeyDictionary()


def fast_encoder(vae: nn.Module) -> FastEncoder | None:
    """Return the fast form of a VAE's encoder: made at the first call, and again after weights have changed or moved.

    Returns None for a class or a config that it does not cover, and for a VAE that is set to encode in tiles. Changes through a
    parameter's `.data` are not noticed. A running stream keeps the weights it began with.
    """
    if type(vae).__name__ not in _FAMILIES or vae.encoder is None or any(getattr(vae, way, False) for way in _APPROXIMATE):
        return None
    weights = state_of(_parameters(vae))
    if vae not in _ready or _ready[vae][0] != weights:
        try:
            _ready[vae] = weights, FastEncoder(vae)
        except _NotCoveredError:
            _ready[vae] = weights, None
    return _ready[vae][1]


def _parameters(vae: Any) -> Iterator[nn.Parameter]:
    yield from vae.encoder.parameters()
    if getattr(vae, "quant_conv", None) is not None:
        yield from vae.quant_conv.parameters()
