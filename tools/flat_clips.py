"""Draw videos of flat colours, and of fine checkerboards, for the embedded students to learn from: each picture lasts two seconds.

python tools/flat_clips.py OUT [--videos 20] [--colours 40] [--checkers 0]

None of the pictures is on the test card. They are FFV1 in RGB, so what is read is what was drawn.
"""

import argparse
import random
import subprocess
from pathlib import Path

import imageio_ffmpeg
import numpy as np

from turbovaed_cli.video.drawn.colours import flat_colour, two_colours

SIDE, FPS, HELD = 256, 24, 48  # pixels, frames a second, frames of one picture
CELLS = (1, 2, 2, 2, 2, 3, 3, 4, 4, 5, 6, 8, 12)  # pixels across; those of 2 are the hardest that the teacher can see
BLACK_AND_WHITE = [[0, 0, 0], [255, 255, 255]]  # of which the checkerboards of the test card are made
LEAST_CONTRAST = 60  # levels of one channel


def flat(rng: random.Random) -> np.ndarray:
    """Draw a frame (H, W, 3) uint8 of one colour."""
    return np.full((SIDE, SIDE, 3), flat_colour(rng), np.uint8)


def checkerboard(rng: random.Random) -> np.ndarray:
    """Draw a checkerboard (H, W, 3) uint8 of two colours, never black and white."""
    across = rng.choice(CELLS)
    down = across if rng.random() < 0.75 else rng.choice((1, 2, 3, 4, 6, SIDE))
    colours = np.array(BLACK_AND_WHITE, np.uint8)
    while sorted(colours.tolist()) == BLACK_AND_WHITE or np.ptp(colours.astype(int), axis=0).max() <= LEAST_CONTRAST:
        colours = two_colours(rng)[[0, -1]]
    rows, columns = ((np.arange(SIDE) + rng.randrange(8)) // cell for cell in (down, across))
    return colours[(rows[:, None] + columns) % 2]


def write(path: Path, frames: list[np.ndarray]) -> None:
    """Write a video in which each frame is held."""
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-y", "-loglevel", "error", "-f", "rawvideo", "-pix_fmt", "rgb24"]
    command += ["-s", f"{SIDE}x{SIDE}", "-r", str(FPS), "-i", "-", "-c:v", "ffv1", "-pix_fmt", "bgr0"]
    stream = b"".join(frame.tobytes() * HELD for frame in frames)
    subprocess.run([*command, str(path)], input=stream, check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--videos", type=int, default=20, help="of flat colours")
    parser.add_argument("--colours", type=int, default=40, help="pictures in each video")
    parser.add_argument("--checkers", type=int, default=0, help="videos of checkerboards")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    for name, draw, count in (("flat", flat, options.videos), ("checkers", checkerboard, options.checkers)):
        for number in range(count):
            rng = random.Random(f"{name}/{number}")
            write(options.out / f"{name}-{number:02}.mkv", [draw(rng) for _ in range(options.colours)])


if __name__ == "__main__":
    main()
