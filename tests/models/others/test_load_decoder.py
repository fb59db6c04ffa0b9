"""`load_decoder`: what it takes, and which latents the decoder then takes."""

import pytest
import torch
from golden import load_golden, write_student
from others import load_numbers
from safetensors.torch import save_file
from tiny_pipelines import vae_of

import turbovaed_cli
from turbovaed_cli.errors import MissingWeightsError, SettingsError, UnknownModelError, WeightFileError
from turbovaed_cli.models.decoder import Decoder
from turbovaed_cli.models.decoders import FAMILIES, load_decoder
from turbovaed_cli.models.latent_space import LATENTS_ARE
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


def test_cogvideox_makes_four_frames_of_the_first_of_an_even_number_of_latents(tmp_path):
    vae_of("cogvideox").save_pretrained(tmp_path)
    decoder = load_decoder(tmp_path)
    frames = {t: decoder.decode(torch.zeros(1, 4, t, 1, 1)).sample.shape[2] for t in (1, 2, 3, 4)}
    assert frames == {t: decoder.pixel_frames(t) for t in frames} == {1: 1, 2: 8, 3: 9, 4: 16}


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


# --- files and families -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def taehv_file(tmp_path_factory):
    return load_numbers("taehv-16ch").write(tmp_path_factory.mktemp("files"))


def test_a_wrong_family_is_one_clear_error(taehv_file):
    with pytest.raises(WeightFileError, match="is no decoder of the family magihuman: it has the keys of taehv") as error:
        load_decoder(taehv_file, family="magihuman")
    assert error.value.hint == "leave out `family`"


def test_a_file_of_no_family_is_refused_with_its_first_key(tmp_path):
    save_file({"blocks.0.weight": torch.ones(2)}, tmp_path / "x.safetensors")
    with pytest.raises(WeightFileError, match=r"no known family: its 1 keys begin with 'blocks.0.weight'") as error:
        load_decoder(tmp_path / "x.safetensors")
    assert error.value.hint == f"families: {', '.join(FAMILIES)}"


@pytest.mark.parametrize("shape", [(), (4,), (0, 0), (2**40, 0, 3, 3), (7, 7, 7, 7)])
@pytest.mark.parametrize("name", ["taehv-16ch", "taehv-48ch-super", "flash-vaed-wan", "flash-vaed-ltx-small"])
def test_tensors_of_strange_shapes_are_named(tmp_path, name, shape):
    """Every width is read from shapes, so none of them may be trusted."""
    keys = [key for key, _, _ in load_numbers(name).meta["keys"]]
    torch.save(dict.fromkeys(keys, torch.empty(shape)), tmp_path / "x.pth")
    with pytest.raises(WeightFileError, match=r"x.pth has other keys than its family: \d+ of another shape"):
        load_decoder(tmp_path / "x.pth")


@pytest.mark.parametrize("damaged", [b"", b"PK\x03\x04 no zip", b"\x08\x00\x00\x00\x00\x00\x00\x00{}"])
def test_a_damaged_file_is_refused(tmp_path, damaged):
    (tmp_path / "x.pth").write_bytes(damaged)
    with pytest.raises(WeightFileError):
        load_decoder(tmp_path / "x.pth")


def test_a_family_of_files_takes_no_name_and_no_folder(ltx_teacher):
    with pytest.raises(SettingsError, match="`family` is taehv, and tiny names a student"):
        load_decoder("tiny", family="taehv")
    with pytest.raises(SettingsError, match="and this family is a file"):
        load_decoder(ltx_teacher, family="taehv")


def test_a_name_that_nothing_has_is_refused_with_the_nearest():
    with pytest.raises(UnknownModelError, match="no model is called 'hunyan'") as error:
        load_decoder("hunyan")
    assert "hunyuan" in error.value.hint


def test_the_weight_file_of_a_vae_is_the_vae(ltx_teacher):
    decoder = load_decoder(next(ltx_teacher.glob("*.safetensors")))
    assert decoder.family == "diffusers"


def test_a_published_file_and_a_saved_student_are_students(ltx_student, tmp_path):
    weights, config = write_student(load_golden("hunyuan"), tmp_path)
    decoder = load_decoder(weights, config=config)
    latents = torch.randn(1, decoder.latent_channels, 2, 2, 2)
    assert decoder.family == load_decoder(ltx_student).family == "turbo-vaed"
    assert torch.equal(decoder.decode(latents).sample, load_student(weights, config).decode(latents).sample)


def test_every_decoder_has_what_the_protocol_names(taehv_file, ltx_teacher):
    names = [name for name in vars(Decoder) if not name.startswith("_")]
    for decoder in (load_decoder(taehv_file), load_decoder(ltx_teacher), load_decoder("tiny")):
        assert "stream" in names and all(hasattr(decoder, name) for name in names)
        assert decoder.latents in LATENTS_ARE
        assert isinstance(decoder, torch.nn.Module)


def test_gradients_and_other_precisions(taehv_file):
    decoder = load_decoder(taehv_file).to(torch.bfloat16)
    latents = torch.randn(1, 16, 1, 2, 2, requires_grad=True)
    video = decoder.decode(latents).sample
    assert (decoder.dtype, video.dtype) == (torch.bfloat16, torch.bfloat16)
    video.float().sum().backward()
    assert latents.grad is not None and not any(parameter.requires_grad for parameter in decoder.parameters())
