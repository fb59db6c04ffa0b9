"""The registry is data: every row is complete, and every rule in it holds for the classes it speaks of."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from turbovaed_cli.errors import FrameCountError, SettingsError, ShapeError, UnknownModelError
from turbovaed_cli.registry.find import find_model
from turbovaed_cli.registry.rows import MODELS
from turbovaed_cli.registry.specs import ASSETS, FrameRule

ALL = list(MODELS.values())


@pytest.mark.parametrize(("alias", "name"), [("cog", "cogvideox"), ("dc", "video-dc-ae"), ("ltx", "ltx")])
def test_aliases_find_their_row(alias, name):
    assert find_model(alias) is MODELS[name]


@pytest.mark.parametrize("spec", ALL, ids=lambda spec: spec.name)
def test_every_row_says_where_its_weights_are_and_under_which_licence(spec):
    assert spec.teacher.repo or spec.teacher.path
    assert spec.teacher.licence
    assert spec.student.published or spec.student.params_m
    assert spec.student.pairs


@pytest.mark.parametrize("spec", ALL, ids=lambda spec: spec.name)
def test_the_counts_of_a_row_are_those_of_its_full_size_networks(spec):
    """On the meta device: no numbers, and no memory for them."""
    import torch

    from turbovaed_cli.models.design import cost_of
    from turbovaed_cli.models.network import num_params

    family, config = spec.teacher.family, {"_class_name": spec.teacher.class_name, **spec.teacher.config}
    if not spec.embedded:
        with torch.device("meta"):
            decoder = family.decoder(family.build(config if spec.teacher.config else {}))
        assert round(num_params(decoder) / 1e6, 3) == spec.teacher.decoder_params_m
    assert round(cost_of(spec.student.config, (1, 1, 1)).params / 1e6, 3) == spec.student.params_m


@pytest.mark.parametrize("spec", [spec for spec in ALL if spec.teacher.config], ids=lambda spec: spec.name)
def test_the_full_size_config_of_a_row_is_recognised_as_that_row(spec):
    family = spec.teacher.family
    config = {"_class_name": getattr(family, "vae_class_name", spec.teacher.class_name), **spec.teacher.config}
    if spec.name == "wan2.2":  # whose statistics come with the weights; those of the class are Wan 2.1's
        config |= {"latents_mean": [0.0] * 48, "latents_std": [1.0] * 48}
    family.check_config(config)
    rows = [row for row in ALL if not row.embedded and bool(row.teacher.beside) == bool(spec.teacher.beside)]
    assert [row.name for row in rows if row.teacher.family.matches(config)] == [spec.name]
    assert family.ratios(config) == (spec.teacher.time_ratio, spec.teacher.space_ratio)


# GFLOPs of one decode of 17 frames of 256x256.
@pytest.mark.parametrize(
    ("name", "gflops"), [("ltx0.9.5", 203), ("ltx2", 203), ("ltx2.3", 203), ("ltx2.5", 203), ("cosmos", 325)]
)
def test_a_student_costs_what_the_docs_state(name, gflops):
    from turbovaed_cli.models.design import cost_of

    teacher = MODELS[name].teacher
    latents = (teacher.latent_frames(17), 256 // teacher.space_ratio, 256 // teacher.space_ratio)
    assert round(cost_of(MODELS[name].student.config, latents).gflops) == gflops


@settings(deadline=None)
@given(st.sampled_from(ALL), st.integers(1, 200))
def test_the_nearest_valid_counts_are_valid_and_nearest(spec, frames):
    rule = spec.teacher.frames
    below, above = rule.at_most(frames), rule.at_least(frames)
    assert rule.is_valid(below) and rule.is_valid(above)
    assert below <= frames <= above or rule.maximum is not None
    assert not any(rule.is_valid(other) for other in range(below + 1, above) if other != frames) or rule.is_valid(frames)


@settings(deadline=None)
@given(st.sampled_from(ALL), st.integers(1, 200))
def test_valid_counts_round_trip_and_others_are_refused(spec, frames):
    teacher = spec.teacher
    if teacher.frames.is_valid(frames):
        assert teacher.pixel_frames(teacher.latent_frames(frames)) == frames
    else:
        with pytest.raises(FrameCountError):
            teacher.latent_frames(frames)


def test_rules_read_as_people_write_them():
    assert str(FrameRule(8, 1)) == "8k+1"
    assert str(FrameRule(4, 0, minimum=8)) == "4k, at least 8 (or 1)"


def test_sizes_are_checked_with_the_nearest():
    with pytest.raises(ShapeError) as error:
        MODELS["ltx"].teacher.check_size(250, 300)
    assert error.value.hint == "nearest: `size` 288x224 or 320x256"


def test_names_that_are_none_suggest_some():
    with pytest.raises(UnknownModelError) as error:
        find_model("hunyuann")
    assert "hunyuan" in error.value.hint
    with pytest.raises(UnknownModelError) as error:
        find_model("zzz")
    assert "ltx" in error.value.hint


def test_a_local_folder_of_another_ratio_gets_as_many_upsamplings(tmp_path):
    import json

    from golden import load_golden

    from turbovaed_cli.models.loading import build_student

    config = load_golden("hunyuan").meta["teacher_config"] | {"_class_name": "AutoencoderKLHunyuanVideo"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    spec = find_model(tmp_path)
    student = build_student(spec.student.config)
    assert (student.temporal_compression_ratio, student.spatial_compression_ratio) == (
        spec.teacher.time_ratio,
        spec.teacher.space_ratio,
    )


def test_the_published_ltx_config_without_decoder_scaling_is_understood(tmp_path):
    """The 0.9.0 config.json leaves it to the class's default."""
    import json

    config = {
        "_class_name": "AutoencoderKLLTXVideo", "block_out_channels": [128, 256, 512, 512], "encoder_causal": True, "decoder_causal": False,
        "latent_channels": 128, "layers_per_block": [4, 3, 3, 3, 4], "patch_size": 4, "patch_size_t": 1, "scaling_factor": 1.0,
        "spatio_temporal_scaling": [True, True, True, False],
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    teacher = find_model(tmp_path).teacher
    assert (teacher.time_ratio, teacher.space_ratio, teacher.latent_channels) == (8, 32, 128)
    (tmp_path / "config.json").write_text(json.dumps(config | {"decoder_inject_noise": [False, True]}))
    with pytest.raises(SettingsError, match="decoder_inject_noise"):
        find_model(tmp_path)


def test_a_folder_with_nothing_but_the_published_video_dc_ae_file_is_that_teacher(tmp_path):
    (tmp_path / "F32T4C128_AE.safetensors").touch()
    spec = find_model(tmp_path)
    assert (spec.name, spec.teacher.class_name) == (tmp_path.name, "VideoDCAE")
    assert (spec.teacher.path, spec.teacher.latent_channels) == (tmp_path, 128)


def test_cogvideox_stops_where_its_class_would_decode_in_chunks():
    with pytest.raises(FrameCountError) as error:
        MODELS["cogvideox"].teacher.check_frames(65)
    assert error.value.hint == "nearest: `frames` 57"


def test_a_student_is_no_teacher():
    with pytest.raises(SettingsError, match="holds a student, which is no teacher"):
        find_model(ASSETS / "tiny" / "student")


def test_a_config_that_is_none_is_refused(tmp_path):
    (tmp_path / "config.json").write_text("[")
    with pytest.raises(SettingsError, match=r"config\.json"):
        find_model(tmp_path)
