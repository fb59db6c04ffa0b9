"""Eval measures teacher and student alike, on the frames that reconstruct would write."""

import json
import shutil

import numpy as np
import pytest
from conftest import make_video

from turbovaed_cli.errors import FrameCountError, SettingsError, UnavailableError
from turbovaed_cli.evaluate import as_document, evaluate
from turbovaed_cli.metrics import psnr, ssim
from turbovaed_cli.models.pair import load_pair
from turbovaed_cli.reconstruct import reconstructed_frames
from turbovaed_cli.settings import EvalSettings, ReconstructSettings
from turbovaed_cli.video import read_clip_uint8, to_model

SMALL = EvalSettings(frames=9, size=(64, 64))


@pytest.fixture(scope="module")
def pair(ltx_student, ltx_teacher):
    return load_pair(str(ltx_student), str(ltx_teacher))


@pytest.fixture(scope="module")
def result(pair, videos):
    return evaluate(pair, videos, SMALL)


def test_means_are_over_clips_and_the_ratio_is_of_means(result):
    assert len(result.clips) == 3
    for who in ("teacher", "student"):
        for name in ("psnr", "ssim"):
            assert result.means[who][name] == pytest.approx(np.mean([getattr(clip, who)[name] for clip in result.clips]))
    assert result.means["ratio"]["psnr"] == pytest.approx(result.means["student"]["psnr"] / result.means["teacher"]["psnr"])


def test_the_numbers_are_those_of_the_frames_reconstruct_writes(result, pair):
    for clip in result.clips:
        frames = read_clip_uint8(clip.path, 9, (64, 64), start=clip.start)
        side_by_side = np.stack(list(reconstructed_frames(iter(frames), 64, 64, pair, ReconstructSettings())))
        written, source = to_model(side_by_side), to_model(frames)
        assert clip.student == {"psnr": psnr(written, source), "ssim": ssim(written, source)}


def test_what_was_not_measured_says_why_and_what_to_run(result):
    assert "turbovaed models pull lpips-alex" in result.not_measured["lpips"]
    assert "lpips" not in result.means["student"]


def test_the_document_is_the_contract(result):
    document = json.loads(json.dumps(as_document(result)))
    assert document["schema_version"] == 1
    assert set(document["means"]) == {"teacher", "student", "ratio"}
    assert {"clips", "not_measured"} <= set(document)
    assert document["frames"] == 9 and document["size"] == [64, 64]


def test_the_default_is_17_frames_at_256(pair):
    assert (EvalSettings().frames, EvalSettings().size) == (17, (256, 256))


def test_several_clips_of_a_video(pair, videos):
    result = evaluate(pair, videos / "more", EvalSettings(frames=9, size=(64, 64), clips_per_video=2))
    assert [clip.start for clip in result.clips] == [0, 9, 0, 21]


def test_skipped_videos_are_listed(pair, videos, tmp_path):
    shutil.copy(videos / "a.mp4", tmp_path / "a.mp4")
    (tmp_path / "b.mp4").write_bytes(b"no")
    make_video(tmp_path / "c.mp4", frames=2)
    result = evaluate(pair, tmp_path, SMALL)
    assert len(result.clips) == 1
    assert len(result.skipped) == 2


def test_bad_requests_are_refused(pair, videos, tmp_path):
    with pytest.raises(FrameCountError):
        evaluate(pair, videos, EvalSettings(frames=10, size=(64, 64)))
    with pytest.raises(UnavailableError, match="protocol"):
        evaluate(pair, videos, EvalSettings(frames=9, size=(64, 64), protocol="paper"))
    with pytest.raises(SettingsError, match="no video"):
        evaluate(pair, tmp_path, SMALL)
