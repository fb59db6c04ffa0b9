"""Run the cases of one module in a process that loads the fake accelerator before torch, and read what it found."""

import json
import os
import subprocess
import sys
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from limits import HANG_S

from fake_cuda.library import compiler

ROOT = Path(__file__).resolve().parents[3]


@dataclass(frozen=True)
class Result:
    """What one case came to: its figures, and the traceback it ended with, if it did."""

    figures: dict[str, Any]
    error: str | None

    def check(self) -> dict[str, Any]:
        """The figures; fails the test with the case's own traceback."""
        assert self.error is None, self.error
        return self.figures


def marked(cases: Iterable[str], more: Collection[str]) -> list[Any]:
    """Cases as parameters of a test; those in `more`, whose kind others have, are for `make test-all`."""
    return [pytest.param(case, marks=pytest.mark.thorough) if case in more else case for case in cases]


def run_selected(
    request: pytest.FixtureRequest, module: str, cases: Iterable[str], more: Collection[str], kind: str = "cuda"
) -> dict[str, Result]:
    """Run the cases that `marked` leaves in this session."""
    is_all = request.config.getoption("--thorough") or request.config.getoption("--all-faults")
    return run_cases(module, *(case for case in cases if is_all or case not in more), kind=kind)


def run_cases(module: str, *cases: str, kind: str = "cuda") -> dict[str, Result]:
    """These cases of fake_cuda/{module}.py, or all, by name. Skips the tests, with the reason, if the fake device cannot be had."""
    if not sys.platform.startswith("linux"):
        pytest.skip("the fake device is a shared library for Linux")
    if torch.backends.cuda.is_built():
        pytest.skip(
            "this torch is built for CUDA, and its own device takes the place of the fake one; a CPU build has room for it"
        )
    if compiler() is None:
        pytest.skip("no C++ compiler here, which the fake device is built with: apt-get install g++")
    environment = {
        **os.environ,
        "FAKE_DEVICE": kind,
        "PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "tests" / "support"))),
    }
    command = [sys.executable, "-m", "fake_cuda", module, *cases]
    done = subprocess.run(command, check=False, env=environment, capture_output=True, text=True, timeout=HANG_S)
    assert done.returncode == 0, done.stderr
    return {row["case"]: Result(row["figures"], row["error"]) for row in map(json.loads, done.stdout.splitlines())}
