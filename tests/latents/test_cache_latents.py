"""A cache holds what the encoder says of exactly the pixels beside it, does only what is missing, and tells damage."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import make_video
from limits import HANG_S
from typer.testing import CliRunner

from turbovaed_cli.cli.app import app
from turbovaed_cli.errors import CorruptFileError, FrameCountError, SettingsError, ShapeError
from turbovaed_cli.files.whole import sha256_of
from turbovaed_cli.latents.batch import item_at
from turbovaed_cli.latents.cache import LatentCache, committed_shards, read_shard
from turbovaed_cli.latents.caching import BusyClock, cache_latents
from turbovaed_cli.latents.latent_files import read_latents
from turbovaed_cli.latents.merge import merge_caches
from turbovaed_cli.latents.planning import plan_clips
from turbovaed_cli.latents.status import cache_status
from turbovaed_cli.latents.writer import CacheWriter
from turbovaed_cli.machine.devices import num_readers
from turbovaed_cli.machine.ranks import alone
from turbovaed_cli.machine.threads import Background
from turbovaed_cli.models.teacher import Teacher, load_teacher
from turbovaed_cli.registry.find import find_model
from turbovaed_cli.reporting import quiet
from turbovaed_cli.runs.rundir import RunDir
from turbovaed_cli.settings import CacheSettings, DistillSettings, Stage
from turbovaed_cli.training.prepare import Distillation, prepare
from turbovaed_cli.video import list_videos, probe, read_clip, read_clip_uint8, to_model

SMALL = CacheSettings(frames=9, size=(64, 64))


@pytest.fixture(scope="module")
def cache(ltx_teacher, videos, tmp_path_factory):
    out = tmp_path_factory.mktemp("cache") / "latents"
    result = cache_latents(find_model(ltx_teacher), videos, out, SMALL)
    return out, result


def test_a_gpu_gets_a_reader_per_core_up_to_eight(monkeypatch, ltx_teacher, videos, tmp_path):
    cpu, cuda = torch.device("cpu"), torch.device("cuda:1")
    for cores, wanted in ((1, 2), (6, 6), (64, 8)):
        monkeypatch.setattr(os, "sched_getaffinity", lambda _, cores=cores: set(range(cores)), raising=False)
        assert (num_readers(cuda), num_readers(cpu), num_readers(cuda, 3), num_readers(cpu, 3)) == (wanted, 2, 3, 3)
    with pytest.raises(SettingsError, match="`workers` is -1"):
        cache_latents(find_model(ltx_teacher), videos, tmp_path / "out", replace(SMALL, workers=-1))


def test_every_clip_that_fits_is_there(cache):
    out, result = cache
    assert (result.encoded, result.found, result.skipped) == (2 + 2 + 3, 0, [])
    assert len(LatentCache(out)) == 7


def test_latents_are_those_of_the_pixels_beside_them_and_the_pixels_those_of_the_video(cache, ltx_teacher):
    out, _ = cache
    teacher, latents = load_teacher(ltx_teacher), LatentCache(out)
    for index, clip in enumerate(latents.clips):
        mean, std, video = latents.read(index)
        posterior = teacher.encode(video[None])
        assert torch.equal(posterior.mean[0], mean)
        assert torch.equal(posterior.std[0], std)
        assert torch.equal(video, read_clip(clip["path"], 9, (64, 64), start=clip["start"]))


def test_two_videos_of_one_base_name_do_not_collide(cache):
    out, _ = cache
    of_a = {clip["key"] for clip in LatentCache(out).clips if "/a.m" in clip["path"]}
    assert len(of_a) == 4


def test_again_encodes_nothing_and_changes_no_byte(cache, ltx_teacher, videos):
    out, _ = cache
    before = {path: sha256_of(path) for path in out.rglob("*") if path.is_file()}
    result = cache_latents(find_model(ltx_teacher), videos, out, SMALL)
    assert (result.encoded, result.found) == (0, 7)
    assert {path: sha256_of(path) for path in out.rglob("*") if path.is_file()} == before


def test_the_bytes_are_those_of_reading_encoding_and_writing_one_after_the_other(ltx_teacher, videos, tmp_path):
    """Whatever the number of readers; shards are cut at the same places."""
    spec, settings = find_model(ltx_teacher), CacheSettings(frames=9, size=(128, 128), shard_mb=1, batch_size=2, workers=3)
    cache_latents(spec, videos, tmp_path / "c", settings)
    teacher = load_teacher(ltx_teacher)
    made_by = json.loads((tmp_path / "c" / "manifest.json").read_text())
    assert made_by.pop("schema_version") == 2 and len(made_by.pop("seal")) == 64
    clips = [clip for path in list_videos(videos) for clip in plan_clips(probe(path), settings)]
    assert made_by.pop("parts") == 1
    with CacheWriter(tmp_path / "serial", made_by, shard_mb=1) as writer:
        for pair in (clips[i : i + 2] for i in range(0, len(clips), 2)):
            frames = [read_clip_uint8(clip.path, 9, clip.size, start=clip.start) for clip in pair]
            posterior = teacher.encode(torch.stack([to_model(one) for one in frames]))
            pixels = map(torch.from_numpy, frames)
            writer.add_all(list(zip(pair, posterior.mean, [std[:1] for std in posterior.std], pixels, strict=True)))
    shards = {path.name: path.read_bytes() for path in (tmp_path / "c" / "shards").iterdir()}
    assert len(shards) > 2
    assert shards == {path.name: path.read_bytes() for path in (tmp_path / "serial" / "shards").iterdir()}


def test_the_class_itself_encodes_without_fast(ltx_teacher, videos, tmp_path, monkeypatch):
    taken: list[bool | None] = []
    real = Teacher.encode
    monkeypatch.setattr(Teacher, "encode", lambda self, video: (taken.append(self.fast), real(self, video))[1])
    for fast in (True, False):
        cache_latents(find_model(ltx_teacher), videos, tmp_path / str(fast), replace(SMALL, fast=fast))
    assert None in taken and False in taken
    ours, stock = (LatentCache(tmp_path / str(fast)).read(0)[0] for fast in (True, False))
    assert 0 < (ours - stock).abs().max() < 1e-4


def test_precise_changes_no_byte_on_a_cpu(cache, ltx_teacher, videos, tmp_path):
    cache_latents(find_model(ltx_teacher), videos, tmp_path / "c", replace(SMALL, precise=True))
    of_both = [
        {
            path.relative_to(out).as_posix(): path.read_bytes()
            for path in out.rglob("*")
            if path.suffix in (".json", ".safetensors")
        }
        for out in (cache[0], tmp_path / "c")
    ]
    assert of_both[0] == of_both[1] and b"tf32" not in b"".join(of_both[0].values())
    assert cache_status(cache[0]).tf32_clips == LatentCache(cache[0]).tf32_clips == 0


def test_what_was_encoded_in_tf32_is_recorded_per_shard_and_may_be_mixed_with_the_rest(
    ltx_teacher, videos, tmp_path, monkeypatch
):
    """As on a GPU that has it: here the flags change nothing, and what a teacher sees of them is in test_fake_cuda_decoding."""
    monkeypatch.setattr("turbovaed_cli.models.teacher.has_tf32", lambda device, dtype: True)
    spec, out, settings = find_model(ltx_teacher), tmp_path / "c", CacheSettings(frames=9, size=(128, 128), shard_mb=1)
    cache_latents(spec, videos, out, replace(settings, precise=True))
    assert cache_status(out).tf32_clips == 0
    manifest = (out / "manifest.json").read_bytes()
    removed = sorted((out / "shards").glob("*.json"))[0]
    count = len(read_shard(removed)["clips"])
    removed.unlink()
    for part in (out / "parts").glob("part-*.json"):
        part.unlink()
    assert cache_latents(spec, videos, out, settings).encoded == count
    assert (out / "manifest.json").read_bytes() == manifest
    assert [record.get("tf32") for record in committed_shards(out)].count(True) == 1
    assert cache_status(out).tf32_clips == LatentCache(out).tf32_clips == count < cache_status(out).clips
    shown = CliRunner().invoke(app, ["cache-latents", "--status", "--out", str(out)])
    assert f"{count} of {cache_status(out).clips} clips" in shown.stdout and "in TF32" in shown.stdout
    (other := tmp_path / "merged").mkdir()
    merge_caches([out], other)
    assert cache_status(other).tf32_clips == count

    heard = []

    class Listening(type(quiet)):
        def note(self, text="", *, warning=False, **values):
            heard.append((text, warning))

    stage = Stage("only", steps=1, perceptual="none", perceptual_weight=0.0, feature_weight=0.0)
    for precise in (False, True):
        asked = Distillation(spec, tmp_path / "run", None, out, DistillSettings((stage,), precise=precise))
        prepare(asked, alone(torch.device("cpu")), RunDir(tmp_path / "run"), Listening())
        assert any(f"{count} of {len(LatentCache(out))} clips" in text and warning for text, warning in heard) == precise
        assert any("the teacher in TF32" in text for text, _ in heard) != precise
        heard.clear()


def test_the_share_of_time_that_the_encoder_was_busy_starts_behind_its_first_batch(cache, ltx_teacher, videos, tmp_path):
    assert 0 < cache[1].encoder_busy <= 1
    one = CacheSettings(frames=9, size=(64, 64), batch_size=99)
    assert cache_latents(find_model(ltx_teacher), videos, tmp_path / "c", one).encoder_busy is None
    clock = BusyClock()
    for seconds, ended in ((9.0, 10.0), (2.0, 13.0), (1.0, 14.0)):
        clock.add(seconds, ended)
    assert clock.share == 0.75


def test_what_the_writer_thread_cannot_do_is_raised_and_what_was_written_before_stays(ltx_teacher, videos, tmp_path, monkeypatch):
    added = []
    add_all = CacheWriter.add_all

    def full_from_the_third_on(self, clips, part):
        if len(added) == 3:
            raise OSError(28, "No space left on device")
        added.append(clips[0][0].key)
        add_all(self, clips, part)

    monkeypatch.setattr(CacheWriter, "add_all", full_from_the_third_on)
    with pytest.raises(OSError, match="No space left"):
        cache_latents(find_model(ltx_teacher), videos, tmp_path / "c", SMALL)
    monkeypatch.undo()
    assert {clip["key"] for clip in LatentCache(tmp_path / "c").clips} == set(added) and len(added) == 3
    assert cache_latents(find_model(ltx_teacher), videos, tmp_path / "c", SMALL).found == 3


def test_an_interrupt_keeps_every_clip_that_was_encoded(ltx_teacher, videos, tmp_path, monkeypatch):
    encoded, encode = [], Teacher.encode

    def interrupted(self, video):
        if len(encoded) == 4:
            raise KeyboardInterrupt
        encoded.append(encode(self, video))
        return encoded[-1]

    monkeypatch.setattr(Teacher, "encode", interrupted)
    with pytest.raises(KeyboardInterrupt):
        cache_latents(find_model(ltx_teacher), videos, tmp_path / "c", SMALL)
    assert len(LatentCache(tmp_path / "c")) == 4


def test_work_in_the_background_is_done_in_order_while_more_is_given():
    import threading

    done, may_go = [], threading.Event()
    with Background(lambda item: may_go.wait(HANG_S) and done.append(item), most_waiting=2) as give:
        for item in range(3):  # one at work and two waiting: none of these calls waits
            give(item)
        assert done == []
        may_go.set()
    assert done == [0, 1, 2]


def test_a_lost_shard_is_encoded_again_and_nothing_else(ltx_teacher, videos, tmp_path):
    spec, settings = find_model(ltx_teacher), CacheSettings(frames=9, size=(192, 192), shard_mb=1)
    cache_latents(spec, videos, tmp_path / "c", settings)
    whole = {clip["key"] for clip in LatentCache(tmp_path / "c").clips}
    # Half-written: the tensors are there, the file that makes them count is not.
    first = sorted((tmp_path / "c" / "shards").glob("*.json"))[0]
    lost = len(json.loads(first.read_text())["clips"])
    first.unlink()
    result = cache_latents(spec, videos, tmp_path / "c", settings)
    assert (result.encoded, result.found) == (lost, 7 - lost)
    assert 0 < lost < 7
    assert {clip["key"] for clip in LatentCache(tmp_path / "c").clips} == whole


def test_shards_are_of_bounded_size(ltx_teacher, videos, tmp_path):
    settings = CacheSettings(frames=9, size=(192, 192), shard_mb=1)
    cache_latents(find_model(ltx_teacher), videos, tmp_path / "c", settings)
    sizes = [shard["bytes"] for shard in committed_shards(tmp_path / "c")]
    clip = 9 * 192 * 192 * 3
    assert len(sizes) > 1
    assert max(sizes) < 1_000_000 + 1.1 * clip


def test_an_unreadable_video_is_named_and_the_rest_goes_on(ltx_teacher, videos, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(videos, data)
    (data / "broken.mp4").write_bytes(b"not a video")
    make_video(data / "short.mp4", frames=3)
    result = cache_latents(find_model(ltx_teacher), data, tmp_path / "c", SMALL)
    assert result.encoded == 7
    assert {item.path.rpartition("/")[2]: item.reason for item in result.skipped}.keys() == {"broken.mp4", "short.mp4"}
    assert any("3 frames, 9 needed" in item.reason for item in result.skipped)


def test_clips_are_spread_evenly(videos):
    info = probe(videos / "more" / "b.mp4")  # 30 frames
    assert [clip.start for clip in plan_clips(info, CacheSettings(frames=9, clips_per_video=2))] == [0, 21]
    assert [clip.start for clip in plan_clips(info, CacheSettings(frames=9, clips_per_video=1))] == [0]
    assert [clip.start for clip in plan_clips(info, CacheSettings(frames=5, stride=2))] == [0, 9, 18]


def test_other_settings_in_the_same_folder_are_refused(cache, ltx_teacher, videos):
    with pytest.raises(SettingsError, match=r"other settings: `size` 64x64 -> 64x96$"):
        cache_latents(find_model(ltx_teacher), videos, cache[0], CacheSettings(frames=9, size=(96, 64)))


def test_what_the_teacher_would_change_silently_is_refused(ltx_teacher, videos, tmp_path):
    with pytest.raises(FrameCountError, match="10"):
        cache_latents(find_model(ltx_teacher), videos, tmp_path / "c", CacheSettings(frames=10, size=(64, 64)))
    with pytest.raises(ShapeError, match="70x64"):
        cache_latents(find_model(ltx_teacher), videos, tmp_path / "c", CacheSettings(frames=9, size=(64, 70)))


def test_a_changed_shard_is_an_error_that_names_it(cache, tmp_path):
    shutil.copytree(cache[0], tmp_path / "c")
    shard = next((tmp_path / "c" / "shards").glob("*.safetensors"))
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    with pytest.raises(CorruptFileError, match=shard.name):
        LatentCache(tmp_path / "c").read(0)


def test_the_stream_visits_every_clip_once_a_round_and_depends_on_nothing_else():
    rounds = [[item_at(3, index, 7) for index in range(start, start + 7)] for start in (0, 7, 14)]
    assert all(sorted(found) == list(range(7)) for found in rounds)
    assert rounds[0] != rounds[1]
    assert [item_at(3, index, 7) for index in range(7)] == rounds[0]
    assert [item_at(4, index, 7) for index in range(7)] != rounds[0]


def test_a_batch_is_a_function_of_its_index(cache):
    latents = LatentCache(cache[0])
    a, b = latents.batch_at(0, 3, 2), LatentCache(cache[0]).batch_at(0, 3, 2)
    assert torch.equal(a.video, b.video) and torch.equal(a.mean, b.mean)
    assert a.video.shape == (2, 3, 9, 64, 64)
    assert a.mean.shape == a.std.shape == (2, 6, 2, 2, 2)


def test_a_latents_file_with_several_clips_is_not_guessed_at(cache):
    with pytest.raises(SettingsError, match="7 clips"):
        read_latents(next((cache[0] / "shards").glob("*.safetensors")))


def test_a_manifest_that_another_process_writes_meanwhile_is_agreed_to(tmp_path, monkeypatch):
    """Two workers begin on an empty folder at once: between the look for a manifest and the look around, the other writes it."""
    with CacheWriter(tmp_path / "c", {"dtype": "fp32"}, shard_mb=1):
        pass
    looks = iter([False])
    exists = Path.exists
    monkeypatch.setattr(Path, "exists", lambda path, **more: next(looks, True) and exists(path, **more))
    with CacheWriter(tmp_path / "c", {"dtype": "fp32"}, shard_mb=1) as writer:
        assert writer.parts == 1 and next(looks, None) is None


def test_a_cache_of_another_way_of_reading_is_not_continued(ltx_teacher, videos, tmp_path):
    """HDR refused or tone-mapped, or a version that read otherwise: other pixels under the same name."""
    spec, out = find_model(ltx_teacher), tmp_path / "latents"
    cache_latents(spec, videos / "a.mp4", out, CacheSettings(frames=9, size=(64, 64)))
    with pytest.raises(SettingsError, match="hdr: tonemap -> refuse"):
        cache_latents(spec, videos / "a.mp4", out, CacheSettings(frames=9, size=(64, 64), hdr="refuse"))
