"""Which metrics can be measured on this machine, as functions of (video, source), and why the rest cannot."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from turbovaed_cli.errors import MissingError, VideoError, WeightFileError
from turbovaed_cli.evaluation import paper
from turbovaed_cli.files.whole import sha256_of
from turbovaed_cli.metrics import METRICS, fvd, metric_name
from turbovaed_cli.metrics.banding import MIN_SIDE as BANDING_MIN_SIDE
from turbovaed_cli.metrics.banding import banding_of_all
from turbovaed_cli.metrics.features import FeatureDistance, mean_distances
from turbovaed_cli.metrics.grid import MIN_SIDE as GRID_MIN_SIDE
from turbovaed_cli.metrics.grid import grid_of_all
from turbovaed_cli.metrics.lpips import lpips_files, read_lpips
from turbovaed_cli.metrics.pixels import SSIM_WINDOW, flicker, psnr, ssim
from turbovaed_cli.metrics.seam import MIN_SIDE as SEAM_MIN_SIDE
from turbovaed_cli.metrics.seam import seam
from turbovaed_cli.metrics.stlpips import LAYOUTS, read_st_lpips
from turbovaed_cli.metrics.vmaf import MIN_SIDE as VMAF_MIN_SIDE
from turbovaed_cli.metrics.vmaf import MODEL as VMAF_MODEL
from turbovaed_cli.metrics.vmaf import check_vmaf, vmaf
from turbovaed_cli.registry.backbones import TRUNKS
from turbovaed_cli.registry.st_lpips import st_lpips_path
from turbovaed_cli.settings import EvalSettings
from turbovaed_cli.video import ffmpeg

Measure = Callable[[Tensor, Tensor], float]  # (video, source), each (3, T, H, W) in the range of the protocol


@dataclass(frozen=True)
class SharedMeasure:
    """A metric that finds something out about the source, which serves for all its videos."""

    of_all: Callable[[Sequence[Tensor], Tensor], list[float]]  # (videos, source)

    def __call__(self, video: Tensor, source: Tensor) -> float:
        """Return the score of one video."""
        return self.of_all([video], source)[0]


# Metrics of one kind of defect each, and the least side in pixels that each needs.
_DEFECTS: dict[str, tuple[Measure, int]] = {
    "grid": (SharedMeasure(grid_of_all), GRID_MIN_SIDE),
    "seam": (seam, SEAM_MIN_SIDE),
    "banding": (SharedMeasure(banding_of_all), BANDING_MIN_SIDE),
}


@dataclass(frozen=True)
class Gauges:
    """How each metric is measured here. Clips are in [-1, 1] under `standard`, min-max normalised in [0, 1] under `paper`."""

    per_clip: dict[str, Measure]
    detector: fvd.Detector | None  # for rFVD, which is a metric of all clips together
    not_measured: dict[str, str]  # metric -> the reason, and what to run
    weights: dict[str, list[dict[str, str]]]  # metric -> the files it was measured with: "file", "sha256"

    def scores(self, videos: Sequence[Tensor], source: Tensor) -> list[dict[str, float]]:
        """Return the scores per clip of each video against one source, all (3, T, H, W); what is found out about the source serves for all."""
        by_metric = {
            name: measure.of_all(videos, source) if isinstance(measure, SharedMeasure) else [measure(v, source) for v in videos]
            for name, measure in self.per_clip.items()
        }
        return [{name: found[i] for name, found in by_metric.items()} for i in range(len(videos))]


def open_gauges(settings: EvalSettings, device: torch.device, num_clips: int) -> Gauges:
    """Load what the metrics of `settings.metrics` need. A metric with missing parts is listed in `not_measured`.

    Raises WeightFileError, CorruptFileError or MissingWeightsError for a file that the user named.
    """
    names = _asked(settings.metrics)
    gauges = Gauges({}, None, {}, {})
    detector = None
    for name in names:
        try:
            if settings.protocol == "paper" and name not in paper.IN_PAPER:
                gauges.not_measured[name] = (
                    "not measured: the published script has no such metric (`protocol` standard measures it)"
                )
            elif name == "rfvd":
                detector = _open_detector(settings, device, num_clips, gauges)
            else:
                gauges.per_clip[name] = _open(name, settings, device, gauges)
        except MissingError as error:
            gauges.not_measured[name] = f"not measured: {error.what} ({error.hint})"
    return Gauges(gauges.per_clip, detector, gauges.not_measured, gauges.weights)


def nothing_measured(gauges: Gauges) -> MissingError:
    """Return the error of a machine that can measure none of the metrics that were asked for."""
    reasons = "; ".join(reason.removeprefix("not measured: ") for reason in gauges.not_measured.values())
    return MissingError(f"nothing can be measured: {reasons}", "give what is missing, or other `metrics`")


def _asked(metrics: Sequence[str]) -> list[str]:
    asked = [metric_name(name) for name in metrics]
    return [name for name, metric in METRICS.items() if name in asked or not (asked or metric.on_request)]


def _open(name: str, settings: EvalSettings, device: torch.device, gauges: Gauges) -> Measure:
    as_published = settings.protocol == "paper"
    if name == "psnr":
        return paper.psnr if as_published else psnr
    if name == "ssim":
        _check_side(name, paper.MIN_SIDE if as_published else SSIM_WINDOW, settings)
        return paper.ssim if as_published else ssim
    if name == "flicker":
        if settings.frames < 2:
            raise MissingError("a clip of one frame does not change", "`frames` 2 or more")
        return flicker
    if name in _DEFECTS:
        measure, least = _DEFECTS[name]
        _check_side(name, least, settings)
        return measure
    if name == "vmaf":
        check_vmaf()
        _check_side(name, VMAF_MIN_SIDE, settings)
        blank = torch.zeros(3, min(settings.frames, 2), *settings.size)
        try:
            vmaf(blank, blank)
        except VideoError as error:  # it wants frames of some size
            raise MissingError(error.what, "use a larger `size`") from error
        label = f"ffmpeg {ffmpeg.version()}, {VMAF_MODEL} built in"
        gauges.weights[name] = [{"file": label, "sha256": sha256_of(Path(ffmpeg.executable()))}]
        return vmaf
    if name in ("lpips", "lpips_vgg"):
        backbone = {"lpips": "alex", "lpips_vgg": "vgg"}[name]
        _check_side(name, TRUNKS[backbone].min_side, settings)
        files = lpips_files(backbone, settings.lpips_weights)
        network: FeatureDistance = read_lpips(backbone, files)
        gauges.weights[name] = _recorded(files.trunk, files.linear)
    else:
        backbone = {"st_lpips": "alex", "st_lpips_vgg": "vgg"}[name]
        _check_side(name, LAYOUTS[backbone].min_side, settings)
        path = st_lpips_path(backbone)
        network = read_st_lpips(backbone, path)
        gauges.weights[name] = _recorded(path)
    return SharedMeasure(partial(mean_distances, network.to(device), spatial=as_published))


def _check_side(name: str, least: int, settings: EvalSettings) -> None:
    """Raise MissingError if a side of the clips has fewer pixels than a metric needs."""
    height, width = settings.size
    if min(height, width) < least:
        raise MissingError(
            f"{METRICS[name].label} needs {least}x{least} pixels at least; these clips are {width}x{height}", "a larger `size`"
        )


def _recorded(*paths: Path) -> list[dict[str, str]]:
    return [{"file": path.name, "sha256": sha256_of(path)} for path in paths]


def _open_detector(settings: EvalSettings, device: torch.device, num_clips: int, gauges: Gauges) -> fvd.Detector | None:
    enough = num_clips >= fvd.MIN_CLIPS
    if not enough:
        gauges.not_measured["rfvd"] = fvd.not_comparable(num_clips)
        if settings.i3d is None:
            return None
    detector, path = fvd.load_detector(settings.i3d, settings.i3d_sha256, device)
    try:
        detector.features(torch.zeros(3, settings.frames, *settings.size))  # a wrong file is an error before the work begins
    except WeightFileError as error:
        if settings.frames >= fvd.MIN_FRAMES:
            raise
        what = f"rFVD needs clips of {fvd.MIN_FRAMES} frames at least; these have {settings.frames}"
        raise MissingError(what, "more `frames`") from error
    gauges.weights["rfvd"] = [{"file": path.name, "sha256": settings.i3d_sha256.lower()}]
    return detector if enough else None
