"""What decoding takes is foretold, and kept to."""

import json
import subprocess
import sys
from dataclasses import replace
from functools import cache
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from golden import load_golden, write_teacher
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional

from turbovaed_cli.errors import SettingsError
from turbovaed_cli.models import memory
from turbovaed_cli.models.loading import build_student
from turbovaed_cli.models.memory import (
    decoding_bytes,
    encoding_bytes,
    pixels_per_piece,
    plan_pieces,
    with_margin,
)
from turbovaed_cli.models.metering import metered
from turbovaed_cli.models.pair import Pair, load_pair
from turbovaed_cli.models.teacher import load_teacher
from turbovaed_cli.reconstruction.reconstruct import reconstructed_frames
from turbovaed_cli.settings import ReconstructSettings

MEASURE = """
import json, sys, torch
from pathlib import Path
from turbovaed_cli.machine.imports import import_less
import_less()
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
@pytest.mark.parametrize(
    "pieces",
    [
        pytest.param((8, 0, False), marks=pytest.mark.thorough),
        pytest.param((1, 0, False), marks=pytest.mark.thorough),
        (1, 5, True),
    ],
)
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
    assert encoding_bytes(pair.teacher, (512, 512), 32) > encoding_bytes(pair.teacher, (512, 512), 8) > 0


def test_pieces_are_chosen_to_keep_the_budget(pair, monkeypatch):
    """With a fixed part held by the process, so that neither this machine nor earlier tests change the plan."""
    size, held = (360, 640), 10**9
    monkeypatch.setattr(memory, "held_bytes", lambda _: held)
    ample = plan_pieces(pair, size, 10**11)
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
    assert "at least `memory`" in error.value.hint
    assert plan_pieces(replace(pair, teacher=None), size).encode_frames == 0


@pytest.fixture(scope="module")
def windowed(tmp_path_factory) -> Pair:
    """A small HunyuanVideo, which encodes in windows, and a student of it."""
    golden = load_golden("hunyuan")
    teacher = load_teacher(str(write_teacher(golden, tmp_path_factory.mktemp("hunyuan") / "vae")))
    torch.manual_seed(0)
    return Pair(build_student(golden.meta["student_config"]).eval(), teacher, None, "small", None)


@pytest.fixture
def rehearsals(monkeypatch) -> list[str]:
    """What is rehearsed, in order."""
    done: list[str] = []
    for name in ("encoding_bytes", "decoding_bytes"):
        real = getattr(memory, name)
        monkeypatch.setattr(memory, name, lambda *a, real=real, name=name, **k: (done.append(name), real(*a, **k))[1])
    return done


def test_a_refusal_and_an_easy_plan_take_few_rehearsals(pair, rehearsals, monkeypatch):
    """One of each kind if the largest pieces fit; three encodes and one decode if not even the smallest encode does."""
    monkeypatch.setattr(memory, "held_bytes", lambda _: 0)
    size = (360, 640)
    ample = plan_pieces(pair, size, 10**11)
    assert rehearsals == ["encoding_bytes", "decoding_bytes"]
    rehearsals.clear()
    with pytest.raises(SettingsError, match="the smallest pieces need") as refusal:
        plan_pieces(pair, size, with_margin(1000))
    assert rehearsals == ["encoding_bytes", "encoding_bytes", "decoding_bytes", "encoding_bytes"]
    rehearsals.clear()
    needed = float(str(refusal.value).rpartition("need ")[2].partition(" GB")[0])
    with pytest.raises(SettingsError):  # the encoder would fit alone
        plan_pieces(pair, size, round((needed - 0.05) * 1e9))
    assert rehearsals.count("encoding_bytes") <= 3 and rehearsals.count("decoding_bytes") <= 2
    rehearsals.clear()
    hint = float(refusal.value.hint.partition("`memory` ")[2].partition("GB")[0])
    plan = plan_pieces(pair, size, round(hint * 1e9))  # what the hint names is enough
    assert 0 < plan.peak_bytes <= hint * 1e9 < ample.peak_bytes
    assert rehearsals.count("decoding_bytes") <= 6  # halved, not one after the other


def test_a_teacher_of_windows_takes_shorter_ones_before_it_gives_up(windowed, monkeypatch):
    monkeypatch.setattr(memory, "held_bytes", lambda _: 0)
    for name in ("encoding_bytes", "decoding_bytes"):  # which every plan would rehearse again
        monkeypatch.setattr(memory, name, cache(getattr(memory, name)))
    size = (32, 48)
    lean = memory.decoding_bytes(windowed.student, (4, 6), 1, 1, spill=True)
    budgets = {frames: with_margin(memory.encoding_bytes(windowed.teacher, size, frames) + lean) for frames in (33, 17, 5)}
    for frames, budget in budgets.items():
        assert plan_pieces(windowed, size, budget).encode_frames == frames
    with pytest.raises(SettingsError, match="is too little"):
        plan_pieces(windowed, size, budgets[5] - 1)

    said: list[str] = []
    report = SimpleNamespace(note=lambda text="", **_: said.append(text))
    frames = np.random.default_rng(0).integers(0, 256, (40, *size, 3), dtype=np.uint8)
    for memory_limit, given, windows in (
        (budgets[17], 40, "17 frames (33 do not fit in memory)"),
        (10**11, 40, "33 frames"),
        (10**11, 25, ""),
    ):
        said.clear()
        settings = ReconstructSettings(memory=memory_limit)
        made = list(reconstructed_frames(iter(frames[:given]), *size, windowed, settings, num_frames=given, report=report))
        assert len(made) == given and made[0].shape == (*size, 3)
        notes = [text for text in said if "windows" in text]
        assert notes == (
            [f"AutoencoderKLHunyuanVideo encodes in windows of {windows} that fade into each other"] if windows else []
        )


def test_attention_is_counted_as_kernels_compute_it(windowed):
    """Scores of every query for every key are in no memory; a mask of that size, which HunyuanVideo makes, is."""
    queries = 4096
    cases = (("cpu", torch.float32, 16, False), ("cpu", torch.bfloat16, 16, False), ("cuda", torch.bfloat16, 64, False),
             ("cuda", torch.float32, 512, True), ("cuda", torch.bfloat16, 512, True))  # fmt: skip
    for device, dtype, channels, with_mask in cases:
        with FakeTensorMode(), metered() as meter:
            query = torch.empty(1, 2, queries, channels, dtype=dtype, device=device)
            mask = torch.empty(1, 1, queries, queries, dtype=dtype, device=device) if with_mask else None
            before = meter.live
            made = functional.scaled_dot_product_attention(query, query, query, attn_mask=mask)
        output = made.numel() * made.element_size()
        assert made.shape == query.shape and made.dtype == dtype and made.device == query.device
        assert output <= meter.peak - before < 4 * output + 3_000_000 * torch.get_num_threads(), (device, dtype, channels)
        assert meter.peak - before < 2 * queries**2 * made.element_size()
    with FakeTensorMode(), metered() as meter:  # which no kernel takes: the scores are there
        query = torch.empty(1, 2, queries, 16, dtype=torch.float64)
        functional.scaled_dot_product_attention(query, query, query[..., :8])
    assert meter.peak > 2 * queries**2 * 8
    places = 9 * (256 // 8) ** 2
    assert 5 * places**2 < encoding_bytes(windowed.teacher, (256, 256), 33) < 6.5 * places**2  # a mask in fp32, and as bool


def test_gpus_get_larger_pieces_and_short_clips_no_larger_ones_than_they_have(pair):
    size = (704, 1280)
    assert pixels_per_piece("cuda") == 32 * 2**20 > pixels_per_piece("cpu") == pixels_per_piece("mps")
    gpu = SimpleNamespace(student=pair.student, teacher=None, device=torch.device("cuda"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(memory, "held_bytes", lambda _: 0)
        ratio = int(pair.student.temporal_compression_ratio)
        assert plan_pieces(gpu, size, 10**12).frames == 32 * 2**20 // (704 * 1280 * ratio)
        assert plan_pieces(gpu, size, 10**12, ratio * 2 + 1).frames == 3
        small, long, short = (64, 64), plan_pieces(pair, (64, 64), 10**11), plan_pieces(pair, (64, 64), 10**11, 25)
        assert (long.frames, short.frames, short.encode_frames) == (128, 13, 24) and short.peak_bytes < long.peak_bytes
        assert plan_pieces(replace(pair, teacher=None), small, 10**11, 25).frames == 13
        assert plan_pieces(pair, small, 10**11, 1).frames == 1
