"""Image VAEs as teachers: each frame of a video is an image, except in the decoder of Stable Video Diffusion."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_teachers import close, small_student, write_small_teacher

from turbovaed_cli.errors import SettingsError, ShapeError
from turbovaed_cli.latents.latent_files import read_latents
from turbovaed_cli.models.encoding import encoded, encodes_exactly, piece_lengths
from turbovaed_cli.models.latent_space import LatentSpace
from turbovaed_cli.models.loading import build_student
from turbovaed_cli.models.memory import clip_bytes, encoding_bytes
from turbovaed_cli.models.teacher import Teacher, load_teacher
from turbovaed_cli.registry import image_vae
from turbovaed_cli.registry.find import find_model
from turbovaed_cli.registry.rows import MODELS
from turbovaed_cli.training.alignment import build_heads
from turbovaed_cli.training.prepare import _complete_config

IMAGES = ("sdxl", "flux1", "flux2", "sana", "svd")
ALONE = ("sdxl", "flux1", "flux2", "sana")  # whose decoder sees one frame


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return {name: write_small_teacher(name, tmp_path_factory.mktemp(name)) for name in IMAGES}


@pytest.fixture(scope="module")
def teachers(folders) -> dict[str, Teacher]:
    return {name: load_teacher(folder) for name, folder in folders.items()}


def video_of(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def latents_of(teacher: Teacher, batch: int, frames: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, teacher.spec.latent_channels, frames, 2, 4, generator=generator)


def taps_of(name: str) -> list[str]:
    return [pair.teacher_tap for pair in MODELS[name].student.pairs]


# --- each frame alone ---


@pytest.mark.parametrize("name", IMAGES)
def test_each_frame_is_encoded_as_the_image_that_it_is(name, teachers):
    teacher, video = teachers[name], video_of(2, 3, 5, 64, 96)
    made = teacher.encode(video)
    assert made.mean.shape == made.std.shape and made.mean.shape[:3] == (2, teacher.spec.latent_channels, 5)
    for i in range(5):
        alone = teacher.encode(video[:, :, i : i + 1])
        assert (made.mean[:, :, i : i + 1] - alone.mean).abs().max() <= 1e-5
        assert (made.std[:, :, i : i + 1] - alone.std).abs().max() <= 1e-5
    assert bool(made.std.any()) == (name != "sana")  # whose encoder is deterministic


@pytest.mark.parametrize("name", ["sdxl", "flux1", "svd"])
def test_frames_are_what_the_class_itself_encodes_and_decodes(name, teachers):
    teacher, video = teachers[name], video_of(1, 3, 3, 64, 96)
    images = video[0].transpose(0, 1)
    with torch.no_grad():
        wanted = teacher.vae.encode(images).latent_dist.mean
        assert torch.allclose(teacher.encode(video).mean[0].transpose(0, 1), wanted, atol=1e-5)
        frames = {"num_frames": 3} if name == "svd" else {}
        decoded = teacher.vae.decode(wanted, **frames).sample
        assert torch.allclose(teacher.decode(wanted.transpose(0, 1)[None])[0].transpose(0, 1), decoded, atol=1e-5)


@pytest.mark.parametrize("name", IMAGES)
@pytest.mark.parametrize("at_once", [1, 2, 8])
def test_a_video_in_pieces_of_any_length_has_the_latents_of_the_whole(name, at_once, teachers):
    teacher, video = teachers[name], video_of(1, 3, 7, 64, 64)
    made = torch.cat(list(encoded(teacher, video.split(3, dim=2), at_once)), dim=2)
    assert encodes_exactly(teacher) and made.shape[2] == 7
    assert (made - teacher.encode(video).mean).abs().max() <= 1e-5
    assert piece_lengths(teacher, 8)[0] == 8 and piece_lengths(teacher, 8)[-1] == 1


@pytest.mark.parametrize("name", ALONE)
def test_each_frame_is_decoded_alone(name, teachers):
    teacher = teachers[name]
    latents = latents_of(teacher, 2, 3)
    whole = teacher.decode(latents)
    alone = torch.cat([teacher.decode(latents[:, :, i : i + 1]) for i in range(3)], dim=2)
    assert (whole - alone).abs().max() <= 1e-4


def test_stable_video_diffusions_decoder_is_given_the_whole_clip(teachers):
    """One frame changes what its neighbours decode to; clips of a batch do not touch each other."""
    teacher = teachers["svd"]
    latents = latents_of(teacher, 2, 5)
    other = latents.clone()
    other[0, :, 0] += 5
    one, two = teacher.decode(latents), teacher.decode(other)
    assert not torch.equal(one[0, :, 4], two[0, :, 4]) and torch.allclose(one[1], two[1], atol=1e-5)


@pytest.mark.parametrize("name", IMAGES)
def test_every_number_of_frames_is_taken(name, folders):
    teacher = find_model(folders[name]).teacher
    assert str(teacher.frames) == "1 or more"
    for frames in (1, 2, 5, 16):
        assert teacher.latent_frames(frames) == teacher.pixel_frames(frames) == frames


# --- memory ---


@pytest.mark.parametrize("name", ALONE)
def test_long_clips_are_coded_in_calls_of_few_images_to_the_same_numbers(name, teachers, monkeypatch):
    teacher, video = teachers[name], video_of(2, 3, 5, 64, 64)
    whole = teacher.encode(video).mean
    decoded, features = teacher.decode_with_features(whole, taps_of(name))
    monkeypatch.setattr(image_vae, "_PIXELS_AT_ONCE", 4 * 64 * 64)
    seen: list[int] = []
    parts = teacher.vae.encoder, teacher.vae.decoder
    handles = [part.register_forward_pre_hook(lambda _module, inputs: seen.append(len(inputs[0]))) for part in parts]
    again = teacher.encode(video).mean
    redecoded, refeatures = teacher.decode_with_features(whole, taps_of(name))
    truncated = teacher.features(whole, taps_of(name))
    for handle in handles:
        handle.remove()
    assert seen == [4, 4, 2] * 3
    assert (again - whole).abs().max() <= 1e-5 and (redecoded - decoded).abs().max() <= 1e-4
    for tap in taps_of(name):
        assert refeatures[tap].shape == features[tap].shape == truncated[tap].shape
        assert (refeatures[tap] - features[tap]).abs().max() <= 1e-4
        assert close(truncated[tap], refeatures[tap])


def test_memory_of_a_long_clip_is_that_of_its_pieces(teachers):
    """A clip of whole images needs no more than its own frames and latents besides what one image needs."""
    teacher = teachers["sdxl"]
    one, four = (clip_bytes(teacher, 1, frames, (1024, 1024)) for frames in (1, 4))
    assert four < 1.5 * one
    assert encoding_bytes(teacher, (512, 512), 1) < encoding_bytes(teacher, (512, 512), 4)


# --- features ---


@pytest.mark.parametrize("name", IMAGES)
def test_features_are_clips_that_the_students_blocks_fit(name, teachers, folders):
    teacher, latents = teachers[name], latents_of(teachers[name], 2, 3)
    pairs = find_model(folders[name]).student.pairs
    student = build_student(small_student(folders[name]))
    heads = build_heads(student, teacher, pairs)
    features = teacher.features(latents, taps_of(name))
    decoded, full = teacher.decode_with_features(latents, taps_of(name))
    video, learnt = student.features(latents, [pair.student_block for pair in pairs])
    losses = heads(learnt, features)
    assert len(losses) == len(pairs) == 2 and all(loss.isfinite() and loss > 0 for loss in losses.values())
    assert video.shape == decoded.shape and all(close(features[tap], full[tap]) for tap in features)
    for tap, feature in features.items():  # each clip's own, in the order of the batch
        assert feature.shape[:1] + feature.shape[2:3] == (2, 3)
        second = teacher.features(latents[1:], [tap])[tap]
        assert (feature[1:] - second).abs().max() <= 1e-4


# --- what a student inherits ---


def student_of(name: str, folder, teacher: Teacher):
    return build_student(_complete_config(small_student(folder), find_model(folder), teacher))


def test_the_shift_of_flux_is_the_mean_of_its_students_latents(teachers, folders):
    space = student_of("flux1", folders["flux1"], teachers["flux1"]).space
    normalised = torch.randn(4, 1, 2, 2)
    assert torch.allclose(space.raw(normalised), normalised / 0.3611 + 0.1159)


@pytest.mark.parametrize(("name", "factor"), [("sdxl", 0.13025), ("sana", 0.41407), ("svd", 0.18215)])
def test_other_students_have_a_scaling_factor_alone(name, factor, teachers, folders):
    config = student_of(name, folders[name], teachers[name]).config
    assert config.scaling_factor == factor and config.latents_mean is None and config.latents_std is None


def test_latents_of_flux2s_pipeline_are_those_of_its_student(teachers, folders):
    """The pipeline undoes the batch norm and the patches before its VAE decodes; a student's latents are normalised alike."""
    from diffusers.pipelines.flux2.pipeline_flux2 import Flux2Pipeline

    teacher = load_teacher(folders["flux2"])
    bn = teacher.vae.bn
    bn.running_mean += torch.linspace(-1, 1, 8)
    bn.running_var *= torch.linspace(0.5, 2, 8)
    space = student_of("flux2", folders["flux2"], teacher).space
    normalised = torch.randn(1, 8, 2, 4)
    raw = normalised * (bn.running_var.view(1, -1, 1, 1) + 1e-4).sqrt() + bn.running_mean.view(1, -1, 1, 1)
    with torch.no_grad():
        wanted = teacher.vae.decode(Flux2Pipeline._unpatchify_latents(raw)).sample
    made = teacher.decode(space.raw(normalised[0][:, None])[None])
    assert torch.allclose(made[:, :, 0], wanted, atol=1e-4)
    image = video_of(1, 3, 1, 32, 64)
    with torch.no_grad():
        mean = Flux2Pipeline._patchify_latents(teacher.vae.encode(image[:, :, 0]).latent_dist.mean)
    assert torch.allclose(teacher.encode(image).mean[:, :, 0], mean, atol=1e-5)


# --- latents as image pipelines save them ---


@pytest.mark.parametrize("shape", [(4, 6, 8), (1, 4, 6, 8), (3, 4, 6, 8)])
def test_latents_of_images_are_read_as_frames(shape, tmp_path):
    latents = torch.randn(shape)
    save_file({"latents": latents}, tmp_path / "z.safetensors")
    space = LatentSpace(4, (0.0,) * 4, (1.0,) * 4, 1.0, 1, 8)
    made = read_latents(tmp_path / "z.safetensors", space).latents
    assert torch.equal(made, latents.reshape(-1, 4, 6, 8).transpose(0, 1))


def test_packed_latents_of_flux_are_unpacked_as_diffusers_does(tmp_path):
    from diffusers import FluxPipeline

    latents = torch.randn(1, 4, 6, 8)
    save_file({"latents": FluxPipeline._pack_latents(latents, 1, 4, 6, 8).contiguous()}, tmp_path / "z.safetensors")
    space = LatentSpace(4, (0.0,) * 4, (1.0,) * 4, 1.0, 1, 8)
    for found in ({"shape": (1, 6, 8)}, {"expected": (1, 6, 8)}):
        assert torch.equal(read_latents(tmp_path / "z.safetensors", space, **found).latents, latents[0][:, None])
    for wrong in ((1, 3, 16), (1, 6, 4)):
        with pytest.raises(ShapeError, match="12 tokens of 2 x 2 latents are not"):
            read_latents(tmp_path / "z.safetensors", space, shape=wrong)


# --- folders ---


def changed(folder, target, **changes):
    config = json.loads((folder / "config.json").read_text())
    target.mkdir(parents=True)
    (target / "config.json").write_text(json.dumps(config | changes))
    return target


def test_a_folder_of_other_stable_diffusion_keeps_its_own_scaling(folders, tmp_path):
    spec = find_model(changed(folders["sdxl"], tmp_path / "sd15", scaling_factor=0.18215))
    assert spec.student.config["scaling_factor"] == 0.18215 and spec.teacher.frames == image_vae.ANY_FRAMES


def test_a_folder_of_other_ratios_gets_a_student_of_these(folders, tmp_path):
    kinds = {"down_block_types": ["DownEncoderBlock2D"] * 3, "up_block_types": ["UpDecoderBlock2D"] * 3}
    spec = find_model(changed(folders["sdxl"], tmp_path / "four", block_out_channels=[8, 8, 16], **kinds))
    student = build_student(spec.student.config)
    assert (student.temporal_compression_ratio, student.spatial_compression_ratio) == (1, 4)


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("sdxl", {"in_channels": 4}, "4 colour channels"),
        ("flux2", {"patch_size": [1, 1]}, "patches of 2 x 2"),
    ],
)
def test_vaes_that_no_student_fits_are_refused(name, change, said, folders, tmp_path):
    with pytest.raises(SettingsError, match=said):
        find_model(changed(folders[name], tmp_path / "vae", **change))


def test_weights_of_an_older_diffusers_are_read(folders, tmp_path):
    folder = changed(folders["sdxl"], tmp_path / "vae")
    state = load_file(folders["sdxl"] / "diffusion_pytorch_model.safetensors")
    names = {".to_q.": ".query.", ".to_k.": ".key.", ".to_v.": ".value.", ".to_out.0.": ".proj_attn."}
    for new, old in names.items():
        state = {name.replace(new, old): value for name, value in state.items()}
    save_file(state, folder / "diffusion_pytorch_model.safetensors")
    latents = torch.randn(1, 4, 1, 2, 2)
    assert close(load_teacher(folder).decode(latents), load_teacher(folders["sdxl"]).decode(latents))
