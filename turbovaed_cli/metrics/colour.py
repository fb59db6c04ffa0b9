"""Colour differences as eyes see them: CIEDE2000 of sRGB pixels, in fp64."""

import math

import torch
from torch import Tensor

from turbovaed_cli.video import to_unit

# Linear sRGB to XYZ over the white of D65 (IEC 61966-2-1; CIE 1931, 2 degrees).
_XYZ_OF_RGB = ((0.412453, 0.357580, 0.180423), (0.212671, 0.715160, 0.072169), (0.019334, 0.119193, 0.950227))
_WHITE = (0.95047, 1.0, 1.08883)
_25_TO_7 = 25.0**7


def to_lab(rgb: Tensor) -> Tensor:
    """Convert sRGB (..., 3) in [0, 1] to CIE L*a*b* (..., 3) fp64: L* from 0 to 100. Source: IEC 61966-2-1, CIE 15, D65."""
    rgb = rgb.double()
    linear = torch.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    matrix = torch.tensor(_XYZ_OF_RGB, dtype=torch.float64, device=rgb.device)
    xyz = linear @ matrix.T / torch.tensor(_WHITE, dtype=torch.float64, device=rgb.device)
    f = torch.where(xyz > 0.008856, xyz.clamp(min=0) ** (1 / 3), 7.787 * xyz + 16 / 116)
    x, y, z = f.unbind(-1)
    return torch.stack((116 * y - 16, 500 * (x - y), 200 * (y - z)), dim=-1)


def ciede2000(first: Tensor, second: Tensor) -> Tensor:
    """Return the CIEDE2000 difference (...) of two L*a*b* colours (..., 3), in fp64.

    From 0; about 1 is just noticeable side by side, black to white is 100. Source: Sharma, Wu and Dalal, "The CIEDE2000
    color-difference formula", 2005, with all weights 1; the numbers of the equations there are in the comments.
    """
    (l1, a1, b1), (l2, a2, b2) = first.double().unbind(-1), second.double().unbind(-1)
    mean_c7 = ((torch.hypot(a1, b1) + torch.hypot(a2, b2)) / 2) ** 7  # (2), (3)
    stretch = 1.5 - 0.5 * (mean_c7 / (mean_c7 + _25_TO_7)).sqrt()  # (4), 1 + G
    a1, a2 = a1 * stretch, a2 * stretch  # (5)
    c1, c2 = torch.hypot(a1, b1), torch.hypot(a2, b2)  # (6)
    h1, h2 = (torch.rad2deg(torch.atan2(b, a)) % 360 for a, b in ((a1, b1), (a2, b2)))  # (7)
    is_grey = c1 * c2 == 0
    turn = h2 - h1
    turn = torch.where(is_grey, 0, turn - 360 * (turn > 180) + 360 * (turn < -180))  # (10)
    d_lightness, d_chroma = l2 - l1, c2 - c1  # (8), (9)
    d_hue = 2 * (c1 * c2).sqrt() * _sin(turn / 2)  # (11)
    mean_l, mean_c = (l1 + l2) / 2, (c1 + c2) / 2  # (12), (13)
    total = h1 + h2
    around = total / 2 + torch.where(total < 360, 180, -180) * ((h1 - h2).abs() > 180)
    mean_h = torch.where(is_grey, total, around)  # (14)
    t = 1 - 0.17 * _cos(mean_h - 30) + 0.24 * _cos(2 * mean_h) + 0.32 * _cos(3 * mean_h + 6) - 0.2 * _cos(4 * mean_h - 63)  # (15)
    rotation = 30 * torch.exp(-(((mean_h - 275) / 25) ** 2))  # (16)
    r_chroma = 2 * (mean_c**7 / (mean_c**7 + _25_TO_7)).sqrt()  # (17)
    from_middle = (mean_l - 50) ** 2
    s_lightness = 1 + 0.015 * from_middle / (20 + from_middle).sqrt()  # (18)
    s_chroma, s_hue = 1 + 0.045 * mean_c, 1 + 0.015 * mean_c * t  # (19), (20)
    lightness, chroma, hue = d_lightness / s_lightness, d_chroma / s_chroma, d_hue / s_hue
    crossed = -_sin(2 * rotation) * r_chroma * chroma * hue  # (21)
    return (lightness**2 + chroma**2 + hue**2 + crossed).clamp(min=0).sqrt()  # (22)


def colour_errors(video: Tensor, source: Tensor) -> Tensor:
    """Return the CIEDE2000 difference (T, H, W) fp64 of each pixel of two clips, both (3, T, H, W) in [-1, 1]."""
    # Frame by frame, so that the planes stay in the processor's cache.
    return torch.stack([_of_frame(video[:, i], source[:, i]) for i in range(video.shape[1])])


def _of_frame(frame: Tensor, source: Tensor) -> Tensor:
    return ciede2000(*(to_lab(to_unit(image).clamp(0, 1).movedim(0, -1)) for image in (frame, source)))


def _sin(degrees: Tensor) -> Tensor:
    return torch.sin(degrees * (math.pi / 180))


def _cos(degrees: Tensor) -> Tensor:
    return torch.cos(degrees * (math.pi / 180))
