"""`turbovaed runs` tells what became of every run: also of one that was killed, one at work, and one that is broken."""

import json
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
from limits import HANG_S

from turbovaed_cli import cli
from turbovaed_cli.errors import RunFolderError, SettingsError
from turbovaed_cli.files.whole import write_json
from turbovaed_cli.registry.find import find_model
from turbovaed_cli.runs.listing import list_runs
from turbovaed_cli.runs.rundir import RunDir
from turbovaed_cli.settings import DistillSettings, Stage
from turbovaed_cli.training.distill import distill

SETTINGS = DistillSettings(
    (Stage("only", steps=4, accumulation=1, perceptual="none"),), frames=9, size=(64, 64), save_every=2, sample_every=0, workers=1
)


@pytest.fixture(scope="module")
def finished(ltx_teacher, cache, small_student, tmp_path_factory):
    """A run of four steps, done."""
    folder = tmp_path_factory.mktemp("finished") / "done"
    distill(find_model(ltx_teacher), folder, latents=cache, settings=SETTINGS, student_config=small_student)
    return folder


@pytest.fixture
def endless(ltx_teacher, cache, small_student, tmp_path):
    """Start a real run with a checkpoint every second step and no end in sight, in a process of its own."""
    config = tmp_path / "student.json"
    config.write_text(json.dumps(small_student))
    started = []

    def start(folder):
        arguments = [
            "distill", "--teacher", ltx_teacher, "--latents", cache, "--run", folder, "--student-config", config,
            "--accumulation", "1", "--perceptual", "none", "--sample-every", "0", "--save-every", "5", "--steps", "100000",
        ]  # fmt: skip
        command = [sys.executable, "-m", "turbovaed_cli", *map(str, arguments)]
        started.append(subprocess.Popen(command, stderr=subprocess.DEVNULL))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()


def only(folder):
    (run,) = list_runs(folder)
    return run


def wait_for(condition):
    deadline = time.monotonic() + HANG_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_finished_run_shows_its_steps_and_lowest_l1(finished):
    run = only(finished.parent)
    losses = [row["l1"] for row in RunDir(finished).read_metrics()]
    assert (run.name, run.status, run.step, run.steps) == ("done", "finished", 4, 4)
    assert (run.metric, run.best) == ("l1", min(losses))
    assert 0 <= run.age_s < 600
    assert only(finished) == replace(run, path=finished, age_s=pytest.approx(run.age_s, abs=60))


def test_the_best_psnr_of_its_evaluations_goes_before_the_loss(finished, tmp_path):
    folder = tmp_path / "runs" / "run"
    shutil.copytree(finished, folder)
    for name, protocol, psnr in (("a", "standard", 27.5), ("b", "standard", 28.25), ("c", "paper", 164.5)):
        write_json(folder / "eval" / f"{name}.json", {"protocol": protocol, "means": {"student": {"psnr": psnr}}})
    run = only(folder.parent)
    assert (run.metric, run.best) == ("psnr", 28.25)


@pytest.mark.slow
def test_a_run_at_work_is_running_and_a_killed_one_is_not(endless, tmp_path):
    folder = tmp_path / "runs" / "long"
    process = endless(folder)
    wait_for(lambda: RunDir(folder).steps())
    run = only(folder.parent)
    assert run.status == "running" and f"process {process.pid}" in run.reason
    assert run.step >= 5 and run.steps == 100_000
    with pytest.raises(RunFolderError, match="in use"), RunDir(folder).lock():
        pass  # a look did not take the lock from it
    process.send_signal(signal.SIGKILL)
    process.wait()
    run = only(folder.parent)
    logged = RunDir(folder).read_metrics()[-1]["step"]
    assert run.status == ("stopped" if logged == run.step else "unfinished")
    assert run.step == RunDir(folder).steps()[-1]


def test_a_stopped_run_lost_nothing_and_an_unfinished_one_says_what(finished, tmp_path):
    folder = tmp_path / "runs" / "run"
    shutil.copytree(finished, folder)
    shutil.rmtree(folder / "model")
    assert only(folder.parent).status == "unfinished" and "model/" in only(folder.parent).reason

    shutil.rmtree(folder / "checkpoints" / "step_0000004")
    run = only(folder.parent)
    assert (run.status, run.step) == ("unfinished", 2) and "steps 3 to 4" in run.reason

    lines = (folder / "metrics.jsonl").read_text().splitlines()
    (folder / "metrics.jsonl").write_text("\n".join(lines[:2]) + '\n{"step": 3, "lo')
    assert only(folder.parent).status == "stopped"

    shutil.rmtree(folder / "checkpoints")
    assert only(folder.parent).status == "unfinished" and only(folder.parent).step == 0


def test_a_look_leaves_the_lock_free_and_writes_nothing(finished):
    before = sorted((path, path.stat().st_mtime_ns) for path in finished.rglob("*"))
    list_runs(finished.parent)
    assert sorted((path, path.stat().st_mtime_ns) for path in finished.rglob("*")) == before
    with RunDir(finished).lock():
        assert only(finished.parent).status == "running"
    assert only(finished.parent).status == "finished"


def test_stages_add_up_and_the_lowest_l1_of_all_counts(finished, tmp_path):
    folder = tmp_path / "runs" / "run"
    shutil.copytree(finished, folder)
    config = json.loads((folder / "config.json").read_text())
    config["settings"]["stages"] = [{"name": "align", "steps": 3}, {"name": "large", "steps": 7}]
    write_json(folder / "config.json", config)
    rows = [
        {"step": i, "stage": "align" if i < 4 else "large", "loss": -i, "l1": l1} for i, l1 in enumerate((3, 1, 2, 9.5), start=1)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = only(folder.parent)
    assert (run.steps, run.stage, run.best, run.status) == (10, "large", 1, "stopped")


def test_broken_runs_are_listed_with_a_reason_and_other_folders_are_not(finished, tmp_path):
    folder = tmp_path / "runs"
    shutil.copytree(finished, folder / "good")
    for name, config in (("torn", '{"schema_version": 1, "settings": {"st'), ("other", '{"schema_version": 1, "settings": {}}')):
        shutil.copytree(finished, folder / name)
        (folder / name / "config.json").write_text(config)
    shutil.copytree(finished, folder / "headless")
    (folder / "headless" / "config.json").unlink()
    (folder / "notes").mkdir()
    shutil.copytree(finished / "model", folder / "a saved model")
    found = {run.name: run for run in list_runs(folder)}
    assert {name: run.status for name, run in found.items()} == {
        "good": "finished", "torn": "broken", "other": "broken", "headless": "broken",
    }  # fmt: skip
    assert "not JSON" in found["torn"].reason and "missing" in found["headless"].reason and "steps" in found["other"].reason


def test_the_table_fits_80_columns_and_json_has_everything(finished, tmp_path, capsys, monkeypatch):
    shutil.copytree(finished, tmp_path / "runs" / "good")
    shutil.copytree(finished, tmp_path / "runs" / "bad")
    (tmp_path / "runs" / "bad" / "config.json").write_text("{")

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["turbovaed", "runs", *arguments])
        with pytest.raises(SystemExit) as end:
            cli.main()
        return end.value.code, *capsys.readouterr()

    monkeypatch.chdir(tmp_path)
    code, out, err = run()
    assert code == 0 and "Traceback" not in err
    assert max(map(len, map(str.rstrip, out.splitlines()))) <= 80
    assert "4/4" in out and "finished" in out and "L1 " in out
    assert "bad: " in err and "not JSON" in err
    code, out, _ = run("--json")
    document = json.loads(out)
    assert document["schema_version"] == 1 and {item["status"] for item in document["runs"]} == {"finished", "broken"}
    code, out, err = run("nowhere")
    assert code == 2 and "hint: " in err and out == ""


def test_an_empty_folder_has_no_runs(tmp_path):
    assert list_runs(tmp_path) == []
    with pytest.raises(SettingsError, match="nowhere"):
        list_runs(tmp_path / "nowhere")
