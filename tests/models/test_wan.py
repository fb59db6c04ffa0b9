"""Wan 2.1, Wan 2.2 and Qwen-Image: taps that fire once per latent frame, encodes in pieces, and caches that nothing disturbs."""

import json

import pytest
import torch
from small_teachers import SMALL, close, small_student, write_small_teacher

from turbovaed_cli.errors import SettingsError
from turbovaed_cli.models.encoding import encoded, encodes_exactly, piece_lengths
from turbovaed_cli.models.loading import build_student
from turbovaed_cli.models.teacher import Posterior, Teacher, load_teacher
from turbovaed_cli.registry.find import find_model
from turbovaed_cli.registry.rows import MODELS
from turbovaed_cli.training.alignment import build_heads

NAMES = [name for name in ("wan2.1", "qwen-image", "wan2.2") if name in MODELS]


@pytest.fixture(scope="module", params=NAMES)
def named(request, tmp_path_factory) -> tuple[str, Teacher]:
    teacher = load_teacher(write_small_teacher(request.param, tmp_path_factory.mktemp("teacher")))
    teacher.fast = False  # the class itself, which gives the same bits in pieces
    return request.param, teacher


@pytest.fixture
def teacher(named) -> Teacher:
    return named[1]


def video_for(teacher: Teacher, frames: int, seed: int = 0) -> torch.Tensor:
    side = 2 * teacher.spec.space_ratio
    return torch.rand(1, 3, frames, side, side + teacher.spec.space_ratio, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def latents_for(teacher: Teacher, frames: int, batch: int = 1) -> torch.Tensor:
    shape = batch, teacher.spec.latent_channels, frames, 2, 3
    return torch.randn(shape, generator=torch.Generator().manual_seed(frames))


def taps_of(teacher: Teacher) -> list[str]:
    return [pair.teacher_tap for pair in teacher_row(teacher).student.pairs]


def teacher_row(teacher: Teacher):
    return next(row for row in MODELS.values() if row.teacher.family == teacher.family)


def own_caches(vae) -> list:
    return [value for name in ("_feat_map", "_enc_feat_map") for value in getattr(vae, name, ())]


# --- features ---


def test_a_tap_has_all_frames_though_it_fires_once_for_each(teacher):
    """A decode that stopped at the first call of the decoder would return 1 of 3 frames."""
    taps = ["decoder.mid_block", "decoder.up_blocks.0", "decoder.up_blocks.1"]
    features = teacher.features(latents_for(teacher, 3), taps)
    assert [features[tap].shape[2] for tap in taps] == [3, 5, 9]


def test_truncated_features_are_those_of_the_classs_own_decode_bit_for_bit(teacher):
    latents = latents_for(teacher, 3, batch=2)
    taps = taps_of(teacher)
    found = {tap: [] for tap in taps}
    modules = dict(teacher.vae.named_modules())
    handles = [modules[tap].register_forward_hook(lambda _m, _i, out, tap=tap: found[tap].append(out)) for tap in taps]
    with torch.no_grad():
        whole = teacher.vae.decode(latents).sample
    for handle in handles:
        handle.remove()
    assert all(len(outputs) == 3 for outputs in found.values())
    features = teacher.features(latents, taps)
    video, same = teacher.decode_with_features(latents, taps)
    for tap in taps:
        assert close(features[tap], torch.cat(found[tap], dim=2)) and close(same[tap], features[tap])
    assert close(video, whole) and close(teacher.decode(latents), whole)


def test_features_run_no_module_after_the_last_tap(teacher):
    calls = []
    handle = teacher.vae.decoder.up_blocks[1].register_forward_hook(lambda *_: calls.append(1))
    teacher.features(latents_for(teacher, 3), ["decoder.mid_block", "decoder.up_blocks.0"])
    assert calls == []
    teacher.features(latents_for(teacher, 3), ["decoder.up_blocks.1"])
    handle.remove()
    assert calls == [1, 1, 1]


def test_pixels_are_clamped_as_the_class_does(teacher):
    video = teacher.decode(100 * latents_for(teacher, 2))
    assert video.abs().max() == 1.0


def test_an_error_in_a_decode_or_an_encode_leaves_the_network_usable(teacher):
    latents, video = latents_for(teacher, 3), video_for(teacher, 9)
    pixels, mean = teacher.decode(latents), teacher.encode(video).mean
    for module, call in (
        (teacher.vae.decoder.up_blocks[1], lambda: teacher.decode(latents)),
        (teacher.vae.decoder.up_blocks[0], lambda: teacher.features(latents, ["decoder.up_blocks.1"])),
        (teacher.vae.encoder.mid_block, lambda: teacher.encode(video)),
        (teacher.vae.encoder.mid_block, lambda: list(encoded(teacher, [video]))),
    ):
        fired = []

        def fail_at_the_second_call(*_, fired=fired):
            fired.append(1)
            if len(fired) == 2:
                raise MemoryError

        handle = module.register_forward_hook(fail_at_the_second_call)
        with pytest.raises(MemoryError):
            call()
        handle.remove()
        assert not any(value is not None for value in own_caches(teacher.vae))  # nothing waits in memory
        assert close(teacher.decode(latents), pixels) and close(teacher.encode(video).mean, mean)


def test_the_decoder_works_without_its_encoder(named, tmp_path):
    teacher = load_teacher(write_small_teacher(named[0], tmp_path))
    latents = latents_for(teacher, 2)
    wanted = teacher.decode(latents)
    teacher.drop_encoder()
    assert close(teacher.decode(latents), wanted)
    assert teacher.features(latents, taps_of(teacher))


# --- encoding ---


def test_the_posterior_is_the_classs_own(teacher):
    video = torch.cat([video_for(teacher, 9), video_for(teacher, 9, seed=1)])
    posterior = teacher.encode(video)
    with torch.no_grad():
        wanted = teacher.vae.encode(video).latent_dist
    assert isinstance(posterior, Posterior)
    assert close(posterior.mean, wanted.mean) and close(posterior.std, wanted.std)


@pytest.mark.parametrize("pieces", [[1], [13], [1, 5, 7], [2, 2, 2, 2, 3]])
def test_pieces_give_the_bits_of_the_whole_clip(teacher, pieces):
    video = video_for(teacher, sum(pieces))
    spec = teacher.spec
    more = spec.frames.at_least(video.shape[2]) - video.shape[2]
    whole = teacher.encode(torch.cat([video, video[:, :, -1:].expand(-1, -1, more, -1, -1)], dim=2)).mean
    assert encodes_exactly(teacher) and piece_lengths(teacher, 33) == [4]
    made = torch.cat(list(encoded(teacher, video.split(pieces, dim=2))), dim=2)
    assert close(made, whole)


def test_the_fast_form_gives_the_same_latents(named, tmp_path):
    """On a CPU it is what a teacher encodes with, whole or in pieces."""
    fast = load_teacher(write_small_teacher(named[0], tmp_path))
    assert fast.fast_encoder() is not None
    video = video_for(fast, 9)
    wanted = named[1].encode(video)
    assert torch.allclose(fast.encode(video).mean, wanted.mean, atol=1e-4)
    assert torch.allclose(fast.encode(video).std, wanted.std, atol=1e-4)
    assert torch.allclose(torch.cat(list(encoded(fast, video.split(2, dim=2))), dim=2), wanted.mean, atol=1e-4)


def test_two_streams_on_one_network_do_not_disturb_each_other(teacher):
    videos = [video_for(teacher, 13, seed) for seed in (1, 2)]
    wanted = [teacher.encode(video).mean for video in videos]
    streams = [encoded(teacher, video.split(3, dim=2)) for video in videos]
    parts: list[list[torch.Tensor]] = [[], []]
    for first, second in zip(*streams, strict=True):
        parts[0].append(first)
        parts[1].append(second)
        teacher.features(latents_for(teacher, 2), ["decoder.mid_block"])
        teacher.encode(video_for(teacher, 5))
    assert all(close(torch.cat(made, dim=2), whole) for made, whole in zip(parts, wanted, strict=True))


# --- the student, and folders ---


def test_pairs_fit_a_small_student(named, tmp_path):
    teacher = named[1]
    folder = write_small_teacher(named[0], tmp_path)
    student = build_student(small_student(folder))
    pairs = teacher_row(teacher).student.pairs
    heads = build_heads(student, teacher, pairs)
    latents = latents_for(teacher, 3)
    sample, learnt = student.features(latents, [pair.student_block for pair in pairs])
    assert sample.shape == teacher.decode(latents).shape
    losses = heads(learnt, teacher.features(latents, taps_of(teacher)))
    assert set(losses) == {pair.student_block for pair in pairs}
    sum(losses.values()).backward()
    assert all(loss > 0 for loss in losses.values()) and student.conv_in.conv.weight.grad.abs().sum() > 0


def test_statistics_are_those_of_the_config(named):
    name, teacher = named
    assert teacher.family.statistics(teacher.vae) == {key: SMALL[name][key] for key in ("latents_mean", "latents_std")}


def write_config(folder, name, **changes):
    row = MODELS[name].teacher
    vae = row.family.build({"_class_name": row.class_name, **row.config, **SMALL[name]})
    vae.save_config(folder)
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return folder


@pytest.mark.parametrize("name", NAMES)
def test_a_folder_belongs_to_the_row_of_its_config(name, tmp_path):
    spec = find_model(write_config(tmp_path, name))
    assert spec.teacher.family == MODELS[name].teacher.family and spec.teacher.latent_channels == 4
    assert spec.teacher.frames == MODELS[name].teacher.frames


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"temperal_downsample": [True, True, True]}, "8x in time"),
        ({"temperal_downsample": [False, False, True]}, "2x in time"),
        ({"latents_mean": [0.0] * 16}, "16 values in latents_mean"),
        ({"dim_mult": 4}, "is not the config of a"),
        ({"z_dim": "many"}, "is not the config of a"),
    ],
)
def test_configs_that_the_class_cannot_follow_are_refused(name, changes, said, tmp_path):
    with pytest.raises(SettingsError, match=said):
        find_model(write_config(tmp_path, name, **changes))


def test_a_vae_of_four_colours_is_refused(tmp_path):
    with pytest.raises(SettingsError, match="4 colour channels"):
        find_model(write_config(tmp_path, "qwen-image", input_channels=4))


def test_the_class_breaks_at_other_ratios_in_time(tmp_path):
    """The reason for the refusal: 2x loses frames that the ratio allows, and 8x raises."""
    family = MODELS["wan2.1"].teacher.family
    config = {"_class_name": "AutoencoderKLWan", **SMALL["wan2.1"]}
    halves = family.build(config | {"temperal_downsample": [False, False, True]})
    assert halves.encode(torch.zeros(1, 3, 3, 16, 16)).latent_dist.mean.shape[2] == 1  # 3 frames are 2 latents at 2x
    eighths = family.build(config | {"temperal_downsample": [True, True, True]})
    with pytest.raises(RuntimeError):
        eighths.encode(torch.zeros(1, 3, 9, 16, 16))
