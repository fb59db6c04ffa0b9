"""The ffmpeg child process: the files it may open, its limits of memory and silence, and its reports."""

import contextlib
import io
import os
import re
import select
import selectors
import stat
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import IO

from turbovaed_cli.errors import MissingError, PassingVideoError, VideoError
from turbovaed_cli.files.system import check_system
from turbovaed_cli.video import messages

# A text file named .mp4 can be a playlist that opens other files: containers are named, and the only protocol is the
# descriptor we hand over.
_CONTAINERS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,mpegvideo,flv,asf,ogg,gif,yuv4mpegpipe,webp_anim,webp_pipe,png_pipe,jpeg_pipe"
MAX_PIXELS = 8192 * 4608  # 8K; a larger frame would need gigabytes before we see its first byte
_MAX_MEMORY = 8 << 30  # bytes of address space of the child
FLOOR = (7, 0)  # the first version whose descriptors can seek; older ones also lack fixes of their decoders
STALL_S = 8.0  # seconds of silence while we wait for a reader: with its start and end, a hung one costs less than ten
_ENCODER_STALL_S = 20.0  # the same for a child that we write to: an encoder looks at many frames before it takes the next
_MOST_MESSAGES = 400  # of any kind; beyond it, as many complaints again
_REPORT = re.compile(rb"frame:\d+ +pts:(-?\d+|NOPTS) ")


@cache
def executable() -> str:
    """Return the path of the ffmpeg that imageio-ffmpeg ships or finds; raises MissingError if there is none."""
    import imageio_ffmpeg  # noqa: PLC0415 - half a second that --help does not need

    try:
        return str(imageio_ffmpeg.get_ffmpeg_exe())
    except RuntimeError as error:
        raise MissingError("no ffmpeg on this machine", "pip install imageio-ffmpeg: it ships one for most platforms") from error


def version() -> str:
    """Return the version in the first line of `ffmpeg -version`."""
    text = subprocess.run([executable(), "-version"], capture_output=True, text=True, check=True).stdout
    return text.partition("version ")[2].partition(" ")[0]


def warning_of_age() -> str:
    """Return the warning about an ffmpeg older than FLOOR; "" for newer ones, and for builds whose version is no number."""
    found = re.match(r"n?(\d+)\.(\d+)", version())
    if found is None or (int(found[1]), int(found[2])) >= FLOOR:
        return ""
    wanted = ".".join(map(str, FLOOR))
    return (
        f"ffmpeg {found[0].removeprefix('n')} is older than {wanted}: its decoders have known security holes, and some videos "
        "cannot be read; pip install -U imageio-ffmpeg, without IMAGEIO_FFMPEG_EXE"
    )


@cache
def has_filter(name: str) -> bool:
    """Whether this ffmpeg was built with a filter, such as "libvmaf"."""
    text = subprocess.run([executable(), "-hide_banner", "-filters"], capture_output=True, text=True, check=True).stdout
    return any(name in line.split()[:2] for line in text.splitlines())


def open_regular(path: Path) -> IO[bytes]:
    """Open a regular file for reading.

    Raises VideoError for an empty file and for anything else (a FIFO would hang, a device is not a video). Raises
    PassingVideoError if it cannot be opened.
    """
    try:
        # Opening a FIFO without a writer blocks, but not with O_NONBLOCK, which has no effect on regular files.
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except OSError as error:
        raise PassingVideoError(f"{path} cannot be opened: {(error.strerror or str(error)).lower()}") from error
    status = os.fstat(handle)
    if not stat.S_ISREG(status.st_mode) or status.st_size == 0:
        os.close(handle)
        raise VideoError(f"{path} is empty (0 bytes)" if stat.S_ISREG(status.st_mode) else f"{path} is not a regular file")
    return os.fdopen(handle, "rb")


def input_options(descriptor: int, *, demuxer: str = "") -> list[str]:
    """Return the options that make an open file the input, from which no other file can be opened.

    ffmpeg chooses the demuxer by the content, unless `demuxer` names one.
    """
    return [
        *(["-f", demuxer] if demuxer else []),
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


class Child:
    """A running ffmpeg. A thread collects its messages; another kills it if it is silent for too long while we wait."""

    def __init__(
        self,
        arguments: Callable[[str], Sequence[str]] | Sequence[str],
        *,
        descriptors: Sequence[int] = (),
        feed: bool = False,
        may_write: bool = False,
        patience_s: float | None = None,
    ) -> None:
        """Start ffmpeg with `arguments`.

        `descriptors` are inherited; `feed` opens a pipe to its stdin; only a child that `may_write` can make files.
        `arguments` may be a function of the report filter, which reports the timestamp of every frame that passes it (see
        `next_report`). `patience_s` is the longest silence while we wait for the child; None is STALL_S, and more with `feed`.
        Raises UnavailableError on Windows and MissingError without ffmpeg.
        """
        check_system("reading and writing videos")
        self._reports: int | None = None
        theirs: int | None = None
        if callable(arguments):
            self._reports, theirs = os.pipe()
            # Skipped frames write nothing to stdout: the reports show that ffmpeg is alive.
            arguments = arguments(rf"metadata=add:key=report:value=1,metadata=print:key=report:file=pipe\\:{theirs}:direct=1")
        try:
            self.process = subprocess.Popen(
                [executable(), "-nostdin", "-hide_banner", *arguments],
                stdin=subprocess.PIPE if feed else subprocess.DEVNULL,
                stdout=subprocess.DEVNULL if feed else subprocess.PIPE,
                stderr=subprocess.PIPE,
                pass_fds=[*descriptors, *([] if theirs is None else [theirs])],
                # Ctrl-C must reach only us: we end the current step, and a child that died of it would look like a damaged video.
                process_group=0,
            )
        except BaseException:
            if self._reports is not None:
                os.close(self._reports)
            raise
        finally:
            if theirs is not None:
                os.close(theirs)
        _limit(self.process.pid, may_write=may_write)
        self.patience_s = patience_s if patience_s is not None else _ENCODER_STALL_S if feed else STALL_S
        self._messages: list[str] = []
        self._times: deque[int | None] = deque()
        self._news = threading.Condition()  # guards both, and the reading of their pipes
        self._has_ended = False  # whether the collecting thread has ended
        self._num_seen = 0  # of messages, by new_messages
        self._level = ""  # of the last message
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
        """Return `num_bytes` of its stdout, fewer only at the end; without `whole`, the bytes that are there.

        Raises PassingVideoError if it is silent for too long.
        """
        assert isinstance(self.process.stdout, io.BufferedReader)
        with self._waiting():
            data = self.process.stdout.read(num_bytes) if whole else self.process.stdout.read1(num_bytes)
        if self.stalled:
            raise PassingVideoError(f"ffmpeg gave nothing for {self.patience_s:.0f} seconds and was stopped")
        return data

    def write(self, data: bytes | memoryview) -> None:
        """Write to its stdin; raises VideoError with ffmpeg's first error if it has ended."""
        assert self.process.stdin is not None
        try:
            with self._waiting():
                self.process.stdin.write(data)
        except (BrokenPipeError, OSError) as error:
            self.finish()
            raise VideoError(f"ffmpeg stopped while it was written to: {messages.first_error(self.messages) or error}") from error

    def next_report(self) -> int | None:
        """Return the timestamp of the next frame that passes the report filter, in ticks of its stream; None if it has none.

        Waits for the frame. Raises EOFError if ffmpeg ends before it, PassingVideoError if it is silent for too long.
        """
        with self._waiting(), self._news:
            self._news.wait_for(lambda: self._times or self._has_ended)
            if self._times:
                return self._times.popleft()
        if self.stalled:
            raise PassingVideoError(f"ffmpeg gave nothing for {self.patience_s:.0f} seconds and was stopped")
        raise EOFError

    def finish(self) -> int:
        """Close the pipe to its stdin, wait for its end, and return the exit code."""
        if self.process.stdin is not None:
            with contextlib.suppress(OSError):
                self.process.stdin.close()
        # An encoder may need long for its last frames and its index; a reader has nothing left to do.
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
        if self._reports is not None:
            os.close(self._reports)
            self._reports = None

    @property
    def messages(self) -> list[str]:
        """The lines that it has written to stderr by now, up to a limit."""
        with self._settled():
            return list(self._messages)

    def new_messages(self) -> list[str]:
        """Return the messages since the last call."""
        with self._settled():
            new, self._num_seen = self._messages[self._num_seen :], len(self._messages)
            return new

    @contextmanager
    def _settled(self) -> Iterator[None]:
        """Wait until the pipe of messages is empty, and hold them: messages about frames that we have read are then all there."""
        assert self.process.stderr is not None
        while True:
            with self._news:
                if self._has_ended or not select.select([self.process.stderr], [], [], 0)[0]:
                    yield
                    return
            time.sleep(0.001)

    def _collect(self) -> None:
        """Read its messages and reports until both pipes end."""
        assert self.process.stderr is not None
        rests = {self.process.stderr.fileno(): b""} | ({} if self._reports is None else {self._reports: b""})
        with selectors.DefaultSelector() as pipes:
            for pipe in rests:
                pipes.register(pipe, selectors.EVENT_READ)
            while pipes.get_map():
                for key, _ in pipes.select():
                    with self._news:
                        data = os.read(key.fd, 1 << 16)
                        *lines, rests[key.fd] = (rests[key.fd] + data).split(b"\n") if data else (rests[key.fd], b"")
                        self._keep(lines, are_reports=key.fd == self._reports)
                        self._news.notify_all()
                    if not data:
                        pipes.unregister(key.fd)
        with self._news:
            self._has_ended = True
            self._news.notify_all()

    def _keep(self, lines: list[bytes], *, are_reports: bool) -> None:
        if not are_reports:
            for line in lines:
                text = line.decode(errors="replace").rstrip()[:500]
                # A line without a level continues the message before it.
                if level := messages.parse(text).level:
                    self._level = level
                elif self._level:
                    text = f"[{self._level}] {text}"
                if "[verbose]" in text and messages.filtered_size(text) is None:
                    continue
                if len(self._messages) < _MOST_MESSAGES or (
                    len(self._messages) < 2 * _MOST_MESSAGES and messages.is_complaint(text)
                ):
                    self._messages.append(text)
            return
        self._last_alive = time.monotonic()
        for line in lines:
            if found := _REPORT.match(line):
                self._times.append(int(found[1]) if found[1] != b"NOPTS" else None)

    @contextmanager
    def _waiting(self) -> Iterator[None]:
        self._waiting_since = time.monotonic()
        try:
            yield
        finally:
            self._waiting_since = None

    def _watch(self) -> None:
        """Kill the child if it is silent for longer than `patience_s` while we wait.

        Time in which it was ready and got no processor does not count: on a busy machine, a slow child is not stalled.
        """
        since = self._waiting_since
        starved_s = 0.0  # at `since`
        while self.process.poll() is None:
            now = self._waiting_since and max(self._waiting_since, self._last_alive)
            if now != since:
                since, starved_s = now, _starved_s(self.process.pid)
            if since is not None and time.monotonic() - since > self.patience_s + _starved_s(self.process.pid) - starved_s:
                self.stalled = True
                self.process.kill()
                return
            time.sleep(0.2)


def _starved_s(pid: int) -> float:
    """Return the seconds that a process was ready and got no processor, by its longest-waiting thread; 0 if unknown."""
    waits_ns = [0]
    with contextlib.suppress(OSError):  # it may end at any time
        for path in Path(f"/proc/{pid}/task").glob("*/schedstat"):
            with contextlib.suppress(OSError, IndexError, ValueError):
                waits_ns.append(int(path.read_text().split()[1]))
    return max(waits_ns) / 1e9


def _limit(pid: int, *, may_write: bool) -> None:
    """Limit the child's memory, and forbid it to write files, if the system can (Linux)."""
    import resource  # noqa: PLC0415 - not on Windows, where no child is started

    if not hasattr(resource, "prlimit"):
        return
    with contextlib.suppress(ProcessLookupError, PermissionError):
        resource.prlimit(pid, resource.RLIMIT_AS, (_MAX_MEMORY, _MAX_MEMORY))
        resource.prlimit(pid, resource.RLIMIT_CORE, (0, 0))
        if not may_write:
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (0, 0))
