"""rFVD: the distance between many reconstructed clips and their sources, as two sets of a video classifier's features."""

import hashlib
import io
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from turbovaed_cli.errors import CorruptFileError, MissingWeightsError, WeightFileError
from turbovaed_cli.files.whole import sha256_of
from turbovaed_cli.registry.download import I3D_FILE, cached_file
from turbovaed_cli.units import counted

MIN_CLIPS = 256  # with fewer, 400 means and 80,200 covariances are mostly noise, and always too large
MIN_FRAMES = 10  # of a clip: I3D halves time several times, which leaves no frame of shorter clips


class Detector:
    """I3D trained on Kinetics-400, as TorchScript, which maps clips to 400 logits.

    Called as `detector(video, rescale=False, resize=True, return_features=True)` with video (B, 3, T, H, W) in [-1, 1];
    it scales to 224x224 itself. Source: Carreira and Zisserman 2017; the TorchScript file of StyleGAN-V (Skorokhodov et
    al. 2022), which gives the numbers of the first implementation of FVD (Unterthiner et al. 2018).
    """

    def __init__(self, content: bytes, label: str, device: torch.device) -> None:
        """Load `content`, which is code: the caller has to have checked its sha256, as load_detector does.

        Raises WeightFileError if it is not TorchScript.
        """
        self.label, self.device = label, device
        try:
            self.network: Any = torch.jit.load(io.BytesIO(content), map_location=device).eval()
        except RuntimeError as error:
            raise WeightFileError(f"{label} is not TorchScript", "see docs/metrics.md for the detector that is meant") from error

    @torch.no_grad()
    def features(self, video: Tensor) -> np.ndarray:
        """Return the logits, (D,) fp64, of one clip (3, T, H, W) in [-1, 1].

        Raises WeightFileError if the detector fails on the clip, or returns no finite features.
        """
        try:
            found = self.network(video[None].to(self.device), rescale=False, resize=True, return_features=True)
        except RuntimeError as error:
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            raise WeightFileError(
                f"{self.label} does not take clips of {video.shape[1]} frames: {lines[-1] if lines else error}",
                f"I3D needs {MIN_FRAMES} frames or more; see docs/metrics.md for the detector that is meant",
            ) from error
        if not isinstance(found, Tensor) or found.dim() != 2 or found.shape[0] != 1 or not bool(torch.isfinite(found).all()):
            raise WeightFileError(
                f"{self.label} gave no row of finite features", "see docs/metrics.md for the detector that is meant"
            )
        return found[0].double().cpu().numpy()


def load_detector(path: Path | None, sha256: str, device: torch.device) -> tuple[Detector, Path]:
    """Return the detector in `path`, or the one that `models pull i3d` fetched, and its path, if its sha256 is `sha256`.

    TorchScript is code, which runs as soon as it is loaded: the bytes that are hashed are the bytes that are loaded.
    Raises MissingWeightsError without a file or without a sha256, WeightFileError if `path` does not exist, and
    CorruptFileError if its sha256 differs.
    """
    found = path or cached_file(I3D_FILE)
    if found is None:
        raise MissingWeightsError(
            "rFVD needs the I3D detector, which is not on this machine", "turbovaed models pull i3d, then --i3d-sha256 HEX"
        )
    if not found.is_file():
        raise WeightFileError(f"{found} is not there", "`i3d` takes the TorchScript file of the I3D detector")
    if not sha256:
        raise MissingWeightsError(
            f"{found.name} is code, and its sha256 is not confirmed",
            f"compare its sha256 with a source you trust (docs/metrics.md), then `i3d_sha256` {sha256_of(found)}",
        )
    content = found.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    if digest != sha256.lower():
        raise CorruptFileError(
            f"{found} is not what you confirmed: its sha256 is {digest}", "do not load it unless you trust that; `i3d_sha256` HEX"
        )
    return Detector(content, found.name, device), found


def not_comparable(num_clips: int) -> str:
    """Return the reason why `num_clips` clips are too few for rFVD, and what to do."""
    return (
        f"not comparable: {counted(num_clips, 'clip')} of the {MIN_CLIPS} it needs; with fewer it is mostly the noise "
        "of its covariances (more videos, or `clips_per_video` 0)"
    )


def frechet_distance(features: np.ndarray, others: np.ndarray) -> float:
    """Return the Frechet distance of the Gaussians with the means and covariances of two sets of features, (N, D) and (M, D).

    It is 0 for equal moments and has no upper bound; lower is better. Source: Dowson and Landau 1982: |m1 - m2|^2 +
    tr(S1 + S2 - 2 (S1 S2)^(1/2)), covariances over N - 1. The last trace is the sum of the singular values of R1 R2^T,
    with S = R^T R from a QR of the centred features: unlike a matrix root, this is exact for singular S too.
    """
    means = [x.mean(axis=0) for x in (features, others)]
    roots = [np.linalg.qr(x - mean, mode="r") / np.sqrt(len(x) - 1) for x, mean in zip((features, others), means, strict=True)]
    traces = sum(float(np.square(root).sum()) for root in roots)
    overlap = float(np.linalg.svd(roots[0] @ roots[1].T, compute_uv=False).sum())
    return max(float(np.square(means[0] - means[1]).sum()) + traces - 2 * overlap, 0.0)
