"""Every command with a small random instance of every teacher of the registry: one table, and exit code 1 if a cell is not green.

    python tools/every_teacher.py                  every row; some seconds per cell, in FOLDER/every-teacher
    python tools/every_teacher.py wan2.1 ltx2 --folder /tmp/teachers

Instances have the class, the ratios and the taps of the full size with few channels (tests/support/small_teachers.py), and a small
student of the row's structure. Videos are ffmpeg's test pictures. `pieces` is the largest difference between latents of a clip that is
encoded piece by piece and as a whole, or "windows" for a class that allows no exact pieces. `resume` takes the last checkpoint and the
model from a finished run and lets the same command make them again: the same bits.
"""

# ruff: noqa: E402
import argparse
import contextlib
import io
import logging
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "support")]

logging.getLogger("torchao").setLevel(logging.ERROR)  # it warns on import
logging.getLogger("torch.utils._pytree").setLevel(logging.ERROR)

import torch
from conftest import make_video
from safetensors.torch import load_file
from small_teachers import SMALL, write_small_student, write_small_teacher

from turbovaed_cli.cli.app import main as turbovaed
from turbovaed_cli.models.encoding import encoded, encodes_exactly
from turbovaed_cli.models.teacher import load_teacher
from turbovaed_cli.registry.find import find_model

RECIPE = """
dtype = "fp32"
save_every = 1
sample_every = 0
[[stages]]
name = "reconstruct"
steps = 2
batch_size = 1
accumulation = 1
perceptual = "none"
feature_weight = 1.0
"""
SIDE = 64  # pixels of a clip


class FailedError(Exception):
    """Raised if a cell of the table is not green; its text is the reason."""


def command(*arguments: object) -> str:
    """Run `turbovaed` in this process and return its stdout. Raises FailedError, with its last words, unless it ends with 0."""
    out, err = io.StringIO(), io.StringIO()
    words = ["turbovaed", *map(str, arguments)]
    with mock.patch.object(sys, "argv", words), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            turbovaed()
        except SystemExit as end:
            code = end.code
    if code:
        last = [line for line in err.getvalue().splitlines() if line.startswith(("error:", "hint:"))] or [err.getvalue()[-300:]]
        raise FailedError(f"exit code {code}: {' '.join(last)}")
    return out.getvalue()


class Walk:
    """The commands with one teacher, in order; each is a cell of the table and uses what earlier ones wrote into `folder`."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name, self.folder = name, folder
        folder.mkdir(parents=True, exist_ok=True)
        self.videos = folder / "videos"
        for file, picture in (("a.mp4", "testsrc2"), ("b.mp4", "mandelbrot")):
            make_video(self.videos / file, picture, "96x80", 40)
        (folder / "recipe.toml").write_text(RECIPE)
        self.teacher = write_small_teacher(name, folder / "teacher")
        self.student = write_small_student(self.teacher, folder / "student.json")
        self.frames = find_model(self.teacher).teacher.frames.at_least(9)
        self.clip = ("--size", SIDE, "--frames", self.frames)
        self.run = folder / "run"

    def cells(self) -> Iterator[tuple[str, Callable[[], str | None]]]:
        """Yield the columns of the table and what runs them."""
        clip, run = self.clip, self.run
        yield (
            "cache-latents",
            lambda: command(
                "cache-latents", "--teacher", self.teacher, "--data", self.videos, "--out", self.folder / "latents", *clip
            ),
        )
        yield "distill, videos", lambda: self.distill(run, "--data", self.videos)
        yield "distill, cache", lambda: self.distill(self.folder / "run-cached", "--latents", self.folder / "latents")
        yield "resume", self.resume
        yield "pieces", self.pieces
        yield (
            "reconstruct",
            lambda: command("reconstruct", self.videos / "a.mp4", "--model", run, "--out", self.folder / "out.mp4"),
        )
        yield "eval", lambda: command("eval", "--model", run, "--data", self.videos, "--metrics", "psnr,ssim", *clip)
        yield (
            "export",
            lambda: command("export", "--model", run, "--format", "onnx,coreml", "--out", self.folder / "exported", *clip),
        )
        yield "bench", lambda: command("bench", "--model", run, "--target", "torch", "--repeats", 1, "--warmup", 1, *clip)

    def distill(self, run: Path, *source: object) -> None:
        """Distil two steps with feature alignment."""
        recipe = ("--recipe", self.folder / "recipe.toml", "--student-config", self.student)
        command("distill", "--teacher", self.teacher, *source, "--run", run, *recipe, *self.clip)

    def resume(self) -> None:
        """Continue a copy of the finished run from its first checkpoint."""
        copy = self.folder / "run-resumed"
        shutil.copytree(self.run, copy)
        shutil.rmtree(copy / "checkpoints" / "step_0000002")
        shutil.rmtree(copy / "model")
        self.distill(copy, "--data", self.videos)
        wanted, made = (load_file(next(run.glob("model/*.safetensors"))) for run in (self.run, copy))
        differing = [weight for weight, value in wanted.items() if not made[weight].equal(value)]
        if differing:
            raise FailedError(f"{len(differing)} weights differ after a resume")

    @torch.no_grad()
    def pieces(self) -> str:
        """Compare latents of pieces with those of the whole clip."""
        teacher = load_teacher(self.teacher)
        if not encodes_exactly(teacher):
            return "windows"
        frames = teacher.spec.frames.at_least(33)
        video = torch.rand(1, 3, frames, SIDE, SIDE, generator=torch.Generator().manual_seed(0)) * 2 - 1
        whole = teacher.encode(video).mean
        made = torch.cat(list(encoded(teacher, video.split(5, dim=2), 8)), dim=2)
        difference = float((made - whole).abs().max() / whole.std())
        if made.shape != whole.shape or difference > 1e-4:
            raise FailedError(f"pieces differ from the whole clip by {difference:.1e} of the latents' standard deviation")
        return f"{difference:.0e}"


def walk(name: str, folder: Path) -> dict[str, str]:
    """Return what each column came to with the teacher `name`: the seconds it took, or why it failed."""
    cells = Walk(name, folder).cells()
    found = {}
    for column, run in cells:
        began = time.monotonic()
        try:
            said = run()
            found[column] = said if column == "pieces" else f"{time.monotonic() - began:.1f} s"
        except FailedError as error:
            found[column] = f"FAILED: {error}"
    return found


def main() -> None:
    """Print the table row by row, and the reasons of failures below it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=[*SMALL], metavar="NAME")
    parser.add_argument("--folder", type=Path, default=Path("runs/every-teacher"))
    options = parser.parse_args()
    failures: list[str] = []
    for number, name in enumerate(options.names):
        folder = options.folder / name
        shutil.rmtree(folder, ignore_errors=True)
        found = walk(name, folder)
        if not number:
            print(f"{'teacher':14}" + "".join(f"{column:>17}" for column in found))
        print(
            f"{name:14}" + "".join(f"{'FAILED' if text.startswith('FAILED') else text:>17}" for text in found.values()),
            flush=True,
        )
        failures += [f"{name}, {column}: {text}" for column, text in found.items() if text.startswith("FAILED")]
    print("\n".join(failures) if failures else f"all green: {len(options.names)} teachers")
    sys.exit(bool(failures))


if __name__ == "__main__":
    main()
