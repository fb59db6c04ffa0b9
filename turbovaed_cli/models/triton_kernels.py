"""The Triton kernel of a GPU's fused form. gpu_kernels.py imports this file where it is used: Triton is not installed everywhere."""

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["positions", "frames", "head", "height", "width"])  # type: ignore[untyped-decorator]
def fill_padded(  # type: ignore[no-untyped-def]
    x, kept, out,
    x_frame, x_channel, x_row, x_column, kept_frame, kept_row, kept_column, out_frame, out_row, out_column,
    positions, frames, head, height, width, channels, eps,
    HAS_KEPT: tl.constexpr, HAS_NORM: tl.constexpr, ACTIVATION: tl.constexpr, POSITIONS: tl.constexpr, CHANNELS: tl.constexpr,  # noqa: N803
):  # fmt: skip
    """Write frames of `x`, through RMS norm and activation, into `out` from frame `head` on, and fill the frames around them.

    Names such as `x_row` are strides in elements; the channels of `kept` and `out` are innermost in memory. A program takes POSITIONS of `out` with all their
    channels, CHANNELS at most. Frames before `head` are those of `kept`, unchanged, or the first of `x`; those after the last
    of `x` repeat it. Sums and activations are in fp32.
    """
    at = tl.program_id(0).to(tl.int64) * POSITIONS + tl.arange(0, POSITIONS)
    column, row, frame = at % width, at // width % height, at // width // height
    channel = tl.arange(0, CHANNELS)[None, :]
    inside = (at < positions)[:, None] & (channel < channels)
    source = tl.minimum(tl.maximum(frame - head, 0), frames - 1)
    places = (source * x_frame + row * x_row + column * x_column)[:, None] + channel * x_channel
    wide = tl.load(x + places, mask=inside, other=0.0).to(tl.float32)
    if HAS_NORM:
        means = tl.sum(wide * wide, axis=1) / channels + eps
        wide = wide * tl.rsqrt(means)[:, None]
        if ACTIVATION == "relu":
            wide = tl.where(wide < 0, 0.0, wide)
        if ACTIVATION == "silu":
            wide = wide * tl.sigmoid(wide)
    made = wide.to(out.dtype.element_ty)
    if HAS_KEPT:
        is_kept = (frame < head)[:, None]
        places = (frame * kept_frame + row * kept_row + column * kept_column)[:, None] + channel
        made = tl.where(is_kept, tl.load(kept + places, mask=inside & is_kept, other=0.0), made)
    tl.store(out + (frame * out_frame + row * out_row + column * out_column)[:, None] + channel, made, mask=inside)
