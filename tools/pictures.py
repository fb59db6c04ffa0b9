"""Make the pictures of README and docs/ again: docs/pictures/.

    python tools/pictures.py CLIPS [--clip CLIPS/bunny.mp4] [--only strip report bench memory quality students]

CLIPS is a folder of videos that the embedded student never saw. `report` needs a Chromium; `bench` times decoders, so leave the machine alone
meanwhile; `quality` and `students` draw tables of docs/measurements.md. `make pictures CLIPS=DIR` is the same.
"""

import argparse
import io
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from outputs import PROGRESS
from PIL import Image, ImageDraw, ImageFont
from rich.console import Console
from rich.terminal_theme import SVG_EXPORT_THEME
from rich.text import Text

from turbovaed_cli import load_student, load_teacher, read_clip
from turbovaed_cli.registry.members import MEMBERS

PICTURES = Path(__file__).resolve().parents[1] / "docs" / "pictures"
BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
SIDE, GAP, LABEL = 320, 6, 26  # pixels of the strip
CHROMIUM = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def turbovaed(words: str, *arguments: str | Path, **environment: str) -> str:
    """Run a command and return what it prints, notes included and progress left out."""
    command = [sys.executable, "-m", "turbovaed_cli", *shlex.split(words), *map(str, arguments)]
    printed = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=True, env=os.environ | environment
    ).stdout
    return "\n".join(line for line in printed.splitlines() if not PROGRESS.match(Text.from_ansi(line).plain))


# --- source | teacher | student -----------------------------------------------------------------------------------


def strip(options: argparse.Namespace) -> None:
    """Write strip.jpg: a frame of the clip, as it is and through both decoders."""
    clip = read_clip(options.clip, frames=17, size=(SIDE, SIDE))
    with torch.no_grad():
        latents = load_teacher("tiny").encode(clip[None]).mean
        decoded = {
            "source": clip,
            "teacher, 4.62 M parameters": load_teacher("tiny").decode(latents)[0],
            "student, 0.79 M parameters": load_student("tiny").decode(latents).sample[0],
        }
    picture = Image.new("RGB", (3 * SIDE + 2 * GAP, SIDE + LABEL), "white")
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(15)
    for place, (label, video) in enumerate(decoded.items()):
        left = place * (SIDE + GAP)
        picture.paste(_frame(video[:, 8]), (left, 0))
        draw.text((left + SIDE / 2, SIDE + LABEL / 2), label, fill="#444444", font=font, anchor="mm")
    picture.save(PICTURES / "strip.jpg", quality=88, subsampling=0, optimize=True)


def _frame(frame: torch.Tensor) -> Image.Image:
    """Return a frame (3, H, W) in [-1, 1] as a picture."""
    levels = ((frame.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return Image.fromarray(levels.permute(1, 2, 0).numpy())


# --- report.html in both colour schemes ---------------------------------------------------------------------------


def report(options: argparse.Namespace) -> None:
    """Write report-light.png and report-dark.png: the top of the page that `eval --report` writes."""
    from playwright import sync_api  # noqa: PLC0415 - only here

    executable = next(filter(None, map(shutil.which, CHROMIUM)), None)
    if executable is None:
        sys.exit("no Chromium here: apt-get install chromium")
    with tempfile.TemporaryDirectory() as folder, sync_api.sync_playwright() as playwright:
        page_file = Path(folder) / "report.html"
        turbovaed("eval -q --data", options.clips, "--report", page_file)
        browser = playwright.chromium.launch(executable_path=executable, args=["--no-sandbox", "--disable-gpu"])
        for scheme in ("light", "dark"):
            page = browser.new_page(viewport={"width": 1000, "height": 611}, color_scheme=scheme)  # type: ignore[arg-type]
            page.goto(page_file.as_uri())
            page.wait_for_timeout(1000)
            _save_small(page.screenshot(), PICTURES / f"report-{scheme}.png")
        browser.close()


def _save_small(png: bytes, path: Path) -> None:
    picture = Image.open(io.BytesIO(png)).convert("RGB").quantize(128, dither=Image.Dither.NONE)
    picture.save(path, optimize=True)


# --- the terminal of `bench` --------------------------------------------------------------------------------------


def bench(options: argparse.Namespace) -> None:
    """Write bench.svg: the terminal after `turbovaed bench`."""
    output = turbovaed("bench --data", options.clips, FORCE_COLOR="1", COLUMNS="80")
    svg = as_terminal(f"$ turbovaed bench --data clips\n{output}", "turbovaed bench")
    (PICTURES / "bench.svg").write_text(svg, encoding="utf-8")


def as_terminal(output: str, title: str) -> str:
    """Return a picture of a terminal of 80 columns with this text, colours included."""
    text = Text.from_ansi(output)
    terminal = Console(record=True, width=80, file=io.StringIO(), force_terminal=True, color_system="truecolor")
    terminal.print(text, end="\n\n")  # the last line of a picture is cut
    svg = terminal.export_svg(title=title, theme=SVG_EXPORT_THEME, unique_id="terminal")
    svg = re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.DOTALL)  # fonts of another site
    return svg.replace("Fira Code", "ui-monospace, Menlo, Consolas")


# --- plots --------------------------------------------------------------------------------------------------------


def quality(_: argparse.Namespace) -> None:
    """Write quality.svg: the table of docs/measurements.md that has speed and PSNR of every runtime, as points."""
    pyplot = _pyplot()
    points = [
        (name, float(speed.rstrip("x")), float(psnr.removesuffix(" dB")))
        for name, speed, psnr in _rows("| what | over the teacher |")
    ]
    figure, axes = pyplot.subplots(figsize=(7, 3.6), layout="constrained")
    for number, (name, *place) in enumerate(sorted(points, key=lambda point: point[1])):
        angle = 0 if "int8" in name else (35, -35)[number % 2]  # names of neighbours on both sides
        axes.plot(*place, "o", color="#b3403a" if "teacher" in name else "#2b6cb0", markersize=5)
        axes.annotate(
            name, place, (4, 4 * angle / 35) if angle else (-7, 0), textcoords="offset points", rotation=angle, rotation_mode="anchor",
            va="bottom" if angle > 0 else "top" if angle else "center", ha="left" if angle else "right", fontsize=8, color="#444444",
        )  # fmt: skip
    axes.set(
        xlabel="speed over the teacher's decoder in fp32 torch",
        ylabel="PSNR against the videos, dB",
        xlim=(0, max(speed for _, speed, _ in points) * 1.2),
        ylim=(min(psnr for *_, psnr in points) - 0.2, max(psnr for *_, psnr in points) + 0.8),  # room for the names
    )
    _save(figure, "quality.svg")


def students(_: argparse.Namespace) -> None:
    """Write students.svg: the tables of docs/measurements.md with decode time and PSNR of each teacher's students, as points."""
    teachers = {"the embedded teacher": "tiny", "a small teacher of Wan's kind": "wan-48"}
    figure, panels = _pyplot().subplots(1, len(teachers), figsize=(8, 3.4), layout="constrained")
    for axes, (title, teacher) in zip(panels, teachers.items(), strict=True):
        points = [(cells[0], float(cells[2]), float(cells[5])) for cells in _rows(f"| students of `{teacher}` |")]
        for name, *place in points:
            axes.plot(*place, "o", color="#2b6cb0" if name in MEMBERS else "#b3403a", markersize=6)
            shift = (0, -14) if name == "causal" else (0, 7)  # its point is next to that of `full`
            axes.annotate(name, place, shift, textcoords="offset points", ha="center", fontsize=8, color="#444444")
        lows, highs = (f([psnr for *_, psnr in points]) for f in (min, max))
        times = [ms for _, ms, _ in points]
        axes.set(
            title=title, xlabel="decode of 17x256x256, ms", ylabel="PSNR against the videos, dB", xscale="log",
            xlim=(min(times) / 1.5, max(times) * 1.5), ylim=(lows - 0.3, highs + 0.5),
        )  # fmt: skip
        axes.title.set_fontsize(9)
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter(lambda value, _: f"{value:g}" if f"{value:.0e}"[0] in "25" else "")
    _save(figure, "students.svg")


def _pyplot() -> Any:
    import matplotlib  # noqa: PLC0415 - only for pictures

    matplotlib.use("svg")
    matplotlib.rcParams |= {"svg.hashsalt": "turbovaed", "svg.fonttype": "none", "font.family": "sans-serif"}
    from matplotlib import pyplot  # noqa: PLC0415

    return pyplot


def _rows(head: str) -> list[list[str]]:
    """Return the cells of the table of docs/measurements.md that begins with `head`."""
    page = (PICTURES.parent / "measurements.md").read_text(encoding="utf-8")
    table = page[page.index(head) :].partition("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table]


def _save(figure: Any, name: str) -> None:
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(PICTURES / name, metadata={"Date": None})


def memory(_: argparse.Namespace) -> None:
    """Write decode_memory.svg: peak memory of a decode over the length of the clip."""
    words = ["--frames", "9", "33", "65", "129", "--repeats", "1", "--plot", str(PICTURES / "decode_memory.svg")]
    subprocess.run([sys.executable, str(BENCHMARKS / "streaming.py"), *words], check=True)


ALL = {"strip": strip, "report": report, "bench": bench, "quality": quality, "students": students, "memory": memory}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clips", type=Path, metavar="CLIPS")
    parser.add_argument("--clip", type=Path, help="the video of the strip; default: the first of CLIPS")
    parser.add_argument("--only", nargs="+", choices=[*ALL], default=[*ALL])
    options = parser.parse_args()
    options.clip = options.clip or min(path for path in options.clips.iterdir() if path.suffix == ".mp4")
    PICTURES.mkdir(parents=True, exist_ok=True)
    for name in options.only:
        ALL[name](options)
    total = sum(path.stat().st_size for path in PICTURES.iterdir())
    print(f"{PICTURES}: {total / 1000:.0f} kB")


if __name__ == "__main__":
    main()
