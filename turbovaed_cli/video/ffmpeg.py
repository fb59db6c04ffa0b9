"""The ffmpeg child process: what it may open, how much it may use, how long it may be silent, and what it reports."""

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
FLOOR = (7, 0)  # the first whose descriptors can seek; older ones are also long without fixes of their decoders
STALL_S = 8.0  # seconds without a sign of life while we wait for a reader: with its start and end, a hung one costs less than ten
_ENCODER_STALL_S = 20.0  # the same of a child that we write to, which looks at many frames before it takes the next
_MOST_MESSAGES = 400  # of any kind; as many complaints again
_REPORT = re.compile(rb"frame:\d+ +pts:(-?\d+|NOPTS) ")


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


def input_options(descriptor: int, *, demuxer: str = "") -> list[str]:
    """Options that make an open file an input, and nothing else reachable from it; read as what it is, or by `demuxer`."""
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
    """A running ffmpeg whose messages are collected by a thread and which is killed when it keeps us waiting.

    `report_filter` is a filter that reports the timestamp of every frame that passes it, for next_report.
    """

    def __init__(
        self,
        arguments: Callable[[str], Sequence[str]] | Sequence[str],
        *,
        descriptors: Sequence[int] = (),
        feed: bool = False,
        may_write: bool = False,
        patience_s: float | None = None,
    ) -> None:
        """`descriptors` are inherited; `feed` opens a pipe to its stdin; only a child that `may_write` can make files.

        Arguments may be a function of the report filter. `patience_s` is how long it may be silent while we wait for it;
        None: STALL_S, and more if it is fed.
        """
        check_system("reading and writing videos")
        self._reports: int | None = None
        theirs: int | None = None
        if callable(arguments):
            self._reports, theirs = os.pipe()
            # Frames that are passed over write nothing to stdout: this is their sign of life too.
            arguments = arguments(rf"metadata=add:key=report:value=1,metadata=print:key=report:file=pipe\\:{theirs}:direct=1")
        try:
            self.process = subprocess.Popen(
                [executable(), "-nostdin", "-hide_banner", *arguments],
                stdin=subprocess.PIPE if feed else subprocess.DEVNULL,
                stdout=subprocess.DEVNULL if feed else subprocess.PIPE,
                stderr=subprocess.PIPE,
                pass_fds=[*descriptors, *([] if theirs is None else [theirs])],
                # Ctrl-C goes to us: we end the step at hand, and a child that died of it would look like a damaged video.
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
        self._news = threading.Condition()  # guards both, and what of their pipes is being read
        self._has_ended = False  # that thread
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
        """`num_bytes` of its stdout, less only at the end; not `whole`: what there is. VideoError when it is silent for too long."""
        assert isinstance(self.process.stdout, io.BufferedReader)
        with self._waiting():
            data = self.process.stdout.read(num_bytes) if whole else self.process.stdout.read1(num_bytes)
        if self.stalled:
            raise PassingVideoError(f"ffmpeg gave nothing for {self.patience_s:.0f} seconds and was stopped")
        return data

    def write(self, data: bytes | memoryview) -> None:
        """Feed its stdin; VideoError with its own words if it has gone."""
        assert self.process.stdin is not None
        try:
            with self._waiting():
                self.process.stdin.write(data)
        except (BrokenPipeError, OSError) as error:
            self.finish()
            raise VideoError(f"ffmpeg stopped while it was written to: {messages.first_error(self.messages) or error}") from error

    def next_report(self) -> int | None:
        """The timestamp of the next frame that passed the report filter, in ticks of its stream; None for one without.

        Waits for it; EOFError if ffmpeg ends before, VideoError if it is silent for too long.
        """
        with self._waiting(), self._news:
            self._news.wait_for(lambda: self._times or self._has_ended)
            if self._times:
                return self._times.popleft()
        if self.stalled:
            raise PassingVideoError(f"ffmpeg gave nothing for {self.patience_s:.0f} seconds and was stopped")
        raise EOFError

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
        if self._reports is not None:
            os.close(self._reports)
            self._reports = None

    @property
    def messages(self) -> list[str]:
        """Every line that it has written to stderr by now."""
        with self._settled():
            return list(self._messages)

    def new_messages(self) -> list[str]:
        """Those that came since the last call."""
        with self._settled():
            new, self._num_seen = self._messages[self._num_seen :], len(self._messages)
            return new

    @contextmanager
    def _settled(self) -> Iterator[None]:
        """Hold the messages when all of them are there: what is still in the pipe was written before what we have read of its stdout."""
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
                # With levels, a line without one goes on with the message before it.
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
        """Only time that we spend waiting counts, and that it could have used: on a busy machine, neither is a stalled ffmpeg."""
        since = self._waiting_since
        starved_s = 0.0  # by then
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
    """How long a process was ready to run and got no processor: that of its threads that waited longest. 0 if not known."""
    waits_ns = [0]
    for path in Path(f"/proc/{pid}/task").glob("*/schedstat"):
        with contextlib.suppress(OSError, IndexError, ValueError):
            waits_ns.append(int(path.read_text().split()[1]))
    return max(waits_ns) / 1e9


def _limit(pid: int, *, may_write: bool) -> None:
    """Bound the child's memory, and forbid it files, where the system can (Linux)."""
    import resource  # noqa: PLC0415 - not on Windows, where no child is started

    if not hasattr(resource, "prlimit"):
        return
    with contextlib.suppress(ProcessLookupError, PermissionError):
        resource.prlimit(pid, resource.RLIMIT_AS, (_MAX_MEMORY, _MAX_MEMORY))
        resource.prlimit(pid, resource.RLIMIT_CORE, (0, 0))
        if not may_write:
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (0, 0))
