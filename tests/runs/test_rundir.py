"""Files of ours are whole or absent, and a run folder knows itself again."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from turbovaed_cli.errors import CorruptFileError, OutputExistsError, RunFolderError, UnwritableError
from turbovaed_cli.files.changes import Change
from turbovaed_cli.files.places import check_place
from turbovaed_cli.files.sealed import read_json, verify_manifest
from turbovaed_cli.files.whole import whole_files, whole_folder, write_json, write_whole
from turbovaed_cli.runs.rundir import RunDir

LONGEST = [
    "a" * 250 + ".json",
    "ü" * 125 + ".json",
    "." + "b" * 254,
    "c." + "d" * 253,
]


@pytest.mark.parametrize("name", LONGEST)
def test_the_longest_names_that_the_file_system_takes_are_written(name, tmp_path):
    assert len(os.fsencode(name)) == 255
    write_whole(tmp_path / name, lambda temporary: temporary.write_text("1"))
    write_whole(tmp_path / name, lambda temporary: temporary.write_text("2"))
    assert [(item.name, item.read_text()) for item in tmp_path.iterdir()] == [(name, "2")]
    (tmp_path / name).unlink()
    for overwrite in (False, True):
        with whole_folder(tmp_path / name, overwrite=overwrite) as folder:
            (folder / "x").write_text("1")
    assert [item.name for item in tmp_path.iterdir()] == [name]


def test_the_longest_name_changes_places_without_a_step_of_its_own(tmp_path, monkeypatch):
    """As on systems that cannot exchange two names."""
    monkeypatch.setattr("turbovaed_cli.files.whole._exchange", lambda _a, _b: False)
    for text in ("1", "2"):
        with whole_folder(tmp_path / ("a" * 255), overwrite=True) as folder:
            (folder / "x").write_text(text)
    assert [item.name for item in tmp_path.iterdir()] == ["a" * 255]
    assert (tmp_path / ("a" * 255) / "x").read_text() == "2"


def test_a_place_is_tried_and_nothing_is_left_there(tmp_path):
    (tmp_path / "file").touch()
    for place in (tmp_path / "new", tmp_path / "file", tmp_path / "not" / "yet" / "there"):
        check_place(place)
    check_place(tmp_path, folder=True)
    check_place(tmp_path / "new" / "folder", folder=True)
    assert [item.name for item in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(
    ("place", "folder", "said"),
    [
        ("file/x", False, "is a file"),
        ("file/x/y", True, "is a file"),
        ("file", True, "it is a file, and `out` is a folder"),
        (".", False, "it is a folder"),
        ("/proc/x", False, "no file can be made there"),
        (os.devnull, False, "it is no regular file"),
        ("a" * 256, False, "its name is too long"),
        ("a" * 250, False, "its name has 260 bytes"),
        ("new/" + "a" * 256, True, "its name"),
    ],
)
def test_a_place_that_cannot_be_written_is_refused(place, folder, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(UnwritableError, match=said) as refused:
        check_place(Path(place), folder=folder, longest_suffix=".README.md" if len(place) == 250 else "")
    assert refused.value.hint.startswith("give ") and refused.value.exit_code == 2


def test_what_the_system_refuses_later_is_named_in_the_same_words(tmp_path):
    (tmp_path / "file").touch()
    for write in (
        lambda: write_whole(tmp_path / "file" / "x", lambda temporary: temporary.touch()),
        lambda: whole_folder(tmp_path / "file" / "x").__enter__(),
        lambda: RunDir(tmp_path / "file" / "x").lock().__enter__(),
    ):
        with pytest.raises(UnwritableError, match="a part of its path is a file"):
            write()


def test_what_cannot_be_read_meanwhile_is_not_blamed_on_the_place(tmp_path):
    def copies(_temporary):
        raise PermissionError(13, "Permission denied", "/elsewhere/source.bin")

    with pytest.raises(PermissionError, match=r"source\.bin"):
        write_whole(tmp_path / "x", copies)


def test_a_file_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "a.txt"

    def fails(temporary):
        temporary.write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_whole(path, fails)
    assert list(tmp_path.iterdir()) == []
    write_whole(path, lambda temporary: temporary.write_text("one"))
    with pytest.raises(OSError, match="disk full"):
        write_whole(path, fails)
    assert path.read_text() == "one"
    assert oct(path.stat().st_mode & 0o777) == "0o644"


def test_a_folder_appears_whole_and_an_old_one_stays_until_then(tmp_path):
    path = tmp_path / "folder"
    with whole_folder(path) as folder:
        (folder / "a").write_text("1")
        assert not path.exists()
    with pytest.raises(ZeroDivisionError), whole_folder(path, overwrite=True) as folder:
        (folder / "a").write_text("2")
        raise ZeroDivisionError
    assert (path / "a").read_text() == "1"
    with whole_folder(path, overwrite=True) as folder:
        (folder / "b").write_text("3")
    assert [item.name for item in path.iterdir()] == ["b"]
    with pytest.raises(OutputExistsError), whole_folder(path):
        pass
    assert [item.name for item in tmp_path.iterdir()] == ["folder"]


def test_old_checkpoints_go_once_a_newer_is_safe(tmp_path):
    run = RunDir(tmp_path)
    for step in range(1, 6):
        run.save_checkpoint(step, lambda folder, step=step: (folder / "x.bin").write_text(str(step)), keep=2)
    assert run.steps() == [4, 5]
    assert (run.latest_checkpoint() / "x.bin").read_text() == "5"


def test_a_checkpoint_without_manifest_does_not_count(tmp_path):
    run = RunDir(tmp_path)
    run.save_checkpoint(1, lambda folder: (folder / "x.bin").write_text("1"), keep=2)
    run.checkpoint_path(2).mkdir()
    assert run.steps() == [1]


def test_a_changed_or_missing_file_is_named(tmp_path):
    run = RunDir(tmp_path)
    path = run.save_checkpoint(1, lambda folder: [(folder / name).write_text("1") for name in ("x", "y")], keep=2)
    verify_manifest(path)
    (path / "x").write_text("2")
    with pytest.raises(CorruptFileError, match=r"step_0000001.x is not"):
        verify_manifest(path)
    (path / "x").unlink()
    with pytest.raises(CorruptFileError, match="misses x"):
        run.latest_checkpoint()


def test_a_lock_is_held_by_one_and_left_by_the_dead(tmp_path):
    script = f"""
import time
from pathlib import Path
from turbovaed_cli.runs.rundir import RunDir
with RunDir(Path({str(tmp_path)!r})).lock():
    print("held", flush=True)
    time.sleep(60)
"""
    holder = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(RunFolderError, match=f"process {holder.pid}"), RunDir(tmp_path).lock():
        pass
    holder.kill()
    holder.wait()
    holder.stdout.close()
    with RunDir(tmp_path).lock():
        assert (tmp_path / "lock").read_text().startswith(f"process {os.getpid()} on {socket.gethostname()}, since 20")


def test_a_folder_with_other_things_is_not_taken_over(tmp_path):
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(RunFolderError, match=r"thesis\.tex"):
        RunDir(tmp_path).changes({"settings": {}}, frozenset())


def test_what_may_differ_may_and_is_recorded(tmp_path):
    run, steps = RunDir(tmp_path), frozenset({"steps"})
    assert run.changes({"settings": {"steps": 1, "lr": 2}}, steps) == []
    assert run.snapshot({"settings": {"steps": 1, "lr": 2}}, {}) is False
    assert run.changes({"settings": {"steps": 5, "lr": 2}}, steps) == []
    assert run.snapshot({"settings": {"steps": 5, "lr": 2}}, {}) is True
    assert read_json(run.config)["settings"]["steps"] == 5
    assert run.changes({"settings": {"steps": 5, "lr": 3}}, steps) == [Change("settings.lr", 2, 3)]
    assert read_json(run.config)["settings"]["lr"] == 2


def test_a_switch_that_is_off_is_no_change_where_the_run_is_older_than_the_switch(tmp_path):
    run, nothing = RunDir(tmp_path / "run"), frozenset()
    run.root.mkdir()
    run.snapshot({"settings": {"lr": 1, "stages": [{"steps": 3}]}}, {})
    newer = {"settings": {"lr": 1, "compile": False, "stages": [{"steps": 3, "saving": False}]}}
    assert run.changes(newer, nothing) == []
    run.snapshot(newer, {})
    assert run.changes({"settings": {"lr": 1, "stages": [{"steps": 3}]}}, frozenset({"compile", "saving"})) == []
    turned_on = {"settings": {"lr": 1, "compile": True, "stages": [{"steps": 3, "saving": False}]}}
    assert run.changes(turned_on, nothing) == [Change("settings.compile", False, True)]


def test_leftovers_of_a_killed_process_are_cleaned(tmp_path):
    run = RunDir(tmp_path)
    for name in ("checkpoints/.step_0000001.xyz", "checkpoints/.step_0000002.old", ".model.abc", ".git"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / ".config.json.tmp").touch()
    (tmp_path / ".env").touch()
    run.clean_leftovers()
    assert sorted(item.name for item in tmp_path.rglob("*")) == [".env", ".git", "checkpoints"]


def test_a_run_killed_before_its_config_was_written_starts_again(tmp_path):
    run = RunDir(tmp_path)
    write_json(run.env, {})
    (tmp_path / ".config.json.xyz.json").touch()
    assert run.changes({"settings": {}}, frozenset()) == [] and run.snapshot({"settings": {}}, {}) is False


def test_json_that_is_none_is_a_corrupt_file(tmp_path):
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(CorruptFileError, match=r"a\.json"):
        read_json(tmp_path / "a.json")
    write_json(tmp_path / "b.json", {"ä": 1})
    assert read_json(tmp_path / "b.json") == {"ä": 1}


def test_what_a_killed_write_left_is_not_taken_for_a_file_of_ours(tmp_path):
    """Its name ends as the file's own would; evaluations and shards are found by that end."""
    write_json(tmp_path / "b.json", {})
    write_json(tmp_path / "a.json", {})
    (tmp_path / ".a.json.x7yz.json").write_text('{"torn": ')
    assert [path.name for path in whole_files(tmp_path, "*.json")] == ["a.json", "b.json"]
    assert whole_files(tmp_path / "nowhere", "*.json") == []
