"""Make the pictures of README and docs/ again: docs/pictures/.

    python tools/pictures.py CLIPS [--clip CLIPS/bunny.mp4] [--only strip report bench memory quality]

CLIPS is a folder of videos that the embedded student never saw. `report` needs a Chromium; `bench` and `quality` time decoders, so leave
the machine alone meanwhile. `make pictures CLIPS=DIR` is the same.
"""

import argparse
import io
import json
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
from PIL import Image, ImageDraw, ImageFont
from rich.console import Console
from rich.terminal_theme import SVG_EXPORT_THEME
from rich.text import Text

from turbovaed_cli import load_student, load_teacher, read_clip

PICTURES = Path(__file__).resolve().parents[1] / "docs" / "pictures"
BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
SIDE, GAP, LABEL = 320, 6, 26  # pixels of the strip
CHROMIUM = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def turbovaed(words: str, *arguments: str | Path, **environment: str) -> str:
    """Run a command and return its stdout; progress goes to this terminal."""
    command = [sys.executable, "-m", "turbovaed_cli", *shlex.split(words), *map(str, arguments)]
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=os.environ | environment).stdout


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
            page = browser.new_page(viewport={"width": 1000, "height": 620}, color_scheme=scheme)  # type: ignore[arg-type]
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
    command = "turbovaed bench --dtype fp32,bf16,int8 --data clips"
    output = turbovaed("bench -q --dtype fp32,bf16,int8 --data", options.clips, FORCE_COLOR="1", COLUMNS="86")
    shown = Text.from_ansi(f"$ {command}\n{output.rstrip()}")
    width = max(len(line) for line in shown.plain.splitlines()) + 1
    terminal = Console(record=True, width=width, file=io.StringIO(), force_terminal=True, color_system="truecolor")
    terminal.print(shown)
    svg = terminal.export_svg(title="turbovaed bench", theme=SVG_EXPORT_THEME, unique_id="bench")
    svg = re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.DOTALL)  # fonts of another site
    (PICTURES / "bench.svg").write_text(svg.replace("Fira Code", "ui-monospace, Menlo, Consolas"), encoding="utf-8")


# --- plots --------------------------------------------------------------------------------------------------------


def quality(options: argparse.Namespace) -> None:
    """Write quality.svg: PSNR against the videos over speed, every runtime and precision of the embedded pair."""
    document = turbovaed("bench -q --json --target all --dtype fp32,bf16,int8 --data", options.clips)
    rows = [row for row in json.loads(document)["rows"] if row["measured"] and row["source_psnr_db"]]
    _plot_quality(rows)


def _plot_quality(rows: list[dict[str, Any]]) -> None:
    import matplotlib  # noqa: PLC0415 - only for pictures

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "turbovaed"
    from matplotlib import pyplot  # noqa: PLC0415

    (teacher,) = [row for row in rows if (row["network"], row["precision"]) == ("teacher", "fp32")]
    figure, axes = pyplot.subplots(figsize=(7, 3.6), layout="constrained")
    for row in rows:
        is_teacher = row["network"] == "teacher"
        place = (row["fps"] / teacher["fps"], row["source_psnr_db"])
        axes.plot(*place, "o", color="#b3403a" if is_teacher else "#2b6cb0", markersize=5)
        name = " ".join((row["target"], row["network"].removeprefix("student").strip(", "), row["precision"])).replace("  ", " ")
        axes.annotate(name, place, (0, 7), textcoords="offset points", rotation=35, fontsize=8, color="#444444")
    low, high = (pick(row["source_psnr_db"] for row in rows) for pick in (min, max))
    axes.set(
        xlabel="speed over the teacher's decoder in fp32 torch",
        ylabel="PSNR against the videos, dB",
        xlim=(0, max(row["fps"] for row in rows) / teacher["fps"] * 1.15),
        ylim=(low - 0.3, high + 1.0),  # room for the names
    )
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(PICTURES / "quality.svg", metadata={"Date": None})


def memory(_: argparse.Namespace) -> None:
    """Write decode_memory.svg: peak memory of a decode over the length of the clip."""
    words = ["--frames", "9", "33", "65", "129", "--repeats", "1", "--plot", str(PICTURES / "decode_memory.svg")]
    subprocess.run([sys.executable, str(BENCHMARKS / "streaming.py"), *words], check=True)


ALL = {"strip": strip, "report": report, "bench": bench, "quality": quality, "memory": memory}


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
