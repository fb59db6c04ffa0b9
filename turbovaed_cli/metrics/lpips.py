"""LPIPS: a learned perceptual distance between frames, from the features of AlexNet or VGG16, and the files of its weights."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from turbovaed_cli.errors import CorruptFileError, MissingWeightsError, WeightFileError
from turbovaed_cli.files.tensors import read_weights
from turbovaed_cli.files.whole import sha256_of
from turbovaed_cli.metrics.features import FeatureDistance, mean_distances
from turbovaed_cli.registry.backbones import TRUNKS, Trunk, trunk_path


class Lpips(FeatureDistance):
    """LPIPS: the distance by the features of AlexNet or VGG16 as they were trained to classify."""

    def __init__(self, trunk: Trunk, state: dict[str, Tensor], linear: dict[str, Tensor]) -> None:
        """Take the weights of the backbone and of its channels.

        `state` is torchvision's state dict; `linear` has the weights `lin{i}.model.1.weight`, each (1, C, 1, 1).
        """
        super().__init__("LPIPS", trunk.min_side, [linear[f"lin{i}.model.1.weight"] for i in range(len(trunk.taps))])
        self.trunk = trunk
        self.convolutions = nn.ModuleDict()
        for index, in_channels, out_channels, kernel, stride, padding in trunk.convolutions:
            convolution = nn.Conv2d(in_channels, out_channels, kernel, stride, padding)
            convolution.load_state_dict({name: state[f"features.{index}.{name}"] for name in ("weight", "bias")})
            self.convolutions[str(index)] = convolution
        self.eval().requires_grad_(False)

    def features(self, images: Tensor, *, tiled: bool = False) -> Iterator[Tensor]:
        """Yield the compared layers, each (N, C, h, w), of images (N, 3, H, W) in [-1, 1]; see FeatureDistance for `tiled`.

        Raises ShapeError for images smaller than the backbone needs.
        """
        x = self.standardised(images)
        for name, convolution in self.convolutions.items():
            if int(name) in self.trunk.pools_before:
                x = functional.max_pool2d(x, self.trunk.pool_kernel, 2)
            x = self.convolved(x, convolution, tiled=tiled)
            if int(name) in self.trunk.taps:
                yield x


@dataclass(frozen=True)
class LpipsFiles:
    """The two files of one LPIPS: the backbone, and the learned weights on its channels."""

    trunk: Path
    linear: Path


def lpips_files(name: str, given: Sequence[Path] = ()) -> LpipsFiles:
    """Return the files of LPIPS "vgg" or "alex": matching ones of `given`, else those of torch's cache and torchmetrics.

    Raises MissingWeightsError without a backbone, and WeightFileError for a given file that is neither a backbone nor learned
    weights. Raises CorruptFileError if the sha256 of a cached backbone does not match its name.
    """
    kinds = {identify(path): path for path in given}
    trunk = kinds.get(("trunk", name))
    if trunk is None:
        trunk = _cached_trunk(name)
        prefix = TRUNKS[name].file_name.rpartition("-")[2].partition(".")[0]
        if not sha256_of(trunk).startswith(prefix):
            raise CorruptFileError(
                f"{trunk} is not the file its name promises (sha256 differs)",
                f"remove it, then: turbovaed models pull lpips-{name}",
            )
    return LpipsFiles(trunk, kinds.get(("linear", name)) or _shipped_linear(name))


def identify(path: Path) -> tuple[Literal["trunk", "linear"], str]:
    """Return the kind of a weight file of LPIPS by its keys and shapes: ("trunk" or "linear", "alex" or "vgg").

    Raises WeightFileError for other files.
    """
    state = read_weights(path)
    first, second = state.get("features.0.weight"), state.get("lin1.model.1.weight")
    for name, trunk in TRUNKS.items():
        _, in_channels, out_channels, kernel, _, _ = trunk.convolutions[0]
        if first is not None and tuple(first.shape) == (out_channels, in_channels, kernel, kernel):
            return "trunk", name
        channels = _tap_channels(trunk)[1]
        if second is not None and tuple(second.shape) == (1, channels, 1, 1):
            return "linear", name
    raise WeightFileError(
        f"{path} is no weight file of LPIPS",
        "a backbone is torchvision's state dict (features.0.weight, ...), learned weights are lin0.model.1.weight, ...",
    )


def _tap_channels(trunk: Trunk) -> list[int]:
    return [out_channels for index, _, out_channels, *_ in trunk.convolutions if index in trunk.taps]


def _cached_trunk(name: str) -> Path:
    path = trunk_path(name)
    if path is None:
        raise MissingWeightsError(
            f"LPIPS needs {TRUNKS[name].file_name}, which is not on this machine", f"turbovaed models pull lpips-{name}"
        )
    return path


def _shipped_linear(name: str) -> Path:
    """Return the path of the learned weights in torchmetrics' package (Apache-2.0)."""
    return Path(str(files("torchmetrics").joinpath(f"functional/image/lpips_models/{name}.pth")))


@cache
def load_lpips(name: str) -> Lpips:
    """Load LPIPS with the backbone "vgg" or "alex" from torch's cache and the learned weights from torchmetrics (Apache-2.0).

    Raises MissingWeightsError if the backbone is not on this machine, WeightFileError if the files are damaged.
    """
    return read_lpips(name, LpipsFiles(_cached_trunk(name), _shipped_linear(name)))


def read_lpips(name: str, found: LpipsFiles) -> Lpips:
    """Load LPIPS from its two files. Raises WeightFileError for a missing key, another shape, NaN or infinity."""
    try:
        network = Lpips(TRUNKS[name], read_weights(found.trunk), read_weights(found.linear))
    except (KeyError, RuntimeError) as error:
        reason = str(error).splitlines()[-1].strip() if isinstance(error, RuntimeError) else f"it lacks {error}"
        raise WeightFileError(
            f"{found.trunk} and {found.linear} do not make LPIPS: {reason}",
            f"turbovaed models pull lpips-{name} brings the backbone",
        ) from error
    if not all(torch.isfinite(value).all() for value in network.state_dict().values()):
        raise WeightFileError(
            f"{found.trunk} or {found.linear} holds NaN or infinity", f"turbovaed models pull lpips-{name} brings the backbone"
        )
    return network


def lpips_video(network: Lpips, video: Tensor, source: Tensor, *, spatial: bool = False) -> float:
    """Return the mean LPIPS over the frames of a clip, both (3, T, H, W) in [-1, 1].

    It works frame by frame, so memory does not grow with T. Raises ShapeError for small frames.
    """
    return mean_distances(network, [video], source, spatial=spatial)[0]
