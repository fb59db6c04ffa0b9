"""A run folder: its paths, settings, checkpoints, metrics and lock."""

import json
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from turbovaed_cli.errors import (
    CorruptFileError,
    RunFolderError,
)
from turbovaed_cli.files.changes import Change, differences
from turbovaed_cli.files.documents import check_fields, fits, parse_json, read_text
from turbovaed_cli.files.locks import hold_lock, lock_holder
from turbovaed_cli.files.remote import Mirror, is_for_others, is_url
from turbovaed_cli.files.sealed import read_json, verify_manifest, write_manifest
from turbovaed_cli.files.whole import remove_folder, whole_folder, write_json

RUN_VERSION = 1  # of config.json
_MOST_NUMBERS = 8  # that describe the data of a step: clips, frames, height, width
# The names of incomplete files and folders of write_whole, whole_folder and remove_folder.
_LEFTOVER = re.compile(r"\.(config\.json|env\.json|metrics\.jsonl|report\.html|model|step_\d{7}(\.png)?)\.")


class RunDir:
    """The folder of one distillation: every path in it, its settings snapshot, checkpoints, metrics and lock."""

    def __init__(self, root: Path, publish: Callable[[], None] = lambda: None) -> None:
        """Take the paths below `root`. `publish` is called whenever a file is complete; for a run at a URL it uploads changes."""
        self.root, self.publish = root, publish
        self.config = root / "config.json"
        self.env = root / "env.json"
        self.metrics = root / "metrics.jsonl"
        self.log = root / "train.log"
        self.checkpoints = root / "checkpoints"
        self.samples = root / "samples"
        self.eval = root / "eval"
        self.testcards = self.eval / "testcard"
        self.model = root / "model"
        self.report = root / "report.html"

    @staticmethod
    def is_run(path: Path) -> bool:
        """Whether `path` looks like a run folder: our config.json with a schema version, not a diffusers one."""
        config = path / "config.json"
        if not config.is_file():
            return False
        try:
            value = parse_json(read_text(config))
        except ValueError:
            return False
        return isinstance(value, dict) and "schema_version" in value and "settings" in value

    def read_config(self) -> dict[str, Any]:
        """Return the settings snapshot. Raises CorruptFileError naming a field of another type than `distill` writes."""
        config = read_json(self.config)
        check_fields(config, {"settings": dict[str, Any]}, self.config)
        settings = config["settings"]
        known: dict[str, Any] = {"stages": list[Any] | None, "dtype": str | None, "steps": int | None, "hours": float | None}
        check_fields(settings, known, self.config, "settings.")
        for number, stage in enumerate(settings.get("stages") or (), start=1):
            known = {"steps": int, "perceptual": str | None, "batch_size": int | None, "accumulation": int | None}
            check_fields(stage, known, self.config, f"settings.stages.{number}.")
        if not settings.get("stages"):  # of an earlier turbovaed
            check_fields(settings, {"steps": int}, self.config, "settings.")
        return config

    def changes(self, config: Mapping[str, Any], may_differ: frozenset[str]) -> list[Change]:
        """Return the forbidden differences between this run and `config`; empty if there is no run yet. Writes nothing.

        `may_differ` holds names of fields that are allowed to differ, dotted for one place, plain for every place. Raises
        RunFolderError if the folder holds other files and no run.
        """
        if not self.config.exists():
            items = [item.name for item in self.root.iterdir()] if self.root.exists() else []
            foreign = sorted(name for name in items if name not in ("lock", self.env.name) and not _LEFTOVER.match(name))
            if foreign:
                raise RunFolderError(
                    f"{self.root} holds other things ({foreign[0]}) and no run", "give a new or empty folder as `run`"
                )
            return []
        found = differences(self.read_config(), _as_written(config))
        return [change for change in found if not {change.name, change.field} & may_differ]

    def snapshot(self, config: Mapping[str, Any], env: Mapping[str, Any]) -> bool:
        """Write config.json, and for a new run env.json; returns whether the run existed. Call it only if `changes` is empty."""
        config = _as_written(config)
        was_there = self.config.exists()
        if not was_there:
            write_json(self.env, env)
        if not was_there or self.read_config() != config:
            write_json(self.config, config)
        return was_there

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the run folder's lock; raises RunFolderError naming the process that holds it. A dead process leaves no lock."""
        with hold_lock(self.root / "lock") as other:
            if other:
                raise RunFolderError(f"{self.root} is in use by {other}", "wait for it, or give another `run`")
            yield

    def holder(self) -> str | None:
        """Return who holds the run folder's lock ("process 4711 on host, since ..."), None if it is free; changes nothing."""
        return lock_holder(self.root / "lock")

    def read_metrics(self) -> list[dict[str, Any]]:
        """Return every logged step, ascending; the torn last line of a killed run is left out."""
        rows = [row for line in self.metrics_lines() if (row := metrics_row(line)) is not None]
        return sorted(rows, key=lambda row: row["step"])

    def metrics_lines(self) -> list[str]:
        """Return the lines of metrics.jsonl as they are; none if there is no such file."""
        return self.metrics.read_text(encoding="utf-8", errors="replace").splitlines() if self.metrics.is_file() else []

    # Checkpoints: checkpoints/step_0005000/. manifest.json is written last: a folder without it is no checkpoint.

    def checkpoint_path(self, step: int) -> Path:
        """Return the path of the checkpoint of `step`."""
        return self.checkpoints / f"step_{step:07d}"

    def save_checkpoint(self, step: int, write: Callable[[Path], object], keep: int) -> Path:
        """Let `write` fill a checkpoint folder, add its manifest, and keep the newest `keep` checkpoints; return its path.

        The folder appears whole or not at all.
        """
        path = self.checkpoint_path(step)
        with whole_folder(path, overwrite=True) as folder:
            write(folder)
            write_manifest(folder, step=step)
        for old in self.steps()[: -max(keep, 1)]:
            remove_folder(self.checkpoint_path(old))
        return path

    def steps(self) -> list[int]:
        """Return the steps that have a complete checkpoint folder, ascending."""
        found = []
        for path in self.checkpoints.glob("step_*"):
            number = path.name.removeprefix("step_")
            if number.isdigit() and (path / "manifest.json").is_file():
                found.append(int(number))
        return sorted(found)

    def latest_checkpoint(self) -> Path | None:
        """Return the newest checkpoint, every file checked against its manifest; None if there is none.

        Raises CorruptFileError naming the file that has changed since it was written.
        """
        steps = self.steps()
        if not steps:
            return None
        path = self.checkpoint_path(steps[-1])
        if (found := verify_manifest(path).get("step")) != steps[-1]:
            raise CorruptFileError(f"{path} holds step {found}", "give folders their own names back, or remove it")
        return path

    def clean_leftovers(self) -> None:
        """Remove files that a killed process left half-written, and nothing else. Call it while holding the lock."""
        for folder in (self.root, self.checkpoints, self.samples):
            for item in folder.glob(".*.swapped") if folder.is_dir() else ():
                place = item.with_name(item.name.removeprefix(".").removesuffix(".swapped"))
                if _LEFTOVER.match(item.name) and not place.exists():
                    item.rename(place)  # killed between the two renames of _swap_in
            for item in folder.glob(".*") if folder.is_dir() else ():
                if _LEFTOVER.match(item.name):
                    shutil.rmtree(item) if item.is_dir() else item.unlink()


def _as_written(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a config as config.json holds it: with its version, and lists in place of tuples."""
    return cast(dict[str, Any], json.loads(json.dumps({"schema_version": RUN_VERSION, **config})))


def metrics_row(line: str) -> dict[str, Any] | None:
    """Return the row in a line of metrics.jsonl; None if the line is torn, or not as `distill` writes it."""
    try:
        row = parse_json(line)
    except ValueError:
        return None
    known = fits(row, dict[str, Any]) and fits(row.get("step"), int) and fits(row.get("stage"), str | None)
    return row if known and fits(row.get("data"), dict[str, int] | None) and len(row.get("data") or ()) <= _MOST_NUMBERS else None


@contextmanager
def open_run(run: str | Path, *, checkpoints: bool = True) -> Iterator[tuple[Path, Callable[[], None]]]:
    """Yield (the local folder of a run, a function to call whenever a file in it is complete).

    A run at a URL is downloaded, with or without its `checkpoints`, and changes are uploaded. There is no lock at a URL: two
    processes that train the same run would overwrite each other's checkpoints.
    """
    if not is_url(run):
        yield Path(run), lambda: None
        return
    with tempfile.TemporaryDirectory(prefix="turbovaed-", ignore_cleanup_errors=True) as room:
        mirror = Mirror(str(run), Path(room))
        mirror.fetch(lambda name: is_for_others(name) and (checkpoints or not name.startswith("checkpoints/")))
        try:
            yield mirror.local, lambda: mirror.push(remove=True)
        finally:
            mirror.push(remove=True)


@contextmanager
def look_at_run(run: str | Path) -> Iterator[Path]:
    """Yield the local folder of a run, to read only: of a run at a URL the .json files are downloaded, nothing is uploaded."""
    if not is_url(run):
        yield Path(run)
        return
    with tempfile.TemporaryDirectory(prefix="turbovaed-", ignore_cleanup_errors=True) as room:
        Mirror(str(run), Path(room)).fetch(lambda name: is_for_others(name) and name.endswith(".json"))
        yield Path(room)
