"""Kill `distill` at random moments, again and again, and see that nothing committed is lost and the bits stay the same.

    python tests/faults/random_kills.py --work DIR --kills 500 --seed 1 [--signals TERM INT] [--data DIR]

A process that has imported everything forks one child per attempt, so that a kill costs what the run costs and no imports.
One line of JSON in the end. DIR holds teacher/, latents/, student.json and recipe.toml. SIGTERM and SIGINT have to end the
command within two seconds and a step, with their exit code, and leave no ffmpeg behind.
"""

import argparse
import hashlib
import importlib
import json
import os
import random
import shutil
import signal
import sys
import time
import traceback
from pathlib import Path

import psutil
import torch

import turbovaed_cli.training.distill  # noqa: F401 - for the children
from turbovaed_cli import cli
from turbovaed_cli.errors import TurboVaedError
from turbovaed_cli.files.sealed import verify_manifest
from turbovaed_cli.report.assets import template
from turbovaed_cli.reporting import hushed
from turbovaed_cli.runs.rundir import RunDir

STEPS = 6  # of the recipe


CODES = {signal.SIGKILL: -signal.SIGKILL, signal.SIGTERM: 143, signal.SIGINT: 130}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--kills", type=int, default=500)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--signals", nargs="+", default=["KILL"])
    parser.add_argument("--data", type=Path, help="videos to learn from, instead of the latents")
    options = parser.parse_args()
    torch.set_num_threads(1)  # a fork would not take a pool of threads along
    with hushed():  # for the children: a second that each kill saves
        importlib.import_module("diffusers.models.autoencoders.autoencoder_kl_ltx")
    template("page.html")
    rng = random.Random(options.seed)
    signals = [signal.Signals[f"SIG{name}"] for name in options.signals]
    name = f"{'videos' if options.data else 'latents'}-{options.seed}"
    once = Attempt(options, options.work / f"once-{name}", None, signals[0])
    assert once.code == 0, "the command fails by itself"
    wanted = digest(once.run)
    counts = {
        "seed": options.seed,
        "kills": 0,
        "runs": 0,
        "lost": 0,
        "differing": 0,
        "unreadable": 0,
        "wrong_exits": 0,
        "slow_exits": 0,
        "left_behind": 0,
    }
    run = options.work / f"killed-{name}"
    committed: list[int] = []
    seconds = once.seconds
    while counts["kills"] < options.kills or run.exists():
        fresh, moment = not run.exists(), rng.uniform(0.0, 1.1 * seconds) if counts["kills"] < options.kills else None
        done = Attempt(options, run, moment, signals[counts["kills"] % len(signals)])
        if done.code == 0:
            if fresh:  # the first of all may have been slow: hardly any kill would come in time
                seconds = min(seconds, done.seconds)
            counts["runs"] += 1
            counts["differing"] += digest(run) != wanted
            shutil.rmtree(run)
            committed = []
            continue
        counts["kills"] += 1
        counts["wrong_exits"] += done.code not in (CODES[done.signal], -done.signal)  # the latter before the command began
        counts["slow_exits"] += done.seconds_to_end > 2.0 + once.seconds / STEPS
        counts["left_behind"] += done.left_behind
        found = RunDir(run).steps()
        # Checkpoints are kept two at a time, so the newest that was there may only be followed.
        counts["lost"] += bool(committed) and (not found or found[-1] < committed[-1])
        committed = found
        try:
            for step in found:
                verify_manifest(RunDir(run).checkpoint_path(step))
        except TurboVaedError:
            counts["unreadable"] += 1
    print(json.dumps(counts))
    sys.exit(any(counts[name] for name in ("lost", "differing", "unreadable", "wrong_exits", "slow_exits", "left_behind")))


class Attempt:
    """One child that distils into `run`, by the command itself, and is sent `which` after so many seconds if it still runs."""

    def __init__(self, options: argparse.Namespace, run: Path, kill_after: float | None, which: signal.Signals) -> None:
        self.run, self.signal, self.seconds_to_end, self.left_behind = run, which, 0.0, 0
        began = time.monotonic()
        child = os.fork()
        if child == 0:
            _distil(options, run)
        while True:
            done, status = os.waitpid(child, os.WNOHANG)
            if done or (kill_after is not None and time.monotonic() - began >= kill_after):
                break
            time.sleep(0.001)
        if not done:
            helpers = psutil.Process(child).children(recursive=True)
            before = sum(psutil.Process(child).cpu_times()[:2])
            os.kill(child, which)
            _, status, used = os.wait4(child, 0)
            self.seconds_to_end = used.ru_utime + used.ru_stime - before  # on a processor: a machine may be busy
            self.left_behind = len(psutil.wait_procs(helpers, timeout=60)[1]) if which != signal.SIGKILL else 0
        self.seconds = time.monotonic() - began
        self.code = os.waitstatus_to_exitcode(status)
        if self.code not in (0, CODES[which], -which):
            said = run.with_suffix(".said").read_text(encoding="utf-8")
            print(f"exit code {self.code} after {which.name} at {kill_after} seconds: {said}", file=sys.stderr)


def _distil(options: argparse.Namespace, run: Path) -> None:
    """The command, in the child."""
    where = ("--data", options.data) if options.data else ("--latents", options.work / "latents")
    words = [
        "distill", "--teacher", options.work / "teacher", *where, "--run", run, "--student-config", options.work / "student.json",
        "--recipe", options.work / "recipe.toml", "--frames", "9", "--size", "64", "--dtype", "fp32", "--save-every", "1",
        "--sample-every", "0", "-q",
    ]  # fmt: skip
    sys.argv = ["turbovaed", *map(str, words)]
    code = 1
    try:
        with run.with_suffix(".said").open("w", encoding="utf-8") as said:
            sys.stdout = sys.stderr = said
            try:
                cli.main()
            except Exception:
                traceback.print_exc()
                raise
    except SystemExit as error:
        code = int(error.code or 0)
    except KeyboardInterrupt:  # before the command began, which then has no handler yet
        code = 130
    finally:
        os._exit(code)


def digest(run: Path) -> str:
    """Of the last checkpoint (weights, average, both optimizers) and of the model."""
    step = RunDir(run).steps()[-1]
    files = sorted([*RunDir(run).checkpoint_path(step).glob("*.safetensors"), *(run / "model").glob("*.safetensors")])
    return hashlib.sha256(b"".join(file.name.encode() + file.read_bytes() for file in files)).hexdigest()


if __name__ == "__main__":
    main()
