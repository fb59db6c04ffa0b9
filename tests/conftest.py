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


@pytest.fixture(scope="session")
def ltx_student(tmp_path_factory) -> Path:
    """A saved folder with a small student for that teacher; unlike the golden one, its last norm is over 4 channels, not 1."""
    import torch

    from turbovaed_cli.models.student import build_student

    config = load_golden("ltx").meta["student_config"]
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("ltx-student")
    build_student(config | {"decoder_block_out_channels": [64, *config["decoder_block_out_channels"][1:]]}).save_pretrained(folder)
    return folder
