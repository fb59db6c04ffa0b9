"""What `--log` writes beside metrics.jsonl, read back with the trackers' own readers; and what is said of a batch that does not come."""

import json
import re
import threading
from dataclasses import replace

import pytest
from limits import HANG_S
from test_resume import StopsAfter

from turbovaed_cli.errors import MissingError, SettingsError
from turbovaed_cli.latents.cache import LatentCache
from turbovaed_cli.registry.find import find_model
from turbovaed_cli.settings import DistillSettings
from turbovaed_cli.training import trackers
from turbovaed_cli.training.distill import distill
from turbovaed_cli.training.recipes import RECIPES


@pytest.fixture(scope="module")
def settings() -> DistillSettings:
    quick = RECIPES["quick"].with_changes(steps=5, dtype="fp32", perceptual="none", start="plain", frames=9, size=(64, 64))
    return replace(quick, save_every=2, sample_every=0)


@pytest.fixture
def teach(ltx_teacher, cache, small_student, tmp_path, capfd):
    def teach(settings: DistillSettings, **more):
        arguments = {"latents": cache, "settings": settings, "student_config": small_student}
        try:
            return distill(find_model(ltx_teacher), tmp_path / "run", **arguments, **more)
        finally:
            assert capfd.readouterr().out == ""  # which is for results

    return teach


def metrics(run) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def stop_and_go_on(teach, settings: DistillSettings) -> list[dict]:
    """A run that is thrown out at step 3, resumed at 2; its metrics."""
    with pytest.raises(StopsAfter.Stopped):
        teach(settings, report=StopsAfter(3))
    result = teach(settings)
    assert result.resumed_from == 2
    rows = metrics(result.run)
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5]
    assert all(row["clips_per_s"] > 0 and row["grad_norm"] > 0 and row["data_seconds"] >= 0 and "peak_mb" in row for row in rows)
    return rows


def test_tensorboard_has_every_number_of_every_step_once(teach, settings, tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    rows = stop_and_go_on(teach, replace(settings, log=("tensorboard",)))
    events = accumulator.EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    for name in ("loss", "l1", "grad_norm", "lr", "clips_per_s", "data_seconds", "peak_mb"):
        found = [(event.step, event.value) for event in events.Scalars(name)]
        assert found == [(row["step"], pytest.approx(row[name])) for row in rows], name
    settings_seen = next((tmp_path / "run" / "tensorboard").glob("*/hparams.yml")).read_text()
    assert "settings.stages.1.batch_size: 2" in settings_seen


def test_wandb_keeps_a_run_in_its_folder_without_a_network(wandb, teach, settings, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    rows = stop_and_go_on(teach, replace(settings, log=("wandb",)))
    files = sorted((tmp_path / "run" / "wandb").glob("offline-run-*/run-*.wandb"))
    assert len(files) == 2 and len({file.name for file in files}) == 1  # one run, gone on with
    found = [row for file in files for row in history(file)]
    assert {row["_step"]: float(row["loss"]) for row in found} == {row["step"]: pytest.approx(row["loss"]) for row in rows}


def history(path) -> list[dict]:
    """The logged steps in one of wandb's files: LevelDB's log format behind seven bytes of header."""
    from wandb.proto import wandb_internal_pb2

    content, at, data, rows = path.read_bytes(), 7, b"", []
    while at + 7 <= len(content):
        if 32768 - at % 32768 < 7:  # a record's header is not split over blocks
            at += 32768 - at % 32768
            continue
        length, kind = int.from_bytes(content[at + 4 : at + 6], "little"), content[at + 6]
        data += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            record = wandb_internal_pb2.Record.FromString(data)
            data = b""
            if record.HasField("history"):
                items = {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
                rows.append({"_step": record.history.step.num} | items)
    return rows


@pytest.fixture
def wandb():
    wandb = pytest.importorskip("wandb")
    yield wandb
    wandb.teardown()  # it keeps the environment it first saw


def test_trackio_keeps_every_step_on_this_machine(teach, settings, tmp_path, monkeypatch):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    pytest.importorskip("trackio", reason="trackio is not here: it needs a newer typing_extensions than litert allows")
    rows = stop_and_go_on(teach, replace(settings, log=("trackio",)))
    from trackio.sqlite_storage import SQLiteStorage

    (name,) = SQLiteStorage.get_runs(trackers.PROJECT)
    found = {row["step"]: row["loss"] for row in SQLiteStorage.get_logs(trackers.PROJECT, name)}
    assert found == {row["step"]: pytest.approx(row["loss"]) for row in rows}


def test_a_tracker_that_is_missing_or_unknown_is_said_before_anything_is_written(teach, settings, tmp_path, monkeypatch):
    monkeypatch.setattr(trackers, "find_spec", lambda name: None)
    with pytest.raises(MissingError, match="wandb, which is not installed") as missing:
        teach(replace(settings, log=("wandb",)))
    assert missing.value.exit_code == 3 and "pip install" in missing.value.hint
    with pytest.raises(SettingsError, match="`log` mlflow is unknown"):
        teach(replace(settings, log=("mlflow",)))
    assert not (tmp_path / "run").exists()


def test_a_service_that_does_not_answer_is_an_error_with_the_way_round(wandb, teach, settings, monkeypatch, tmp_path):
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")  # nobody is there
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setattr(trackers, "_PATIENCE_S", 3)
    given, settings_class = [], wandb.Settings
    monkeypatch.setattr(wandb, "Settings", lambda **options: given.append(options["init_timeout"]) or settings_class(**options))
    with pytest.raises(MissingError, match="`log` wandb does not start") as refused:
        teach(replace(settings, log=("wandb",)))
    assert "WANDB_MODE=offline" in refused.value.hint
    assert given == [3]  # seconds that it may take, instead of wandb's own 90


def test_a_batch_that_does_not_come_is_named_and_the_run_goes_on_when_it_comes(teach, settings, cache, tmp_path, monkeypatch):
    read, slow, named_twice = LatentCache.read, {"index": 2}, threading.Event()

    def read_slowly(self, index, place=None):
        if index == slow.get("index"):
            del slow["index"]
            assert named_twice.wait(HANG_S)
        return read(self, index, place)

    class Listens:
        def __init__(self):
            self.warnings = []

        def track(self, items, label, total=None, start=0):
            yield from items

        def note(self, text="", *, warning=False, **values):
            if warning:
                self.warnings.append(text)
                if len([text for text in self.warnings if name in text]) == 2:
                    named_twice.set()

    clip = LatentCache(cache).clips[2]
    name = f"{clip['path']} from frame {clip['start']}"
    monkeypatch.setattr(LatentCache, "read", read_slowly)
    result = teach(replace(settings, stall_seconds=0.2, workers=0), report=(listens := Listens()))
    assert result.step == 5 and len([text for text in listens.warnings if name in text]) >= 2
    stalls = [text for text in listens.warnings if "its teacher's decoder" not in text]
    assert all(re.match(r"no batch for \d+ s; being read: ", text) for text in stalls)
    assert (tmp_path / "run" / "train.log").read_text().count("warning: no batch for") == len(stalls)
