"""`load_decoder`: what it takes, and which latents the decoder then takes."""

import pytest
import torch
from golden import load_golden

import turbovaed_cli
from turbovaed_cli.errors import MissingWeightsError, SettingsError
from turbovaed_cli.models.decoders import load_decoder
from turbovaed_cli.models.loading import load_student
from turbovaed_cli.models.others.spaces import registry_name, space_of
from turbovaed_cli.models.teacher import load_teacher
from turbovaed_cli.registry.find import find_model


def test_a_student_is_the_one_of_load_student():
    decoder = turbovaed_cli.load_decoder("tiny")
    latents = torch.randn(1, decoder.latent_channels, 2, 3, 4)
    assert decoder.family == "turbo-vaed"
    assert decoder.latents == "raw"
    assert torch.equal(decoder.decode(latents).sample, load_student("tiny").decode(latents).sample)


def test_a_vae_folder_is_its_own_decoder(ltx_teacher):
    decoder, teacher = load_decoder(ltx_teacher), load_teacher(ltx_teacher)
    golden = load_golden("ltx")
    latents = golden.io["teacher_latent"] if "teacher_latent" in golden.io else torch.randn(1, decoder.latent_channels, 2, 2, 2)
    assert (decoder.family, decoder.latents, decoder.teacher) == ("diffusers", "raw", None)
    assert decoder.licence.startswith("unknown")
    video = decoder.decode(latents).sample
    assert torch.equal(video, teacher.decode(latents))
    assert video.shape[2] == decoder.pixel_frames(latents.shape[2])
    assert decoder.space.mean == pytest.approx(golden.teacher["latents_mean"].tolist())
    assert decoder.stream() is None


def test_a_teachers_own_decoder_has_the_family_diffusers():
    """The name alone means the student."""
    decoder, teacher = load_decoder("tiny", family="diffusers"), load_teacher("tiny")
    latents = torch.randn(1, decoder.latent_channels, 2, 3, 4)
    assert (decoder.family, decoder.teacher) == ("diffusers", "tiny")
    assert torch.equal(decoder.decode(latents).sample, teacher.decode(latents))
    assert decoder.licence == find_model("tiny").teacher.licence


def test_an_unknown_family_is_refused_with_the_nearest_name():
    with pytest.raises(SettingsError, match="unknown") as error:
        load_decoder("tiny", family="difusers")
    assert "diffusers" in error.value.hint


def test_a_teacher_of_other_latents_is_refused(ltx_teacher):
    with pytest.raises(SettingsError, match=r"6 channels, 8x32x32; the teacher hunyuan makes 16 channels, 4x8x8"):
        load_decoder(ltx_teacher, teacher="hunyuan")


@pytest.mark.parametrize("name", ["hunyuan", "cogvideox", "hunyuan1.5", "wan2.1"])
def test_statistics_of_most_teachers_are_known_without_their_weights(name):
    space = space_of(find_model(name))
    config = find_model(name).student.config
    assert space.channels == config["latent_channels"]
    assert space.scaling_factor == config["scaling_factor"]
    assert any(space.mean) == (name == "wan2.1")


def test_statistics_of_ltx_are_among_its_weights(ltx_teacher):
    assert space_of(find_model(ltx_teacher)).mean == pytest.approx(load_golden("ltx").teacher["latents_mean"].tolist())
    with pytest.raises(MissingWeightsError):
        space_of(find_model("ltx"))


def test_the_hubs_cached_copy_of_a_teacher_has_its_name(tmp_path, ltx_teacher):
    cached = tmp_path / "models--Lightricks--LTX-Video" / "snapshots" / "0" / "vae"
    cached.parent.mkdir(parents=True)
    cached.symlink_to(ltx_teacher)
    assert registry_name(find_model(cached)) == "ltx"
    assert registry_name(find_model(ltx_teacher)) is None
