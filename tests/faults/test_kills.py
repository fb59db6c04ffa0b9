"""Whatever kills a process, what it had committed is there afterwards, and what it goes on to make are the same bits."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from faulty import count_of, dies_at_every_operation
from safetensors.torch import load_file, save_file
from test_resume import RECIPE

from turbovaed_cli.files.sealed import write_manifest
from turbovaed_cli.files.whole import whole_folder
from turbovaed_cli.latents.cache import ClipSource, LatentCache
from turbovaed_cli.latents.writer import CacheWriter
from turbovaed_cli.runs.rundir import RunDir

pytestmark = [pytest.mark.faults, pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")]


@pytest.fixture(scope="module")
def work(ltx_teacher, cache, small_student, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("kills")
    shutil.copytree(ltx_teacher, folder / "teacher")
    shutil.copytree(cache, folder / "latents")
    (folder / "student.json").write_text(json.dumps(small_student))
    (folder / "recipe.toml").write_text(RECIPE)
    return folder


def kill_at_random(work, request, count: int, *more: object) -> Counter[str]:
    """What random_kills.py counts, in two processes where there are enough to try; the second one's seed is a thousand on."""
    script, seed = Path(__file__).with_name("random_kills.py"), request.config.getoption("--fault-seed")
    shares = {seed: count - count // 2, seed + 1000: count // 2} if count > 20 else {seed: count}
    one = os.environ | {"OMP_NUM_THREADS": "1"}
    children = [
        subprocess.Popen(
            [sys.executable, *map(str, (script, "--work", work, "--kills", share, "--seed", its_seed, *more))],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=one,
        )
        for its_seed, share in shares.items()
    ]  # fmt: skip
    counts: Counter[str] = Counter()
    for child in children:
        out, said = child.communicate()
        assert child.returncode in (0, 1) and out, said
        if child.returncode:
            print(out, said)
        counts.update(json.loads(out.splitlines()[-1]))
    assert counts["kills"] == count and counts["runs"] >= len(shares)
    return counts


def test_a_distillation_killed_at_random_moments_loses_nothing_and_ends_in_the_same_bits(work, request, tally):
    """Three stages, the last one adversarial, with accumulation and an average of weights."""
    counts = kill_at_random(work, request, count_of(request, quick=3, full=500))
    tally("random kills of a distillation", counts["kills"], counts["kills"] - counts["lost"] - counts["unreadable"])
    tally("killed distillations that ended in the same bits", counts["runs"], counts["runs"] - counts["differing"])
    assert not any(counts[name] for name in ("lost", "unreadable", "differing", "wrong_exits")), counts


def test_polite_signals_at_random_moments_end_it_soon_and_leave_nothing_behind(work, videos, request, tally):
    """SIGTERM and SIGINT in turn, while ffmpeg reads videos: their exit codes within two seconds and a step."""
    count = count_of(request, quick=2, full=50)
    counts = kill_at_random(work, request, count, "--signals", "TERM", "INT", "--data", videos)
    bad = sum(counts[name] for name in ("lost", "unreadable", "differing", "wrong_exits", "slow_exits", "left_behind"))
    tally("SIGTERM and SIGINT at random moments", count, count - min(bad, count))
    assert bad == 0, counts


def tensors(step: int) -> dict[str, torch.Tensor]:
    return {"weights": torch.full((64,), float(step)), "average": torch.full((64,), step / 2)}


def save(step: int, keep: int):
    def write(folder: Path) -> None:
        for name, value in tensors(step).items():
            save_file({name: value}, folder / f"{name}.safetensors")

    return lambda root: RunDir(root).save_checkpoint(step, write, keep)


def newest(root: Path) -> int | None:
    """What a run that starts again finds, read whole."""
    run = RunDir(root)
    run.clean_leftovers()
    path = run.latest_checkpoint()
    if path is None:
        return None
    step = int(path.name.removeprefix("step_"))
    for name, value in tensors(step).items():
        assert torch.equal(load_file(path / f"{name}.safetensors")[name], value)
    assert not list(run.checkpoints.glob(".*"))
    return step


@pytest.mark.parametrize("keep", [1, 2])
def test_killed_at_any_operation_of_a_save_or_its_clean_up_a_run_recovers(keep, tmp_path, tally):
    """Killed before each write, fsync, rename and removal in turn: the checkpoint before is there, or the new one."""
    found = []
    for root in dies_at_every_operation(tmp_path, before=[save(1, keep), save(2, keep)], act=save(3, keep)):
        step = newest(root)
        found.append(step)
        save(3, keep)(root)  # and the same save then succeeds
        assert newest(root) == 3
    tally("kills at each operation of a save", len(found), sum(step in (2, 3) for step in found))
    assert set(found) == {2, 3} and found == sorted(found) and len(found) > 20


def test_a_checkpoint_that_takes_the_place_of_its_namesake_is_never_missing(tmp_path, tally):
    found = [newest(root) for root in dies_at_every_operation(tmp_path, before=[save(1, 2), save(2, 2)], act=save(2, 2))]
    tally("kills at each operation of a save", len(found), found.count(2))
    assert set(found) == {2} and len(found) > 20


@pytest.mark.parametrize("in_one_step", [True, False])
def test_a_model_that_is_replaced_is_the_old_one_or_the_new_one(in_one_step, tmp_path, monkeypatch, tally):
    """Also where the file system cannot let two names change places, and there is a moment with neither."""
    if not in_one_step:
        monkeypatch.setattr("turbovaed_cli.files.whole._exchange", lambda *_: False)

    def model(value: int):
        def write(root: Path) -> None:
            with whole_folder(RunDir(root).model, overwrite=True) as folder:
                save_file({"weights": torch.full((8,), float(value))}, folder / "weights.safetensors")
                write_manifest(folder)

        return write

    found = []
    for root in dies_at_every_operation(tmp_path, before=[model(1)], act=model(2)):
        RunDir(root).clean_leftovers()
        found.append(int(load_file(RunDir(root).model / "weights.safetensors")["weights"][0]))
        assert [item.name for item in root.iterdir()] == ["model"]
    tally("kills at each operation of a model's replacement", len(found), sum(value in (1, 2) for value in found))
    assert set(found) == {1, 2} and found == sorted(found)


def test_killed_at_any_operation_of_a_shard_a_cache_holds_what_was_committed_before(tmp_path, tally):
    made_by = {"teacher": {"name": "none"}, "clip": {"frames": 1, "size": [8, 8], "stride": 1}, "dtype": "fp32"}

    def add(number: int):
        def act(root: Path) -> None:
            with CacheWriter(root, made_by, shard_mb=1) as writer:
                clip = ClipSource(f"{number}.mp4", f"{number}" * 64, 0, 1, 1, (8, 8))
                value = torch.full((2, 1, 1, 1), float(number))
                writer.add_all([(clip, value, value.clone(), torch.zeros(1, 8, 8, 3, dtype=torch.uint8))])

        return act

    counts = []
    for root in dies_at_every_operation(tmp_path, before=[add(1)], act=add(2)):
        cache = LatentCache(root)
        values = {float(cache.read(index)[0].flatten()[0]) for index in range(len(cache))}
        assert 1.0 in values and values <= {1.0, 2.0}
        counts.append(len(values))
        add(2)(root)
        assert len(LatentCache(root)) == 2
    tally("kills at each operation of a shard", len(counts), sum(count in (1, 2) for count in counts))
    assert set(counts) == {1, 2} and counts == sorted(counts)


def test_a_lock_says_since_when_and_dies_with_its_process(tmp_path):
    child = os.fork()
    if child == 0:
        with RunDir(tmp_path).lock():
            (tmp_path / "held").touch()
            signal.pause()
    while not (tmp_path / "held").exists():
        pass
    with (
        pytest.raises(Exception, match=rf"in use by process {child} on \S+, since \d{{4}}-\d\d-\d\d \d\d:\d\d:\d\d") as error,
        RunDir(tmp_path).lock(),
    ):
        pass
    assert error.value.exit_code == 2
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    with RunDir(tmp_path).lock():
        pass
