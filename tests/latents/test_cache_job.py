"""Caches made by several workers, looked at from outside, and merged; what a dry run says beforehand."""

import json
import shutil
import sys

import pytest
from conftest import make_video
from limits import HANG_S

from turbovaed_cli.errors import CheckFailedError, CorruptFileError, PassingVideoError, SettingsError
from turbovaed_cli.latents.cache import LatentCache
from turbovaed_cli.latents.caching import cache_latents
from turbovaed_cli.latents.estimate import estimate_cache
from turbovaed_cli.latents.merge import merge_caches
from turbovaed_cli.latents.parts import Shard, claim
from turbovaed_cli.latents.status import cache_status
from turbovaed_cli.machine.threads import read_ahead
from turbovaed_cli.registry.find import find_model
from turbovaed_cli.settings import CacheSettings
from turbovaed_cli.video import probe

SMALL = CacheSettings(frames=9, size=(64, 64))


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """Sixteen videos of a few frames, each with other bytes."""
    folder = tmp_path_factory.mktemp("many")
    make_video(folder / "0.mp4", frames=20)
    content = (folder / "0.mp4").read_bytes()
    for number in range(1, 16):  # a box that players skip
        (folder / f"{number}.mp4").write_bytes(content + (16).to_bytes(4, "big") + b"free" + number.to_bytes(8, "big"))
    return folder


@pytest.fixture(scope="module")
def whole(many, ltx_teacher, tmp_path_factory):
    out = tmp_path_factory.mktemp("whole") / "c"
    return out, cache_latents(find_model(ltx_teacher), many, out, SMALL)


def contents(out):
    """Every file of a cache but its locks."""
    return {
        path.relative_to(out).as_posix(): path.read_bytes()
        for path in out.rglob("*")
        if path.is_file() and path.suffix != ".lock"
    }


def test_shares_make_the_bytes_of_one_run_and_nothing_twice(many, whole, ltx_teacher, tmp_path):
    results = [cache_latents(find_model(ltx_teacher), many, tmp_path / "c", SMALL, shard=Shard(index, 2)) for index in (1, 0)]
    assert whole[1].encoded == 32 and sum(result.encoded for result in results) == 32
    assert all(result.found == 0 and 0 < result.encoded < 32 for result in results)
    assert contents(tmp_path / "c") == contents(whole[0])


def test_folders_of_several_machines_merge_into_the_bytes_of_one_run(many, whole, ltx_teacher, tmp_path):
    spec = find_model(ltx_teacher)
    folders = [tmp_path / "a", tmp_path / "b"]
    for index, folder in enumerate(folders):
        cache_latents(spec, many, folder, SMALL, shard=Shard(index, 2))
    merged = merge_caches(folders, tmp_path / "all")
    assert (merged.clips, merged.found_shards) == (32, 0)
    assert contents(tmp_path / "all") == contents(whole[0])
    assert merge_caches(folders, tmp_path / "all").copied_shards == 0
    again = cache_latents(spec, many, tmp_path / "all", SMALL)
    assert (again.encoded, again.found) == (0, 32)


def test_merging_refuses_what_was_made_otherwise_and_names_a_damaged_shard(whole, videos, ltx_teacher, tmp_path):
    cache_latents(find_model(ltx_teacher), videos, tmp_path / "other", CacheSettings(frames=17, size=(64, 64)))
    with pytest.raises(SettingsError, match=r"other settings than .*: `frames` 9 -> 17"):
        merge_caches([whole[0], tmp_path / "other"], tmp_path / "all")
    assert not (tmp_path / "all").exists()
    shutil.copytree(whole[0], tmp_path / "damaged")
    shard = next((tmp_path / "damaged" / "shards").glob("*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:-1] + b"?")
    with pytest.raises(CorruptFileError, match=shard.name):
        merge_caches([tmp_path / "damaged"], tmp_path / "all")


def test_a_part_that_another_process_holds_is_left_to_it_and_said(many, whole, ltx_teacher, tmp_path):
    shutil.copytree(whole[0], tmp_path / "c", ignore=lambda folder, names: [n for n in names if n.startswith("part-")])
    taken = claim(tmp_path / "c", 2)
    result = cache_latents(find_model(ltx_teacher), many, tmp_path / "c", SMALL)
    assert 0 < result.encoded < 32 and len(result.left_to_others) == 1 and "process" in result.left_to_others[0]
    status = cache_status(tmp_path / "c")
    assert (status.videos, status.clips) == (16, result.encoded) and status.done < 16 and len(status.working) == 1
    taken.close()
    cache_latents(find_model(ltx_teacher), many, tmp_path / "c", SMALL)
    status = cache_status(tmp_path / "c")
    assert (status.done, status.clips, status.working) == (16, 32, [])
    assert contents(tmp_path / "c") == contents(whole[0])


def test_a_rerun_probes_no_video_and_sees_one_that_changed(many, ltx_teacher, tmp_path, monkeypatch):
    data = tmp_path / "data"
    shutil.copytree(many, data)
    cache_latents(find_model(ltx_teacher), data, tmp_path / "c", SMALL)
    probed = []
    monkeypatch.setattr(
        sys.modules["turbovaed_cli.latents.planning"], "probe", lambda path, **_: probed.append(path.name) or probe(path)
    )
    again = cache_latents(find_model(ltx_teacher), data, tmp_path / "c", SMALL)
    assert (again.encoded, again.found, probed) == (0, 32, [])
    make_video(data / "3.mp4", "mandelbrot", frames=9)
    (data / "new.mp4").write_bytes((data / "3.mp4").read_bytes() + b"\0" * 8)
    (data / "5.mp4").unlink()
    again = cache_latents(find_model(ltx_teacher), data, tmp_path / "c", SMALL)
    assert again.encoded == 2 and sorted(probed) == ["3.mp4", "new.mp4"]


def test_failures_are_listed_remembered_and_looked_at_again_when_asked(many, ltx_teacher, tmp_path, monkeypatch):
    data, out, spec = tmp_path / "data", tmp_path / "c", find_model(ltx_teacher)
    shutil.copytree(many, data)
    (data / "bad.mp4").write_bytes(b"not a video")
    first = cache_latents(spec, data, out, SMALL)
    assert first.encoded == 32 and [item.path for item in first.skipped] == [str(data / "bad.mp4")]
    assert [item.path for item in cache_status(out).failed] == ["bad.mp4"]
    probed = []
    monkeypatch.setattr(
        sys.modules["turbovaed_cli.latents.planning"], "probe", lambda path, **_: probed.append(path.name) or probe(path)
    )
    assert cache_latents(spec, data, out, SMALL).skipped == first.skipped and probed == []
    retry = CacheSettings(frames=9, size=(64, 64), retry_failed=True)
    assert cache_latents(spec, data, out, retry).skipped == first.skipped and "bad.mp4" in probed
    shutil.copy(data / "1.mp4", data / "bad.mp4")  # mended: its stamp is another
    assert cache_latents(spec, data, out, SMALL).skipped == []


def test_more_failures_than_allowed_end_it_and_keep_what_was_encoded(many, ltx_teacher, tmp_path):
    data, out = tmp_path / "data", tmp_path / "c"
    shutil.copytree(many, data)
    for number in range(6):
        (data / f"{number}.mp4").write_bytes(b"not a video")
    with pytest.raises(CheckFailedError, match="2 inputs failed, `max_failures` is 1"):
        cache_latents(find_model(ltx_teacher), data, out, CacheSettings(frames=9, size=(64, 64), max_failures=1))
    kept = len(LatentCache(out))
    assert 0 < kept < 20
    result = cache_latents(find_model(ltx_teacher), data, out, CacheSettings(frames=9, size=(64, 64), max_failures=6))
    assert (result.found, result.encoded) == (kept, 20 - kept)


def test_a_dry_run_counts_times_and_weighs_and_writes_nothing(many, whole, ltx_teacher, tmp_path):
    found = estimate_cache(find_model(ltx_teacher), many, tmp_path / "c", SMALL)
    assert (found.videos, found.looked_into, found.clips, found.download_bytes) == (16, 16, 32, 0)
    assert not (tmp_path / "c").exists()
    real = sum(path.stat().st_size for path in (whole[0] / "shards").glob("*.safetensors"))
    assert abs(found.disk_bytes / real - 1) < 0.05
    assert 0 < found.seconds < 600 and found.peak_mb > 10 and found.free_bytes > 0
    half = estimate_cache(find_model(ltx_teacher), many, tmp_path / "c", SMALL, shard=Shard(0, 2))
    assert 0 < half.clips < 32
    assert estimate_cache(find_model(ltx_teacher), many, whole[0], SMALL).clips == 0


def test_a_dry_run_for_weights_that_are_not_here_says_what_it_would_download(many, tmp_path):
    found = estimate_cache(find_model("ltx"), many, tmp_path / "c", SMALL)
    assert found.download_bytes > 1e9 and found.seconds is None and found.clips == 32


def test_status_is_a_document_for_scripts(whole):
    from typer.testing import CliRunner

    from turbovaed_cli.cli.app import app

    done = CliRunner().invoke(app, ["cache-latents", "--status", "--out", str(whole[0]), "--json"])
    found = json.loads(done.stdout)
    assert (found["videos"], found["done"], found["clips"], found["failed"], found["working"]) == (16, 16, 32, [], [])


def test_the_bytes_do_not_depend_on_which_of_two_equal_videos_came_first(many, ltx_teacher, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(many, data)
    for number in range(8):
        shutil.copy(data / f"{number}.mp4", data / f"copy-{number}.mp4")
    spec = find_model(ltx_teacher)
    for name, order in (("a", (0, 1)), ("b", (1, 0))):
        for index in order:
            cache_latents(spec, data, tmp_path / name, SMALL, shard=Shard(index, 2))
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    assert len(LatentCache(tmp_path / "a")) == 32  # one clip, however often it is there


def test_retrying_looks_at_what_failed_alone_and_videos_that_are_gone_are_forgotten(many, ltx_teacher, tmp_path, monkeypatch):
    data, out, spec = tmp_path / "data", tmp_path / "c", find_model(ltx_teacher)
    shutil.copytree(many, data)
    (data / "bad.mp4").write_bytes(b"not a video")
    cache_latents(spec, data, out, SMALL)
    probed = []
    monkeypatch.setattr(
        sys.modules["turbovaed_cli.latents.planning"], "probe", lambda path, **_: probed.append(path.name) or probe(path)
    )
    cache_latents(spec, data, out, CacheSettings(frames=9, size=(64, 64), retry_failed=True))
    assert probed == ["bad.mp4"]
    for number in range(1, 16):
        (data / f"{number}.mp4").unlink()
    cache_latents(spec, data, out, SMALL)
    status = cache_status(out)
    assert (status.videos, status.done) == (2, 2)


def test_what_may_be_gone_next_time_is_not_remembered(many, ltx_teacher, tmp_path, monkeypatch):
    spec, module = find_model(ltx_teacher), sys.modules["turbovaed_cli.latents.planning"]

    def failing(path, **_):
        if path.name in ("3.mp4", "4.mp4"):
            raise (
                PassingVideoError("ffmpeg gave nothing for 8 seconds")
                if path.name == "3.mp4"
                else OSError(5, "Input/output error")
            )
        return probe(path)

    monkeypatch.setattr(module, "probe", failing)
    first = cache_latents(spec, many, tmp_path / "c", SMALL)
    assert first.encoded == 28 and {item.reason for item in first.skipped} == {
        "ffmpeg gave nothing for 8 seconds", "cannot be read: input/output error"
    }  # fmt: skip
    monkeypatch.undo()
    again = cache_latents(spec, many, tmp_path / "c", SMALL)
    assert (again.encoded, again.found, again.skipped) == (4, 28, [])


def test_more_shares_than_parts_are_refused_and_other_settings_also_by_a_dry_run(whole, many, ltx_teacher):
    with pytest.raises(SettingsError, match="divided into 4 parts"):
        cache_latents(find_model(ltx_teacher), many, whole[0], SMALL, shard=Shard(5, 8))
    with pytest.raises(SettingsError, match=r"was made with other settings: `size` 64x64 -> 32x32$"):
        estimate_cache(find_model(ltx_teacher), many, whole[0], CacheSettings(frames=9, size=(32, 32)))


def test_reading_ahead_gathers_no_more_than_it_should_behind_something_slow():
    import threading

    taken, may_go = [], threading.Event()

    def items():
        for number in range(1000):
            taken.append(number)
            if number == 100:
                may_go.set()
            yield number

    threading.Timer(1.0, may_go.set).start()
    read = read_ahead(
        lambda number: may_go.wait(HANG_S) if number == 0 else number, items(), 2, is_quick=lambda number: number > 0
    )
    assert next(read)[0] == 0 and len(taken) < 30
    assert [number for number, _ in read] == list(range(1, 1000))
