"""Fit a convolution by least squares: the best map, at some places of some clips, from what it sees to what it should return."""

import math
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from turbovaed_cli.models.layers import pad_time

NUM_ROWS = 4000  # places of each clip that a fit uses
MOST_FEATURES = 2048  # a larger neighbourhood is fitted without other frames, or by its middle alone
MOST_FEATURES_GPU = 8192
_RIDGE = 1e-5  # share of the mean diagonal


def places_in(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """Draw at most NUM_ROWS places of a (t, h, w) clip, as numbers of its flattened positions."""
    return torch.randperm(math.prod(shape), generator=generator)[:NUM_ROWS]


def at_places(x: Tensor, places: Tensor) -> Tensor:
    """Return the channels of x (1, C, t, h, w) at these places: (places, C)."""
    return x[0].flatten(1)[:, places.to(x.device)].T


def run_convolution(convolution: nn.Conv2d | nn.Conv3d, x: Tensor, *, causal: bool) -> Tensor:
    """Return a student's convolution of x (1, C, t, h, w), with the frames repeated that its kernel needs."""
    if isinstance(convolution, nn.Conv3d):
        return cast(Tensor, convolution(pad_time(x, convolution.kernel_size[0], causal=causal)))
    frames = convolution(x.movedim(2, 1).flatten(0, 1))
    return cast(Tensor, frames.unflatten(0, (x.shape[0], x.shape[2])).movedim(2, 1))


def fit_convolution(
    convolution: nn.Conv2d | nn.Conv3d,
    inputs: Sequence[Tensor],
    places: Sequence[Tensor],
    targets: Sequence[Tensor],
    *,
    causal: bool = False,
    ridge: float = _RIDGE,
    noise: float = 0.0,
    adds: bool = False,
) -> None:
    """Set weight and bias to the least squares map from the neighbourhoods of `inputs` (1, C, t, h, w) to `targets` (places, O).

    `noise` is the share of each input's root mean square that rounding adds to it: the map is the best one of such inputs, with
    small weights where large ones would cancel. With `adds` the map is added to the weights: fitted to what they miss, it leaves
    as it is what the clips do not need. A target that is NaN is then unknown, and its place does not count for any output that
    has an unknown target somewhere.
    """
    kernel = convolution.kernel_size if isinstance(convolution, nn.Conv3d) else (1, *convolution.kernel_size)
    device = inputs[0].device if adds else torch.device("cpu")
    most = MOST_FEATURES_GPU if device.type == "cuda" else MOST_FEATURES
    used = next(
        taps
        for taps in (kernel, (1, *kernel[1:]), (1, 1, 1))
        if convolution.in_channels * math.prod(taps) <= most or taps == (1, 1, 1)
    )
    size = convolution.in_channels * math.prod(used) + 1
    gram = torch.zeros(
        1 + adds, size, size, dtype=torch.float64, device=device
    )  # of whole rows, and of rows with unknown targets
    cross = torch.zeros(1 + adds, size, convolution.out_channels, dtype=torch.float64, device=device)
    for x, where, target in zip(inputs, places, targets, strict=True):
        features, wanted = _neighbourhoods(x.to(device), where.to(device), used, causal=causal), target.to(device).float()
        unknown = wanted.isnan().any(dim=1) if adds else None
        parts = [(features, wanted)] if unknown is None else [(features[rows], wanted[rows]) for rows in (~unknown, unknown)]
        for kind, (part, of_part) in enumerate(parts):
            gram[kind] += part.T @ part
            cross[kind] += part.T @ of_part
    diagonal = gram.diagonal(dim1=1, dim2=2)
    diagonal[:, :-1] *= 1 + noise**2  # but for that of the bias
    found = (_solved_partly(gram, cross, ridge) if adds else _solved(gram[0], cross[0], ridge)).T.to(convolution.weight)
    weight = found[:, :-1].reshape(convolution.out_channels, convolution.in_channels, *used)
    whole = convolution.weight if convolution.weight.ndim == 5 else convolution.weight.unsqueeze(2)  # (out, in, *kernel)
    assert convolution.bias is not None
    if not adds:
        whole.zero_()
        convolution.bias.zero_()
    # A causal kernel ends with its own frame, and others have it in the middle.
    first = kernel[0] - used[0] if causal else (kernel[0] - used[0]) // 2
    inner = [slice((side - part) // 2, (side + part) // 2) for side, part in zip(kernel[1:], used[1:], strict=True)]
    whole[:, :, first : first + used[0], inner[0], inner[1]] += weight
    convolution.bias += found[:, -1]


def _solved(gram: Tensor, cross: Tensor, ridge: float) -> Tensor:
    """Return the least squares map (features, O) of these sums."""
    return torch.linalg.solve(
        gram + ridge * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype, device=gram.device), cross
    )


def _solved_partly(gram: Tensor, cross: Tensor, ridge: float) -> Tensor:
    """Return the least squares map (features, O) from the sums over rows with known targets and over those with unknown ones."""
    partly = cross[1].isnan().any(dim=0)
    found = torch.empty_like(cross[0])
    for sums, wanted, outputs in ((gram.sum(dim=0), cross.sum(dim=0), ~partly), (gram[0], cross[0], partly)):
        if outputs.any():
            found[:, outputs] = _solved(sums, wanted[:, outputs], ridge)
    return found


def _neighbourhoods(x: Tensor, places: Tensor, taps: Sequence[int], *, causal: bool) -> Tensor:
    """Return what a convolution with a kernel of `taps` sees at these places of x (1, C, t, h, w), and a one: (places, C * taps + 1)."""
    height, width = x.shape[3:]
    padded = functional.pad(pad_time(x, taps[0], causal=causal), [taps[2] // 2] * 2 + [taps[1] // 2] * 2)[0]
    at = (places // (height * width), places // width % height, places % width)
    seen = [
        padded[:, at[0] + dt, at[1] + dh, at[2] + dw]  # (C, places)
        for dt in range(taps[0]) for dh in range(taps[1]) for dw in range(taps[2])
    ]  # fmt: skip
    features = torch.stack(seen, dim=1).flatten(0, 1).T  # (places, C * taps)
    return torch.cat([features, torch.ones(len(features), 1, device=x.device)], dim=1).float()
