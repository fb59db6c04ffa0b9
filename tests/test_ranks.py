"""Several processes train one student as one process would."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_resume import RECIPE, differing, everything

from turbovaed_cli.latents import CacheWriter, ClipSource, LatentCache
from turbovaed_cli.registry import find_model
from turbovaed_cli.rundir import RunDir

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
SERVER = Path(__file__).with_name("rank_server.py")
ONE_THREAD = os.environ | {"OMP_NUM_THREADS": "1"}
# Adam takes steps by the sign of a gradient; Muon's follow the gradient itself, so rounding stays rounding.
SCHEDULE = RECIPE.replace('dtype = "fp32"', 'dtype = "fp32"\noptimizer = "muon"').replace("batch_size = 2\n", "")


@pytest.fixture(scope="module")
def ask():
    """What `turbovaed WORDS` comes to in `count` processes; see rank_server.py."""
    words = [sys.executable, str(SERVER)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=ONE_THREAD) as server:

        def ask(words, count=2, **more) -> dict:
            server.stdin.write(json.dumps({"words": list(map(str, words)), "count": count, **more}) + "\n")
            server.stdin.flush()
            return json.loads(server.stdout.readline())

        yield ask
        server.stdin.close()


@pytest.fixture(scope="module")
def words(ltx_teacher, cache, small_student, tmp_path_factory):
    """The command, of a batch size and more."""
    folder = tmp_path_factory.mktemp("words")
    (folder / "student.json").write_text(json.dumps(small_student))
    (folder / "schedule.toml").write_text(SCHEDULE)

    def words(run: Path, batch_size: int, *more: object, latents: Path = cache) -> list[str]:
        where = () if "--data" in more else ("--latents", latents)
        options = ("--recipe", folder / "schedule.toml", "--frames", 9, "--size", 64, "--save-every", 1, "--sample-every", 0)
        said = ("distill", "--teacher", ltx_teacher, *where, "--run", run, "--student-config", folder / "student.json", *options)
        return [*map(str, said), "--batch-size", str(batch_size), "--device", "cpu", *map(str, more)]

    return words


def metrics(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def of_two(ask, words, tmp_path_factory) -> Path:
    """A run of two ranks with one clip each; every step's state is saved, and compared between the two."""
    run = tmp_path_factory.mktemp("two") / "run"
    done = ask(words(run, 1))
    assert done["codes"] == [0, 0], done
    return run


def test_a(of_two):
    pass
