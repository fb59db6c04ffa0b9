"""Plant each artefact of docs/guides/evaluation.md in a clip, measure it, and draw it: docs/pictures/found-*.webp.

    python tools/artefacts.py                 # draws the pictures and prints the table
    python tools/artefacts.py --write         # and puts the table into the guide

The clip is a moving part of scikit-image's photograph of an astronaut (NASA, public domain); for banding it is a gradient of the test
card. All errors but the shift have a strength that leaves a PSNR of about 34 dB.
"""

import argparse
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.ndimage import gaussian_filter
from skimage import data

from turbovaed_cli import load_pair, measure_testcard
from turbovaed_cli.evaluation.testcard import pattern_frames
from turbovaed_cli.evaluation.testcard.measure import border_error
from turbovaed_cli.evaluation.testcard.stills import noise, radial, rounded
from turbovaed_cli.metrics import banding, flicker, grid, load_st_lpips, lpips_video, psnr, seam, ssim
from turbovaed_cli.metrics.colour import colour_errors
from turbovaed_cli.video import to_model

DOCS = Path(__file__).resolve().parents[1] / "docs"
GUIDE, PICTURES = DOCS / "guides" / "evaluation.md", DOCS / "pictures"
FRAMES, SIDE, CELL = 4, 192, 8  # of the clips; pixels of a latent
SHOWN = 128  # pixels a side of each part of a picture
CONTRAST = 8  # of errors in pictures
GAP = 6
CARD_ROWS = ("checkers_2", "bars_75", "flat_008000")

Clip = np.ndarray  # (T, H, W, 3), levels of 255


@dataclass(frozen=True)
class Artefact:
    """One kind of error."""

    plant: Callable[[Clip, float], Clip]  # with a strength: more is worse
    strength: float  # that leaves about 34 dB
    is_gradient: bool = False  # planted in the gradient, not in the photograph
    corner: tuple[int, int] = (32, 32)  # top and left of the part that is drawn
    of_change: bool = False  # drawn are two frames and the change of the error


def photograph(shift: int = 0) -> Clip:
    """A part of the photograph that moves by two pixels a frame, without black and white, so that nothing is clipped."""
    picture = data.astronaut().astype(np.float64) * 0.75 + 32
    return rounded(np.stack([picture[8 : 8 + SIDE, 130 + shift + 2 * t :][:, :SIDE] for t in range(FRAMES)])).astype(np.float64)


def gradient() -> Clip:
    """The radial gradient of the test card."""
    return np.repeat(radial(SIDE, SIDE)[None], FRAMES, axis=0).astype(np.float64)


def _grid(clip: Clip, strength: float) -> Clip:
    tile = noise(3, (CELL, CELL, 1))
    tile = (tile - tile.mean()) / tile.std()
    return clip + strength * np.tile(tile, (SIDE // CELL, SIDE // CELL, 1))


def _seam(clip: Clip, strength: float) -> Clip:
    return clip + strength * (np.arange(SIDE) >= SIDE // 2)[:, None]


def _border(clip: Clip, strength: float) -> Clip:
    inside = np.zeros((SIDE, SIDE, 1))
    inside[CELL:-CELL, CELL:-CELL] = 1
    return clip - strength * (1 - inside)


ARTEFACTS: dict[str, Artefact] = {
    "grid": Artefact(_grid, 5.04),
    "seam": Artefact(_seam, 7),
    "banding": Artefact(lambda clip, strength: np.rint(clip / strength) * strength, 17, is_gradient=True),
    "colour": Artefact(lambda clip, strength: clip + strength * np.array((1.0, -0.4, -0.8)), 6.4),
    "flicker": Artefact(
        lambda clip, strength: clip + strength * np.array((1, -1, 1, -1))[:, None, None, None], 5, of_change=True
    ),
    "blur": Artefact(lambda clip, strength: gaussian_filter(clip, (0, strength, strength, 0)), 0.84),
    "border": Artefact(_border, 12, corner=(0, 0)),
    "shift": Artefact(lambda _, __: photograph(1), 1),
    "noise": Artefact(lambda clip, strength: clip + strength * noise(5, clip.shape), 5.08),
}
DIGITS = {"psnr": 1, "ssim": 3, "st_lpips": 3, "flicker": 1, "grid": 1, "seam": 1, "banding": 1, "colour": 1, "border": 1}
HEADINGS = ("PSNR", "SSIM", "ST-LPIPS", "flicker", "grid", "seam", "banding", "ΔE", "border")


def planted(artefact: Artefact) -> tuple[Clip, Clip]:
    """Return the source and the clip with the error, both (T, H, W, 3) uint8."""
    source = gradient() if artefact.is_gradient else photograph()
    return rounded(source), rounded(artefact.plant(source, artefact.strength))


def figures(video: Clip, source: Clip) -> dict[str, float]:
    """Return all figures of one clip of uint8."""
    clips = to_model(video), to_model(source)
    return {
        "psnr": psnr(*clips),
        "ssim": ssim(*clips),
        "st_lpips": lpips_video(load_st_lpips("alex"), *clips),
        "flicker": flicker(*clips),
        "grid": grid(*clips),
        "seam": seam(*clips),
        "banding": banding(*clips),
        "colour": float(colour_errors(*clips).mean()),
        "border": border_error(*clips, CELL) or 0.0,
    }


def table(found: Mapping[str, Mapping[str, float]]) -> str:
    """Return the table of the guide: a row for each artefact."""
    rows = [
        f"| {name} | {' | '.join(f'{scores[key]:z.{digits}f}' for key, digits in DIGITS.items())} |"
        for name, scores in found.items()
    ]
    return "\n".join([f"| planted | {' | '.join(HEADINGS)} |", f"|---|{'---|' * len(HEADINGS)}", *rows])


# --- pictures -----------------------------------------------------------------------------------------------------


def draw(name: str, artefact: Artefact, source: Clip, video: Clip) -> None:
    """Write the picture of one artefact: source, planted, and the error with more contrast."""
    error = video.astype(np.float64) - source
    if artefact.of_change:
        parts = [video[0], video[1], contrasted(error[1] - error[0])]
    else:
        parts = [source[0], video[0], contrasted(error[0])]
    top, left = artefact.corner
    save(f"found-{name}", [[part[top : top + SHOWN, left : left + SHOWN] for part in parts]])


def draw_card() -> None:
    """Write found-card.webp: source, teacher, student, and the student's error, for CARD_ROWS of the embedded pair."""
    pair = load_pair("tiny")
    rows = []
    for scores in sorted(measure_testcard(pair, only=CARD_ROWS).patterns, key=lambda one: CARD_ROWS.index(one.name)):
        source, teacher, student = (frames[0] for frames in pattern_frames(pair, scores))
        parts = [source, teacher, student, contrasted(student.astype(np.float64) - source, 4)]
        rows.append([np.asarray(Image.fromarray(part).resize((SHOWN, SHOWN), Image.Resampling.LANCZOS)) for part in parts])
    save("found-card", rows)


def contrasted(error: Clip, contrast: int = CONTRAST) -> Clip:
    """An error in levels as a picture: grey is none."""
    return rounded(127.5 + contrast * error)


def save(name: str, rows: list[list[Clip]]) -> None:
    width, height = (len(parts) * (SHOWN + GAP) - GAP for parts in (rows[0], rows))
    picture = Image.new("RGB", (width, height), "white")
    for down, parts in enumerate(rows):
        for across, part in enumerate(parts):
            picture.paste(Image.fromarray(part), (across * (SHOWN + GAP), down * (SHOWN + GAP)))
    picture.save(PICTURES / f"{name}.webp", quality=84, method=6)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="put the table into the guide")
    options = parser.parse_args()
    found = {}
    for name, artefact in ARTEFACTS.items():
        source, video = planted(artefact)
        draw(name, artefact, source, video)
        found[name] = figures(video, source)
    draw_card()
    new = table(found)
    print(new)
    if options.write:
        text = GUIDE.read_text(encoding="utf-8")
        start = text.index("| planted |")
        GUIDE.write_text(text[:start] + new + text[text.index("\n\n", start) :], encoding="utf-8")
    print(f"{sum(path.stat().st_size for path in PICTURES.glob('found-*')) / 1000:.0f} kB")


if __name__ == "__main__":
    main()
