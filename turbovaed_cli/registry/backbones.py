"""The networks that LPIPS compares with: their layers, and the files of their weights."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Trunk:
    """A backbone of LPIPS: its published file, and its layers as (index in the file, in, out, kernel, stride, padding)."""

    file_name: str  # torchvision's; the part after the dash is the beginning of its sha256
    num_bytes: int
    url: str
    convolutions: tuple[tuple[int, int, int, int, int, int], ...]
    pools_before: frozenset[int]  # indices of the convolutions that follow a max pool
    pool_kernel: int
    taps: frozenset[int]  # indices of the convolutions whose ReLU is compared
    min_side: int  # pixels: smaller images are empty before the last layers


def _vgg_layers() -> tuple[tuple[int, int, int, int, int, int], ...]:
    indices = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)
    channels = (3, 64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512)
    return tuple((index, channels[i], channels[i + 1], 3, 1, 1) for i, index in enumerate(indices))


TRUNKS = {
    "vgg": Trunk(
        "vgg16-397923af.pth",
        553_433_881,
        "https://download.pytorch.org/models/vgg16-397923af.pth",
        _vgg_layers(),
        frozenset({5, 10, 17, 24}),
        2,
        frozenset({2, 7, 14, 21, 28}),
        16,
    ),
    "alex": Trunk(
        "alexnet-owt-7be5be79.pth",
        244_408_911,
        "https://download.pytorch.org/models/alexnet-owt-7be5be79.pth",
        ((0, 3, 64, 11, 4, 2), (3, 64, 192, 5, 1, 2), (6, 192, 384, 3, 1, 1), (8, 384, 256, 3, 1, 1), (10, 256, 256, 3, 1, 1)),
        frozenset({3, 6}),
        3,
        frozenset({0, 3, 6, 8, 10}),
        31,
    ),
}


def trunk_path(name: str) -> Path | None:
    """Return the path of the LPIPS backbone "vgg" or "alex" in torch's hub cache (TORCH_HOME); None if it is not there."""
    import torch  # noqa: PLC0415 - a list of models does not need it

    path = Path(torch.hub.get_dir()) / "checkpoints" / TRUNKS[name].file_name
    return path if path.is_file() else None
