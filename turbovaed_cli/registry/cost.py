"""The cost of a student, in closed form from its config: parameters, and FLOPs of one decode.

FLOPs are those of the convolutions, two per multiply-add, as torch.utils.flop_counter counts them. Thousands of students take
a fraction of a second, and torch is not needed.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from turbovaed_cli.registry.blocks import BlockPlan, plan_blocks

_DEFAULTS: dict[str, Any] = {  # those of StudentNetwork; a test compares them
    "out_channels": 3,
    "decoder_dw_kernel_size": 5,
    "decoder_spatio_only": None,
    "decoder_temporal_only": None,
    "decoder_conv_types": None,
    "decoder_tail": "convs",
    "is_video_dc_ae": False,
    "decoder_change_in_upsampler": False,
}


@dataclass(frozen=True)
class StudentCost:
    """The parameters of a student, and the GFLOPs (two FLOPs per multiply-add) of one decode."""

    params: int
    gflops: float
    values: int = 0  # that its convolutions write: what the time of thin layers is in proportion to


def latents_for(config: Mapping[str, Any], frames: int, size: tuple[int, int]) -> tuple[int, int, int]:
    """Return (t, h, w) of the latents of `frames` pixel frames of `size` (height, width), both of which the student can make."""
    plan = _plan(_DEFAULTS | dict(config))
    time = 2 ** sum(block.upsample_time for block in plan)
    space = config["patch_size"] * 2 ** sum(block.upsample_space for block in plan)
    t = frames // time if config.get("is_video_dc_ae") else (frames - 1) // time + 1
    return t, size[0] // space, size[1] // space


def cost_of(config: Mapping[str, Any], latents: tuple[int, int, int]) -> StudentCost:
    """Return the parameters of the student that build_student makes of `config`, and the GFLOPs of one decode.

    `latents` is (t, h, w) of the latents (1, C, t, h, w). The tests check that counting on the real network gives the same.
    """
    config = _DEFAULTS | dict(config)
    kernel = config["decoder_dw_kernel_size"]
    mid, *ups = _plan(config)
    frames, height, width = latents
    count = _Count(kernel)
    count.conv(config["latent_channels"], mid.channels, 3**3, frames * height * width)
    count.resnets(mid, frames * height * width)
    channels = mid.channels
    for stage in ups:
        time, space = 2 if stage.upsample_time else 1, 2 if stage.upsample_space else 1
        upsamples = time * space > 1
        directly = upsamples and config["decoder_change_in_upsampler"]
        if channels != stage.channels and not directly:
            count.params += 2 * channels  # LayerNorm of the shortcut
            count.conv(channels, stage.channels, 1, frames * height * width)
            count.resnet(stage.conv, channels, stage.channels, frames * height * width)
        before = channels if directly else stage.channels
        channels = stage.channels
        if upsamples:
            conv_type = "3d" if stage.conv == "depthwise" else stage.conv
            count.layer(conv_type, before, channels * time * space**2, frames * height * width)
            frames, height, width = frames * time, height * space, width * space
            frames -= stage.upsample_time and not config["is_video_dc_ae"]
        count.resnets(stage, frames * height * width)
    outputs = config["out_channels"]
    if config["decoder_tail"] == "patches":
        count.conv(channels, outputs * config["patch_size"] ** 2, 3**3, frames * height * width)
        return count.cost
    for _ in range(config["patch_size"] // 2):  # 1: none, 2: one, 4: two
        count.conv(channels, channels, 3**2, frames * height * width)
        channels, height, width = channels // 4, 2 * height, 2 * width
    count.conv(channels, outputs, 3**3, frames * height * width)
    return count.cost


def _plan(config: Mapping[str, Any]) -> list[BlockPlan]:
    """Return the blocks of a config with all its fields: the mid block, then the up blocks in running order."""
    return plan_blocks(
        config["decoder_block_out_channels"],
        config["decoder_layers_per_block"],
        config["decoder_is_dw_conv"],
        config["spatio_temporal_scaling"],
        config["decoder_spatio_only"],
        config["decoder_temporal_only"],
        config["decoder_conv_types"],
    )


class _Count:
    """Adds up parameters and multiply-adds, layer by layer."""

    def __init__(self, depthwise_kernel: int) -> None:
        self.params = self.multiply_adds = self.values = 0
        self.depthwise_taps = depthwise_kernel**3

    @property
    def cost(self) -> StudentCost:
        """What was added up."""
        return StudentCost(self.params, 2 * self.multiply_adds / 1e9, self.values)

    def conv(self, in_channels: int, out_channels: int, taps: int, positions: int) -> None:
        """Add a convolution with bias of `taps` kernel elements, at `positions` outputs; a depthwise one has 1 input channel."""
        self.params += out_channels * (in_channels * taps + 1)
        self.multiply_adds += out_channels * in_channels * taps * positions
        self.values += out_channels * positions

    def layer(self, conv_type: str, in_channels: int, out_channels: int, positions: int) -> None:
        """Add a convolution of the type "3d", "depthwise" or "2+1d". The time of "2+1d" is no convolution to a counter of FLOPs."""
        if conv_type == "depthwise":
            self.conv(1, in_channels, self.depthwise_taps, positions)
            self.conv(in_channels, out_channels, 1, positions)
        elif conv_type == "2+1d":
            self.conv(in_channels, out_channels, 3**2, positions)
            self.params += 3 * out_channels
            self.values += out_channels * positions
        else:
            self.conv(in_channels, out_channels, 3**3, positions)

    def resnet(self, conv_type: str, in_channels: int, out_channels: int, positions: int) -> None:
        """Add the two convolutions of a resnet, each of this type."""
        self.layer(conv_type, in_channels, out_channels, positions)
        self.layer(conv_type, out_channels, out_channels, positions)

    def resnets(self, stage: BlockPlan, positions: int) -> None:
        """Add the resnets of a block, all of the block's width."""
        for _ in range(stage.num_layers):
            self.resnet(stage.conv, stage.channels, stage.channels, positions)
