"""Frames encoded in tiles: exact where the encoder's reach is finite, close elsewhere, and chosen by memory."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from golden import load_golden, write_teacher
from hypothesis import given, settings
from hypothesis import strategies as st
from small_teachers import write_small_teacher

from turbovaed_cli.errors import SettingsError
from turbovaed_cli.files.sealed import sealed
from turbovaed_cli.latents.planning import made_by, settle_tiles
from turbovaed_cli.models import memory, tiles
from turbovaed_cli.models.encoding import approximation_of, encoded, encodes_exactly
from turbovaed_cli.models.memory import clip_bytes, encoding_bytes, fit_encoder, plan_pieces, with_margin
from turbovaed_cli.models.pair import load_pair
from turbovaed_cli.models.teacher import load_teacher
from turbovaed_cli.models.tiles import Tiles, starts_of, tilings, weights_of
from turbovaed_cli.settings import CacheSettings


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    """Tiles of small instances on small frames."""
    monkeypatch.setattr(tiles, "SMALLEST_TILE", 32)
    monkeypatch.setattr(tiles, "OVERLAP", 16)


@pytest.fixture(scope="module")
def ltx(tmp_path_factory):
    return load_teacher(write_small_teacher("ltx", tmp_path_factory.mktemp("ltx") / "vae"))


@pytest.fixture(scope="module")
def hunyuan(tmp_path_factory):
    return load_teacher(write_teacher(load_golden("hunyuan"), tmp_path_factory.mktemp("hunyuan") / "vae"))


@settings(deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.sampled_from([8, 16, 32]), st.sampled_from([None, 8, 40, 100]))
def test_tiles_shrink_cover_the_frame_and_share_what_they_should(height, width, ratio, reach):
    size = height * ratio, width * ratio
    found = tilings(size, ratio, reach)
    areas = [one.height * one.width for one in found]
    assert areas == sorted(areas, reverse=True) and all(area < size[0] * size[1] for area in areas)
    for one in found:
        for side, tile in zip(size, one.size, strict=True):
            starts = starts_of(side, tile, one.overlap, ratio)
            assert starts[0] == 0 and starts[-1] + tile == side and all(start % ratio == 0 for start in starts)
            gaps = [after - before for before, after in pairwise(starts)]
            assert all(0 < gap <= tile - one.overlap for gap in gaps)
            latents = [start // ratio for start in starts]
            shares = weights_of(side // ratio, tile // ratio, latents, one.overlap // ratio, one.reach // ratio)
            assert torch.allclose(shares.sum(dim=0), torch.ones(side // ratio, dtype=torch.float64))
            for start, share in zip(latents, shares, strict=True):
                assert not share[:start].any() and not share[start + tile // ratio :].any()


def test_a_reach_is_what_an_encoder_sees_and_tiles_of_it_are_exact(ltx):
    ratio, reach = ltx.spec.space_ratio, ltx.family.reach(ltx.vae)
    torch.manual_seed(0)
    video = torch.rand(1, 3, 9, 2 * ratio, 26 * ratio) * 2 - 1
    whole = ltx.encode(video)
    changed = video.clone()
    changed[..., : 13 * ratio - reach] = 0.5  # all that the 14th latent does not see to its left
    assert torch.allclose(ltx.encode(changed).mean[..., 13:], whole.mean[..., 13:], atol=1e-5)
    assert not torch.allclose(ltx.encode(changed).mean[..., 9:12], whole.mean[..., 9:12], atol=1e-5)
    chosen = tilings(tuple(video.shape[3:]), ratio, reach)[-1]
    assert chosen.count(video.shape[3:]) > 1
    with ltx.in_tiles(chosen):
        apart = ltx.encode(video)
        in_pieces = torch.cat(list(encoded(ltx, [video], 8)), dim=2)
    assert torch.allclose(apart.mean, whole.mean, atol=1e-5) and torch.allclose(apart.std, whole.std, atol=1e-5)
    assert torch.allclose(in_pieces, whole.mean, atol=1e-5)


def test_tiles_of_an_encoder_that_sees_everything_come_close_and_leave_no_seam(hunyuan):
    assert hunyuan.family.reach(hunyuan.vae) is None
    torch.manual_seed(0)
    video = torch.nn.functional.interpolate(torch.rand(1, 3, 5, 12, 16) * 2 - 1, (5, 96, 128), mode="trilinear")
    whole = hunyuan.encode(video).mean
    with hunyuan.in_tiles(Tiles(64, 64, 16)):
        apart = hunyuan.encode(video).mean
        windows = torch.cat(list(encoded(hunyuan, [video], 33)), dim=2)
    error = (apart - whole).abs().mean() / whole.std()
    assert 0 < error < 0.2 and torch.allclose(windows, apart, atol=1e-5)


@pytest.mark.parametrize("name", ["wan2.1", "wan2.2", "qwen-image", "hunyuan1.5"])
def test_tiles_of_causal_encoders_with_attention_are_the_same_in_pieces(name, tmp_path):
    """The attention of these encoders sees the whole frame, so they have no reach, and each tile is a stream of its own."""
    teacher = load_teacher(write_small_teacher(name, tmp_path))
    assert teacher.family.reach(teacher.vae) is None
    video = torch.rand(1, 3, 9, 64, 96, generator=torch.Generator().manual_seed(0)) * 2 - 1
    whole = teacher.encode(video).mean
    with teacher.in_tiles(Tiles(48, 48, 16)):
        apart = teacher.encode(video).mean
        in_pieces = torch.cat(list(encoded(teacher, video.split(2, dim=2), 4)), dim=2)
    assert torch.allclose(in_pieces, apart, atol=1e-5)
    assert (apart - whole).abs().max() > 1e-3  # an approximation


def test_tiles_are_chosen_before_windows_are_shortened(hunyuan, monkeypatch):
    pair = load_pair()  # its student decodes little beside the encoder
    pair = type(pair)(pair.student, hunyuan, None, "small", None)
    monkeypatch.setattr(memory, "held_bytes", lambda _: 0)
    size = (64, 96)
    whole, smallest = encoding_bytes(hunyuan, size, 33), tilings(size, 8, None)[-1]
    apart = encoding_bytes(hunyuan, size, 33, smallest)
    short = encoding_bytes(hunyuan, size, 17, smallest)
    assert short < apart < whole
    lean = memory.decoding_bytes(pair.student, (8, 12), 1, 1, spill=True)
    for encode, expected in ((whole, (33, None)), (apart, (33, smallest)), (short, (17, smallest))):
        plan = plan_pieces(pair, size, with_margin(encode + lean))
        assert (plan.encode_frames, plan.tiles) == expected


def test_windows_in_tiles_are_the_last_way_of_an_exact_encoder(tmp_path):
    """What tiles keep between pieces adds up to that of the whole frame; windows keep nothing."""
    teacher = load_teacher(write_small_teacher("wan2.1", tmp_path / "vae"))
    size = (96, 128)
    smallest = tilings(size, 8, None)[-1]
    in_windows = replace(smallest, windows=True)
    apart, short = (encoding_bytes(teacher, size, frames, way) for frames, way in ((4, smallest), (5, in_windows)))
    assert short < apart
    assert [(way.frames, way.tiles) for way in memory._in_windows(teacher, size, 40)] == [(n, in_windows) for n in (33, 17, 5)]
    assert not memory._in_windows(teacher, (24, 24), 40)
    video = torch.rand(1, 3, 40, *size, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with teacher.in_tiles(in_windows):
        assert not encodes_exactly(teacher) and "windows of 5 frames" in str(approximation_of(teacher, 5, 40))
        made = torch.cat(list(encoded(teacher, video.split(5, dim=2), 17)), dim=2)
    assert encodes_exactly(teacher)
    wanted = torch.cat(list(encoded(teacher, [video])), dim=2)
    assert made.shape == wanted.shape and 0 < (made - wanted).square().mean().sqrt() < wanted.std()


def test_clips_are_encoded_whole_where_they_fit_and_else_in_tiles_with_a_note(hunyuan, monkeypatch):
    said = []
    report = type("Notes", (), {"note": lambda _self, text, **_: said.append(text)})()
    fit_encoder(hunyuan, 5, (64, 96), budget=10**11, report=report)
    assert hunyuan.tiles is None and not said
    monkeypatch.setattr(memory, "held_bytes", lambda _: 0)
    budget = with_margin(clip_bytes(hunyuan, 2, 5, (64, 96))) - 1
    fit_encoder(hunyuan, 5, (64, 96), clips=2, budget=budget, report=report)
    assert hunyuan.tiles is not None and "in tiles of" in said[0]
    assert with_margin(clip_bytes(hunyuan, 2, 5, hunyuan.tiles.size)) <= budget
    with pytest.raises(SettingsError, match="too little to encode") as error:
        fit_encoder(hunyuan, 5, (64, 96), budget=1000)
    assert "`memory`" in error.value.hint
    fit_encoder(hunyuan, 5, (24, 24), budget=1000)  # nothing smaller is tried
    assert hunyuan.tiles is None


def test_a_cache_keeps_the_tiles_it_began_with(hunyuan, tmp_path, monkeypatch):
    settings = CacheSettings(frames=5, size=(64, 96))
    needed = clip_bytes(hunyuan, 1, 5, (64, 96))
    monkeypatch.setattr(memory, "held_bytes", lambda _: 0)
    monkeypatch.setattr(memory, "free_memory_bytes", lambda _: round((with_margin(needed) - 1) / 0.7))
    settle_tiles(hunyuan, tmp_path, settings)
    first = hunyuan.tiles
    assert first is not None and made_by(hunyuan, settings)["tiles"] == {
        "height": first.height, "width": first.width, "overlap": first.overlap, "reach": 0,
    }  # fmt: skip
    (tmp_path / "manifest.json").write_text(sealed({"schema_version": 1, **made_by(hunyuan, settings)}))
    monkeypatch.setattr(memory, "free_memory_bytes", lambda _: 10**12)
    settle_tiles(hunyuan, tmp_path, settings)
    assert hunyuan.tiles == first
