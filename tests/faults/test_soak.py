"""tools/soak.py, small: a kill in the middle, frames and sound. Memory over time needs minutes."""

import argparse
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools"))
import soak


@pytest.mark.faults
@pytest.mark.thorough
def test_a_long_video_keeps_frames_and_sound_and_a_kill_leaves_nothing(tmp_path):
    options = argparse.Namespace(minutes=0.2, size="64x64", model="tiny-lite", kill_after=None)
    checks = {name: (good, words) for name, good, words in soak.soak(tmp_path, options)}
    assert list(checks) == ["run", "memory", "frames", "sound", "killed"]
    assert {name: words for name, (good, words) in checks.items() if not good and name != "memory"} == {}


def test_a_tone_that_comes_late_is_measured(tmp_path):
    soak.draw(tmp_path / "in.mp4", "64x64", 12)
    late = ["-itsoffset", "0.25", "-i", str(tmp_path / "in.mp4"), "-map", "0:v", "-map", "1:a", "-c", "copy"]
    soak._ffmpeg("-i", str(tmp_path / "in.mp4"), *late, str(tmp_path / "late.mp4"))
    before, after = (soak.delay_at_end(tmp_path / name) for name in ("in.mp4", "late.mp4"))
    assert abs(before) < 0.05 and after - before == pytest.approx(0.25, abs=0.01)
    assert soak.count_frames(tmp_path / "late.mp4") == 288
