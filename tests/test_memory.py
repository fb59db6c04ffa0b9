"""What decoding takes is foretold, and kept to."""

import json
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from turbovaed_cli.errors import SettingsError
from turbovaed_cli.models.memory import decoding_bytes, encoding_bytes, held_bytes, plan_pieces, with_margin
from turbovaed_cli.models.pair import Pair, load_pair

MEASURE = """
import json, sys, torch
from pathlib import Path
from turbovaed_cli.models.memory import held_bytes
from turbovaed_cli.models.pair import load_pair
from turbovaed_cli.models.streaming import StreamingDecoder

frames, rows, spill = (int(word) for word in sys.argv[1:4])
student = load_pair(with_teacher=False).student
decoder = StreamingDecoder(student, rows=rows, spill=Path('/tmp') if spill else None)
latents = torch.randn(1, student.config.latent_channels, 24, 40, 64)
Path("/proc/self/clear_refs").write_text("5")
before = held_bytes(student.device)
for video in decoder.decode(latents.split(frames, dim=2)):
    video.to(torch.uint8)
status = Path("/proc/self/status").read_text()
peak = next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM"))
print(json.dumps(peak - before))
"""


@pytest.fixture(scope="module")
def pair() -> Pair:
    return load_pair()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from /proc")
@pytest.mark.parametrize("pieces", [(8, 0, False), (1, 0, False), (1, 5, True)])
def test_the_peak_is_foretold(pieces, pair):
    """At least what is measured, and not twice as much beside what a process takes besides tensors."""
    frames, rows, spill = pieces
    command = [sys.executable, "-c", MEASURE, str(frames), str(rows), str(int(spill))]
    measured = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    foretold = with_margin(decoding_bytes(pair.student, (40, 64), frames, rows, spill=spill))
    assert measured < foretold < 2 * measured + with_margin(0), (measured, foretold)


def test_smaller_pieces_take_less(pair):
    def taken(frames, rows=0, spill=False):
        return decoding_bytes(pair.student, (64, 64), frames, rows, spill=spill)

    assert taken(8) > taken(2) > taken(1) > taken(1, 16) > taken(1, 16, True) > 0
    half = load_pair(dtype=torch.bfloat16).student
    assert decoding_bytes(half, (64, 64), 2) < 0.75 * taken(2)
    assert encoding_bytes(pair, (512, 512), 32) > encoding_bytes(pair, (512, 512), 8) > 0


def test_pieces_are_chosen_to_keep_the_budget(pair):
    size, held = (360, 640), held_bytes(pair.device)
    ample = plan_pieces(pair, size)
    assert ample.rows == 0 and not ample.spill and ample.encode_frames % 2 == 0
    previous = ample
    for share in (0.85, 0.75):
        budget = held + round(share * (ample.peak_bytes - held))
        pieces = plan_pieces(pair, size, budget)
        assert held < pieces.peak_bytes <= budget
        assert pieces.peak_bytes < previous.peak_bytes and pieces != previous
        previous = pieces
    with pytest.raises(SettingsError, match="is too little for 640x360: the smallest pieces need") as error:
        plan_pieces(pair, size, held + 1000)
    assert "at least --memory" in error.value.hint
    assert plan_pieces(replace(pair, teacher=None), size).encode_frames == 0
