"""Pictures of the test card that stand still: each function draws (H, W, 3) uint8 for any height and width.

Levels are those of sRGB, 0 to 255. The same call draws the same picture; the letters are those of Pillow's own font.
"""

import numpy as np
from PIL import Image, ImageDraw, ImageFont

Colour = tuple[int, int, int]

DARK, LIGHT = 32, 224  # of checkerboards and zone plates: not clipped, so that overshoot is seen
_SHARPER = 4  # a drawing is made this many times larger, and then averaged: its edges are smooth
_BARS = ((1, 1, 1), (1, 1, 0), (0, 1, 1), (0, 1, 0), (1, 0, 1), (1, 0, 0), (0, 0, 1), (0, 0, 0))
_WORDS = ("Turbo-VAED 0123456789", "The quick brown fox", "jumps over the lazy dog", "iIl1| O0 rn m S5 B8")


def flat(height: int, width: int, colour: Colour) -> np.ndarray:
    """Draw one colour over the whole frame: no edge hides a texture or a wrong colour."""
    return np.broadcast_to(np.array(colour, np.uint8), (height, width, 3)).copy()


def bars(height: int, width: int, level: int) -> np.ndarray:
    """Draw eight colour bars from white to black, of `level` and 0: 255 for 100 % bars, 191 for 75 %."""
    colours = np.array(_BARS, np.uint8) * np.uint8(level)
    return np.broadcast_to(colours[_parts(width, len(_BARS))], (height, width, 3)).copy()


def ramps(height: int, width: int) -> np.ndarray:
    """Draw six ramps from left to right: grey, red, green and blue from 0 to 255, and two slow ones, a grey and a sky."""
    ends = (
        ((0, 0, 0), (255, 255, 255)),
        ((0, 0, 0), (255, 0, 0)),
        ((0, 0, 0), (0, 255, 0)),
        ((0, 0, 0), (0, 0, 255)),
        ((96, 96, 96), (144, 144, 144)),
        ((90, 140, 200), (150, 190, 230)),
    )
    place = np.linspace(0, 1, width)[:, None]
    rows = np.stack([np.array(first) + (np.array(last) - first) * place for first, last in ends])  # (6, W, 3)
    return rounded(rows[_parts(height, len(ends))])


def radial(height: int, width: int) -> np.ndarray:
    """Draw a gradient from a warm centre to dark blue corners."""
    distance = np.hypot(*_from_middle(height, width))
    place = (distance / distance.max())[..., None]
    return rounded(np.array((250, 205, 120)) * (1 - place) + np.array((20, 40, 110)) * place)


def zone_plate(height: int, width: int) -> np.ndarray:
    """Draw rings whose frequency grows from the middle to half a cycle a pixel at the nearer border; beyond it is grey."""
    y, x = _from_middle(height, width)
    squares, side = x**2 + y**2, min(height, width)
    rings = np.where(squares <= (side / 2) ** 2, np.cos(np.pi * squares / side), 0)
    return _grey((DARK + LIGHT) / 2 + (LIGHT - DARK) / 2 * rings)


def checkers(height: int, width: int, cell: int) -> np.ndarray:
    """Draw a checkerboard of squares of `cell` pixels."""
    is_light = (np.arange(height)[:, None] // cell + np.arange(width) // cell) % 2
    return _grey(np.where(is_light, LIGHT, DARK))


def text(height: int, width: int) -> np.ndarray:
    """Draw lines of letters of 8 to 24 pixels: black on white above, coloured on dark blue below."""
    picture = Image.new("RGB", (width, height), (245, 245, 240))
    pen = ImageDraw.Draw(picture)
    pen.rectangle((0, height // 2, width, height), fill=(16, 24, 64))
    inks = (((20, 20, 20), (20, 20, 20)), ((240, 240, 240), (255, 200, 40), (80, 220, 255), (255, 110, 110)))
    for half, colours in enumerate(inks):
        top, end = half * (height // 2) + 3, (half + 1) * (height // 2)
        for line, size in enumerate((9, 12, 16, 20, 24)):
            if top + size > end:
                break
            font = ImageFont.load_default(size)
            pen.text((4, top), _WORDS[line % len(_WORDS)], fill=colours[line % len(colours)], font=font)
            top += size + 4
    return np.asarray(picture).copy()


def lines(height: int, width: int) -> np.ndarray:
    """Draw lines of one pixel: upright ones, level ones, a smooth fan, and red on blue, a quarter of the picture each."""
    h, w = height // 2, width // 2
    picture = flat(height, width, (24, 24, 28))
    picture[:h, 3:w:6] = (235, 235, 235)
    picture[3:h:6, w:] = (235, 235, 235)
    picture[h:, :w] = _fan(height - h, w)
    picture[h:, w:] = (20, 40, 160)
    picture[h:, w + 3 :: 8] = (230, 40, 40)
    return picture


def _fan(height: int, width: int) -> np.ndarray:
    large = Image.new("RGB", (width * _SHARPER, height * _SHARPER), (24, 24, 28))
    pen = ImageDraw.Draw(large)
    for angle in np.linspace(0, np.pi / 2, 13):
        end = (float(2 * width * _SHARPER * np.cos(angle)), float(2 * width * _SHARPER * np.sin(angle)))
        pen.line(((0, 0), end), fill=(235, 235, 235), width=_SHARPER)
    return _smaller(large)


def scene(height: int, width: int) -> np.ndarray:
    """Draw a small landscape: sky, sun, hills, a red house, flowers, and grass of a fine texture."""
    h, w = height * _SHARPER, width * _SHARPER
    sky = np.linspace(0, 1, h)[:, None, None]
    ground = np.broadcast_to(np.array((70, 130, 215)) * (1 - sky) + np.array((225, 232, 240)) * sky, (h, w, 3))
    large = Image.fromarray(rounded(ground))
    pen = ImageDraw.Draw(large)
    pen.ellipse(_box(w, h, 0.70, 0.08, 0.86, 0.24), fill=(255, 225, 90))
    for top, swing, turns, colour in ((0.52, 0.08, 1.3, (84, 112, 132)), (0.66, 0.05, 2.1, (52, 122, 60))):
        across = np.linspace(0, 1, 65)
        ridge = [(float(x * w), float((top + swing * np.sin(2 * np.pi * turns * x + 1)) * h)) for x in across]
        pen.polygon([(0, h), *ridge, (w, h)], fill=colour)
    pen.rectangle(_box(w, h, 0.16, 0.52, 0.42, 0.82), fill=(196, 44, 36))
    pen.polygon([(0.12 * w, 0.53 * h), (0.29 * w, 0.36 * h), (0.46 * w, 0.53 * h)], fill=(70, 48, 44))
    pen.rectangle(_box(w, h, 0.21, 0.60, 0.28, 0.68), fill=(250, 240, 170))
    pen.rectangle(_box(w, h, 0.32, 0.62, 0.38, 0.82), fill=(30, 60, 150))
    for number in range(12):
        x, y = 0.05 + 0.08 * number, 0.88 + 0.05 * (number % 3)
        fill = ((240, 60, 160), (250, 210, 40), (130, 60, 220))[number % 3]
        pen.ellipse(_box(w, h, x, y, x + 0.03, y + 0.03), fill=fill)
    picture = _smaller(large).astype(np.float64)
    grass = noise(0, (height, width)) * 14 * (np.arange(height) > 0.7 * height)[:, None]
    is_green = (picture[..., 1] > picture[..., 0] + 20) & (picture[..., 1] > picture[..., 2] + 20)
    return rounded(picture + (grass * is_green)[..., None])


def noise(seed: int, shape: tuple[int, ...]) -> np.ndarray:
    """Return Gaussian noise of variance 1, the same for a seed on every machine and with every version of numpy."""
    return np.random.RandomState(seed).standard_normal(shape)


def rounded(levels: np.ndarray) -> np.ndarray:
    """Round levels to the nearest of 0 to 255."""
    return np.clip(np.rint(levels), 0, 255).astype(np.uint8)


def _parts(length: int, count: int) -> np.ndarray:
    """Return which of `count` equal parts each of `length` pixels is in."""
    return np.arange(length) * count // length


def _from_middle(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the distance of each pixel from the middle, down and across, in pixels."""
    return np.arange(height)[:, None] - (height - 1) / 2, np.arange(width)[None] - (width - 1) / 2


def _grey(levels: np.ndarray) -> np.ndarray:
    return np.repeat(rounded(levels)[..., None], 3, axis=2)


def _box(width: int, height: int, left: float, top: float, right: float, bottom: float) -> tuple[float, float, float, float]:
    return left * width, top * height, right * width, bottom * height


def _smaller(large: Image.Image) -> np.ndarray:
    return np.asarray(large.reduce(_SHARPER)).copy()
