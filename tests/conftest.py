"""Shared by all tests: two threads, and the small networks that many of them use."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from golden import load_golden, write_teacher


@pytest.fixture(scope="session", autouse=True)
def _two_threads():
    import torch

    torch.set_num_threads(2)


@pytest.fixture(scope="session")
def ltx_teacher(tmp_path_factory) -> Path:
    """A local folder holding the small-channel AutoencoderKLLTXVideo."""
    return write_teacher(load_golden("ltx"), tmp_path_factory.mktemp("ltx") / "vae")
