"""Videos, latents and runs behind URLs: the real s3fs against a server on this machine that speaks S3."""

import os
import socket
import subprocess
import sys
import time

import pytest
from limits import HANG_S

from turbovaed_cli.errors import MissingError, SettingsError, TurboVaedError, VideoError
from turbovaed_cli.files.remote import Mirror, RemoteFolder
from turbovaed_cli.latents.cache import LatentCache
from turbovaed_cli.registry.find import find_model
from turbovaed_cli.settings import CacheSettings
from turbovaed_cli.video.sources import open_videos

SMALL = CacheSettings(frames=9, size=(64, 64))


@pytest.fixture(scope="module")
def s3(tmp_path_factory):
    """The name of a bucket, whose server s3fs finds by the usual variables."""
    pytest.importorskip("s3fs"), pytest.importorskip("moto")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-c", f"from moto.server import main; main(['-H', '127.0.0.1', '-p', '{port}'])"]
    log = (tmp_path_factory.mktemp("s3") / "log").open("wb")
    server = subprocess.Popen(command, stdout=log, stderr=log)
    before = dict(os.environ)
    os.environ |= {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}", "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1", "TURBOVAED_CACHE": str(tmp_path_factory.mktemp("cache-home")), "NO_PROXY": "127.0.0.1",
    }  # fmt: skip
    try:
        import s3fs

        deadline, is_up = time.monotonic() + HANG_S, False
        while not is_up:
            time.sleep(0.1)
            try:
                s3fs.S3FileSystem(skip_instance_cache=True).mkdir("bucket")
                is_up = True
            except Exception:
                assert server.poll() is None and time.monotonic() < deadline, log.name
        yield s3fs.S3FileSystem()
    finally:
        os.environ.clear()
        os.environ.update(before)
        server.kill()
        server.wait()


@pytest.fixture(scope="module")
def remote_videos(s3, videos):
    s3.put(str(videos), "bucket/videos", recursive=True)
    s3.pipe("bucket/videos/.hidden.mp4", b"x")
    s3.pipe("bucket/videos/notes.txt", b"x")
    return "s3://bucket/videos"


def test_videos_behind_a_url_are_listed_and_copied_while_they_are_needed(remote_videos, videos):
    with open_videos(remote_videos) as found:
        assert found.names == ["a.mp4", "more/a.mkv", "more/b.mp4"]
        path = found.fetch("more/b.mp4")
        assert path.read_bytes() == (videos / "more" / "b.mp4").read_bytes()
        found.drop("more/b.mp4")
        assert not path.exists()
        assert found.stamp("a.mp4") != found.stamp("more/b.mp4") and found.shown("a.mp4") == f"{remote_videos}/a.mp4"
    with open_videos(videos) as local:
        assert local.names == found.names


def test_a_cache_behind_a_url_has_the_clips_of_a_local_one_and_again_encodes_nothing(remote_videos, s3, cache, ltx_teacher):
    from turbovaed_cli.latents.caching import cache_latents

    spec = find_model(ltx_teacher)
    result = cache_latents(spec, remote_videos, "s3://bucket/latents", SMALL)
    assert (result.encoded, result.found, result.skipped) == (7, 0, [])
    assert not [name for name in s3.find("bucket/latents") if name.endswith(".lock")]
    remote, local = LatentCache("s3://bucket/latents"), LatentCache(cache)
    assert [clip["key"] for clip in remote.clips] == [clip["key"] for clip in local.clips]
    for index in range(7):
        assert all((a == b).all() for a, b in zip(remote.read(index), local.read(index), strict=True))
    again = cache_latents(spec, remote_videos, "s3://bucket/latents", SMALL)
    assert (again.encoded, again.found) == (0, 7)


def test_a_shard_that_changed_behind_the_url_is_told_and_one_that_changed_here_is_fetched_again(remote_videos, s3, ltx_teacher):
    from turbovaed_cli.latents.caching import cache_latents

    url = "s3://bucket/changed"
    cache_latents(find_model(ltx_teacher), remote_videos, url, SMALL)
    first = LatentCache(url)
    first.read(0)
    copy = next((first.root / "shards").glob("*.safetensors"))
    whole = copy.read_bytes()
    copy.write_bytes(whole[:-1] + b"?")
    LatentCache(url).read(0)
    assert copy.read_bytes() == whole
    s3.pipe(f"bucket/changed/shards/{copy.name}", whole[:-1] + b"?")
    s3.invalidate_cache()
    copy.unlink()
    with pytest.raises(TurboVaedError, match=copy.name):
        LatentCache(url).read(0)


def test_a_mirror_brings_back_what_changed_and_removes_there_what_is_gone_here(s3, tmp_path):
    url = "s3://bucket/mirror"
    here = tmp_path / "a"
    (here / "deep").mkdir(parents=True)
    for name in ("one", "deep/two.json", "lock", ".half"):
        (here / name).write_text(name)
    mirror = Mirror(url, here)
    mirror.push()
    assert sorted(RemoteFolder(url).listing()) == ["deep/two.json", "one"]
    (here / "one").unlink()
    (here / "deep" / "two.json").write_text("changed!")
    mirror.push(remove=True)
    other = Mirror(url, tmp_path / "b")
    other.fetch(lambda _: True)
    assert {path.relative_to(other.local).as_posix() for path in other.local.rglob("*") if path.is_file()} == {"deep/two.json"}
    assert (other.local / "deep" / "two.json").read_text() == "changed!"


def test_what_cannot_be_reached_is_one_line_that_names_it(s3, tmp_path):
    with pytest.raises(SettingsError, match="no video under s3://bucket/nothing"), open_videos("s3://bucket/nothing"):
        pass
    with pytest.raises(SettingsError, match="Protocol not known: nosuch"), open_videos("nosuch://bucket/x"):
        pass
    with (
        pytest.raises(MissingError, match="cannot be reached") as missing,
        open_videos("gdrive://bucket/x"),
    ):  # gdrivefs is not here
        pass
    assert "pip install" in missing.value.hint
    with pytest.raises(TurboVaedError, match=r"s3://bucket/videos/gone\.mp4") as error:
        RemoteFolder("s3://bucket/videos").get("gone.mp4", tmp_path / "x")
    assert error.value.hint and not (tmp_path / "x").exists()
    with pytest.raises(SettingsError, match="s3://bucket/none is no latent cache"):
        LatentCache("s3://bucket/none")


def test_a_video_that_vanished_is_skipped_like_any_that_cannot_be_read(remote_videos, s3):
    s3.pipe("bucket/vanishing/a.mp4", b"x")
    with open_videos("s3://bucket/vanishing") as found:
        s3.rm("bucket/vanishing/a.mp4")
        with pytest.raises(VideoError, match=r"vanishing/a\.mp4"):
            found.fetch("a.mp4")


def test_a_run_behind_urls_resumes_there_and_ends_in_the_bits_of_a_local_one(
    remote_videos, s3, ltx_teacher, small_student, cache, tmp_path
):
    from turbovaed_cli.latents.caching import cache_latents
    from turbovaed_cli.models.loading import load_student
    from turbovaed_cli.runs.rundir import RunDir
    from turbovaed_cli.settings import DistillSettings, Stage
    from turbovaed_cli.training.distill import distill

    spec, url = find_model(ltx_teacher), "s3://bucket/runs/mine"
    cache_latents(spec, remote_videos, "s3://bucket/for-run", SMALL)
    stage = Stage("one", steps=6, accumulation=1, perceptual="none")
    settings = DistillSettings((stage,), frames=9, size=(64, 64), dtype="fp32", save_every=2, keep_checkpoints=1, sample_every=0)
    half = settings.with_changes(steps=3)
    first = distill(spec, url, latents="s3://bucket/for-run", settings=half, student_config=small_student)
    assert (first.step, str(first.run), str(first.model)) == (3, url, f"{url}/model")
    assert {name.split("/")[1] for name in RemoteFolder(url).listing() if name.startswith("checkpoints/")} == {"step_0000003"}
    result = distill(spec, url, latents="s3://bucket/for-run", settings=settings, student_config=small_student)
    assert (result.resumed_from, result.step) == (3, 6)
    local = distill(spec, tmp_path / "run", latents=cache, settings=settings, student_config=small_student)
    names = RemoteFolder(url).listing()
    assert {name.split("/")[1] for name in names if name.startswith("checkpoints/")} == {"step_0000006"}
    assert "lock" not in names and {"config.json", "metrics.jsonl", "report.html", "model/config.json"} <= names.keys()
    Mirror(url, tmp_path / "back").fetch(lambda _: True)
    ours, theirs = load_student(str(tmp_path / "back")).state_dict(), load_student(str(local.run)).state_dict()
    assert all((ours[name] == theirs[name]).all() for name in theirs)
    assert len(RunDir(tmp_path / "back").read_metrics()) == 6


def test_videos_to_learn_from_are_copied_once_and_follow_what_is_there(s3, videos, ltx_teacher, small_student, tmp_path):
    from turbovaed_cli.video.sources import local_videos

    s3.put(str(videos / "a.mp4"), "bucket/learn/a.mp4")
    folder = local_videos("s3://bucket/learn")
    assert [path.name for path in folder.rglob("*.mp4")] == ["a.mp4"]
    stamp = (folder / "a.mp4").stat().st_mtime_ns
    s3.put(str(videos / "more" / "b.mp4"), "bucket/learn/more/b.mp4")
    assert local_videos("s3://bucket/learn/") == folder and (folder / "a.mp4").stat().st_mtime_ns == stamp
    s3.rm("bucket/learn/a.mp4")
    assert [path.name for path in local_videos("s3://bucket/learn").rglob("*.mp4")] == ["b.mp4"]
    assert local_videos(videos) == videos


def test_a_network_that_is_gone_makes_no_video_unreadable(remote_videos, monkeypatch):
    with open_videos(remote_videos) as found:
        monkeypatch.setattr(
            found.files._system, "get_file", lambda *_: (_ for _ in ()).throw(TimeoutError("no route")), raising=False
        )
        with pytest.raises(TurboVaedError, match="no route") as error:
            found.fetch("a.mp4")
        assert not isinstance(error.value, VideoError)


def test_names_behind_a_url_do_not_lead_out_of_the_folder(tmp_path):
    import fsspec

    memory = fsspec.filesystem("memory")
    for number, name in enumerate(("/run/../../out.json", "/run//etc/passwd")):
        memory.pipe(f"/place{number}{name}", b"{}")
        with pytest.raises(TurboVaedError, match="leads out of it"):
            Mirror(f"memory://place{number}/run", tmp_path / str(number)).fetch(lambda _: True)
    assert not list(tmp_path.iterdir())
