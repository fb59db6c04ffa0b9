"""Killed anywhere, a distillation resumes to the very bits of one that was never stopped."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from turbovaed_cli.cache_latents import cache_latents
from turbovaed_cli.distill import distill
from turbovaed_cli.errors import CorruptFileError
from turbovaed_cli.registry import find_model
from turbovaed_cli.rundir import RunDir
from turbovaed_cli.settings import CacheSettings, DistillSettings
from turbovaed_cli.training import state as training_state

SETTINGS = DistillSettings(
    steps=6, accumulation=2, frames=9, size=(64, 64), perceptual="none", save_every=1, sample_every=0, lr=1e-2, ema_decay=0.9
)


@pytest.fixture(scope="module")
def cache(ltx_teacher, videos, tmp_path_factory):
    out = tmp_path_factory.mktemp("cache") / "latents"
    cache_latents(find_model(ltx_teacher), videos, out, CacheSettings(frames=9, size=(64, 64)))
    return out


def everything(run: Path, step: int = 6) -> dict[str, torch.Tensor]:
    """Every tensor of the last checkpoint and of model/."""
    found = {}
    for path in [*(run / "checkpoints" / f"step_{step:07d}").glob("*.safetensors"), *(run / "model").glob("*.safetensors")]:
        found |= {f"{path.parent.name}/{path.stem}/{name}": value for name, value in load_file(path).items()}
    return found


def differing(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> list[str]:
    assert a.keys() == b.keys()
    return [name for name in a if not torch.equal(a[name], b[name])]


@pytest.fixture(scope="module")
def uninterrupted(ltx_teacher, cache, small_student, tmp_path_factory):
    run = tmp_path_factory.mktemp("uninterrupted") / "run"
    distill(find_model(ltx_teacher), run, latents=cache, settings=SETTINGS, student_config=small_student)
    return everything(run)


def test_stopping_at_3_and_going_on_to_6_gives_the_weights_of_6_in_one_go(
    ltx_teacher, cache, small_student, uninterrupted, tmp_path
):
    spec = find_model(ltx_teacher)
    distill(spec, tmp_path / "run", latents=cache, settings=replace(SETTINGS, steps=3), student_config=small_student)
    result = distill(spec, tmp_path / "run", latents=cache, settings=SETTINGS, student_config=small_student)
    assert result.resumed_from == 3
    assert differing(everything(tmp_path / "run"), uninterrupted) == []
    steps = [json.loads(line)["step"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("piece", [piece for piece in training_state.PIECES if piece != "scaler"])
def test_leaving_out_any_piece_of_state_is_seen(piece, ltx_teacher, cache, small_student, uninterrupted, tmp_path, monkeypatch):
    """The control of the test above: with one piece not restored the weights must differ (or the steps no longer fit)."""
    spec = find_model(ltx_teacher)
    distill(spec, tmp_path / "run", latents=cache, settings=replace(SETTINGS, steps=3), student_config=small_student)
    monkeypatch.setattr(training_state.TrainingState, f"_{piece}_in", lambda *_: None)
    distill(spec, tmp_path / "run", latents=cache, settings=SETTINGS, student_config=small_student)
    assert differing(everything(tmp_path / "run"), uninterrupted)


def test_the_gradient_scaler_is_part_of_the_state(ltx_teacher, cache, small_student, tmp_path, monkeypatch):
    """In fp16 the first steps overflow and lower the scale; forgetting that would skip other steps after a resume."""
    spec, settings = find_model(ltx_teacher), replace(SETTINGS, dtype="fp16", steps=4)

    def run(name: str, *steps: int) -> dict[str, torch.Tensor]:
        for upto in steps:
            distill(spec, tmp_path / name, latents=cache, settings=replace(settings, steps=upto), student_config=small_student)
        return everything(tmp_path / name, step=4)

    once = run("once", 4)
    assert differing(run("twice", 2, 4), once) == []
    monkeypatch.setattr(training_state.TrainingState, "_scaler_in", lambda *_: None)
    assert differing(run("forgetful", 2, 4), once)


def command(teacher: Path, cache: Path, config: Path, run: Path) -> list[str]:
    return [
        sys.executable, "-c", "from turbovaed_cli.cli import main; main()", "distill", "--teacher", str(teacher), "--latents", str(cache),
        "--run", str(run), "--student-config", str(config), "--steps", "6", "--accumulation", "2", "--frames", "9", "--size", "64",
        "--perceptual", "none", "--save-every", "1", "--sample-every", "0", "--lr", "0.01", "--ema-decay", "0.9",
    ]  # fmt: skip


@pytest.fixture
def shell(ltx_teacher, cache, small_student, tmp_path):
    config = tmp_path / "student.json"
    config.write_text(json.dumps(small_student))
    environment = {**os.environ, "OMP_NUM_THREADS": "2"}

    def start(run: Path) -> subprocess.Popen[str]:
        return subprocess.Popen(
            command(ltx_teacher, cache, config, run), env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    return start


def wait_for(condition, process: subprocess.Popen[str], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.002)


@pytest.mark.slow
def test_killed_again_and_again_it_ends_in_the_same_bits(shell, uninterrupted, tmp_path):
    """Real SIGKILLs: while a checkpoint is half-written, right after one, and between two."""
    run = tmp_path / "run"
    checkpoints = run / "checkpoints"
    moments = (
        lambda: any(checkpoints.glob(".step_0000001.*")) or RunDir(run).steps(),
        lambda: len(RunDir(run).steps()) >= 2 and any(checkpoints.glob(".step_*")),
        lambda: any(step >= 4 for step in RunDir(run).steps()),
    )
    for moment in moments:
        process = shell(run)
        wait_for(moment, process)
        process.send_signal(signal.SIGKILL)
        process.wait()
    process = shell(run)
    _, errors = process.communicate(timeout=200)
    assert process.returncode == 0, errors
    assert "resumed from step" in errors
    assert differing(everything(run), uninterrupted) == []
    assert not list(checkpoints.glob(".*"))


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_polite_signal_ends_at_a_checkpoint_with_its_exit_code(number, code, shell, uninterrupted, tmp_path):
    run = tmp_path / "run"
    process = shell(run)
    wait_for(lambda: RunDir(run).steps(), process)
    process.send_signal(number)
    _, errors = process.communicate(timeout=100)
    assert process.returncode == code, errors
    assert "goes on from there" in errors
    process = shell(run)
    assert process.wait(timeout=200) == 0
    assert differing(everything(run), uninterrupted) == []


@pytest.mark.slow
def test_ctrl_c_reaches_the_whole_group_and_still_ends_at_a_checkpoint(ltx_teacher, videos, small_student, tmp_path):
    """A terminal sends SIGINT to every process of the group: an ffmpeg at work must not look like a damaged video."""
    config, run = tmp_path / "student.json", tmp_path / "run"
    config.write_text(json.dumps(small_student))
    arguments = [word if word != "--latents" else "--data" for word in command(ltx_teacher, videos, config, run)]
    arguments[arguments.index("--steps") + 1] = "500"
    process = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)
    wait_for(lambda: len(RunDir(run).steps()) >= 2, process)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=100)
    assert process.returncode == 130, errors
    assert "goes on from there" in errors and "warning" not in errors


def test_a_damaged_checkpoint_is_named_not_used(ltx_teacher, cache, small_student, tmp_path):
    spec = find_model(ltx_teacher)
    distill(spec, tmp_path / "run", latents=cache, settings=replace(SETTINGS, steps=2), student_config=small_student)
    damaged = tmp_path / "run" / "checkpoints" / "step_0000002" / "ema.safetensors"
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 1
    damaged.write_bytes(content)
    with pytest.raises(CorruptFileError, match=r"step_0000002.ema\.safetensors"):
        distill(spec, tmp_path / "run", latents=cache, settings=SETTINGS, student_config=small_student)
