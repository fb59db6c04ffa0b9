"""`--nproc`: one command as several processes of this machine, which find each other by torchrun's variables.

torch's own launcher is not used: it drops exit codes, allows only 30 s for a checkpoint after a signal, and imports torch.
"""

import atexit
import os
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from typing import Any, NoReturn

from turbovaed_cli.machine.signals import signals_handled_by

COMMAND_LINE = "TURBOVAED_COMMAND_LINE"  # the command that started several processes, as it was typed
WATCH_FD = "TURBOVAED_WATCH_FD"  # names a descriptor that reaches its end when the launcher has ended
_GRACE_S = 30.0  # for the other processes to end by themselves after one has failed
_POLL_S = 0.05


def launch(words: Sequence[str], nproc: int) -> tuple[int, str | None]:
    """Run `turbovaed WORDS` in `nproc` processes and pass SIGINT and SIGTERM on.

    Returns (exit code, a message about a failed rank, or None if the first rank reported it). If one fails, the rest have
    30 s to report it and end; one that hangs is killed.
    """
    watch, held = os.pipe()  # `held` closes with this process, whatever ends it
    threads = str(max(1, (os.cpu_count() or 1) // nproc))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(nproc), "LOCAL_WORLD_SIZE": str(nproc)}
    shared |= {WATCH_FD: str(watch), COMMAND_LINE: command_line(), "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", threads)}
    options: dict[str, Any] = {"pass_fds": (watch,), "start_new_session": True}
    ranks: list[subprocess.Popen[bytes]] = []
    passed_on: list[int] = []

    def pass_on(number: int, _frame: object) -> None:
        passed_on.append(number)
        for rank in ranks:
            rank.send_signal(number)

    with signals_handled_by(pass_on):
        try:
            for number in range(nproc):
                environment = os.environ | shared | {"RANK": str(number), "LOCAL_RANK": str(number)}
                ranks.append(subprocess.Popen([sys.executable, "-P", "-m", "turbovaed_cli", *words], env=environment, **options))
            return _watched(ranks, passed_on)
        finally:
            for rank in ranks:
                if rank.poll() is None:
                    rank.kill()
                rank.wait()
            os.close(watch)
            os.close(held)


def command_line() -> str:
    """Return the command of this process as it was typed, before `--nproc` started several processes."""
    return os.environ.get(COMMAND_LINE) or shlex.join(["turbovaed", *sys.argv[1:]])


def _watched(ranks: Sequence["subprocess.Popen[bytes]"], passed_on: Sequence[int]) -> tuple[int, str | None]:
    """Wait for all ranks; after one has failed, at most `_GRACE_S`. Returns as `launch` does."""
    failed: dict[int, int] = {}  # rank: exit code, in the order of their ends
    deadline = None
    while any(rank.poll() is None for rank in ranks):
        failed |= {
            number: code
            for number, rank in enumerate(ranks)
            if (code := rank.poll()) not in (None, 0, 5) and number not in failed
        }
        if failed and not passed_on and deadline is None:
            deadline = time.monotonic() + _GRACE_S
        if deadline is not None and time.monotonic() > deadline:
            for rank in ranks:
                rank.kill()
        time.sleep(_POLL_S)
    codes = [rank.returncode for rank in ranks]
    failed |= {number: code for number, code in enumerate(codes) if code not in (0, 5) and number not in failed}
    if not failed:
        return max(codes), None
    if passed_on and codes[0] > 0:  # the first rank reports the outcome of a signal
        return codes[0], None
    number, code = next(iter(failed.items()))
    if code < 0 and -code in passed_on:
        return 128 - code, None
    is_reported = codes[0] > 0  # the first rank prints the error for all
    end = f"was killed ({signal.Signals(-code).name})" if code < 0 else f"ended with exit code {code}"
    return (code if code > 0 else 1), (None if is_reported else f"process {number} of {len(ranks)} {end}")


def end_with_launcher() -> None:
    """Send this process SIGTERM when its launcher ends, if it has one: no user could see or stop the process after that."""
    descriptor = os.environ.pop(WATCH_FD, None)
    if descriptor is None:
        return

    def watch() -> None:
        os.read(int(descriptor), 1)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="launcher", daemon=True).start()


def is_beside_another() -> bool:
    """Whether this is one of several processes of a distillation, but not the first, which reports."""
    return _is_one_of_several() and int(os.environ.get("RANK") or 0) > 0


def end_process(code: int) -> NoReturn:
    """End this process with `code`; one of several ends without running the destructors of libraries.

    Native threads of a process group may abort a process that ends while another still talks to it, and lose its exit code.
    """
    if _is_one_of_several():
        atexit._run_exitfuncs()  # trackers and temporary folders; there is no public name for it
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def _is_one_of_several() -> bool:
    return int(os.environ.get("WORLD_SIZE") or 1) > 1
