"""Measures of how close a video is to its source: METRICS, and one file for each kind of measurement.

pixels.py  PSNR, SSIM, flicker
lpips.py   LPIPS
stlpips.py  ST-LPIPS, which tolerates shifts
features.py  the comparison of features that both share
tiled.py     the convolutions of their networks in less time, on a CPU
colour.py  CIEDE2000
fvd.py     rFVD
vmaf.py    VMAF
grid.py    error that repeats at the lattice of upsampling
seam.py    error that jumps at borders of tiles and windows
banding.py steps in smooth gradients
"""

from dataclasses import dataclass
from typing import Literal

from turbovaed_cli.choices import metric_name
from turbovaed_cli.metrics.banding import banding
from turbovaed_cli.metrics.grid import grid
from turbovaed_cli.metrics.lpips import Lpips, load_lpips, lpips_video
from turbovaed_cli.metrics.pixels import MAX_PSNR_DB, flicker, psnr, ssim, ssim_value
from turbovaed_cli.metrics.seam import seam
from turbovaed_cli.metrics.stlpips import StLpips, load_st_lpips

__all__ = [
    "MAX_PSNR_DB",
    "METRICS",
    "Lpips",
    "Metric",
    "StLpips",
    "banding",
    "flicker",
    "grid",
    "load_lpips",
    "load_st_lpips",
    "lpips_video",
    "metric_name",
    "psnr",
    "seam",
    "ssim",
    "ssim_value",
]


@dataclass(frozen=True)
class Metric:
    """One row of METRICS: the names of a score, its better direction, its range and unit, and its requirements."""

    name: str  # the key in JSON and in --fail-under
    label: str  # the name that people read
    better: Literal["up", "down"]
    range: tuple[float, float | None]  # None: without a bound
    unit: str
    digits: int  # decimal places in tables
    needs: str  # requirements besides the clips; may be empty
    per_clip: bool = True  # False: one value for the whole set of clips
    on_request: bool = False  # measured only if asked for by name
    negligible: float = 0  # of a metric that is 0 for most clips: scores up to this are as good as 0, and count as equal


METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("psnr", "PSNR", "up", (0, MAX_PSNR_DB), "dB", 2, ""),
        Metric("ssim", "SSIM", "up", (-1, 1), "", 4, ""),
        Metric("lpips", "LPIPS-Alex", "down", (0, None), "", 4, "the AlexNet backbone"),
        Metric("lpips_vgg", "LPIPS-VGG", "down", (0, None), "", 4, "the VGG16 backbone"),
        Metric("st_lpips", "ST-LPIPS", "down", (0, None), "", 4, "the package stlpips-pytorch"),
        Metric("st_lpips_vgg", "ST-LPIPS-VGG", "down", (0, None), "", 4, "the package stlpips-pytorch", on_request=True),
        Metric("rfvd", "rFVD", "down", (0, None), "", 2, "the I3D detector, and 256 clips", per_clip=False),
        Metric("vmaf", "VMAF", "up", (0, 100), "", 2, "an ffmpeg with libvmaf"),
        Metric("flicker", "flicker", "down", (0, 510), "/255", 3, "two frames"),
        Metric("grid", "grid", "down", (0, 255), "/255", 3, "", negligible=0.25),
        Metric("seam", "seam", "down", (0, 510), "/255", 3, "", negligible=1.5),
        Metric("banding", "banding", "down", (0, 255), "/255", 3, "", negligible=0.25),
    )
}
