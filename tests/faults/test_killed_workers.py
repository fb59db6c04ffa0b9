"""Two workers on one cache: whatever kills them, it becomes what one undisturbed run makes, and nothing is encoded twice."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import make_video
from faulty import count_of

pytestmark = [pytest.mark.faults, pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")]


def test_two_workers_on_one_cache_killed_at_random_moments_make_the_bytes_of_one_run(ltx_teacher, tmp_path, request, tally):
    """Nothing that was committed, or that the other one is at, is encoded again."""
    shutil.copytree(ltx_teacher, tmp_path / "teacher")
    (tmp_path / "videos").mkdir()
    content = make_video(tmp_path / "videos" / "0.mp4", frames=40).read_bytes()
    for number in range(1, 12):  # a box that players skip makes them other files
        box = (16).to_bytes(4, "big") + b"free" + number.to_bytes(8, "big")
        (tmp_path / "videos" / f"{number}.mp4").write_bytes(content + box)
    script, seed = Path(__file__).with_name("killed_workers.py"), request.config.getoption("--fault-seed")
    command = [sys.executable, script, "--work", tmp_path, "--kills", count_of(request, quick=2, full=200), "--seed", seed]
    done = subprocess.run(
        [*map(str, command)], capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, check=False
    )
    assert done.stdout, done.stderr
    counts = json.loads(done.stdout.splitlines()[-1])
    tally("random kills of two workers on one cache", counts["kills"], counts["kills"] - counts["unreadable"])
    tally("killed caches that became the bytes of one run", counts["runs"], counts["runs"] - counts["differing"])
    assert done.returncode == 0 and counts["runs"] > 0 and counts["encoded_twice"] == 0, (counts, done.stderr)
