"""Kill two `cache-latents` on one folder at random moments, and see that the cache becomes what one undisturbed run makes.

    python tests/faults/killed_workers.py --work DIR --kills 200 --seed 1

DIR holds teacher/ and videos/. Whenever both workers got through, the cache is compared and a new one begun. Every clip that
is encoded is logged, so that one encoded after it was committed is seen. One line of JSON in the end.
"""

import argparse
import importlib
import json
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path

import torch

import turbovaed_cli.latents.caching  # noqa: F401 - for the children
from turbovaed_cli import cli
from turbovaed_cli.errors import TurboVaedError
from turbovaed_cli.files.whole import sha256_of
from turbovaed_cli.latents.cache import committed_shards
from turbovaed_cli.latents.writer import CacheWriter
from turbovaed_cli.reporting import hushed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, required=True)
    options = parser.parse_args()
    torch.set_num_threads(1)  # a fork would not take a pool of threads along
    with hushed():  # for the children: a second that each kill saves
        importlib.import_module("diffusers.models.autoencoders.autoencoder_kl_ltx")
    rng = random.Random(options.seed)
    began = time.monotonic()
    once = Worker(options.work, options.work / f"once-{options.seed}", None)
    assert once.wait() == 0, "the command fails by itself"
    seconds = time.monotonic() - began
    wanted = contents(once.out)
    counts = {"seed": options.seed, "kills": 0, "runs": 0, "differing": 0, "unreadable": 0, "encoded_twice": 0, "wrong_exits": 0}
    while counts["kills"] < options.kills:
        out = options.work / f"killed-{options.seed}"
        workers: list[Worker | None] = [None, None]
        began = time.monotonic()
        ends: dict[int, int] = {}  # when each worker was killed or seen to have ended
        while True:
            for place, worker in enumerate(workers):
                if worker is None:
                    moment = rng.uniform(0, 0.8 * seconds) if counts["kills"] < options.kills else None
                    workers[place] = Worker(options.work, out, moment)
                elif (code := worker.poll()) is not None:
                    workers[place] = None
                    ended(worker, code, counts, ends)
                    counts["unreadable"] += not is_readable(out)
            if counts["wrong_exits"] or (None in workers and contents(out).keys() == wanted.keys()):
                break
            time.sleep(0.001)
        for worker in filter(None, workers):
            worker.kill_after = None
            ended(worker, worker.wait(), counts, ends)  # it may have been killed a moment ago
        # The first of all may have been slow: hardly any kill would come in time.
        seconds = min(seconds, time.monotonic() - began)
        counts["runs"] += 1
        counts["differing"] += contents(out) != wanted
        counts["encoded_twice"] += encoded_twice(out, ends)
        if counts["differing"] or counts["wrong_exits"]:
            break
        shutil.rmtree(out)
        log_of(out).unlink()
    print(json.dumps(counts))
    sys.exit(any(counts[name] for name in ("differing", "unreadable", "encoded_twice", "wrong_exits")))


def ended(worker: "Worker", code: int, counts: dict[str, int], ends: dict[int, int]) -> None:
    ends[worker.pid] = worker.killed_at or time.time_ns()
    counts["kills"] += code == -signal.SIGKILL
    if code not in (0, -signal.SIGKILL):
        counts["wrong_exits"] += 1
        print(f"exit code {code}: {worker.said.read_text(encoding='utf-8')}", file=sys.stderr)
    worker.said.unlink(missing_ok=True)


class Worker:
    """One child that caches into `out`, by the command itself, and is killed after so many seconds if it still runs."""

    def __init__(self, work: Path, out: Path, kill_after: float | None) -> None:
        self.out, self.kill_after, self.began = out, kill_after, time.monotonic()
        self.killed_at = 0  # in nanoseconds of time.time_ns()
        self.pid = os.fork()
        if self.pid == 0:
            _cache(work, out)

    @property
    def said(self) -> Path:
        """What it wrote to its terminal."""
        return _said(self.out, self.pid)

    def poll(self) -> int | None:
        """Its exit code, negative for a signal; None while it runs."""
        if self.kill_after is not None and time.monotonic() - self.began >= self.kill_after:
            self.killed_at = time.time_ns()
            os.kill(self.pid, signal.SIGKILL)
            self.kill_after = None
        done, status = os.waitpid(self.pid, os.WNOHANG)
        return os.waitstatus_to_exitcode(status) if done else None

    def wait(self) -> int:
        while (code := self.poll()) is None:
            time.sleep(0.001)
        return code


def _cache(work: Path, out: Path) -> None:
    """The command, in the child."""
    module, log = sys.modules["turbovaed_cli.latents.caching"], os.open(log_of(out), os.O_CREAT | os.O_APPEND | os.O_WRONLY)
    encode = module._encode

    def logged(teacher, clips):
        os.write(log, "".join(f"{time.time_ns()} {os.getpid()} {clip.source.key}\n" for clip in clips).encode())
        return encode(teacher, clips)

    module._encode = logged
    commit = CacheWriter._commit

    def logged_commit(writer):
        keys = [clip["key"] for clip in writer._clips]
        commit(writer)
        os.write(log, "".join(f"{time.time_ns()} committed {key}\n" for key in keys).encode())

    CacheWriter._commit = logged_commit
    words = [
        "cache-latents", "--teacher", work / "teacher", "--data", work / "videos", "--out", out, "--frames", "9", "--size", "96",
        "--shard-mb", "1", "--batch-size", "2", "-q",
    ]  # fmt: skip
    sys.argv = ["turbovaed", *map(str, words)]
    code = 1
    try:
        with _said(out, os.getpid()).open("w", encoding="utf-8") as said:
            sys.stdout = sys.stderr = said
            cli.main()
    except SystemExit as error:
        code = int(error.code or 0)
    finally:
        os._exit(code)


def _said(out: Path, pid: int) -> Path:
    return out.with_name(f"{out.name}.{pid}.said")


def log_of(out: Path) -> Path:
    return out.with_name(f"{out.name}.log")


def contents(out: Path) -> dict[str, str]:
    """Every file of a cache but its locks."""
    files = [path for path in out.rglob("*") if path.is_file() and path.suffix != ".lock"]
    return {path.relative_to(out).as_posix(): sha256_of(path) for path in files if not path.name.startswith(".")}


def is_readable(out: Path) -> bool:
    try:
        return all(sha256_of(out / "shards" / record["file"]) == record["sha256"] for record in committed_shards(out))
    except (TurboVaedError, OSError):
        return False


def encoded_twice(out: Path, ends: dict[int, int]) -> int:
    """How many clips somebody began to encode when they were committed, or when another one who had begun was still alive."""
    committed: dict[str, int] = {}
    twice, before = 0, {}
    lines = map(str.split, log_of(out).read_text(encoding="ascii").splitlines())
    for moment, worker, key in sorted((int(moment), worker, key) for moment, worker, key in lines):
        if worker == "committed":
            committed.setdefault(key, moment)
            continue
        other = before.get(key, worker)
        twice += moment > committed.get(key, moment) or (other != worker and ends.get(int(other), moment + 1) > moment)
        before[key] = worker
    return twice


if __name__ == "__main__":
    main()
