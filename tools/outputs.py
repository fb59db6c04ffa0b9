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
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PROGRESS = re.compile(r".*: \d+/\d+, \d+:\d\d gone")
CONSOLE = re.compile(r"```console\n(.*?)```", re.DOTALL)
TIMED_OUT = 124  # the exit code of a command that took too long


class CommandError(Exception):
    """Raised if a command that others need has failed; its text is the command and what it printed last."""


@dataclass(frozen=True)
class Done:
    """The lines that a command printed, without those of its progress, and its exit code."""

    lines: list[str]
    code: int


def execute(command: str, folder: Path, environment: Mapping[str, str], limit_s: float | None = None) -> Done:
    """Run a command line by bash in `folder`; after `limit_s` seconds it is ended with all that it started."""
    child = subprocess.Popen(
        ["/bin/bash", "-c", command],
        cwd=folder,
        env={**os.environ, "COLUMNS": "80", "PYTHONPATH": str(ROOT), **environment},
        text=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        text, code = child.communicate(timeout=limit_s)[0], child.returncode
    except subprocess.TimeoutExpired:
        os.killpg(child.pid, signal.SIGKILL)
        text, code = child.communicate()[0], TIMED_OUT
    text = text.replace(f"{folder.resolve()}/", "")
    return Done([line.rstrip() for line in text.splitlines() if not PROGRESS.match(line)], code)


def run(command: str, folder: Path, programs: Path) -> list[str]:
    """Return the lines that a command prints, without those of its progress."""
    print(f"$ {command}", file=sys.stderr)
    return execute(command, folder, {"PATH": f"{programs}:{os.environ['PATH']}"}).lines


def quoted(block: str) -> list[tuple[str, list[str]]]:
    """Return the commands of a block, each with the lines that are under it now."""
    parts = [part.splitlines() for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]]
    return [(command, lines) for command, *lines in parts]


def shortened(output: list[str], before: list[str]) -> list[str]:
    """Return as many lines of output as there were before, and the `...` after them, if there was one; else all lines."""
    return [*output[: len(before) - 1], "..."] if before and before[-1] == "..." else output


def refreshed(block: str, folder: Path, programs: Path) -> str:
    """Return the block with the output that its commands print now."""
    lines = []
    for command, before in quoted(block):
        lines += [f"$ {command}", *shortened(run(command, folder, programs), before)]
    return "\n".join(lines) + "\n"


def write_program(folder: Path, name: str, script: str) -> None:
    """Write a shell script that can be run by its name with `folder` in PATH."""
    path = folder / name
    path.write_text(f"#!/bin/bash\n{script}\n", encoding="utf-8")
    path.chmod(0o755)


def write_turbovaed(folder: Path) -> None:
    """Write the program `turbovaed`, which runs this checkout."""
    write_program(folder, "turbovaed", f'exec "{sys.executable}" -m turbovaed_cli "$@"')


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    parser.add_argument("pages", type=Path, nargs="*", metavar="PAGE", help="default: README.md")
    parser.add_argument("--write", action="store_true", help="change the pages instead of printing the blocks")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        programs = Path(temporary)
        write_turbovaed(programs)
        for page in options.pages or [ROOT / "README.md"]:
            text = page.read_text(encoding="utf-8")
            new = CONSOLE.sub(lambda found: f"```console\n{refreshed(found[1], options.folder, programs)}```", text)
            if options.write:
                page.write_text(new, encoding="utf-8")
            else:
                print(f"== {page}", *CONSOLE.findall(new), sep="\n")


if __name__ == "__main__":
    main()
