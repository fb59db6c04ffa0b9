"""Caches with shares of drawn and recoloured clips: the same bits however they are made, and refused with other shares."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from conftest import make_video
from typer.testing import CliRunner

from turbovaed_cli.cli.app import app
from turbovaed_cli.errors import SettingsError
from turbovaed_cli.files.sealed import read_sealed
from turbovaed_cli.latents.cache import LatentCache
from turbovaed_cli.latents.caching import cache_latents
from turbovaed_cli.latents.estimate import estimate_cache
from turbovaed_cli.latents.parts import Shard
from turbovaed_cli.latents.pixels import is_drawn, num_drawn
from turbovaed_cli.latents.status import cache_status
from turbovaed_cli.models.teacher import load_teacher
from turbovaed_cli.registry.find import find_model
from turbovaed_cli.settings import CacheSettings
from turbovaed_cli.video import to_model, to_uint8
from turbovaed_cli.video.drawn import draw_clip

PLAIN = CacheSettings(frames=9, size=(64, 64), shard_mb=1)
MIXED = replace(PLAIN, augment=0.5, synthetic=0.2, seed=3)


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """Eight videos of two clips, each with other bytes, in two parts."""
    folder = tmp_path_factory.mktemp("many")
    make_video(folder / "0.mp4", frames=20)
    content = (folder / "0.mp4").read_bytes()
    for number in range(1, 8):  # a box that players skip
        (folder / f"{number}.mp4").write_bytes(content + (16).to_bytes(4, "big") + b"free" + number.to_bytes(8, "big"))
    return folder


@pytest.fixture(scope="module")
def mixed(many, ltx_teacher, tmp_path_factory):
    out = tmp_path_factory.mktemp("mixed") / "c"
    return out, cache_latents(find_model(ltx_teacher), many, out, MIXED)


@pytest.fixture(scope="module")
def plain(many, ltx_teacher, tmp_path_factory):
    out = tmp_path_factory.mktemp("plain") / "c"
    cache_latents(find_model(ltx_teacher), many, out, PLAIN)
    return out


def contents(out):
    """Every file of a cache but its locks."""
    return {
        path.relative_to(out).as_posix(): path.read_bytes()
        for path in out.rglob("*")
        if path.is_file() and path.suffix != ".lock"
    }


def test_a_fifth_of_the_clips_are_drawn_and_half_of_the_others_recoloured(mixed, plain):
    out, result = mixed
    assert (result.encoded, result.drawn) == (20, 4)
    cache = LatentCache(out)
    drawn = [clip for clip in cache.clips if is_drawn(clip["video_sha256"])]
    assert sorted(clip["path"] for clip in drawn) == [
        "synthetic/000-000000", "synthetic/000-000001", "synthetic/001-000000", "synthetic/001-000001",
    ]  # fmt: skip
    before = LatentCache(plain)
    pixels = {clip["key"]: before.read(index)[2] for index, clip in enumerate(before.clips)}
    same = [torch.equal(cache.read(i)[2], pixels[clip["key"]]) for i, clip in enumerate(cache.clips) if clip["key"] in pixels]
    assert len(same) == 16 and 4 <= sum(same) <= 12


def test_latents_are_those_of_the_drawn_and_recoloured_pixels_beside_them(mixed, ltx_teacher):
    cache, teacher = LatentCache(mixed[0]), load_teacher(ltx_teacher)
    for index, clip in enumerate(cache.clips):
        mean, _, video = cache.read(index)
        assert torch.allclose(teacher.encode(video[None]).mean[0], mean, atol=1e-5)
        if is_drawn(clip["video_sha256"]):
            assert torch.equal(to_model(draw_clip(clip["video_sha256"], 9, (64, 64))), video)
            assert to_uint8(video).shape == (9, 64, 64, 3)


def test_again_encodes_nothing_and_a_lost_shard_comes_back_with_the_same_bits(mixed, many, ltx_teacher, tmp_path):
    out = tmp_path / "c"
    shutil.copytree(mixed[0], out)
    before = contents(out)
    result = cache_latents(find_model(ltx_teacher), many, out, MIXED)
    assert (result.encoded, result.drawn, result.found) == (0, 0, 20) and contents(out) == before
    for record in sorted((out / "shards").glob("part-001-*")):
        record.unlink()
    assert cache_latents(find_model(ltx_teacher), many, out, MIXED).encoded > 0
    assert contents(out) == before


def test_an_interrupt_and_two_shares_make_the_bits_of_one_run(mixed, many, ltx_teacher, tmp_path, monkeypatch):
    from turbovaed_cli.models.teacher import Teacher

    spec, original, calls = find_model(ltx_teacher), Teacher.encode, []

    def stops(self, video):
        calls.append(1)
        if len(calls) == 7:
            raise KeyboardInterrupt
        return original(self, video)

    monkeypatch.setattr(Teacher, "encode", stops)
    with pytest.raises(KeyboardInterrupt):
        cache_latents(spec, many, tmp_path / "c", MIXED, shard=Shard(1, 2))
    monkeypatch.setattr(Teacher, "encode", original)
    results = [cache_latents(spec, many, tmp_path / "c", MIXED, shard=Shard(index, 2)) for index in (1, 0)]
    assert sum(result.encoded for result in results) == 20 - 6
    ours, wanted = LatentCache(tmp_path / "c"), LatentCache(mixed[0])
    assert [clip["key"] for clip in ours.clips] == [clip["key"] for clip in wanted.clips]
    for index in range(20):
        assert all(map(torch.equal, ours.read(index), wanted.read(index)))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"synthetic": 0.3}, "`synthetic` 0.2 -> 0.3"),
        ({"augment": 0.0}, "`augment` 0.5 -> 0"),
        ({"seed": 4}, "`seed` 3 -> 4"),
        ({"augment": 0.0, "synthetic": 0.0, "seed": 0}, "`augment` 0.5 -> 0; `seed` 3 -> 0; `synthetic` 0.2 -> 0"),
    ],
)
def test_other_shares_in_the_same_folder_are_refused(mixed, many, ltx_teacher, change, said):
    with pytest.raises(SettingsError) as error:
        cache_latents(find_model(ltx_teacher), many, mixed[0], replace(MIXED, **change))
    assert said in error.value.what


def test_a_cache_without_shares_records_none_and_refuses_them(plain, many, ltx_teacher):
    """So that caches of earlier versions go on: no field means 0, and the seed plays no part."""
    spec = find_model(ltx_teacher)
    manifest = read_sealed(plain / "manifest.json")
    assert set(manifest["clip"]) == {"frames", "size", "stride"} and "drawing" not in manifest
    assert cache_latents(spec, many, plain, replace(PLAIN, seed=5)).encoded == 0
    with pytest.raises(SettingsError, match=r"other settings: `synthetic` 0 -> 0\.2$"):
        cache_latents(spec, many, plain, replace(PLAIN, synthetic=0.2))


def test_a_dry_run_counts_drawn_clips_and_status_names_them(mixed, many, ltx_teacher, tmp_path):
    spec = find_model(ltx_teacher)
    found = estimate_cache(spec, many, tmp_path / "c", MIXED)
    assert found.clips == 20 and found.seconds > 0 and not (tmp_path / "c").exists()
    assert estimate_cache(spec, many, mixed[0], MIXED).clips == 0
    status = cache_status(mixed[0])
    assert (status.clips, status.drawn_clips) == (20, 4)
    shown = CliRunner().invoke(app, ["cache-latents", "--status", "--out", str(mixed[0]), "--json"])
    assert json.loads(shown.stdout)["drawn_clips"] == 4


def test_parts_round_so_that_all_together_have_the_share():
    for share in (0.05, 0.2, 0.5, 0.9):
        total = sum(num_drawn(part, 7, share) for part in range(256))
        assert abs(total - 256 * 7 * share / (1 - share)) <= 3
    assert [num_drawn(0, count, 0.2) for count in (0, 1, 2, 4, 8)] == [0, 0, 1, 1, 2]
    assert num_drawn(5, 100, 0.0) == 0


@pytest.mark.parametrize(
    ("name", "share"), [("augment", 1.5), ("augment", -0.1), ("synthetic", 1.0), ("synthetic", float("nan"))]
)
def test_a_share_outside_its_range_is_refused_in_one_line_with_a_hint(name, share, many, ltx_teacher, tmp_path):
    with pytest.raises(SettingsError, match=f"`{name}` is {share:g}; it must be") as error:
        cache_latents(find_model(ltx_teacher), many, tmp_path / "c", replace(PLAIN, **{name: share}))
    assert "\n" not in error.value.what and f"`{name}` 0." in error.value.hint
