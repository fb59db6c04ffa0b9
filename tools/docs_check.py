"""Run every command of README and docs/, and compare the output that they quote with what is printed now.

    python tools/docs_check.py                       # every page; 21 minutes with --jobs 1 on a busy machine
    python tools/docs_check.py docs/guides/share.md  # these pages
    python tools/docs_check.py --list                # what would run and what is left out; runs nothing

A page has two folders of a reader: its `sh` blocks and its Kubernetes job run in one, its `console` blocks in the other, in the page's
order, so that a command uses what earlier ones wrote. What it reads and no command of the page writes comes from the shelf (`docs_shelf.py`).
REPLACED makes commands small, LEFT_OUT lists what cannot run here, OTHER_CODES the exit codes besides 0.
Output is compared without figures, durations and units: the words and the lines count. Exit code 1: a command failed, or its output differs.
"""

import argparse
import difflib
import re
import shlex
import shutil
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import click
import typer
import yaml

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "support")]

from outputs import CommandError, execute, quoted, shortened  # noqa: E402 - found by the line above, if tools/ is no package
from pages import PAGES, name_of  # noqa: E402

from turbovaed_cli.cli.app import app  # noqa: E402

if TYPE_CHECKING:
    from docs_shelf import Shelf

LIMIT_S = 300.0  # for one command
_RUNS = r"(turbovaed(?:_cli)? (?:{}))\b"  # a command of these names
_ALL_WITH_CONSENT = "reconstruct|eval|cache-latents|distill|export|bench|push|models pull"

# What is changed in a command before it runs: (pattern, replacement, why). All that match are applied, in this order.
REPLACED = (
    # Options that a reader could add; those of the page come after them, and so the next rows make these smaller.
    (_RUNS.format(_ALL_WITH_CONSENT), r"\1 --yes", "there is no terminal to agree at"),
    (_RUNS.format("reconstruct|export|push|bench(?=.*--report)|eval(?=.*--report)"), r"\1 --overwrite", "examples of a page write the same file"),
    (_RUNS.format("cache-latents(?!.*--(?:merge|status))|eval(?=.*--data|.*--testcard(?! -q))|distill(?=.*--data)|bench"), r"\1 --frames 9 --size 64", "smaller clips"),
    (_RUNS.format("export(?!.*--size)"), r"\1 --frames 9 --size 64", "smaller clips"),
    (_RUNS.format("distill(?=.*--teacher)(?!.*--(?:params|init|student))"), r"\1 --student nano", "a smaller student"),
    (_RUNS.format("distill(?!.*--(?:hours|steps))"), r"\1 --steps 3 --batch-size 1", "fewer steps"),
    (_RUNS.format("bench"), r"\1 --repeats 2 --warmup 1", "fewer repeats"),
    (_RUNS.format("bench(?!.*--target)"), r"\1 --target torch", "one runtime"),
    (_RUNS.format("bench(?!.*--(?:model|report|ios-project))"), r"\1 --no-teacher", "one network"),
    (r"^(turbovaed distill)(?=.*--teacher (?:ltx|sdxl))(?!.*--run)", r"rm -rf runs/ltx* runs/sdxl* && \1", "examples of a page are different runs"),
    (r"^(torchrun|accelerate|turbovaed distill(?=.*--nproc 8))", r"rm -rf runs/ltx && \1", "examples of a page are different runs"),
    # Values of the page.
    (r"--size 512x512,720p", "--size 64x64,128x64", "smaller clips"),
    (r"--size (?:512x512|256x256|512)(?!,)", "--size 64", "smaller clips"),
    (r"--size 720p", "--size 128x96", "smaller clips"),
    (r"--crop 512x512", "--crop 64x64", "smaller crops"),
    (r"--memory-frames 17,65", "--memory-frames 9,17", "shorter clips"),
    (r"--latents-shape 16,15,22", "--latents-shape 2,2,2", "smaller latents"),
    (r"--stride 25", "--stride 9", "shorter videos"),
    (r"--steps 30", "--steps 4", "fewer steps"),
    (r"--hours 8", "--hours 0.005", "fewer steps"),
    (r"(--nproc|--nproc-per-node|--num_processes) 8", r"\1 2", "two processes, on one machine"),
    (r"(accelerate launch .*)", r"\1 --device cpu", "no GPU: the page names this option"),
    (r"(distill .*--teacher (ltx2?) --latents) \./latents(?= --(?:nproc 2|log|init))", r"\1 ./latents-\2", "latents of that teacher: those of the page are of ./myvae"),
    (r"(#SBATCH --job-name=cache .*)", r"\1\nexport SLURM_ARRAY_TASK_ID=0 SLURM_ARRAY_TASK_COUNT=2 SLURM_ARRAY_TASK_MIN=0", "two videos"),
    (r"--gradient-checkpointing --compile", "--recipe quick --gradient-checkpointing --compile", "one stage to compile"),
    (r"^(JOB_COMPLETION_INDEX=0 JOB_COMPLETIONS=)64", r"rm -rf shared/latents && \g<1>1", "two videos"),
    (r"--shard 3/64", "--shard 0/1", "two videos"),
    (r"export MASTER_ADDR", "rm -rf shared/runs\nexport SLURM_NTASKS=2 SLURM_NTASKS_PER_NODE=2\nexport MASTER_ADDR", "two processes, on one machine"),
    (r"(?<= )/(shared|collected)/", r"\1/", "a folder of the reader's"),
    (r"(?<= )user/", "example-user/", "the account of the loopback hub"),
    (r"HEX", "$(cat detector.pt.sha256)", "a detector of random weights"),
)  # fmt: skip

# Commands that cannot run here, (pattern, reason, the module with which they can, if there is one); those of turbovaed are only parsed.
LEFT_OUT = (
    (r"^pip install", "installs into the running environment; make package does so in an empty one", None),
    (r"^make ", "a target of the Makefile, which is run by itself", None),
    (r"models pull lpips-", "torchvision's files: their names hold the sha256 of the real weights", None),
    (r"--device iphone", "a Mac with an attached iPhone", None),
    (r"--format \S*executorch", "converters that are not installed: make extras brings them", "executorch"),
)

# Commands that may end with another code than 0, as their page states: (pattern, codes).
OTHER_CODES = ((r"--fail-under", (0, 4)),)

# What two machines print differently: (pattern, replacement).
FIGURES = (
    (r"#[0-9a-f]{6}\b", "#colour"),
    (r"(--dtype auto: |; on cpu, )\w+", r"\1fp32"),
    (r"\b\d+x\d+\b|(?<= )-(?= |$)", "0"),
    (r"\b\d+ (?:h|min|s)\b(?: \d+ (?:min|s)\b)*", "0 s"),
    (r"(?<![A-Za-z])\d+(?:[.,]\d+)*(?:e[+-]?\d+)?", "0"),
    (r"\b0 [kMG]B\b", "0 MB"),
    (r" {2,}", " "),
)


@dataclass(frozen=True)
class Command:
    """A command of a page: its lines without comments, and the output that the page quotes; None in a block of `sh`."""

    page: str
    text: str
    output: list[str] | None = None

    @property
    def title(self) -> str:
        """The first line that runs turbovaed, or the first line."""
        lines = self.text.strip().splitlines()
        return " ".join(next((line for line in lines if "turbovaed" in line), lines[0]).split())

    @property
    def reason_left_out(self) -> str | None:
        """The reason why it is not run; None if it is."""
        rows = (row for row in LEFT_OUT if re.search(row[0], self.title))
        return next((reason for _, reason, module in rows if module is None or find_spec(module) is None), None)

    @property
    def small(self) -> str:
        """The lines that are run for it."""
        return small(self.text)

    @property
    def codes(self) -> tuple[int, ...]:
        """The exit codes that are right."""
        return next((codes for pattern, codes in OTHER_CODES if re.search(pattern, self.text)), (0,))

    @property
    def writes(self) -> set[str]:
        """The folders and files that it names as outputs."""
        return {path.removeprefix("./") for path in re.findall(r"(?:--out|--run|>) ([^\s;]+)", self.small)}


def small(text: str, until: str | None = None) -> str:
    """Return the lines that are run for a command: those of the page after the rows of REPLACED, or after those above `until`."""
    for pattern, replacement, _ in REPLACED:
        if pattern == until:
            break
        text = re.sub(pattern, replacement, text, flags=re.MULTILINE)
    return text


def statements(block: str) -> Iterator[str]:
    """Yield what bash runs at once of a block of `sh`: a line, lines up to one that is not in the background, or a whole script."""
    text = block.replace("\\\n", " ")
    if text.startswith(("#!", "export ")):
        yield text
        return
    waiting = ""
    for line in text.splitlines():
        code = re.sub(r"(?:^|\s+)#.*", "", line)
        waiting += f"{code}\n" if code else ""
        if code and not code.endswith("&"):
            yield waiting
            waiting = ""


def first_pod(block: str) -> str:
    """Return the command of an Indexed Job's first pod, with the variables that Kubernetes and the manifest set."""
    (container,) = yaml.safe_load(block)["spec"]["template"]["spec"]["containers"]
    values = {"JOB_COMPLETION_INDEX": "0"} | {one["name"]: one["value"] for one in container["env"]}
    return " ".join([*(f"{name}={value}" for name, value in values.items()), *container["command"]])


def commands_of(path: Path) -> list[Command]:
    """Return the commands of a page in its order."""
    page, found = name_of(path), []
    for kind, block in re.findall(
        r"^```(sh|console|yaml)\n(.*?)^```", path.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE
    ):
        if kind == "sh":
            found += [Command(page, text) for text in statements(block)]
        elif kind == "yaml":
            found.append(Command(page, first_pod(block)))
        else:
            found += [Command(page, text, output) for text, output in quoted(block)]
    return found


def without_figures(line: str) -> str:
    """Return a line of output with the same sign for every figure, duration and unit."""
    for pattern, replacement in FIGURES:
        line = re.sub(pattern, replacement, line)
    return line


def differences(before: list[str], now: list[str]) -> list[str]:
    """Return a unified diff of quoted output and of what is printed now; nothing if only figures differ."""
    now = shortened(now, before)
    matcher = difflib.SequenceMatcher(None, [*map(without_figures, before)], [*map(without_figures, now)], autojunk=False)
    shown = []
    for tag, first, last, first_now, last_now in matcher.get_opcodes():
        shown += before[first:last] if tag == "equal" else now[first_now:last_now]
    return [*difflib.unified_diff(before, shown, "the page", "printed now", lineterm="")]


def names(command: str, thing: str) -> bool:
    """Return whether a command names a thing of the shelf as a path."""
    return re.search(rf"(?<![\w/.-])(?:\./)?{re.escape(thing)}(?![\w-]|\.\w)", command) is not None


class Reader:
    """The folder in which the commands of one kind of a page run; `written` are their outputs, which the shelf does not bring."""

    def __init__(self, folder: Path, shelf: "Shelf", written: set[str]) -> None:
        self.folder, self.shelf, self.written = folder, shelf, written
        folder.mkdir(parents=True)

    def run(self, command: Command) -> list[str]:
        """Run a command with what it names, and return what is wrong, in lines; nothing if all is right."""
        text = command.small
        try:
            self.bring(text)
        except CommandError as error:
            return ["the shelf has not what it reads", *str(error).splitlines()]
        wait = "code=$?; for job in $(jobs -p); do wait $job || code=$?; done; exit $code"
        done = execute(f"{text.rstrip()}\n{wait}", self.folder, self.shelf.environment, LIMIT_S)
        if done.code not in command.codes:
            return [f"exit code {done.code}", *(f"$ {line}" for line in text.strip().splitlines()), *done.lines[-12:]]
        return differences(command.output, done.lines) if command.output is not None else []

    def bring(self, text: str) -> None:
        """Copy what a command names from the shelf, unless it is there, or a command of the page writes it."""
        for name in self.shelf.makers:
            target = self.folder / name
            if names(text, name) and name not in self.written and not target.exists():
                copy(self.shelf.take(name), target)


def copy(source: Path, target: Path) -> None:
    """Copy a file or a folder."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, target)
    else:
        shutil.copy(source, target)


def parse_error(command: Command) -> list[str]:
    """Return why a command that is left out does not parse; nothing if it does, or is none of turbovaed."""
    words = shlex.split(command.title)
    if words[0] != "turbovaed":
        return []
    found, left = typer.main.get_command(app), words[1:]
    try:
        while left and left[0] in getattr(found, "commands", {}):
            found = found.commands[left.pop(0)]  # type: ignore[attr-defined]
        found.make_context("turbovaed", left)
    except click.ClickException as error:
        return [error.format_message()]
    return []


@dataclass(frozen=True)
class Result:
    """A command, and what is wrong with it, in lines; nothing if all is right or it was left out."""

    command: Command
    wrong: list[str]


def check_page(path: Path, folder: Path, shelf: "Shelf") -> list[Result]:
    """Run the commands of a page in its order, and print a line for each."""
    commands, results, readers = commands_of(path), [], {}
    for is_quoted in {command.output is not None for command in commands}:
        written = set().union(*(one.writes for one in commands if (one.output is not None) == is_quoted))
        place = folder / "readers" / name_of(path).replace("/", "-") / ("console" if is_quoted else "sh")
        readers[is_quoted] = Reader(place, shelf, written)
    for command in commands:
        if shelf.is_closed.is_set():
            break
        began, reason = time.monotonic(), command.reason_left_out
        wrong = parse_error(command) if reason else readers[command.output is not None].run(command)
        state = "FAILED" if wrong else f"left out: {reason}" if reason else "ok"
        line = f"{time.monotonic() - began:6.1f} s  {command.page}  {command.title}: {state}"
        print("\n    ".join([line, *wrong]), flush=True)
        results.append(Result(command, wrong))
    return results


def check(paths: Iterable[Path], folder: Path, jobs: int) -> list[Result]:
    """Run the commands of pages, `jobs` pages at once; a page that cannot be checked at all raises its error at the end."""
    from docs_shelf import opened  # noqa: PLC0415 - it takes torch, which --list and the tests of this file do not need

    with opened(folder) as shelf, ThreadPoolExecutor(jobs) as pool:
        pages = [pool.submit(check_page, path, folder, shelf) for path in paths]
        try:
            return [result for page in pages for result in page.result()]
        except BaseException:
            shelf.is_closed.set()  # Ctrl-C: what runs ends, and no other command begins
            raise


def show(paths: Iterable[Path]) -> None:
    """Print the lines that are run for each command, or why it is left out."""
    for command in [command for path in paths for command in commands_of(path)]:
        reason = command.reason_left_out
        lines = [f"left out: {reason}"] if reason else command.small.strip().splitlines()
        print(f"{command.page}  {command.title}", *lines, sep="\n    ")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pages", type=Path, nargs="*", metavar="PAGE", help="default: README.md and all of docs/")
    parser.add_argument("--jobs", type=int, default=2, metavar="N", help="pages at once; default: 2")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="work in this new folder, and keep it")
    parser.add_argument("--list", action="store_true", help="print the commands as they would run; run nothing")
    options = parser.parse_args()
    paths = [page.resolve() for page in options.pages] or PAGES
    if options.list:
        show(paths)
        return
    began = time.monotonic()
    with nullcontext(options.keep) if options.keep else tempfile.TemporaryDirectory() as folder:
        results = check(paths, Path(folder).resolve(), options.jobs)
    left_out = [one.command for one in results if one.command.reason_left_out]
    failed = [one.command for one in results if one.wrong]
    for command in left_out:
        print(f"left out: {command.page}  {command.title} ({command.reason_left_out})")
    for command in failed:
        print(f"FAILED: {command.page}  {command.title}")
    minutes = (time.monotonic() - began) / 60
    print(
        f"{len(results)} commands in {minutes:.0f} min: {len(results) - len(left_out)} ran, {len(left_out)} left out, {len(failed)} failed"
    )
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
