"""What the fault tests share: a process that dies at its nth touch of the disk, and how much of everything is tried."""

import io
import os
import shutil
import signal
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

# What pathlib, shutil, tempfile and our own code change the disk with.
_OPERATIONS = ("rename", "replace", "unlink", "rmdir", "mkdir", "fsync", "chmod")


def count_of(request, *, quick: int, full: int) -> int:
    """How many to try: few in `make test`, all in `make faults`."""
    return full if request.config.getoption("--all-faults") else quick


def dies_at_every_operation(
    folder: Path, *, before: Sequence[Callable[[Path], object]], act: Callable[[Path], object]
) -> Iterator[Path]:
    """Folders in which `before` was done and `act` was killed at its first, second, ... operation, until it got through."""
    for number in range(1, 10_000):
        root = folder / f"killed-{number}"
        root.mkdir()
        for step in before:
            step(root)
        if not _killed_at(number, lambda root=root: act(root)):
            yield root
            return
        yield root
        shutil.rmtree(root)


def _killed_at(number: int, act: Callable[[], object]) -> bool:
    """Run `act` in a child that is killed right before its operation `number`; False where it has fewer."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            _arm(number)
            act()
            code = 0
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0, "the operation failed by itself"
    return os.WIFSIGNALED(status)


def _arm(number: int) -> None:
    left = [number]

    def counted(operation: Callable[..., object]) -> Callable[..., object]:
        def run(*arguments: object, **options: object) -> object:
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return operation(*arguments, **options)

        return run

    for name in _OPERATIONS:
        setattr(os, name, counted(getattr(os, name)))
    opened = io.open

    def open_counted(file: object, mode: str = "r", *arguments: object, **options: object) -> object:
        return (
            counted(opened)(file, mode, *arguments, **options)
            if set(mode) & set("wax+")
            else opened(file, mode, *arguments, **options)
        )

    io.open = open_counted  # what Path.open and write_text call
    _count_native(counted)


def _count_native(counted: Callable[[Callable[..., object]], Callable[..., object]]) -> None:
    """safetensors writes by itself: once before it does, and once with half of the file there."""
    import safetensors.torch as module

    whole = module.save_file

    def save_file(tensors: object, path: os.PathLike[str], **options: object) -> None:
        counted(lambda: None)()
        whole(tensors, path, **options)
        content = Path(path).read_bytes()
        Path(path).write_bytes(content[: len(content) // 2])
        counted(lambda: None)()
        with opened_natively(path) as file:
            file.write(content)

    module.save_file = save_file
    for name in ("test_kills", "turbovaed_cli.latents.writer", "turbovaed_cli.training.state"):
        import sys

        if name in sys.modules:
            sys.modules[name].save_file = save_file


def opened_natively(path: os.PathLike[str]):
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_TRUNC), "wb")
