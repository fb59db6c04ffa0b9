"""What `train_teacher.py` trains small teachers on: clips, photographs in motion, ffmpeg's test sources, and drawn motion.

All are arrays of frames (T, H, W, 3) uint8. Nothing here is looked up over a network.
"""

import math
import random
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from imageio_ffmpeg import get_ffmpeg_exe
from PIL import Image, ImageDraw
from torch import Tensor
from torch.nn import functional

from turbovaed_cli.video import list_videos, probe, read_frames, to_model

SIDE = 256  # pixels of the short side of clips, and of both sides of what is made here
# Photographs inside scikit-image, scikit-learn and matplotlib wheels; ffmpeg's sources. None shows what a validation clip shows.
STILLS = (
    "skimage/data/*.png",
    "skimage/data/*.jpg",
    "sklearn/datasets/images/china.jpg",
    "matplotlib/mpl-data/sample_data/*.jpg",
)
PATTERNS = ("testsrc2", "mandelbrot", "life=mold=10:life_color=#C83232:death_color=#3264C8", "gradients=speed=0.05", "rgbtestsrc")
IMAGES = (".jpg", ".png")
# Share of the batch from the clips of --data, from stills and patterns, and drawn.
SHARES = (0.7, 0.18, 0.12)


def load(path: Path) -> np.ndarray:
    """All frames of a video, the short side SIDE."""
    info = probe(path)
    scale = SIDE / min(info.height, info.width)
    size = tuple(max(SIDE, round(side * scale)) for side in (info.height, info.width))
    return np.stack(list(read_frames(path, size=size)))


def load_all(data: Path, more: Path | None) -> list[np.ndarray]:
    """The clips of a folder, and of another with further videos."""
    return [load(path) for folder in (data, more) if folder is not None for path in list_videos(folder)]


def made(seed: int, more: Path | None) -> list[np.ndarray]:
    """Photographs of installed packages and of the folder `more` in motion, and ffmpeg's test sources."""
    return [*moving_stills(seed, more), *patterns()]


def moving_stills(seed: int, more: Path | None, num_frames: int = 33) -> Iterator[np.ndarray]:
    """Each photograph twice, panned, zoomed and turned."""
    rng = random.Random(f"stills/{seed}")
    packages = Path(np.__file__).parent.parent
    paths = [path for pattern in STILLS for path in sorted(packages.glob(pattern))]
    paths += sorted(path for path in more.rglob("*") if path.suffix in IMAGES) if more is not None else []
    for path in paths:
        if "coffee" in path.name:  # a validation clip shows one
            continue
        image = Image.open(path).convert("RGB")
        if min(image.size) >= SIDE:
            yield _pan(image, rng, num_frames)
            yield _pan(image, rng, num_frames)


def _pan(image: Image.Image, rng: random.Random, num_frames: int) -> np.ndarray:
    side = rng.uniform(0.35, 0.8) * min(image.size)
    begin, end = ([rng.uniform(side / 2, length - side / 2) for length in image.size] for _ in range(2))
    zoom, turn = rng.uniform(0.8, 1.25), rng.uniform(-0.3, 0.3)
    middle = SIDE / 2
    frames = []
    for i in range(num_frames):
        at = i / (num_frames - 1)
        scale = side / SIDE * zoom**at
        x, y = (b + (e - b) * at * 0.4 for b, e in zip(begin, end, strict=True))
        cos, sin = math.cos(turn * at) * scale, math.sin(turn * at) * scale
        matrix = (cos, -sin, x - middle * (cos - sin), sin, cos, y - middle * (sin + cos))
        frames.append(np.asarray(image.transform((SIDE, SIDE), Image.Transform.AFFINE, matrix, Image.Resampling.BICUBIC)))
    return np.stack(frames)


def patterns(num_frames: int = 33) -> Iterator[np.ndarray]:
    """The first frames of each of ffmpeg's test sources."""
    for source in PATTERNS:
        joint = ":" if "=" in source else "="
        arguments = ["-f", "lavfi", "-i", f"{source}{joint}size={SIDE}x{SIDE}:rate=24", "-frames:v", str(num_frames)]
        child = subprocess.run(
            [get_ffmpeg_exe(), "-v", "error", *arguments, "-f", "rawvideo", "-pix_fmt", "rgb24", "-"],
            capture_output=True,
            check=True,
        )
        yield np.frombuffer(child.stdout, np.uint8).reshape(-1, SIDE, SIDE, 3)


def drawn(rng: random.Random, num_frames: int, side: int) -> np.ndarray:
    """A background of one colour or a gradient with moving shapes, edges at any sub-pixel place: (num_frames, side, side, 3).

    Colours are saturated as often as not, and one clip in six is a plain colour that stands still.
    """
    scale = 4  # drawn larger, then averaged, so that edges lie between pixels
    plain = rng.random() < 1 / 6
    corners = np.array([[_colour(rng) for _ in range(2)] for _ in range(2)], np.float32)
    if plain or rng.random() < 0.5:
        corners[:] = corners[0, 0]
    background = Image.fromarray(corners.round().astype(np.uint8)).resize((side, side), Image.Resampling.BILINEAR)
    shapes = [_shape(rng, side) for _ in range(0 if plain else rng.randint(1, 6))]
    frames = []
    for number in range(num_frames):
        mask = background.resize((side * scale, side * scale), Image.Resampling.NEAREST)
        pen = ImageDraw.Draw(mask)
        for kind, colour, centre, motion, radius, turn in shapes:
            x, y = (scale * (c + m * number) for c, m in zip(centre, motion, strict=True))
            angle = turn * number
            if kind == "circle":
                pen.ellipse((x - scale * radius, y - scale * radius, x + scale * radius, y + scale * radius), fill=colour)
            else:
                count = 2 if kind == "line" else 3 + kind.count("i")
                ends = [
                    (x + scale * radius * math.cos(angle + k), y + scale * radius * math.sin(angle + k)) for k in _turns(count)
                ]
                pen.line(ends, fill=colour, width=scale) if count == 2 else pen.polygon(ends, fill=colour)
        frames.append(np.asarray(mask.resize((side, side), Image.Resampling.BOX)))
    return np.stack(frames)


def _turns(count: int) -> list[float]:
    return [2 * math.pi * k / count for k in range(count)]


def _colour(rng: random.Random) -> tuple[int, int, int]:
    saturated = rng.random() < 0.5
    return tuple(rng.choice((0, 32, 64, 192, 255)) if saturated else rng.randint(0, 255) for _ in range(3))  # type: ignore[return-value]


def _shape(rng: random.Random, side: int) -> tuple[str, tuple[int, int, int], list[float], list[float], float, float]:
    kind = rng.choice(("circle", "line", "triangle", "quadrilateral"))
    centre, motion = [rng.uniform(0, side) for _ in range(2)], [rng.gauss(0, 1.5) for _ in range(2)]
    return kind, _colour(rng), centre, motion, rng.uniform(0.05, 0.4) * side, rng.gauss(0, 0.05)


def batch_at(
    clips: Sequence[np.ndarray], extra: Sequence[np.ndarray], seed: int, step: int, *, size: int, crop: int, frames: int
) -> Tensor:
    """The batch of a step, (size, 3, frames, crop, crop): random place, flips, half scale, double speed, both directions of time."""
    rng = random.Random(f"{seed}-{step}")
    batch = []
    for _ in range(size):
        kind = rng.choices(("clips", "extra", "drawn"), SHARES)[0]
        if kind == "drawn":
            batch.append(to_model(drawn(rng, frames, crop)))
            continue
        source = rng.choice(clips if kind == "clips" else extra)
        stride = 2 if rng.random() < 0.2 and len(source) > 2 * frames else 1
        scale = 2 if rng.random() < 0.25 and 2 * crop <= SIDE else 1
        start = rng.randrange(len(source) - stride * (frames - 1))
        top, left = (rng.randrange(side + 1 - crop * scale) for side in source.shape[1:3])
        piece = source[start : start + stride * (frames - 1) + 1 : stride, top : top + crop * scale, left : left + crop * scale]
        clip = to_model(np.ascontiguousarray(piece))
        if scale == 2:
            clip = functional.avg_pool2d(clip, 2)
        for axis, share in ((3, 0.5), (2, 0.2), (1, 0.2)):
            clip = clip.flip(axis) if rng.random() < share else clip
        batch.append(clip)
    return torch.stack(batch)
