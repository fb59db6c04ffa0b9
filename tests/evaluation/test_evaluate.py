"""Eval measures teacher and student alike, on the frames that reconstruct would write, and says how sure it is."""

import hashlib
import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import make_video
from test_metrics import TinyDetector, random_trunk, scripted_detector
from test_stlpips import needs_package

from turbovaed_cli.cli.eval_tables import as_tables
from turbovaed_cli.errors import CorruptFileError, FrameCountError, MissingError, SettingsError, WeightFileError
from turbovaed_cli.evaluation import paper
from turbovaed_cli.evaluation.decoding import decode_times
from turbovaed_cli.evaluation.evaluate import (
    clip_frames,
    eval_document,
    evaluate,
    evaluate_all,
    find_misses,
    measuring_device,
    parse_thresholds,
)
from turbovaed_cli.evaluation.intervals import ratio_interval
from turbovaed_cli.evaluation.published import published_scores, recognise, why_not_published
from turbovaed_cli.evaluation.scores import ClipScores, met_thresholds, summarise
from turbovaed_cli.metrics import METRICS, flicker, fvd, psnr, ssim
from turbovaed_cli.metrics.features import FeatureDistance
from turbovaed_cli.models.network import num_params
from turbovaed_cli.models.pair import load_pair
from turbovaed_cli.models.teacher import Teacher
from turbovaed_cli.reconstruction.reconstruct import reconstruct
from turbovaed_cli.registry.rows import MODELS
from turbovaed_cli.registry.st_lpips import ST_LPIPS_FILES
from turbovaed_cli.settings import EvalSettings, ReconstructSettings
from turbovaed_cli.video import VideoWriter, ffmpeg, read_clip_uint8, read_frames, to_model

SMALL = EvalSettings(frames=9, size=(64, 64))
PIXELS = replace(SMALL, metrics=("psnr", "ssim", "flicker"))


@pytest.fixture(scope="module")
def pair(ltx_student, ltx_teacher):
    return load_pair(str(ltx_student), str(ltx_teacher))


@pytest.fixture(scope="module")
def result(pair, videos):
    return evaluate(pair, videos, SMALL)


def scores_and_facts(results, *, every_clip=False):
    """The first table of scores, and the list of facts, which has no headings."""
    tables = as_tables(results, Path(), every_clip=every_clip)
    return tables[0], next(table for table in tables if not any(table.columns))


def test_metrics_are_computed_on_a_gpu_that_has_fp64_and_the_published_ones_on_the_cpu():
    where = {
        (device, protocol): measuring_device(torch.device(device), protocol).type
        for device in ("cpu", "cuda", "mps")
        for protocol in ("standard", "paper")
    }
    assert {key for key, kind in where.items() if kind != "cpu"} == {("cuda", "standard")}


def test_means_are_over_clips_and_the_ratio_is_of_means(result):
    assert len(result.clips) == 3
    for who in ("teacher", "student"):
        for name in ("psnr", "ssim", "flicker"):
            assert result.means[who][name] == pytest.approx(np.mean([getattr(clip, who)[name] for clip in result.clips]))
    assert result.means["ratio"]["psnr"] == pytest.approx(result.means["student"]["psnr"] / result.means["teacher"]["psnr"])


def test_a_clip_measured_while_the_next_is_decoded_has_the_same_scores(result, pair, videos, set_threads):
    for threads in {1, 2} - {torch.get_num_threads()}:  # two threads are shared, one works in turns
        set_threads(threads)
        other = evaluate(pair, videos, SMALL)
        assert [clip.path for clip in other.clips] == [clip.path for clip in result.clips]
        for clip, same in zip(other.clips, result.clips, strict=True):
            assert clip.teacher == pytest.approx(same.teacher, rel=1e-5) and clip.student == pytest.approx(same.student, rel=1e-5)


def five(result):
    """That evaluation as it would be of five videos."""
    clips = [*result.clips, *(replace(result.clips[i], path=str(i), batch=3 + i) for i in range(2))]
    found = summarise(clips)
    return replace(result, clips=clips, means=found.means, intervals=found.intervals, num_videos=found.num_videos)


def test_intervals_are_over_clips_and_paired_for_the_ratio(result):
    result = five(result)
    scores = {who: [getattr(clip, who)["psnr"] for clip in result.clips] for who in ("teacher", "student")}
    for who, values in scores.items():
        assert result.intervals[who]["psnr"] == pytest.approx(ratio_interval(values, [1.0] * 5, range(5)))
    assert result.intervals["ratio"]["psnr"] == pytest.approx(ratio_interval(scores["student"], scores["teacher"], range(5)))
    assert result.num_videos == 5
    scores_table, facts = scores_and_facts([result])
    assert "±" in scores_table.rows[0][1] and dict(facts.rows)["±"].startswith("95 % confidence")
    assert eval_document(result)["intervals"]["reason"] is None


def test_fewer_than_five_videos_have_no_interval_and_that_is_said_once(result):
    """Of two, Student's t is 12.7: the half width is nearly seven times the whole spread."""
    scores_table, facts = scores_and_facts([result])
    assert not any("±" in cell for row in scores_table.rows for cell in row)
    assert [text for row in facts.rows for text in row if "interval" in text] == ["3 videos: too few for an interval"]
    intervals = eval_document(result)["intervals"]
    assert intervals["reason"] == "3 videos: too few for an interval"
    assert {value for side in ("teacher", "student", "ratio") for value in intervals[side].values()} == {None}


def test_the_worst_clips_are_named_worst_first(result):
    by_psnr = sorted(result.clips, key=lambda clip: clip.student["psnr"])
    assert result.worst["psnr"] == by_psnr
    assert result.worst["flicker"] == sorted(result.clips, key=lambda clip: -clip.student["flicker"])
    assert eval_document(result)["worst"]["psnr"][0]["path"] == by_psnr[0].path


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("frames", [9, 41])
def test_the_numbers_are_those_of_the_frames_that_reconstruct_hands_to_the_encoder(frames, pair, tmp_path, monkeypatch):
    """Bit for bit, for a clip of one window and for one of several that fade into each other."""
    source = make_video(tmp_path / "in.mp4", "testsrc2", "64x64", frames)
    written = []
    monkeypatch.setattr(
        VideoWriter, "write", lambda self, frame, write=VideoWriter.write: (written.append(frame.copy()), write(self, frame))[1]
    )
    reconstruct(source, tmp_path / "out.mp4", pair, ReconstructSettings())
    settings = replace(PIXELS, frames=frames)
    result = evaluate(pair, source, settings)
    (clip,) = result.clips
    clean, _, student = clip_frames(pair, clip, settings)
    assert np.array_equal(student, np.stack(written))
    assert np.array_equal(clean, np.stack(list(read_frames(source, square_pixels=False))))
    video, original = to_model(np.stack(written)), to_model(clean)
    assert clip.student == {"psnr": psnr(video, original), "ssim": ssim(video, original), "flicker": flicker(video, original)}


@pytest.mark.usefixtures("one_thread")
def test_clip_frames_are_what_was_measured(result, pair):
    for clip in result.clips:
        source, teacher, student = clip_frames(pair, clip, SMALL)
        assert source.shape == teacher.shape == student.shape == (9, 64, 64, 3)
        assert {frames.dtype for frames in (source, teacher, student)} == {np.dtype(np.uint8)}
        assert np.array_equal(source, read_clip_uint8(clip.path, 9, (64, 64), start=clip.start))
        assert psnr(to_model(teacher), to_model(source)) == clip.teacher["psnr"]
        assert psnr(to_model(student), to_model(source)) == clip.student["psnr"]


def test_what_was_not_measured_says_why_and_what_to_run(result):
    for name, pull in (("lpips", "lpips-alex"), ("lpips_vgg", "lpips-vgg")):
        assert (
            result.not_measured[name].startswith("not measured: ")
            and f"turbovaed models pull {pull}" in result.not_measured[name]
        )
        assert name not in result.means["student"]
    assert result.not_measured["rfvd"].startswith("not comparable: 3 clips of the 256")
    assert "rfvd" not in result.means["student"]


def test_without_libvmaf_there_is_no_vmaf_and_the_rest_goes_on(pair, videos, monkeypatch):
    monkeypatch.setattr(ffmpeg, "has_filter", lambda _name: False)
    result = evaluate(pair, videos / "a.mp4", replace(SMALL, metrics=("psnr", "vmaf")))
    assert result.not_measured["vmaf"].startswith("not measured: this ffmpeg has no libvmaf")
    assert list(result.means["student"]) == ["psnr"]
    with pytest.raises(MissingError, match=r"nothing can be measured: (?!not measured)"):
        evaluate(pair, videos / "a.mp4", replace(SMALL, metrics=("vmaf",)))


@pytest.mark.parametrize(
    ("size", "protocol", "measured"),
    [
        (8, "standard", {"psnr", "flicker", "grid"}),
        (16, "standard", {"psnr", "ssim", "flicker", "lpips_vgg", "grid", "banding"}),
        (8, "paper", {"psnr", "ssim"}),
    ],
)
def test_clips_too_small_for_a_metric_leave_out_that_metric_alone(videos, tmp_path, size, protocol, measured):
    for name in ("alex", "vgg"):
        torch.save(random_trunk(name), tmp_path / f"{name}.pth")
    weights = (tmp_path / "alex.pth", tmp_path / "vgg.pth")
    names = ("psnr", "ssim", "flicker", "vmaf", "lpips", "lpips_vgg", "grid", "seam", "banding")
    settings = EvalSettings(frames=5, size=(size, 32), metrics=names, protocol=protocol, lpips_weights=weights)
    tiny = load_pair("tiny")
    result = evaluate(tiny, videos / "a.mp4", settings)
    assert set(result.means["student"]) == measured and all(map(math.isfinite, result.means["student"].values()))
    reasons = {name: reason for name, reason in result.not_measured.items() if "the published script" not in reason}
    least = {"ssim": 11, "vmaf": 17, "lpips": 31, "lpips_vgg": 16, "seam": 32, "banding": 16}
    for name, reason in reasons.items():
        assert f"needs {least[name]}x{least[name]} pixels at least; these clips are 32x{size}" in reason
        assert reason.startswith("not measured: ") and "a larger `size`" in reason
    with pytest.raises(MissingError, match="lpips cannot be checked: not measured: LPIPS-Alex needs 31x31"):
        evaluate_all([tiny], videos / "a.mp4", settings, required=["lpips"])


def test_clips_too_short_for_i3d_leave_out_rfvd_alone(pair, videos, tmp_path, monkeypatch):
    monkeypatch.setattr(fvd, "MIN_CLIPS", 3)
    network = torch.nn.Conv3d(3, 1, (10, 1, 1))  # as I3D does, it wants ten frames
    torch.jit.trace(network, torch.zeros(1, 3, 10, 8, 8)).save(str(tmp_path / "ten.pt"))
    digest = hashlib.sha256((tmp_path / "ten.pt").read_bytes()).hexdigest()
    settings = replace(SMALL, metrics=("psnr", "rfvd"), i3d=tmp_path / "ten.pt", i3d_sha256=digest)
    result = evaluate(pair, videos, settings)
    assert result.not_measured["rfvd"].startswith("not measured: rFVD needs clips of 10 frames at least; these have 9")
    assert list(result.means["student"]) == ["psnr"]
    with pytest.raises(WeightFileError, match=r"ten\.pt does not take clips of 17 frames"):
        evaluate(pair, videos, replace(settings, frames=17))


def test_the_document_is_the_contract(result):
    document = json.loads(json.dumps(eval_document(result), allow_nan=False))
    assert document["schema_version"] == 1
    assert set(document["means"]) == {"teacher", "student", "ratio"}
    assert {"clips", "not_measured", "intervals", "worst", "weights", "published", "decoder_params", "kept"} <= set(document)
    assert document["frames"] == 9 and document["size"] == [64, 64]
    assert document["protocol"] == "standard" and document["intervals"]["confidence"] == 0.95


def test_decoder_parameters_are_those_of_the_two_decoders(result, pair):
    assert result.decoder_params == {"teacher": num_params(pair.teacher.decoder), "student": num_params(pair.student)}


def test_the_default_is_17_frames_at_256(pair):
    assert (EvalSettings().frames, EvalSettings().size) == (17, (256, 256))


def test_several_clips_of_a_video_count_as_one_video(pair, videos):
    result = evaluate(pair, videos / "more", replace(PIXELS, clips_per_video=2))
    assert [clip.start for clip in result.clips] == [0, 9, 0, 21]
    assert result.num_videos == 2
    alone = evaluate(pair, videos / "a.mp4", PIXELS)
    assert alone.intervals["student"]["psnr"] is None and eval_document(alone)["intervals"]["reason"].startswith("1 video: ")


def test_skipped_videos_are_listed(pair, videos, tmp_path):
    shutil.copy(videos / "a.mp4", tmp_path / "a.mp4")
    (tmp_path / "b.mp4").write_bytes(b"no")
    make_video(tmp_path / "c.mp4", frames=2)
    result = evaluate(pair, tmp_path, PIXELS)
    assert len(result.clips) == 1
    assert len(result.skipped) == 2


def test_bad_requests_are_refused(pair, videos, tmp_path):
    for error, changed, said in (
        (FrameCountError, {"frames": 10}, "10 frames"),
        (SettingsError, {"protocol": "mine"}, "standard, paper"),
        (SettingsError, {"metrics": ("psnr", "pnsr")}, "pnsr is no metric"),
        (SettingsError, {"dataset": "ucf11"}, "'ucf11'"),
        (SettingsError, {"stride": 0}, "`stride`"),
    ):
        with pytest.raises(error) as raised:
            evaluate(pair, videos, replace(SMALL, **changed))
        assert said in f"{raised.value.what} {raised.value.hint}"
    with pytest.raises(SettingsError, match="no video"):
        evaluate(pair, tmp_path, SMALL)


# --- several models -----------------------------------------------------------------------------------------------


def test_models_of_one_teacher_are_compared_on_the_same_clips_and_it_decodes_once(
    pair, ltx_student, ltx_teacher, videos, monkeypatch
):
    """Each gets the numbers it gets alone."""
    other = load_pair(str(ltx_student), str(ltx_teacher))
    with torch.no_grad():
        for parameter in other.student.parameters():
            parameter.mul_(0.9)
    decodes, decode = [], Teacher.decode
    monkeypatch.setattr(Teacher, "decode", lambda self, latents: (decodes.append(1), decode(self, latents))[1])
    first, second = evaluate_all([pair, other], videos, PIXELS)
    assert len(decodes) == len(first.clips) == 3
    assert first.clips == evaluate(pair, videos, PIXELS).clips
    assert second.clips == evaluate(other, videos, PIXELS).clips
    assert [clip.teacher for clip in first.clips] == [clip.teacher for clip in second.clips]
    assert first.means["student"] != second.means["student"]
    scores, facts = scores_and_facts([first, second])
    assert [row[0].strip() for row in scores.rows] == [first.model, "teacher", "student", "ratio"] * 2
    assert sum("decoder" in label for label, _ in facts.rows) == 2


# --- thresholds ---------------------------------------------------------------------------------------------------


def test_thresholds_are_shares_of_the_teachers_quality_whichever_way_the_metric_points():
    """Twice the teacher's LPIPS keeps half of its quality."""
    clips = [ClipScores("a", 0, {"psnr": 30.0, "lpips": 0.1}, {"psnr": 27.0, "lpips": 0.2})]
    summary = summarise(clips)
    assert summary.means["ratio"] == pytest.approx({"psnr": 0.9, "lpips": 2.0})
    assert summary.kept == pytest.approx({"psnr": 0.9, "lpips": 0.5})
    same = [ClipScores("a", 0, {"lpips": 0.0}, {"lpips": 0.0}), ClipScores("b", 0, {"lpips": 0.0}, {"lpips": 0.0})]
    assert summarise(same).kept == {"lpips": 1.0}


@pytest.mark.parametrize(
    ("teacher", "student", "kept", "ratio"),
    [(0, 0, 1, 1), (0, 0.2, 1, math.nan), (0, 2, 0.125, math.nan), (0.1, 0, 1, 0), (1, 0, 4, 0), (0.5, 1, 0.5, 2)],
)
def test_a_defect_that_nobody_sees_keeps_everything(teacher, student, kept, ratio):
    """The scores of clean decoders are 0 or next to it, where a ratio says nothing: up to 0.25 levels all grids are equal."""
    assert METRICS["grid"].negligible == 0.25
    summary = summarise([ClipScores("a", 0, {"grid": teacher}, {"grid": student})])
    assert summary.kept["grid"] == kept
    assert summary.means["ratio"]["grid"] == pytest.approx(ratio, nan_ok=True)


def test_a_threshold_for_a_defect_is_missed_by_levels_beyond_what_is_seen(result):
    seen = replace(result, kept={"grid": 0.125}, means={"teacher": {"grid": 0.0}, "student": {"grid": 2.0}})
    (miss,) = find_misses(seen, {"grid": 0.5})
    assert miss.short_by == 1.5 and "grid: 0.1250 of the teacher's, 0.5 asked: short by 0.3750 (1.500 /255)" in str(miss)
    assert find_misses(replace(seen, kept={"grid": 1.0}), {"grid": 0.9}) == []


def test_clips_to_look_at_leave_out_defects_that_nobody_sees(result):
    clips = [replace(clip, student={"psnr": 30.0, "grid": 0.24 + i}, teacher={"psnr": 31.0, "grid": 0.0}) for i, clip in
             enumerate(result.clips)]  # fmt: skip
    table = as_tables([replace(result, clips=clips)], Path())[-1]
    assert [row[0] for row in table.rows if row[0]] == ["PSNR", "grid"]
    hidden = as_tables([replace(result, clips=clips[:1])], Path())[-1]
    assert [row[0] for row in hidden.rows if row[0]] == ["PSNR"]


def test_a_miss_says_by_how_much(result):
    kept = result.kept["psnr"]
    assert find_misses(result, {"psnr": kept - 1e-6}) == []
    (miss,) = find_misses(result, {"psnr": kept + 0.05, "ssim": 1e-6})
    assert miss.name == "psnr"
    assert miss.short_by == pytest.approx(0.05 * result.means["teacher"]["psnr"])
    assert "short by 0.0500" in str(miss) and f"({miss.short_by:.2f} dB)" in str(miss)


def test_no_ratio_reaches_no_threshold():
    nothing = [ClipScores("a", 0, {"vmaf": 0.0}, {"vmaf": 3.0})]
    summary = summarise(nothing)
    assert math.isnan(summary.kept["vmaf"]) and not summary.kept["vmaf"] >= 0.1


def test_thresholds_are_read_from_text():
    assert parse_thresholds(["psnr=0.969,ssim=0.98", "LPIPS-Alex=1"]) == {"psnr": 0.969, "ssim": 0.98, "lpips": 1.0}
    assert parse_thresholds([]) == {}
    for text, said in (
        ("psnr", "NAME=RATIO"), ("=0.9", "NAME=RATIO"), ("pnsr=0.9", "pnsr"), ("psnr=30", "ratio"), ("psnr=", "ratio"), ("psnr=nan", "ratio"),
        ("psnr=-1", "ratio"), ("psnr=98%", "ratio"), ("psnr=0.9,", "NAME=RATIO"),
    ):  # fmt: skip
        with pytest.raises(SettingsError, match=said) as error:
            parse_thresholds([text])
        assert error.value.hint


def test_a_threshold_on_what_cannot_be_measured_never_passes(pair, videos):
    with pytest.raises(MissingError, match="rfvd cannot be checked: not comparable: 3 clips"):
        evaluate_all([pair], videos, SMALL, required=["rfvd"])
    with pytest.raises(SettingsError, match="leaves out"):
        evaluate_all([pair], videos, PIXELS, required=["vmaf"])


# --- what needs weights -------------------------------------------------------------------------------------------


def test_lpips_is_measured_with_weights_from_a_path_whose_sha256_is_recorded(pair, videos, tmp_path):
    path = tmp_path / "my-alexnet.pth"
    torch.save(random_trunk("alex"), path)
    settings = replace(SMALL, metrics=("lpips", "lpips_vgg"), lpips_weights=(path,))
    result = evaluate(pair, videos / "a.mp4", settings)
    assert set(result.means["student"]) == {"lpips"} and result.means["student"]["lpips"] > 0
    trunk, linear = result.weights["lpips"]
    assert trunk == {"file": "my-alexnet.pth", "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    assert linear["file"] == "alex.pth" and len(linear["sha256"]) == 64
    assert trunk["sha256"][:16] in "".join(text for _, text in scores_and_facts([result])[1].rows)
    assert "lpips_vgg" in result.not_measured


@needs_package
def test_st_lpips_is_measured_by_default_and_with_vgg_on_request(pair, videos, result):
    assert result.means["student"]["st_lpips"] > 0
    assert result.weights["st_lpips"] == [{"file": "alex_shift_tolerant.pth", "sha256": ST_LPIPS_FILES["alex"].sha256}]
    assert "st_lpips_vgg" not in {**result.means["student"], **result.not_measured}
    asked = evaluate(pair, videos / "a.mp4", replace(SMALL, metrics=("st-lpips-vgg", "st-lpips"), frames=1))
    assert list(asked.means["student"]) == ["st_lpips", "st_lpips_vgg"] and asked.means["student"]["st_lpips_vgg"] > 0
    assert asked.weights["st_lpips_vgg"][0]["sha256"] == ST_LPIPS_FILES["vgg"].sha256
    labels = [row[1] for row in as_tables([asked], videos)[0].rows] + list(as_tables([asked], videos)[0].columns)
    assert not any(str(label).startswith("LPIPS") for label in labels)


def test_without_its_package_st_lpips_is_not_measured_and_the_rest_goes_on(pair, videos, tmp_path, monkeypatch):
    info = tmp_path / "stlpips_pytorch-0.0.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: stlpips-pytorch\nVersion: 0.0.2\n")
    monkeypatch.syspath_prepend(tmp_path)  # found before the real one, and without its files
    found = evaluate(pair, videos / "a.mp4", replace(SMALL, metrics=("psnr", "st_lpips")))
    assert list(found.means["student"]) == ["psnr"]
    assert found.not_measured["st_lpips"].startswith("not measured: ST-LPIPS needs alex_shift_tolerant.pth")
    assert "turbovaed models pull st-lpips" in found.not_measured["st_lpips"]


@needs_package
def test_decoders_that_are_compared_share_the_features_of_the_source(pair, videos, ltx_student, ltx_teacher, monkeypatch):
    """Each gets the numbers it gets alone."""
    other = load_pair(str(ltx_student), str(ltx_teacher))
    with torch.no_grad():
        for parameter in other.student.parameters():
            parameter.mul_(0.9)
    frames, standardised = [], FeatureDistance.standardised
    monkeypatch.setattr(FeatureDistance, "standardised", lambda network, x: frames.append(1) or standardised(network, x))
    settings = replace(SMALL, frames=1, metrics=("st_lpips",))
    first, second = evaluate_all([pair, other], videos / "a.mp4", settings)
    assert len(frames) == 4  # the source, the teacher and two students
    assert first.clips == evaluate(pair, videos / "a.mp4", settings).clips
    assert second.clips == evaluate(other, videos / "a.mp4", settings).clips


@pytest.mark.parametrize("protocol", ["standard", "paper"])
def test_rfvd_is_the_distance_of_the_features_of_all_clips(protocol, pair, videos, tmp_path, monkeypatch):
    """With a detector of our own; each protocol feeds it its own range."""
    monkeypatch.setattr(fvd, "MIN_CLIPS", 3)
    path = tmp_path / "detector.pt"
    digest = scripted_detector(path)
    settings = replace(SMALL, metrics=("rfvd",), i3d=path, i3d_sha256=digest, protocol=protocol)
    result = evaluate(pair, videos, settings)
    assert result.weights["rfvd"] == [{"file": "detector.pt", "sha256": digest}]
    assert result.intervals["student"]["rfvd"] is None and result.kept["rfvd"] > 0
    if protocol == "standard":
        frames = [clip_frames(pair, clip, settings) for clip in result.clips]
        features = [
            np.stack([TinyDetector()(to_model(clip[side])[None], rescale=False)[0].double().numpy() for clip in frames])
            for side in range(3)
        ]
        assert result.means["teacher"]["rfvd"] == pytest.approx(fvd.frechet_distance(features[1], features[0]), rel=1e-4)
        assert result.means["student"]["rfvd"] == pytest.approx(fvd.frechet_distance(features[2], features[0]), rel=1e-4)
    with pytest.raises(CorruptFileError, match="not what you confirmed"):
        evaluate(pair, videos, replace(settings, i3d_sha256="0" * 64))
    monkeypatch.setattr(fvd, "MIN_CLIPS", 4)
    few = evaluate(pair, videos, replace(settings, metrics=("psnr", "rfvd")))
    assert few.not_measured["rfvd"].startswith("not comparable: 3 clips of the 4")


# --- the published protocol ---------------------------------------------------------------------------------------


def test_paper_normalises_batches_of_four_and_takes_the_mean_of_batch_means(pair, tmp_path):
    """Five clips: a batch of four, and one alone, which counts as much as the four."""
    for i, drawn in enumerate(("testsrc2", "mandelbrot", "testsrc", "rgbtestsrc", "testsrc2")):
        make_video(tmp_path / f"{i}.mp4", drawn, "64x64", 9 + 4 * i)
    result = evaluate(pair, tmp_path, replace(PIXELS, protocol="paper"))
    assert [clip.batch for clip in result.clips] == [0, 0, 0, 0, 1]
    assert set(result.means["student"]) == {"psnr", "ssim"}
    assert result.not_measured["flicker"].startswith("not measured: the published script has no such metric")
    scores = [clip.student["psnr"] for clip in result.clips]
    assert result.means["student"]["psnr"] == pytest.approx((np.mean(scores[:4]) + scores[4]) / 2)

    sources, decoded = [], []
    for i, clip in enumerate(result.clips[:4]):
        video = to_model(read_clip_uint8(clip.path, 9, (64, 64)))
        posterior = pair.teacher.encode(video[None])
        latents = posterior.sample(torch.randn(posterior.mean.shape, generator=torch.Generator().manual_seed(i)))
        with torch.no_grad():
            decoded.append(pair.student(latents)[0].clamp(-1, 1))
        sources.append(video)
    for clip, video, source in zip(result.clips, paper.min_max(decoded), paper.min_max(sources), strict=False):
        assert clip.student == pytest.approx({"psnr": paper.psnr(video, source), "ssim": paper.ssim(video, source)}, rel=1e-5)
    assert evaluate(pair, tmp_path, replace(PIXELS, protocol="paper")).clips == result.clips


def test_paper_is_labelled_wherever_its_numbers_are(pair, videos):
    result = evaluate(pair, videos / "a.mp4", replace(PIXELS, protocol="paper"))
    document = eval_document(result)
    assert document["protocol"] == "paper" and "published script" in document["protocol_label"]
    scores, facts = scores_and_facts([result])
    assert "protocol paper" in scores.title
    assert "published script" in dict(facts.rows)["protocol"] and "hides contrast errors" in dict(facts.rows)["protocol"]


# --- published figures --------------------------------------------------------------------------------------------


def test_a_data_set_is_known_by_its_file_names_or_by_word(tmp_path):
    names = [tmp_path / f"v_ApplyEyeMakeup_g{i:02}_c01.avi" for i in range(1, 4)]
    assert recognise("", names) == "ucf101"
    assert recognise("", [*names, tmp_path / "mine.mp4"]) is None
    assert recognise("", [tmp_path / "UCF-101" / "a.mp4"]) is None  # a folder's name proves nothing
    assert recognise("UCF-101", [tmp_path / "a.mp4"]) == "ucf101"


@pytest.mark.parametrize(("protocol", "label"), [("standard", "published, other protocol"), ("paper", "published")])
def test_published_figures_stand_beside_ours_where_model_and_data_match(protocol, label, pair, tmp_path):
    for i in (1, 2):
        make_video(tmp_path / f"v_Archery_g0{i}_c01.avi", "testsrc2", "64x64", 17, "-c:v", "mpeg4")
    settings = EvalSettings(metrics=("psnr",), protocol=protocol)
    ltx = replace(pair, spec=MODELS["ltx"], name="ltx")
    found = published_scores(MODELS["ltx"], "ltx", recognise("", sorted(tmp_path.iterdir())), settings)
    assert found.means == MODELS["ltx"].published_results and found.label == label
    assert "3,783 clips" in found.source
    assert published_scores(MODELS["ltx"], "runs/mine", "ucf101", settings).label == f"{label}, ltx's own student"
    for spec, dataset, other in (
        (MODELS["tiny"], "ucf101", settings),  # nothing published
        (pair.spec, "ucf101", settings),  # a local folder of the same class is another model
        (MODELS["ltx"], None, settings),  # other data
        (MODELS["ltx"], "ucf101", replace(settings, frames=9)),  # other clips
        (MODELS["ltx"], "ucf101", replace(settings, size=(64, 64))),
        (MODELS["ltx"], "ucf101", replace(settings, stride=2)),
    ):
        assert published_scores(spec, "ltx", dataset, other) is None

    result = evaluate(ltx, tmp_path, settings)
    document = eval_document(result)
    assert document["dataset"] == "ucf101"
    assert document["published"]["label"] == label and document["published"]["means"]["psnr"] == [32.40, 31.68]
    scores, facts = scores_and_facts([result])
    rows = [row[0].strip() for row in scores.rows]
    assert rows == ["ltx", "teacher", "student", "ratio", label, "teacher", "student", "ratio"]
    assert scores.rows[5][1] == "32.40" and scores.rows[6][1] == "31.68"
    assert dict(facts.rows)["published"].startswith(f"{label}: arXiv:2508.09136, UCF-101")


# --- speed --------------------------------------------------------------------------------------------------------


def test_decoders_are_timed_in_turns_and_only_their_ratio_is_shown(pair, videos, monkeypatch):
    order = []
    monkeypatch.setattr(pair.student, "fast", False)  # whose modules call no hooks
    handles = [
        pair.teacher.decoder.register_forward_hook(lambda *_: order.append("teacher")),
        pair.student.register_forward_hook(lambda *_: order.append("student")),
    ]
    times = decode_times(pair, read_clip_uint8(videos / "a.mp4", 9, (64, 64)), repeats=3)
    for handle in handles:
        handle.remove()
    assert order == ["teacher", "student"] * 4  # a warm-up and three turns
    assert len(times.teacher_s) == len(times.student_s) == 3
    low, high = times.range
    assert 0 < low <= high and times.ratio == pytest.approx(np.median(times.teacher_s) / np.median(times.student_s))
    result = evaluate(pair, videos / "a.mp4", replace(PIXELS, speed_repeats=1))
    assert eval_document(result)["decode_times"]["ratio"] > 0
    assert "times as fast as the teacher" in dict(scores_and_facts([result])[1].rows)["speed"]


# --- what people read ---------------------------------------------------------------------------------------------


def test_what_was_not_measured_is_one_line_and_a_line_each_with_v(result):
    (_, facts), (_, long) = scores_and_facts([result]), scores_and_facts([result], every_clip=True)
    named = ", ".join(("LPIPS-Alex", "LPIPS-VGG", "rFVD"))
    assert [row for row in facts.rows if "measured" in row[0]] == [("not measured", f"{named} (-v says why, and what to run)")]
    assert [label for label, text in long.rows if text in result.not_measured.values()] == ["LPIPS-Alex", "LPIPS-VGG", "rFVD"]
    one = replace(result, not_measured={"vmaf": "not measured: because"})
    assert ("VMAF", "not measured: because") in scores_and_facts([one])[1].rows
    unpublished = [name for name, metric in METRICS.items() if name not in paper.IN_PAPER and not metric.on_request]
    others = dict.fromkeys(unpublished, "not measured: the published script has no such metric")
    paper_table = scores_and_facts([replace(result, protocol="paper", not_measured=others)])[1]
    assert not any("published script has no" in text or label == "not measured" for label, text in paper_table.rows)


def test_a_threshold_that_is_met_has_a_line(result):
    kept = result.kept["psnr"]
    assert met_thresholds([result], {"psnr": kept, "ssim": 50.0}) == [f"psnr {kept:.3f} >= {kept:g}: met"]
    assert met_thresholds([result, result], {"psnr": kept})[0].startswith(f"{result.model} psnr")


def test_why_no_published_figures_stand_beside_ours_is_said(result):
    ucf = EvalSettings(dataset="ucf101")
    assert why_not_published(MODELS["ltx"], "ucf101", ucf) == "" == why_not_published(MODELS["tiny"], None, ucf)
    why = why_not_published(MODELS["tiny"], "ucf101", ucf)
    assert why.startswith("none for this model; the paper has ltx, hunyuan, cogvideox, video-dc-ae on UCF-101")
    assert why_not_published(MODELS["ltx"], "ucf101", SMALL) == "none for these clips: the paper measured 17 frames of 256x256"
    table = scores_and_facts([replace(result, published_missing=why)])[1]
    assert ("published", why) in table.rows and eval_document(replace(result, published_missing=why))["published_missing"] == why


def test_the_student_is_behind_or_ahead_of_its_teacher(result):
    better = [replace(clip, student={name: value + 1 for name, value in clip.teacher.items()}) for clip in result.clips]
    told = {row[1] for table in as_tables([replace(result, clips=better)], Path())[-1:] for row in table.rows}
    assert any("least ahead of teacher" in text for text in told) and any("furthest behind teacher" in text for text in told)
