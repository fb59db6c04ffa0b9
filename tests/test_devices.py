"""What is said of the machine is so: peaks of memory, and what torch.compile needs."""

import shutil

import pytest
import torch

from turbovaed_cli.devices import check_compiler, forget_peak, peak_mb
from turbovaed_cli.errors import UnavailableError

CPU = torch.device("cpu")


def test_a_peak_is_seen_after_it_is_gone_and_forgotten_when_asked():
    forget_peak(CPU)
    before = peak_mb(CPU)
    if before is None:
        pytest.skip("this system does not tell")
    torch.ones(50_000_000)  # 200 MB, freed at once
    assert peak_mb(CPU) > before + 150
    forget_peak(CPU)
    assert peak_mb(CPU) < before + 150


def test_compiling_without_a_compiler_is_refused_with_what_to_do(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(UnavailableError, match=r"C\+\+ compiler") as error:
        check_compiler(CPU)
    assert "leave out --compile" in error.value.hint
    monkeypatch.setattr(shutil, "which", lambda name: "/opt/clang++" if name == "clang++" else None)
    check_compiler(CPU)
