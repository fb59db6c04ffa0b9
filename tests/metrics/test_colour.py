"""CIEDE2000: the published pairs, an independent implementation, and clips of known errors."""

import numpy as np
import pytest
import torch
from skimage.color import deltaE_ciede2000, rgb2lab

from turbovaed_cli.metrics.colour import ciede2000, colour_errors, to_lab
from turbovaed_cli.video import to_model

# Sharma, Wu and Dalal 2005, table 1: L a b, L a b, difference.
PUBLISHED = """
50 2.6772 -79.7751 50 0 -82.7485 2.0425
50 3.1571 -77.2803 50 0 -82.7485 2.8615
50 2.8361 -74.0200 50 0 -82.7485 3.4412
50 -1.3802 -84.2814 50 0 -82.7485 1.0000
50 -1.1848 -84.8006 50 0 -82.7485 1.0000
50 -0.9009 -85.5211 50 0 -82.7485 1.0000
50 0 0 50 -1 2 2.3669
50 -1 2 50 0 0 2.3669
50 2.4900 -0.0010 50 -2.4900 0.0009 7.1792
50 2.4900 -0.0010 50 -2.4900 0.0010 7.1792
50 2.4900 -0.0010 50 -2.4900 0.0011 7.2195
50 2.4900 -0.0010 50 -2.4900 0.0012 7.2195
50 -0.0010 2.4900 50 0.0009 -2.4900 4.8045
50 -0.0010 2.4900 50 0.0010 -2.4900 4.8045
50 -0.0010 2.4900 50 0.0011 -2.4900 4.7461
50 2.5 0 50 0 -2.5 4.3065
50 2.5 0 73 25 -18 27.1492
50 2.5 0 61 -5 29 22.8977
50 2.5 0 56 -27 -3 31.9030
50 2.5 0 58 24 15 19.4535
50 2.5 0 50 3.1736 0.5854 1.0000
50 2.5 0 50 3.2972 0 1.0000
50 2.5 0 50 1.8634 0.5757 1.0000
50 2.5 0 50 3.2592 0.3350 1.0000
60.2574 -34.0099 36.2677 60.4626 -34.1751 39.4387 1.2644
63.0109 -31.0961 -5.8663 62.8187 -29.7946 -4.0864 1.2630
61.2901 3.7196 -5.3901 61.4292 2.2480 -4.9620 1.8731
35.0831 -44.1164 3.7933 35.0232 -40.0716 1.5901 1.8645
22.7233 20.0904 -46.6940 23.0331 14.9730 -42.5619 2.0373
36.4612 47.8580 18.3852 36.2715 50.5065 21.2231 1.4146
90.8027 -2.0831 1.4410 91.1528 -1.6435 0.0447 1.4441
90.9257 -0.5406 -0.9208 88.6381 -0.8985 -0.7239 1.5381
6.7747 -0.2908 -2.4247 5.8714 -0.0985 -2.2286 0.6377
2.0776 0.0795 -1.1350 0.9033 -0.0636 -0.5514 0.9082
"""


def test_the_34_published_pairs():
    rows = torch.tensor([[float(x) for x in line.split()] for line in PUBLISHED.strip().splitlines()], dtype=torch.float64)
    assert rows.shape == (34, 7)
    assert (ciede2000(rows[:, :3], rows[:, 3:6]) - rows[:, 6]).abs().max() < 5.1e-5  # they are rounded to 4 places
    assert (ciede2000(rows[:, 3:6], rows[:, :3]) - rows[:, 6]).abs().max() < 5.1e-5


def test_it_equals_an_independent_implementation_on_every_kind_of_colour():
    draws = np.random.RandomState(0)
    rgb = draws.randint(0, 256, (4000, 3)) / 255
    other = np.clip(rgb + draws.normal(0, 0.1, rgb.shape), 0, 1)
    other[:500] = draws.randint(0, 256, (500, 3)) / 255
    rgb[500:600] = rgb[500:600, :1]  # greys, whose hue is none
    ours = to_lab(torch.from_numpy(rgb)).numpy()
    assert np.abs(ours - rgb2lab(rgb)).max() < 1e-4
    difference = ciede2000(to_lab(torch.from_numpy(rgb)), to_lab(torch.from_numpy(other))).numpy()
    assert np.abs(difference - deltaE_ciede2000(rgb2lab(rgb), rgb2lab(other))).max() < 1e-3


def test_a_clip_has_the_error_of_its_pixels():
    """Black to white is 100, equal is 0, and each pixel counts for itself."""
    frames = np.zeros((2, 4, 6, 3), np.uint8)
    other = frames.copy()
    other[1, 2, 3] = 255
    errors = colour_errors(to_model(other), to_model(frames))
    assert errors.shape == (2, 4, 6) and errors.dtype == torch.float64
    assert errors[1, 2, 3].item() == pytest.approx(100, abs=1e-3)
    assert errors.sum() == errors[1, 2, 3]
