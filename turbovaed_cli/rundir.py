"""A run folder, and the one way files of ours are written: whole or not at all."""

import ctypes
import errno
import fnmatch
import hashlib
import json
import os
import re
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from turbovaed_cli.changes import Change, differences
from turbovaed_cli.documents import check_fields, fits, parse_json, plain_name, read_text
from turbovaed_cli.errors import (
    CorruptFileError,
    DiskFullError,
    OutputExistsError,
    RunFolderError,
    UnavailableError,
    UnwritableError,
)
from turbovaed_cli.system import check_system, is_windows

SCHEMA_VERSION = 1  # of config.json
SEALED_VERSION = 2  # of documents that end in a seal: the sha256 of their own text with zeros in its place
_NO_SEAL = "0" * 64
RERUN = "remove that file and run cache-latents again"
_MOST_NUMBERS = 8  # that describe the data of a step: clips, frames, height, width
# Names that write_whole, whole_folder and _remove_folder give to what is not complete.
_LEFTOVER = re.compile(r"\.(config\.json|env\.json|metrics\.jsonl|report\.html|model|step_\d{7}(\.png)?)\.")


def sha256_of(path: Path) -> str:
    """Hex sha256 of a file, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fsync_folder(folder: Path) -> None:
    """Make renames in `folder` survive a power cut (where the system can)."""
    if is_windows():
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _fsync_file(path: Path) -> None:
    with path.open("r+b" if is_windows() else "rb") as file:  # Windows flushes only what may be written
        os.fsync(file.fileno())


_FULL = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)


# Why a place cannot be written, in words. A name that is too long is in the same table: another place mends it too.
UNWRITABLE = {
    errno.EROFS: "the file system is read-only",
    errno.EACCES: "permission denied",
    errno.EPERM: "not permitted",
    errno.ENOTDIR: "a part of its path is a file",
    errno.EEXIST: "a part of its path is a file",  # of a folder that was to be made there
    errno.EISDIR: "it is a folder",
    errno.ENAMETOOLONG: "its name is too long",
    errno.ELOOP: "its links lead in a circle",
}
_MOST_NAME_BYTES = 255  # of a file's name, if the system does not report its own limit


def unwritable(path: Path, error: OSError, option: str = "--out, --report or --run") -> UnwritableError | None:
    """The error for an output that the system refuses to write at `path`; None if `error` is about something else."""
    if error.errno not in UNWRITABLE:
        return None
    what = "a shorter name" if error.errno == errno.ENAMETOOLONG else "another place"
    return UnwritableError(f"cannot write {path}: {UNWRITABLE[error.errno]}", f"give {what} with {option}")


def check_place(path: Path, option: str = "--out", *, folder: bool | None = False, longest_suffix: str = "") -> None:
    """Raise UnwritableError unless a file can be written at `path`; with `folder`, unless files can be written in it.

    `folder` is None for a path that may be either. Creates a file without a name there, as permissions alone do not show
    that a disk is read-only. `longest_suffix` is what is added to its name for files beside it, which have to fit as well.
    """
    place = path.absolute()
    try:
        folder = place.is_dir() if folder is None else folder
        if folder and place.exists() and not place.is_dir():
            raise UnwritableError(f"cannot write {path}: it is a file, and {option} is a folder", f"give a folder with {option}")
        if not folder and place.is_dir():
            raise UnwritableError(f"cannot write {path}: it is a folder", f"give a file with {option}, such as {path / 'NAME'}")
        if not folder and place.exists() and not place.is_file():  # a device, which a rename would replace
            raise UnwritableError(f"cannot write {path}: it is no regular file", f"give another place with {option}")
        there = next(above for above in (place, *place.parents) if above.exists())
        if there == place and not folder:
            there = place.parent
        elif not there.is_dir():
            raise UnwritableError(f"cannot write {path}: {there} is a file", f"give another place with {option}")
        most = _most_name_bytes(there)
        for name in (*place.parts[len(there.parts) :], f"{place.name}{longest_suffix}"):
            if (length := len(os.fsencode(name))) > most:
                raise UnwritableError(
                    f"cannot write {name}: its name has {length} bytes, and the file system takes {most}",
                    f"give a shorter name with {option}",
                )
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        if (found := unwritable(path, error, option)) is not None:
            raise found from error
        if isinstance(error, FileNotFoundError):  # /proc and the like, which make no files
            raise UnwritableError(
                f"cannot write {path}: no file can be made there", f"give another place with {option}"
            ) from error
        raise


def _most_name_bytes(folder: Path) -> int:
    try:
        return os.pathconf(folder, "PC_NAME_MAX")
    except (AttributeError, OSError, ValueError):
        return _MOST_NAME_BYTES


def hidden_name(path: Path, ending: str = "", more: int = 0) -> str:
    """A name for something beside `path` that is not complete: a dot, the beginning of its name, and `ending`.

    No longer than the file system allows with `more` bytes added to it, whatever the length of the name itself.
    """
    place = path.parent
    room = _most_name_bytes(place if place.exists() else Path()) - len(os.fsencode(f"..{ending}")) - more
    name = path.name
    while name and len(os.fsencode(name)) > room:
        name = name[:-1]
    return f".{name}.{ending}"


_RANDOM_BYTES = 8  # that tempfile puts between a prefix and a suffix
_MOST_SUFFIX_BYTES = 32  # of a suffix that a temporary file shares with its final name, as some writers look at it


@contextmanager
def room_for(path: Path) -> Iterator[None]:
    """Turn what systems and libraries raise when a disk is full or cannot be written into one error that names the file."""
    try:
        yield
    except Exception as error:
        if isinstance(error, OSError) and _is_at(path, error) and (found := unwritable(path, error)) is not None:
            raise found from error
        # safetensors has an error of its own, which ends in the system's number.
        told = isinstance(error, OSError) and error.errno in _FULL
        told = told or any(f"(os error {number})" in str(error) for number in _FULL)
        if not told:
            raise
        raise DiskFullError(
            f"no room for {path}", "free some space and repeat the command; what was there before is untouched"
        ) from error


def _is_at(path: Path, error: OSError) -> bool:
    """Whether an error is about what is written at or beside `path`, not about something that is read meanwhile."""
    return not isinstance(error.filename, str) or Path(error.filename).absolute().is_relative_to(path.parent.absolute())


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file beside `path`, then fsync and rename it there: whole or absent."""
    with room_for(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        suffix = path.suffix if len(os.fsencode(path.suffix)) <= _MOST_SUFFIX_BYTES else ""
        prefix = hidden_name(path, more=_RANDOM_BYTES + len(os.fsencode(suffix)))
        handle, name = tempfile.mkstemp(prefix=prefix, suffix=suffix, dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        try:
            write(temporary)
            temporary.chmod(0o644)
            _fsync_file(temporary)
            temporary.replace(path)
            fsync_folder(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


def whole_files(folder: Path, pattern: str) -> list[Path]:
    """What write_whole brought to an end in `folder`, by name: its unfinished files match the same patterns, but for their dot."""
    names = os.listdir(folder) if folder.is_dir() else []  # noqa: PTH208 - paths of very many would take seconds
    return [folder / name for name in sorted(fnmatch.filter(names, pattern)) if not name.startswith(".")]


@contextmanager
def whole_folder(path: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Yield a temporary folder beside `path` to fill; on a clean exit fsync its files and rename it to `path`."""
    if path.exists() and not overwrite:
        raise OutputExistsError(f"{path} is there already", "add --overwrite to replace it")
    with room_for(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=hidden_name(path, more=_RANDOM_BYTES), dir=path.parent))
    temporary.chmod(0o755)
    try:
        with room_for(path):
            yield temporary
            for file in temporary.rglob("*"):
                if file.is_file():
                    _fsync_file(file)
                else:
                    fsync_folder(file)
            fsync_folder(temporary)
            _swap_in(temporary, path)
            fsync_folder(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _swap_in(temporary: Path, path: Path) -> None:
    """Rename `temporary` to `path`; what was there goes only after its successor is complete.

    On Linux the two change places in one step. Elsewhere there is a moment with neither in place, and `clean_leftovers`
    puts the old one back.
    """
    if not path.exists():
        temporary.rename(path)
    elif not _exchange(temporary, path):
        old = path.with_name(hidden_name(path, "swapped"))
        shutil.rmtree(old, ignore_errors=True)
        path.rename(old)
        temporary.rename(path)
        shutil.rmtree(old)


def _exchange(a: Path, b: Path) -> bool:
    """Let two names change places in one step; False where the system or the file system cannot."""
    rename = getattr(ctypes.CDLL(None), "renameat2", None) if sys.platform == "linux" else None
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    return rename is not None and bool(rename(here, os.fsencode(a), here, os.fsencode(b), exchange) == 0)


def write_json(path: Path, value: object) -> None:
    """Write JSON whole or not at all, for people: indented, keys in the order given."""
    text = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
    write_whole(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def sealed(value: Mapping[str, Any]) -> str:
    """JSON text whose last field is a seal, so that no bit of it can change unseen."""
    text = json.dumps({"schema_version": SEALED_VERSION, **value, "seal": _NO_SEAL}, indent=2, ensure_ascii=False) + "\n"
    head, _, tail = text.rpartition(_NO_SEAL)
    return head + hashlib.sha256(text.encode()).hexdigest() + tail


def read_sealed(path: Path, hint: str = "restore it, or remove the folder it is in") -> dict[str, Any]:
    """A document that `sealed` made; CorruptFileError where a bit differs. Those of version 1 had no seal, and pass."""
    text, value = _text_and_object(path)
    if value.get("schema_version") == 1 and "seal" not in value:
        return value
    seal = value.get("seal")
    head, found, tail = text.rpartition(seal if isinstance(seal, str) and len(seal) == len(_NO_SEAL) else _NO_SEAL)
    if not found or hashlib.sha256(f"{head}{_NO_SEAL}{tail}".encode()).hexdigest() != seal:
        raise CorruptFileError(f"{path} is not what was written (its seal does not fit)", hint)
    return value


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object of ours; CorruptFileError where it is something else."""
    return _text_and_object(path)[1]


def _text_and_object(path: Path) -> tuple[str, dict[str, Any]]:
    try:
        text = read_text(path)
        value = parse_json(text)
    except ValueError as error:
        raise CorruptFileError(
            f"{path} is not JSON: {error}", "it was changed or damaged; restore it or start a new folder"
        ) from error
    if not isinstance(value, dict):
        raise CorruptFileError(
            f"{path} holds a {type(value).__name__} where an object was written", "restore it or start a new folder"
        )
    return text, value


class RunDir:
    """The folder of one distillation: every path in it, its settings snapshot, checkpoints, metrics and lock."""

    def __init__(self, root: Path, publish: Callable[[], None] = lambda: None) -> None:
        """`publish` is called whenever something in it is complete: where the folder stands for one behind a URL."""
        self.root, self.publish = root, publish
        self.config = root / "config.json"
        self.env = root / "env.json"
        self.metrics = root / "metrics.jsonl"
        self.log = root / "train.log"
        self.checkpoints = root / "checkpoints"
        self.samples = root / "samples"
        self.eval = root / "eval"
        self.exports = root / "exports"
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
        """The settings snapshot; CorruptFileError naming the field where it is not what `distill` wrote."""
        config = read_json(self.config)
        check_fields(config, {"settings": dict[str, Any]}, self.config)
        settings = config["settings"]
        check_fields(settings, {"stages": list[Any] | None, "dtype": str | None, "steps": int | None}, self.config, "settings.")
        for number, stage in enumerate(settings.get("stages") or (), start=1):
            known = {"steps": int, "perceptual": str | None, "batch_size": int | None, "accumulation": int | None}
            check_fields(stage, known, self.config, f"settings.stages.{number}.")
        if not settings.get("stages"):  # of an earlier turbovaed
            check_fields(settings, {"steps": int}, self.config, "settings.")
        return config

    def changes(self, config: Mapping[str, Any], may_differ: frozenset[str]) -> list[Change]:
        """What differs between this run and `config` and may not; none where there is no run yet. Writes nothing.

        `may_differ` has names of fields, at any place, or with their place in front of them, dotted. Raises RunFolderError
        if the folder holds other things.
        """
        if not self.config.exists():
            items = [item.name for item in self.root.iterdir()] if self.root.exists() else []
            others = sorted(name for name in items if name not in ("lock", self.env.name) and not _LEFTOVER.match(name))
            if others:
                raise RunFolderError(
                    f"{self.root} holds other things ({others[0]}) and no run", "give a new or empty folder as --run"
                )
            return []
        found = differences(self.read_config(), _as_written(config))
        return [change for change in found if not {change.name, change.field} & may_differ]

    def snapshot(self, config: Mapping[str, Any], env: Mapping[str, Any]) -> bool:
        """Record what this run is; returns whether it was there before. Only after `changes` found none."""
        config = _as_written(config)
        was_there = self.config.exists()
        if not was_there:
            write_json(self.env, env)
        if not was_there or self.read_config() != config:
            write_json(self.config, config)
        return was_there

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the run folder; a second process is refused with who holds it. A dead process leaves no lock behind."""
        with held(self.root / "lock") as other:
            if other:
                raise RunFolderError(f"{self.root} is in use by {other}", "wait for it, or give another --run")
            yield

    def holder(self) -> str | None:
        """Who holds the run folder's lock ("process 4711 on host, since ..."), None where nobody does; changes nothing."""
        return holder_of(self.root / "lock")

    def read_metrics(self) -> list[dict[str, Any]]:
        """Every logged step, ascending; none before the first, and without the torn last line of a killed run."""
        rows = [row for line in self.metrics_lines() if (row := metrics_row(line)) is not None]
        return sorted(rows, key=lambda row: row["step"])

    def metrics_lines(self) -> list[str]:
        """The lines of metrics.jsonl as they are."""
        return self.metrics.read_text(encoding="utf-8", errors="replace").splitlines() if self.metrics.is_file() else []

    # Checkpoints: checkpoints/step_0005000/ with manifest.json last in, so a folder without it is not one.

    def checkpoint_path(self, step: int) -> Path:
        """Where the checkpoint of `step` lies."""
        return self.checkpoints / f"step_{step:07d}"

    def save_checkpoint(self, step: int, write: Callable[[Path], object], keep: int) -> Path:
        """Let `write` fill a checkpoint folder; add its manifest of sha256; whole or absent. Then drop all but the newest `keep`."""
        path = self.checkpoint_path(step)
        with whole_folder(path, overwrite=True) as folder:
            write(folder)
            write_manifest(folder, step=step)
        for old in self.steps()[: -max(keep, 1)]:
            _remove_folder(self.checkpoint_path(old))
        return path

    def steps(self) -> list[int]:
        """Steps that have a complete checkpoint folder, ascending."""
        found = []
        for path in self.checkpoints.glob("step_*"):
            number = path.name.removeprefix("step_")
            if number.isdigit() and (path / "manifest.json").is_file():
                found.append(int(number))
        return sorted(found)

    def latest_checkpoint(self) -> Path | None:
        """The newest checkpoint, every file checked against its manifest; None when there is none.

        Raises CorruptFileError naming the file that is not what was written.
        """
        steps = self.steps()
        if not steps:
            return None
        path = self.checkpoint_path(steps[-1])
        if (found := verify_manifest(path).get("step")) != steps[-1]:
            raise CorruptFileError(f"{path} holds step {found}", "give folders their own names back, or remove it")
        return path

    def clean_leftovers(self) -> None:
        """Remove what a killed process of ours left half-written, and nothing else. Call while holding the lock of a known run."""
        for folder in (self.root, self.checkpoints, self.samples):
            for item in folder.glob(".*.swapped") if folder.is_dir() else ():
                place = item.with_name(item.name.removeprefix(".").removesuffix(".swapped"))
                if _LEFTOVER.match(item.name) and not place.exists():
                    item.rename(place)  # killed between the two renames of _swap_in
            for item in folder.glob(".*") if folder.is_dir() else ():
                if _LEFTOVER.match(item.name):
                    shutil.rmtree(item) if item.is_dir() else item.unlink()


def _as_written(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config as config.json has it."""
    return cast(dict[str, Any], json.loads(json.dumps({"schema_version": SCHEMA_VERSION, **config})))


def metrics_row(line: str) -> dict[str, Any] | None:
    """A line of metrics.jsonl; None for one that no step of ours wrote whole."""
    try:
        row = parse_json(line)
    except ValueError:
        return None
    known = fits(row, dict[str, Any]) and fits(row.get("step"), int) and fits(row.get("stage"), str | None)
    return row if known and fits(row.get("data"), dict[str, int] | None) and len(row.get("data") or ()) <= _MOST_NUMBERS else None


def write_manifest(folder: Path, **more: Any) -> None:
    """manifest.json: sha256 and size of every file that is in `folder` now, sealed."""
    files = {file.name: {"sha256": sha256_of(file), "bytes": file.stat().st_size} for file in sorted(folder.iterdir())}
    (folder / "manifest.json").write_text(sealed({**more, "files": files}), encoding="utf-8")


def verify_manifest(folder: Path) -> dict[str, Any]:
    """Check every file of a folder against its manifest.json and return the manifest; CorruptFileError names what differs."""
    manifest = read_sealed(folder / "manifest.json")
    check_fields(manifest, {"files": dict[str, Any], "step": int | None}, folder / "manifest.json")
    hint = f"remove {folder} to go on from the checkpoint before" if "step" in manifest else f"restore {folder}"
    for name, wanted in manifest["files"].items():
        if not plain_name(name):
            raise CorruptFileError(f"{folder / 'manifest.json'} names {name!r}, which is no file of its folder", hint)
        check_fields(wanted, {"sha256": str}, folder / "manifest.json", f"files.{name}.")
        file = folder / name
        if not file.is_file():
            raise CorruptFileError(f"{folder} misses {name}", hint)
        if sha256_of(file) != wanted["sha256"]:
            raise CorruptFileError(f"{file} is not what was written (sha256 differs)", hint)
    return manifest


def _remove_folder(path: Path) -> None:
    """Rename first: a kill half-way through the removal must not leave something that looks complete."""
    doomed = path.with_name(f".{path.name}.old")
    shutil.rmtree(doomed, ignore_errors=True)
    path.rename(doomed)
    shutil.rmtree(doomed)


@contextmanager
def held(path: Path) -> Iterator[str | None]:
    """Hold a lock file while the context lasts, and yield None; where somebody holds it, yield who and since when.

    The system drops the lock when the process ends, however it ends. Raises UnavailableError on Windows, and if the file
    system has no locks.
    """
    check_system("locking a folder")
    with room_for(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        opened = path.open("a+", encoding="utf-8")
    with opened as file:
        if not _try_lock(file.fileno(), path):
            file.seek(0)
            yield file.read().strip() or "another process"
            return
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}, since {time.strftime('%Y-%m-%d %H:%M:%S')}")
        file.flush()
        try:
            yield None
        finally:
            file.truncate(0)


def holder_of(path: Path) -> str | None:
    """Who holds a lock file, None where nobody does; looks without changing anything."""
    if is_windows():  # nothing that locks runs there
        return None
    try:
        if path.exists() and not path.is_file():
            return None
        with path.open(encoding="utf-8", errors="replace") as file:
            return None if _try_lock(file.fileno(), path, shared=True) else file.read().strip() or "another process"
    except FileNotFoundError:
        return None


def _try_lock(descriptor: int, path: Path, *, shared: bool = False) -> bool:
    """Take a lock that the system drops when the file is closed or the process ends, however it ends; False where it is held.

    A look takes a shared one for an instant; who wants to hold it in that very instant tries again.
    """
    for _ in range(0 if shared else 3):
        if _lock_once(descriptor, path, shared=False):
            return True
        time.sleep(0.02)
    return _lock_once(descriptor, path, shared=shared)


def _lock_once(descriptor: int, path: Path, *, shared: bool) -> bool:
    import fcntl  # noqa: PLC0415 - not on Windows, where nothing gets here

    try:
        fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError as error:  # some network file systems
        raise UnavailableError(
            f"{path} cannot be locked here ({(error.strerror or str(error)).lower()})",
            "give a folder on a file system with locks, such as a local disk or NFS 4",
        ) from error
    return True
