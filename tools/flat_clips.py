"""Draw videos of flat colours for the embedded students to learn from: each colour fills the frame for two seconds.

python tools/flat_clips.py OUT [--videos 20] [--colours 40]

None of the colours is on the test card. They are FFV1 in RGB, so what is read is what was drawn.
"""

import argparse
import random
import subprocess
from pathlib import Path

import imageio_ffmpeg
import numpy as np

from turbovaed_cli.video.drawn.colours import flat_colour

SIDE, FPS, HELD = 256, 24, 48  # pixels, frames a second, frames of one colour


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--videos", type=int, default=20)
    parser.add_argument("--colours", type=int, default=40)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    for number in range(options.videos):
        rng = random.Random(f"flat/{number}")
        frames = [np.full((SIDE, SIDE, 3), flat_colour(rng), np.uint8).tobytes() for _ in range(options.colours)]
        command = [imageio_ffmpeg.get_ffmpeg_exe(), "-y", "-loglevel", "error", "-f", "rawvideo", "-pix_fmt", "rgb24"]
        command += ["-s", f"{SIDE}x{SIDE}", "-r", str(FPS), "-i", "-", "-c:v", "ffv1", "-pix_fmt", "bgr0"]
        stream = b"".join(frame * HELD for frame in frames)
        subprocess.run([*command, str(options.out / f"flat-{number:02}.mkv")], input=stream, check=True)


if __name__ == "__main__":
    main()
