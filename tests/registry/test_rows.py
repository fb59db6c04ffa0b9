"""The rows of published teachers: the sizes of their classes, and students and pairs that fit them."""

import pytest
import torch
from torch import nn

from turbovaed_cli.models.design import cost_of
from turbovaed_cli.models.loading import build_student
from turbovaed_cli.models.network import num_params
from turbovaed_cli.registry.rows import MODELS

# By name: decoder and student in M parameters, GFLOPs of the student at 17x256x256, bytes of the VAE, bytes of a weight.
IMAGES = {
    "sdxl": (49.490, 12.825, 1173.4, 335e6, 4),
    "flux1": (49.545, 12.991, 1179.2, 168e6, 2),
    "flux2": (49.619, 32.603, 1362.7, 336e6, 4),
    "sana": (159.223, 35.655, 407.8, 1249e6, 4),
    "svd": (63.579, 12.825, 1173.4, 391e6, 4),
}
FACTS = {
    "wan2.1": (73.295, 40.688, 1649.3, 508e6, 4),
    "wan2.2": (555.049, 40.346, 1089.6, 2819e6, 4),
    "qwen-image": (73.295, 40.688, 1649.3, 508e6, 4),
    "hunyuan1.5": (871.310, 40.125, 1089.1, 5042e6, 4),
    **IMAGES,
}


def full_size(name: str) -> nn.Module:
    """The class of the row at full size, without memory."""
    teacher = MODELS[name].teacher
    with torch.device("meta"):
        vae = teacher.family.build({"_class_name": teacher.class_name, **teacher.config})
    return nn.Module.to(vae, "meta")  # a parameter of the class of svd is not made on the default device


@pytest.mark.parametrize("name", FACTS)
def test_the_full_size_class_has_the_stated_size(name):
    spec, (decoder_m, _, _, num_bytes, of_weight) = MODELS[name].teacher, FACTS[name]
    vae = full_size(name)
    assert round(num_params(spec.family.decoder(vae)) / 1e6, 3) == spec.decoder_params_m == decoder_m
    assert of_weight * num_params(vae) == pytest.approx(spec.num_bytes, rel=0.01) == pytest.approx(num_bytes, rel=0.01)
    config = {**vae.config}
    assert spec.family.ratios(config) == (spec.time_ratio, spec.space_ratio)
    assert spec.family.latent_channels(config) == spec.latent_channels
    assert spec.family.matches({"_class_name": spec.class_name, **config})


@pytest.mark.parametrize("name", FACTS)
def test_the_student_has_the_stated_size_and_its_teachers_ratios(name):
    row, (_, params_m, gflops, _, _) = MODELS[name], FACTS[name]
    teacher = row.teacher
    latents = teacher.latent_frames(17), 256 // teacher.space_ratio, 256 // teacher.space_ratio
    cost = cost_of(row.student.config, latents)
    assert (round(cost.params / 1e6, 3), round(cost.gflops, 1)) == (params_m, gflops) and row.student.params_m == params_m
    student = build_on_meta(row.student.config)
    assert num_params(student) == cost.params
    ratios = student.temporal_compression_ratio, student.spatial_compression_ratio, student.config.latent_channels
    assert ratios == (teacher.time_ratio, teacher.space_ratio, teacher.latent_channels)
    if name in IMAGES:
        assert row.student.config["scaling_factor"] == teacher.config.get("scaling_factor", 1.0)


@pytest.mark.parametrize("name", FACTS)
def test_each_pairs_features_have_one_shape_at_full_size(name):
    row = MODELS[name]
    student, vae = build_on_meta(row.student.config), full_size(name)
    latents = torch.empty(1, row.teacher.latent_channels, 3, 2, 2, device="meta")
    found: dict[str, list[torch.Tensor]] = {pair.teacher_tap: [] for pair in row.student.pairs}
    modules = dict(vae.named_modules())
    for tap, outputs in found.items():
        modules[tap].register_forward_hook(lambda _m, _i, out, outputs=outputs: outputs.append(out))
    with torch.no_grad():
        for call in row.teacher.family.decoder_calls(vae, latents):
            call()
        _, learnt = student.features(latents, [pair.student_block for pair in row.student.pairs])
    for pair in row.student.pairs:
        taught = torch.cat([row.teacher.family.feature(vae, latents, out) for out in found[pair.teacher_tap]], dim=2).shape
        of_student = learnt[pair.student_block].shape
        scale = 2 if pair.transform.startswith("shuffle") else 1
        frames = 2 * of_student[2] - 1 if pair.transform == "shuffle3d" else of_student[2]
        assert tuple(taught[2:]) == (frames, scale * of_student[3], scale * of_student[4])
        assert pair.head or taught[1] == of_student[1]


def build_on_meta(config):
    with torch.device("meta"):
        return build_student(config)


@pytest.mark.parametrize("name", ["wan2.1", "wan2.2", "qwen-image"])
def test_the_statistics_of_a_row_have_one_number_per_channel(name):
    teacher = MODELS[name].teacher
    statistics = teacher.family.statistics(full_size(name))
    assert [len(statistics[key]) for key in ("latents_mean", "latents_std")] == [teacher.latent_channels] * 2


@pytest.mark.parametrize("name", ["wan2.1", "qwen-image"])
def test_the_statistics_of_a_row_are_those_of_its_class(name):
    """Those of Wan 2.2 are in no class: its defaults are those of Wan 2.1."""
    family = MODELS[name].teacher.family
    assert family.statistics(full_size(name)) == family.statistics(family.build({}))
