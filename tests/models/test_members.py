"""Students of every kind work everywhere: tails of 1, 2 and 4, blocks that upsample time, space, both or nothing, images."""

import json
from dataclasses import replace

import pytest
import torch
from golden import load_golden, write_teacher
from hypothesis import given, settings
from hypothesis import strategies as st
from members import NAMED, built, latents_of, member, members, randomize_time
from torch.utils.flop_counter import FlopCounterMode

from turbovaed_cli.errors import FrameCountError, SettingsError
from turbovaed_cli.models.decoding import lookahead_frames
from turbovaed_cli.models.design import Budget, cost_of, design_student
from turbovaed_cli.models.kernels import Speedups
from turbovaed_cli.models.layers import BlockStyle
from turbovaed_cli.models.loading import build_student, load_student
from turbovaed_cli.models.memory import decoding_bytes
from turbovaed_cli.models.network import num_params
from turbovaed_cli.models.streaming import FastDecoder, StreamingDecoder, decode_as_memory_allows
from turbovaed_cli.registry.blocks import CONV_TYPES
from turbovaed_cli.registry.find import find_model
from turbovaed_cli.registry.rows import MODELS


@pytest.mark.parametrize(
    ("name", "time", "space"), [("4x16x16", 4, 16), ("8x8x8", 8, 8), ("images", 1, 8), ("keeps first frames", 2, 2)]
)
def test_ratios_are_those_of_blocks_and_tail(name, time, space):
    student = built(NAMED[name])
    assert (student.temporal_compression_ratio, student.spatial_compression_ratio) == (time, space)
    for frames in (1, 3):
        made = frames * time if student.config.is_video_dc_ae else (frames - 1) * time + 1
        with torch.no_grad():
            assert student(latents_of(student, frames, 2, 1)).shape == (1, 3, made, 2 * space, space)
        assert student.pixel_frames(frames) == made
        assert student.latent_shape(made, (2 * space, space)) == (4, frames, 2, 1)


@settings(max_examples=8, deadline=None)
@given(
    config=members(), chunks=st.lists(st.integers(0, 2), min_size=1, max_size=4).filter(sum), height=st.integers(1, 3),
    rows=st.integers(0, 2), spills=st.booleans(),
)  # fmt: skip
def test_any_pieces_and_stripes_give_the_whole_clips_frames(config, chunks, height, rows, spills, tmp_path_factory):
    """In fp64, with fewer multiplications as well; with what is kept in memory or on disk."""
    student = built(config)
    latents = latents_of(student, sum(chunks), height, 1)
    with torch.no_grad():
        whole = student(latents)
    fast = FastDecoder(student, speedups=Speedups(winograd_channels=1, space_channels=1))
    decoder = StreamingDecoder(fast, rows=rows, spill=tmp_path_factory.getbasetemp() if spills else None)
    streamed = torch.cat([*(decoder.push(piece) for piece in latents.split(chunks, dim=2)), decoder.finish()], dim=2)
    assert whole.shape[2] == student.pixel_frames(sum(chunks))
    assert streamed.shape == whole.shape
    assert (streamed - whole).abs().max() <= 1e-8
    assert (fast.decode(latents, frames=2, rows=rows) - whole).abs().max() <= 1e-8


@settings(max_examples=12, deadline=None)
@given(config=members())
def test_frames_come_out_when_they_are_determined_and_not_later(config):
    """Other latents after those pushed change nothing of what came out, and do change the very next frame."""
    student = built(config)
    decoder = StreamingDecoder(student)
    pushed = decoder.lookahead_frames // int(student.temporal_compression_ratio) + 2
    latents = latents_of(student, pushed + 2, 1, 1)
    early = decoder.push(latents[:, :, :pushed])
    ready = early.shape[2]
    assert decoder.lookahead_frames == student.pixel_frames(pushed) - ready and ready
    other = torch.cat([latents[:, :, :pushed], latents[:, :, pushed:] + 100], dim=2)
    with torch.no_grad():
        one, two = student(latents), student(other)
    assert torch.allclose(early, one[:, :, :ready], atol=1e-9) and torch.equal(one[:, :, :ready], two[:, :, :ready])
    assert not torch.equal(one[:, :, ready], two[:, :, ready])


@settings(max_examples=6, deadline=None)
@given(config=members())
def test_a_causal_student_gives_the_frames_of_each_latent_frame_at_once(config):
    student = built(config | {"decoder_causal": True})
    stream, ratio = student.stream(), int(student.temporal_compression_ratio)
    made = [stream.push(latent) for latent in latents_of(student, 3, 1, 1).split(1, dim=2)]
    first = ratio if student.config.is_video_dc_ae else 1
    assert [frames.shape[2] for frames in made] == [first, ratio, ratio]
    assert stream.finish().shape[2] == stream.lookahead_frames == lookahead_frames(student) == 0


@settings(max_examples=30, deadline=None)
@given(config=members(), latents=st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 3)))
def test_costs_are_those_of_the_real_network(config, latents):
    with torch.device("meta"):
        student = build_student(config)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        student(torch.empty(1, 4, *latents, device="meta"))
    cost = cost_of(config, latents)
    assert cost.params == num_params(student)
    assert cost.gflops * 1e9 == pytest.approx(counter.get_total_flops(), rel=1e-12)


@pytest.mark.parametrize("config", NAMED.values(), ids=NAMED)
def test_half_precision_is_as_close_as_it_is_in_the_published_kinds(config):
    student = built(config, dtype=torch.float32)
    latents = latents_of(student, 3, 2, 2)
    with torch.no_grad():
        wanted = student(latents)
        assert (student.decode(latents).sample - wanted).abs().max() < 1e-4
        assert (FastDecoder(student, torch.bfloat16).decode(latents.bfloat16()) - wanted).abs().mean() < 0.05


@pytest.mark.parametrize("config", NAMED.values(), ids=NAMED)
def test_a_piece_that_does_not_fit_is_decoded_in_halves_to_the_same_frames(config, monkeypatch):
    student = built(config)
    latents = latents_of(student, 40, 1, 1)
    with torch.no_grad():
        whole = student(latents)
    push, calls = StreamingDecoder.push, []

    def runs_out(decoder, piece):
        calls.append(piece.shape[2])
        if len(calls) == 6:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return push(decoder, piece)

    monkeypatch.setattr(StreamingDecoder, "push", runs_out)
    made = torch.cat(list(decode_as_memory_allows(student, latents.split(4, dim=2), 4)), dim=2)
    assert made.shape == whole.shape and (made - whole).abs().max() <= 1e-8


@pytest.mark.parametrize("config", NAMED.values(), ids=NAMED)
def test_memory_is_predicted_by_a_rehearsal(config):
    student = built(config, dtype=torch.float32)
    whole, stripes = decoding_bytes(student, (64, 32), 2), decoding_bytes(student, (64, 32), 2, rows=4)
    assert 0 < stripes < whole


@pytest.mark.parametrize("config", NAMED.values(), ids=NAMED)
def test_a_saved_student_is_the_same_student(config, tmp_path):
    student = built(config, dtype=torch.float32)
    student.save_pretrained(tmp_path)
    again, latents = load_student(tmp_path), latents_of(student, 2, 2, 1)
    with torch.no_grad():
        assert torch.equal(again(latents), student(latents))
    assert tuple(again.config.decoder_temporal_only) == config["decoder_temporal_only"]


@pytest.mark.parametrize("config", NAMED.values(), ids=NAMED)
def test_training_by_checkpoints_gives_the_same_gradients(config):
    student = built(config, dtype=torch.float32).train()
    latents, found = latents_of(student, 2, 2, 1), []
    for enable in (False, True):
        student.zero_grad()
        student.checkpoint_blocks(enable=enable)
        sample, features = student.features(latents, ["mid_block", "up_blocks.1"])
        (sample.square().mean() + features["up_blocks.1"].square().mean()).backward()
        found.append([parameter.grad.clone() for parameter in student.parameters()])
    assert all(torch.equal(one, two) for one, two in zip(*found, strict=True))


def test_under_autocast_the_end_that_makes_pixels_stays_in_fp32():
    """As with the first of the two upsamplings of patch_size 4, the only one of 2 rounds; what follows does not."""
    student, seen = built(NAMED["4x16x16"], dtype=torch.float32), []
    for module in ("conv_in", "upsampler2d_1", "conv_out"):
        student.get_submodule(module).register_forward_hook(lambda _module, _inputs, output: seen.append(output.dtype))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        student(latents_of(student, 2, 2, 1))
    assert seen == [torch.bfloat16, torch.bfloat16, torch.float32]


@pytest.mark.parametrize("conv", CONV_TYPES)
def test_under_autocast_every_convolution_gives_half_precision(conv):
    layer = BlockStyle(conv).make_conv(8, 8)
    randomize_time(layer)
    x = torch.randn(1, 8, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        made = layer(x)
    assert made.dtype == torch.bfloat16 and (made.float() - layer(x)).abs().max() < 0.1


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"patch_size": 8}, "it can be 1, 2 or 4"),
        ({"patch_size": 16, "decoder_tail": "patches"}, "it can be 1, 2, 4 or 8"),
        ({"decoder_tail": None}, "decoder_tail is missing"),
        ({"decoder_tail": "patch"}, "decoder_tail"),
        ({"decoder_causal": 1}, "decoder_causal is 1"),
        ({"decoder_activation": "gelu"}, "decoder_activation"),
        ({"decoder_conv_types": "3d"}, "decoder_conv_types is"),
        ({"decoder_conv_types": ("3d", "2+1d")}, "decoder_conv_types has 2 entries"),
        ({"decoder_conv_types": ("3d", "2d", "3d", "3d")}, "decoder_conv_types"),
        ({"decoder_dw_kernel_size": 4}, "decoder_dw_kernel_size is 4"),
        ({"patch_size": 3}, "it can be 1, 2 or 4"),
        ({"patch_size": 2, "decoder_block_out_channels": (10, 8, 8)}, "which patch_size 2 divides by 4"),
        ({"decoder_temporal_only": (True, False)}, "decoder_temporal_only has 2 entries"),
        ({"decoder_temporal_only": (True, False, False)}, "both have entry 0 set"),
        ({"decoder_temporal_only": (1, 0, 0)}, "decoder_temporal_only is"),
    ],
)
def test_a_config_of_no_network_is_refused(change, said):
    with pytest.raises(SettingsError, match=said) as error:
        build_student(member("space", "both", "none") | change)
    assert "\n" not in str(error.value.what)


def test_the_published_layouts_do_not_name_blocks_of_time_alone():
    for spec in MODELS.values():
        assert spec.student.published is None or "decoder_temporal_only" not in spec.student.config
    assert build_student(load_golden("ltx").meta["student_config"]).config.decoder_temporal_only is None


def test_frames_that_a_student_cannot_make_are_refused_with_some_that_it_can():
    images, ltx, dc = built(NAMED["images"]), built(member("both", "both")), built(member("both", "both", dc=True))
    with pytest.raises(FrameCountError, match="1 or more frames, not 0") as error:
        images.latent_shape(0, (8, 8))
    assert error.value.hint == "nearest: `frames` 1"
    for student, frames, hint in ((ltx, 3, "1 or 5"), (ltx, 6, "5 or 9"), (dc, 1, "4"), (dc, 6, "4 or 8")):
        with pytest.raises(FrameCountError) as error:
            student.latent_shape(frames, (8, 8))
        assert error.value.hint == f"nearest: `frames` {hint}"


@pytest.mark.parametrize(("patch_size", "step", "least"), [(1, 8, 8), (2, 8, 16), (4, 16, 48)])
def test_a_design_keeps_the_tails_channels_and_its_ratios(patch_size, step, least):
    """Of a row with another tail, and with a block of time alone."""
    row = MODELS["ltx"]
    temporal = {"decoder_temporal_only": (True, False, False, False)}
    spec = replace(row, student=replace(row.student, config=dict(row.student.config) | temporal | {"patch_size": patch_size}))
    for params in (2_500_000, 8_000_000):
        design = design_student(spec, Budget(params=params))
        for one in design.table:
            has_patches = one.config.get("decoder_tail") == "patches"  # which divide no channels
            by, most = (8, least // 2) if has_patches else (step, least)
            assert one == design.published or (one.channels[0] % by == 0 and one.channels[0] >= most)
        with torch.device("meta"):
            student = build_student(design.config)
        assert num_params(student) == design.chosen.params <= params
        assert (student.temporal_compression_ratio, student.spatial_compression_ratio) == (8, 4 * patch_size)


@pytest.mark.parametrize(
    ("time", "space", "patch_size", "only_space", "only_time", "channels"),
    [
        (4, 8, 1, 1, 0, (16, 32, 256, 512)),  # the row itself
        (4, 16, 2, 1, 0, (64, 64, 256, 512)),
        (8, 8, 1, 0, 0, (16, 32, 256, 512)),
        (8, 4, 1, 0, 1, (16, 32, 256, 512)),
        (1, 8, 1, 3, 0, (16, 32, 256, 512)),
        (1, 1, 1, 0, 0, (256, 512)),
        (4, 32, 4, 1, 0, (64, 64, 256, 512)),
        (4, 64, 4, 2, 0, (64, 64, 256, 512, 512)),
        (16, 8, 1, 0, 1, (16, 32, 256, 512, 512)),
    ],
)
def test_a_local_folder_of_any_powers_of_two_gets_a_student(time, space, patch_size, only_space, only_time, channels, tmp_path):
    folder = write_teacher(load_golden("hunyuan"), tmp_path / "vae")
    config = json.loads((folder / "config.json").read_text())
    ratios = {"temporal_compression_ratio": time, "spatial_compression_ratio": space}
    (folder / "config.json").write_text(json.dumps(config | ratios))
    found = find_model(folder).student.config
    with torch.device("meta"):
        student = build_student(found)
    assert (student.temporal_compression_ratio, student.spatial_compression_ratio) == (time, space)
    assert (found["patch_size"], tuple(found["decoder_block_out_channels"])) == (patch_size, channels)
    scaled = list(zip(found["spatio_temporal_scaling"], found["decoder_spatio_only"], strict=True))
    assert sum(scales and only for scales, only in scaled) == only_space
    assert sum(found.get("decoder_temporal_only", ())) == only_time


@pytest.mark.parametrize(("time", "space", "said"), [(3, 8, "powers of two"), (4, 12, "powers of two"), (4096, 8, "at most 12")])
def test_other_ratios_have_no_student(time, space, said, tmp_path):
    folder = write_teacher(load_golden("hunyuan"), tmp_path / "vae")
    config = json.loads((folder / "config.json").read_text())
    ratios = {"temporal_compression_ratio": time, "spatial_compression_ratio": space}
    (folder / "config.json").write_text(json.dumps(config | ratios))
    with pytest.raises(SettingsError, match=said):
        find_model(folder)
