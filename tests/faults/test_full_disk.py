"""A disk that is full at any byte of a write: what was there stays, one line says so, and the same command then succeeds."""

import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from faulty import count_of
from safetensors.torch import load_file, save_file

from turbovaed_cli.errors import DiskFullError
from turbovaed_cli.files.whole import write_whole
from turbovaed_cli.latents.cache import ClipSource, LatentCache
from turbovaed_cli.latents.writer import CacheWriter
from turbovaed_cli.runs.rundir import RunDir

pytestmark = [pytest.mark.faults, pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")]
PAGE = 4096


def with_room_for(size: int, act) -> bool:
    """Run `act` in a child whose files end at `size` bytes; whether it got through. Any error but DiskFullError fails."""
    child = os.fork()
    if child == 0:
        code = 2
        try:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
            act()
            code = 0
        except DiskFullError:
            code = 1
        finally:
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, 1), f"another error than of a full disk at {size} bytes"
    return code == 0


def test_at_every_page_of_a_checkpoint(tmp_path, tally):
    run = RunDir(tmp_path)

    def save(step: int):
        tensors = {"weights": torch.full((12 * PAGE // 4,), float(step))}
        run.save_checkpoint(step, lambda folder: save_file(tensors, folder / "student.safetensors"), keep=1)

    save(1)
    tried = [with_room_for(size, lambda: save(2)) for size in range(0, 13 * PAGE, PAGE)]
    tally("full disks, at each page of a checkpoint or shard", len(tried), tried.count(False))
    assert tried == [False] * 13
    assert run.steps() == [1] and not list(run.checkpoints.glob(".*"))
    assert float(load_file(run.latest_checkpoint() / "student.safetensors")["weights"][0]) == 1.0
    assert with_room_for(14 * PAGE, lambda: save(2)) and run.steps() == [2]


def test_at_every_page_of_a_shard(tmp_path, tally):
    made_by = {"teacher": {"name": "none"}, "clip": {"frames": 1, "size": [64, 64], "stride": 1}, "dtype": "fp32"}

    def add(number: int):
        with CacheWriter(tmp_path, made_by, shard_mb=1) as writer:
            value = torch.randn(2, 1, 8, 8)
            clip = ClipSource(f"{number}.mp4", f"{number}" * 64, 0, 1, 1, (64, 64))
            writer.add_all([(clip, value, value.clone(), torch.zeros(1, 64, 64, 3, dtype=torch.uint8))])

    add(1)
    tried = [with_room_for(size, lambda: add(2)) for size in range(0, 4 * PAGE, PAGE)]
    tally("full disks, at each page of a checkpoint or shard", len(tried), tried.count(False))
    assert tried == [False] * 4
    assert len(LatentCache(tmp_path)) == 1
    assert with_room_for(6 * PAGE, lambda: add(2)) and len(LatentCache(tmp_path)) == 2


def test_a_file_that_is_written_whole_keeps_its_predecessor(tmp_path):
    path = tmp_path / "page.html"
    path.write_text("before")
    assert not with_room_for(100, lambda: write_whole(path, lambda temporary: temporary.write_text("x" * 1000)))
    assert path.read_text() == "before" and [item.name for item in tmp_path.iterdir()] == ["page.html"]


COMMANDS = {
    "reconstruct": ("reconstruct", "{video}", "--out", "{out}/a.mp4"),
    "export": ("export", "--format", "onnx", "--frames", "5", "--size", "32", "--out", "{out}/a.onnx"),
    "cache-latents": ("cache-latents", "--teacher", "tiny", "--data", "{videos}", "--frames", "5", "--size", "32", "--out", "{out}/latents"),
    "eval": ("eval", "--data", "{videos}", "--frames", "5", "--size", "32", "--metrics", "psnr", "--report", "{out}/page.html"),
    "bench": ("bench", "--target", "torch", "--frames", "5", "--size", "32", "--repeats", "1", "--warmup", "1", "--report", "{out}/page.html"),
    "distill": ("distill", "--teacher", "tiny", "--data", "{videos}", "--frames", "5", "--size", "32", "--steps", "2", "--run", "{out}/run"),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_says_so_in_one_line_and_succeeds_when_repeated(name, videos, tmp_path, request, tally):
    if name != "reconstruct" and not count_of(request, quick=0, full=1):
        pytest.skip("in full by make faults")
    out = tmp_path / "out"
    words = [word.format(video=videos / "a.mp4", videos=videos, out=out) for word in COMMANDS[name]]
    command = [sys.executable, "-m", "turbovaed_cli", *words]

    def full():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (PAGE, PAGE))

    failed = subprocess.run(command, preexec_fn=full, capture_output=True, text=True, check=False)
    assert failed.returncode == 1, failed.stderr
    lines = failed.stderr.splitlines()
    assert sum(line.startswith("error:") for line in lines) == 1 and any(line.startswith("hint:") for line in lines)
    assert "Traceback" not in failed.stderr
    assert not [path for path in out.rglob("*") if path.is_file() and path.suffix in (".mp4", ".onnx", ".html")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    tally("commands on a full disk", 1, int(done.returncode == 0))
    assert done.returncode == 0, done.stderr
    assert Path(out).exists()
