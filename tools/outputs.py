"""Run the commands of `console` blocks in README and docs/, and put their real output under them.

    python tools/outputs.py FOLDER [PAGE ...]            # prints what would change
    python tools/outputs.py FOLDER [PAGE ...] --write    # changes the pages

FOLDER holds what the commands read: in.mp4, clips/ and videos/. Run it from an empty state: commands refuse to replace their outputs.
A line `$ COMMAND` is run by bash in FOLDER, at 80 columns, with stderr; lines of progress and the path of FOLDER are left out. If the block ends in a line `...`,
as many lines of output are kept as it has now.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PROGRESS = re.compile(r".*: \d+/\d+, \d+:\d\d gone")
CONSOLE = re.compile(r"```console\n(.*?)```", re.DOTALL)


def run(command: str, folder: Path, programs: Path) -> list[str]:
    """Return the lines that a command prints, without those of its progress."""
    environment = os.environ | {"COLUMNS": "80", "PATH": f"{programs}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    print(f"$ {command}", file=sys.stderr)
    done = subprocess.run(
        ["/bin/bash", "-c", command],
        cwd=folder,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
    )
    text = done.stdout.replace(f"{folder.resolve()}/", "")
    return [line.rstrip() for line in text.splitlines() if not PROGRESS.match(line)]


def refreshed(block: str, folder: Path, programs: Path) -> str:
    """Return the block with the output that its commands print now."""
    parts = re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]
    lines = []
    for part in parts:
        command, *before = part.splitlines()
        output = run(command, folder, programs)
        if before and before[-1] == "...":
            output = [*output[: len(before) - 1], "..."]
        lines += [f"$ {command}", *output]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    parser.add_argument("pages", type=Path, nargs="*", metavar="PAGE", help="default: README.md")
    parser.add_argument("--write", action="store_true", help="change the pages instead of printing the blocks")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as programs:
        script = Path(programs) / "turbovaed"
        script.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m turbovaed_cli "$@"\n', encoding="utf-8")
        script.chmod(0o755)
        for page in options.pages or [ROOT / "README.md"]:
            text = page.read_text(encoding="utf-8")
            new = CONSOLE.sub(lambda found: f"```console\n{refreshed(found[1], options.folder, script.parent)}```", text)
            if options.write:
                page.write_text(new, encoding="utf-8")
            else:
                print(f"== {page}", *CONSOLE.findall(new), sep="\n")


if __name__ == "__main__":
    main()
