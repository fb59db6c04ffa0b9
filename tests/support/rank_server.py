"""Runs `turbovaed` in several processes again and again, each a fork of one that has imported everything.

One request per line of stdin, {"words": [...], "count": 2}, one answer per line of stdout: exit codes and what each process
said. `patch` is code for every process to run first (RANK is in the environment). `signal` is sent to the processes in
`to` as soon as the path `once` is there, and `after` seconds have gone by then.
"""

import importlib
import io
import json
import os
import signal
import socket
import sys
import time
import traceback
from pathlib import Path

import torch
from limits import HANG_S

from turbovaed_cli import cli
from turbovaed_cli.machine.imports import import_less


def answer(request: dict) -> dict:
    count = request.get("count", 1)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    began = time.monotonic()
    pipes, children = [], []
    for rank in range(count):
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            several = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count}
            several |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            os.environ.update({name: str(value) for name, value in several.items()} if count > 1 else {})
            work(request, writing)
        os.close(writing)
        pipes.append(reading)
        children.append(child)
    codes: list[int | None] = [None] * count
    sent, signalled, since = False, request.get("signal"), None if "once" in request else 0.0
    while None in codes:
        now = time.monotonic() - began
        since = now if since is None and Path(request["once"]).exists() else since
        if signalled and not sent and since is not None and now - since >= request.get("after", 0):
            sent = True
            for rank in request["to"]:
                if codes[rank] is None:
                    os.kill(children[rank], signalled)
        if now > HANG_S:
            for child, code in zip(children, codes, strict=True):
                if code is None:
                    os.kill(child, signal.SIGKILL)
        for rank, child in enumerate(children):
            if codes[rank] is None:
                done, status = os.waitpid(child, os.WNOHANG)
                codes[rank] = os.waitstatus_to_exitcode(status) if done else None
        time.sleep(0.002)
    said = [os.fdopen(pipe, "rb").read().decode() for pipe in pipes]
    return {"codes": codes, "said": said, "seconds": time.monotonic() - began, "hung": time.monotonic() - began > HANG_S}


def work(request: dict, writing: int) -> None:
    """The command, in a child."""
    code = 1
    try:
        os.dup2(writing, 1)
        os.dup2(writing, 2)
        sys.stdout = io.TextIOWrapper(os.fdopen(1, "wb", closefd=False), line_buffering=True)
        sys.stderr = io.TextIOWrapper(os.fdopen(2, "wb", closefd=False), line_buffering=True)
        sys.argv = ["turbovaed", *request["words"]]
        exec(request.get("patch", ""), {})
        cli.main()
    except SystemExit as error:
        code = int(error.code or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    import_less()
    for needed in ("turbovaed_cli.evaluation.evaluate", "turbovaed_cli.training.distill"):  # by the children
        importlib.import_module(needed)
    torch.set_num_threads(1)  # a fork would not take a pool of threads along
    for line in sys.stdin:
        sys.stdout.write(json.dumps(answer(json.loads(line))) + "\n")
        sys.stdout.flush()
