"""Kill `distill` at random moments, again and again, and see that nothing committed is lost and the bits stay the same.

    python tests/faults/random_kills.py --work DIR --kills 500 --seed 1

A process that has imported everything forks one child per attempt, so that a kill costs what the run costs and no imports.
One line of JSON in the end. DIR holds teacher/, latents/, student.json and recipe.toml.
"""

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path

import torch

from turbovaed_cli.distill import distill
from turbovaed_cli.errors import TurboVaedError
from turbovaed_cli.registry import find_model
from turbovaed_cli.rundir import RunDir, verify_manifest
from turbovaed_cli.settings import read_recipe


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--kills", type=int, default=500)
    parser.add_argument("--seed", type=int, required=True)
    options = parser.parse_args()
    torch.set_num_threads(1)  # a fork would not take a pool of threads along
    work, rng = options.work, random.Random(options.seed)
    once = work / "once"
    seconds = attempt(work, once, None)
    wanted = digest(once)
    counts = {"seed": options.seed, "kills": 0, "runs": 0, "lost": 0, "differing": 0, "unreadable": 0}
    run = work / f"killed-{options.seed}"
    committed: list[int] = []
    while counts["kills"] < options.kills or committed:
        still = counts["kills"] < options.kills
        if attempt(work, run, rng.uniform(0.0, 1.1 * seconds) if still else None) is None:
            counts["kills"] += 1
            found = RunDir(run).steps()
            # Checkpoints are kept two at a time, so the newest that was there may only be followed.
            counts["lost"] += bool(committed) and (not found or found[-1] < committed[-1])
            committed = found
            try:
                for step in found:
                    verify_manifest(RunDir(run).checkpoint_path(step))
            except TurboVaedError:
                counts["unreadable"] += 1
        else:
            counts["runs"] += 1
            counts["differing"] += digest(run) != wanted
            shutil.rmtree(run)
            committed = []
    print(json.dumps(counts))
    sys.exit(bool(counts["lost"] or counts["differing"] or counts["unreadable"]))


def attempt(work: Path, run: Path, kill_after: float | None) -> float | None:
    """Distil in a child; the seconds it took, or None where it was killed before it had ended."""
    began = time.monotonic()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            settings = read_recipe(str(work / "recipe.toml")).with_changes(frames=9, size=(64, 64), save_every=1, sample_every=0)
            config = json.loads((work / "student.json").read_text())
            teacher = find_model(work / "teacher")
            distill(teacher, run, latents=work / "latents", settings=settings, student_config=config)
            code = 0
        finally:
            os._exit(code)
    while kill_after is None or time.monotonic() - began < kill_after:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            assert status == 0, f"the run failed (status {status}): seed and kills so far are in the output"
            return time.monotonic() - began
        time.sleep(0.001)
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    return None if os.WIFSIGNALED(status) else time.monotonic() - began


def digest(run: Path) -> str:
    """Of the last checkpoint (weights, average, both optimizers) and of the model."""
    step = RunDir(run).steps()[-1]
    files = sorted([*RunDir(run).checkpoint_path(step).glob("*.safetensors"), *(run / "model").glob("*.safetensors")])
    return hashlib.sha256(b"".join(file.name.encode() + file.read_bytes() for file in files)).hexdigest()


if __name__ == "__main__":
    main()
