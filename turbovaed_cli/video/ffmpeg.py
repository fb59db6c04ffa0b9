"""The ffmpeg child process: what it may open, how much it may use, how long it may be silent, and what it complained of."""

import contextlib
import io
import os
import re
import stat
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import IO

from turbovaed_cli.errors import MissingError, PassingVideoError, VideoError

# A text file named .mp4 can be a playlist that opens other files: containers are named, and the only protocol is the
# descriptor we hand over.
_CONTAINERS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts"
MAX_PIXELS = 8192 * 4608  # 8K; a larger frame would need gigabytes before we see its first byte
_MAX_MEMORY = 8 << 30  # bytes of address space of the child
FLOOR = (7, 0)  # the first whose descriptors can seek; older ones are also long without fixes of their decoders
STALL_S = 8.0  # seconds without a sign of life while we wait for a reader: with its start and end, a hung one costs less than ten
_ENCODER_STALL_S = 20.0  # the same of a child that we write to, which looks at many frames before it takes the next
# Filters that say a word of every frame that comes by; where frames are passed over, nothing else would be heard.
SIGN_OF_LIFE = r"metadata=add:key=alive:value=1,metadata=print:key=alive:file=pipe\\:2:direct=1"
_ALIVE = re.compile(rb"frame:\d+ +pts:\S+ +pts_time:\S+$|^alive=1$")
# Said at error level about files that are fine.
_HARMLESS = re.compile(r"chapter track not found|timescale not set|Last message repeated|deprecated pixel format", re.IGNORECASE)


@cache
def executable() -> str:
    """Path of the ffmpeg that imageio-ffmpeg ships or finds; MissingError where there is none."""
    import imageio_ffmpeg  # noqa: PLC0415 - half a second that help does not pay for

    try:
        return str(imageio_ffmpeg.get_ffmpeg_exe())
    except RuntimeError as error:
        raise MissingError("no ffmpeg on this machine", "pip install imageio-ffmpeg ships one for most platforms") from error


def version() -> str:
    """The first line of `ffmpeg -version`, shortened to the version."""
    text = subprocess.run([executable(), "-version"], capture_output=True, text=True, check=True).stdout
    return text.partition("version ")[2].partition(" ")[0]


def warning_of_age() -> str:
    """What to say of an ffmpeg older than FLOOR; "" of others, and of builds whose version is no number."""
    found = re.match(r"n?(\d+)\.(\d+)", version())
    if found is None or (int(found[1]), int(found[2])) >= FLOOR:
        return ""
    wanted = ".".join(map(str, FLOOR))
    return (
        f"ffmpeg {found[0].removeprefix('n')} is older than {wanted}: known holes in its decoders are open, and some videos will not "
        "read; pip install -U imageio-ffmpeg, without IMAGEIO_FFMPEG_EXE"
    )


@cache
def has_filter(name: str) -> bool:
    """Whether this ffmpeg was built with a filter, such as "libvmaf"."""
    text = subprocess.run([executable(), "-hide_banner", "-filters"], capture_output=True, text=True, check=True).stdout
    return any(name in line.split()[:2] for line in text.splitlines())


def open_regular(path: Path) -> IO[bytes]:
    """Open a regular file for reading; VideoError for anything else (a FIFO would hang, a device is not a video)."""
    try:
        # Opening a FIFO without a writer blocks; O_NONBLOCK does not. It means nothing for regular files.
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except OSError as error:
        raise PassingVideoError(f"{path} cannot be opened: {(error.strerror or str(error)).lower()}") from error
    status = os.fstat(handle)
    if not stat.S_ISREG(status.st_mode) or status.st_size == 0:
        os.close(handle)
        raise VideoError(f"{path} is empty (0 bytes)" if stat.S_ISREG(status.st_mode) else f"{path} is not a regular file")
    return os.fdopen(handle, "rb")


def input_options(descriptor: int) -> list[str]:
    """Options that make an open file an input, and nothing else reachable from it."""
    return [
        "-protocol_whitelist",
        "fd",
        "-format_whitelist",
        _CONTAINERS,
        "-max_pixels",
        str(MAX_PIXELS),
        "-fd",
        str(descriptor),
        "-i",
        "fd:",
    ]


def complaint(messages: Sequence[str]) -> str:
    """The first line of ffmpeg's that is not harmless, without its pointers and levels; empty where there is none."""
    for line in messages:
        if line.strip() and not _HARMLESS.search(line):
            return re.sub(r"^(\[[^\]]*\] )+", "", line.strip())
    return ""


class Child:
    """A running ffmpeg whose stderr is drained by a thread and which is killed when it keeps us waiting."""

    def __init__(
        self,
        arguments: Sequence[str],
        *,
        descriptors: Sequence[int] = (),
        feed: bool = False,
        may_write: bool = False,
        patience_s: float | None = None,
    ) -> None:
        """`descriptors` are inherited; `feed` opens a pipe to its stdin; only a child that `may_write` can make files.

        `patience_s` is how long it may be silent while we wait for it; None: STALL_S, and more where it is fed.
        """
        self.process = subprocess.Popen(
            [executable(), "-nostdin", "-hide_banner", *arguments],
            stdin=subprocess.PIPE if feed else subprocess.DEVNULL,
            stdout=subprocess.DEVNULL if feed else subprocess.PIPE,
            stderr=subprocess.PIPE,
            pass_fds=descriptors,
            # Ctrl-C goes to us: we end the step at hand, and a child that died of it would look like a damaged video.
            process_group=0 if os.name == "posix" else None,
        )
        _limit(self.process.pid, may_write=may_write)
        self.patience_s = patience_s if patience_s is not None else _ENCODER_STALL_S if feed else STALL_S
        self._messages: list[str] = []
        self._waiting_since: float | None = None
        self._last_alive = 0.0
        self.stalled = False
        self._drain = threading.Thread(target=self._collect, daemon=True)
        self._drain.start()
        threading.Thread(target=self._watch, daemon=True).start()

    def __enter__(self) -> "Child":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()

    def read(self, num_bytes: int, *, whole: bool = True) -> bytes:
        """`num_bytes` of its stdout, less only at the end; not `whole`: what there is. VideoError when it is silent for too long."""
        assert isinstance(self.process.stdout, io.BufferedReader)
        with self._waiting():
            data = self.process.stdout.read(num_bytes) if whole else self.process.stdout.read1(num_bytes)
        if self.stalled:
            raise PassingVideoError(f"ffmpeg gave nothing for {self.patience_s:.0f} seconds and was stopped")
        return data

    def write(self, data: bytes | memoryview) -> None:
        """Feed its stdin; VideoError with its own words where it has gone."""
        assert self.process.stdin is not None
        try:
            with self._waiting():
                self.process.stdin.write(data)
        except (BrokenPipeError, OSError) as error:
            self.finish()
            raise VideoError(f"ffmpeg stopped while it was written to: {self.complaint() or error}") from error

    def finish(self) -> int:
        """Close the pipes, wait for its end, and return the exit code."""
        if self.process.stdin is not None:
            with contextlib.suppress(OSError):
                self.process.stdin.close()
        # An encoder may take its time over its last frames and its index; a reader has nothing left to do.
        with self._waiting() if self.process.stdin is None else nullcontext():
            code = self.process.wait()
        self._drain.join(timeout=5)
        return code

    def stop(self) -> None:
        """Kill it if it still runs; leave no zombie and no open pipe."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self._drain.join(timeout=5)
        for pipe in (self.process.stdin, self.process.stdout, self.process.stderr):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()

    @property
    def messages(self) -> list[str]:
        """Every line it wrote to stderr."""
        return list(self._messages)

    def complaint(self) -> str:
        """The first thing it complained of; see the function."""
        return complaint(self._messages)

    def _collect(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            if _ALIVE.search(line.rstrip()):
                self._last_alive = time.monotonic()
            elif len(self._messages) < 200:
                self._messages.append(line.decode(errors="replace").rstrip()[:500])

    @contextmanager
    def _waiting(self) -> Iterator[None]:
        self._waiting_since = time.monotonic()
        try:
            yield
        finally:
            self._waiting_since = None

    def _watch(self) -> None:
        """Only time that we spend waiting counts: a slow consumer is not a stalled ffmpeg."""
        while self.process.poll() is None:
            since = self._waiting_since
            if since is not None and time.monotonic() - max(since, self._last_alive) > self.patience_s:
                self.stalled = True
                self.process.kill()
                return
            time.sleep(0.2)


def _limit(pid: int, *, may_write: bool) -> None:
    """Bound the child's memory, and forbid it files, where the system can (Linux)."""
    try:
        import resource  # noqa: PLC0415 - not on Windows
    except ImportError:
        return
    if not hasattr(resource, "prlimit"):
        return
    with contextlib.suppress(ProcessLookupError, PermissionError):
        resource.prlimit(pid, resource.RLIMIT_AS, (_MAX_MEMORY, _MAX_MEMORY))
        resource.prlimit(pid, resource.RLIMIT_CORE, (0, 0))
        if not may_write:
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (0, 0))
