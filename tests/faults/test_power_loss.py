"""The power goes at any moment of a save: what the disk may then hold is enumerated, and nothing that save() returned from is lost.

The disk keeps the order of changes to names and may lose the last ones, as far as no fsync of their folder came after; bytes
of a file that was not synced may be missing, wholly or by half. (What journalling file systems promise, and no more.)
"""

import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from turbovaed_cli.errors import CorruptFileError
from turbovaed_cli.files import whole
from turbovaed_cli.runs.rundir import RunDir

pytestmark = [
    pytest.mark.faults,
    pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="needs /proc to name descriptors"),
]


@dataclass
class Recorder:
    """What a save does to the disk, in order: ("make", path, is_folder), ("move", from, to), ("swap", a, b), ("gone", path),
    ("sync", path), with the bytes of every file that was ever there."""

    root: Path
    events: list[tuple] = field(default_factory=list)
    contents: dict[str, bytes] = field(default_factory=dict)  # by the name that a file was made with
    names: dict[str, str] = field(default_factory=dict)  # by the name that it has now, the name that it was made with

    def made(self, path: Path, *, is_folder: bool) -> None:
        if not is_folder:
            self.names[str(path)] = str(path)
        self.events.append(("make", str(path), is_folder))

    def moved(self, source: Path, target: Path) -> None:
        self.events.append(("move", str(source), str(target)))
        self._rename(str(source), str(target))

    def swapped(self, a: Path, b: Path) -> None:
        self.events.append(("swap", str(a), str(b)))
        for before, after in ((str(a), "\0"), (str(b), str(a)), ("\0", str(b))):
            self._rename(before, after)

    def _rename(self, source: str, target: str) -> None:
        for name in [name for name in self.names if name == source or name.startswith(source + "/")]:
            self.names[target + name[len(source) :]] = self.names.pop(name)

    def gone(self, path: Path) -> None:
        self.events.append(("gone", str(path)))
        self.names.pop(str(path), None)

    def synced(self, path: Path) -> None:
        if path.is_file():
            inode = self.names[str(path)]
            self.contents[inode] = path.read_bytes()
            self.events.append(("sync", inode))
        else:
            self.events.append(("sync", str(path)))


def named(path, dir_fd=None) -> Path:
    return descriptor_path(dir_fd) / path if dir_fd is not None else Path(path)


def descriptor_path(descriptor: int) -> Path:
    return Path(f"/proc/self/fd/{descriptor}").readlink()


def record(root: Path, act, monkeypatch, deaf_to: str) -> Recorder:
    """Do `act` for real and write down what it does under `root`; the disk may be deaf to fsync of "files" or "folders"."""
    seen = Recorder(root)
    real = {name: getattr(os, name) for name in ("mkdir", "rename", "replace", "unlink", "rmdir", "fsync", "open")}
    exchange = whole._exchange

    def inside(path: Path) -> bool:
        return path.is_relative_to(root)

    def mkdir(path, *rest, dir_fd=None, **options):
        fresh = not named(path, dir_fd).exists()
        real["mkdir"](path, *rest, **options)
        if fresh and inside(Path(path)):
            seen.made(Path(path), is_folder=True)

    def move(name):
        def run(source, target, **options):
            real[name](source, target, **options)
            if inside(Path(source)):
                seen.moved(Path(source), Path(target))

        return run

    def remove(name):
        def run(path, *rest, dir_fd=None, **options):
            place = named(path, dir_fd)
            real[name](path, *rest, dir_fd=dir_fd, **options)
            if inside(place):
                seen.gone(place)

        return run

    def fsync(descriptor):
        real["fsync"](descriptor)
        place = descriptor_path(descriptor)
        if inside(place) and ("folders" if place.is_dir() else "files") != deaf_to:
            seen.synced(place)

    def swap(a, b):
        done = exchange(a, b)
        if done:
            seen.swapped(a, b)
        return done

    opened, saved = Path.open, save_file

    def path_open(self, mode="r", *rest, **options):
        fresh = set(mode) & set("wax") and not self.exists() and inside(self)
        file = opened(self, mode, *rest, **options)
        if fresh:
            seen.made(self, is_folder=False)
        return file

    def native_save(tensors, path, **options):
        fresh = not Path(path).exists()
        saved(tensors, path, **options)
        if fresh:
            seen.made(Path(path), is_folder=False)

    with monkeypatch.context() as patch:
        for name, stand_in in (("mkdir", mkdir), ("rename", move("rename")), ("replace", move("replace")), ("unlink", remove("unlink")), ("rmdir", remove("rmdir")), ("fsync", fsync)):  # fmt: skip
            patch.setattr(os, name, stand_in)
        patch.setattr(Path, "open", path_open)
        patch.setattr(whole, "_exchange", swap)
        act(native_save)
    for name, inode in seen.names.items():
        seen.contents.setdefault(inode, Path(name).read_bytes())
    return seen


def states(seen: Recorder, start: dict[str, bytes | None]):
    """(whether save() had returned, files by name with None for folders) of every state that the disk may be in after a crash."""
    changes = [event for event in seen.events if event[0] != "sync"]
    tried = set()
    for moment in range(len(seen.events) + 1):
        happened = seen.events[:moment]
        count = sum(event[0] != "sync" for event in happened)
        least, done, synced = 0, 0, set()
        for event in happened:
            if event[0] != "sync":
                done += 1
                continue
            synced.add(event[1])
            touching = [
                i
                for i, change in enumerate(changes[:done])
                if any(str(Path(name).parent) == event[1] for name in change[1:] if isinstance(name, str))
            ]
            least = max([least, *(i + 1 for i in touching)])
        returned = moment == len(seen.events)
        unsynced = sorted(set(seen.contents) - synced)
        for kept in range(least, count + 1):
            for torn in [
                {},
                dict.fromkeys(unsynced, 0.0),
                dict.fromkeys(unsynced, 0.5),
                *({name: share} for name in unsynced for share in (0.0, 0.5)),
            ]:
                key = (returned, kept, tuple(sorted(torn.items())), tuple(unsynced))
                if key not in tried:
                    tried.add(key)
                    yield returned, applied(changes[:kept], start, seen.contents, torn)


def applied(changes, start, contents, torn) -> dict[str, bytes | None]:
    """The tree after these changes of names, with the bytes that are there."""
    tree: dict[str, bytes | None] = dict(start)

    def rename(source: str, target: str) -> None:
        for name in [name for name in tree if name == source or name.startswith(source + "/")]:
            tree[target + name[len(source) :]] = tree.pop(name)

    for kind, first, *rest in changes:
        if kind == "make":
            content = contents.get(first, b"")
            tree[first] = None if rest[0] else content[: int(len(content) * torn.get(first, 1.0))]
        elif kind == "move":
            rename(first, rest[0])
        elif kind == "swap":
            for before, after in ((first, "\0"), (rest[0], first), ("\0", rest[0])):
                rename(before, after)
        else:
            tree.pop(first, None)
    return tree


def on_disk(tree: dict[str, bytes | None], root: Path, place: Path) -> None:
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    for name, content in sorted(tree.items()):
        path = place / Path(name).relative_to(root)
        if content is None:
            path.mkdir(parents=True, exist_ok=True)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)


def after_power_losses(tmp_path: Path, monkeypatch, *, second: int, deaf_to: str = "") -> list[tuple[bool, int | None]]:
    """Of every state: whether save() had returned, and the step that is found, -1 where what is found is damaged."""
    root = tmp_path / "run"
    run = RunDir(root)

    def save(step: int, writer) -> None:
        run.save_checkpoint(
            step, lambda folder: writer({"weights": torch.full((64,), float(step))}, folder / "w.safetensors"), keep=1
        )

    save(1, save_file)
    start = {str(path): None if path.is_dir() else path.read_bytes() for path in [root, *root.rglob("*")]}
    seen = record(root, lambda writer: save(second, writer), monkeypatch, deaf_to)
    found = []
    for returned, tree in states(seen, start):
        on_disk(tree, root, tmp_path / "after")
        found.append((returned, step_found(RunDir(tmp_path / "after"))))
    return found


def step_found(run: RunDir) -> int | None:
    run.clean_leftovers()
    try:
        path = run.latest_checkpoint()
    except CorruptFileError:
        return -1
    if path is None:
        return None
    step = int(path.name.removeprefix("step_"))
    return step if torch.equal(load_file(path / "w.safetensors")["weights"], torch.full((64,), float(step))) else -1


@pytest.mark.parametrize("second", [2, 1])
def test_a_save_survives_it_at_every_moment(second, tmp_path, monkeypatch, tally):
    """Beside the one before, or in the place of its namesake."""
    found = after_power_losses(tmp_path, monkeypatch, second=second)
    good = [step in (1, second) if not returned else step == second for returned, step in found]
    tally("states of the disk after a power loss in a save", len(good), sum(good))
    assert all(good) and len(good) > 40 and any(returned for returned, _ in found)


@pytest.mark.parametrize("deaf_to", ["files", "folders"])
def test_a_disk_that_is_deaf_to_fsync_would_lose_it(deaf_to, tmp_path, monkeypatch):
    """The control: with one kind of fsync left out, some state loses what save() had returned from."""
    found = after_power_losses(tmp_path, monkeypatch, second=2, deaf_to=deaf_to)
    assert any(step != 2 for returned, step in found if returned)
