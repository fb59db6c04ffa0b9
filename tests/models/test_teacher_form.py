"""A teacher's decoder in its fast form: the video of the class itself, and only where a student computes the same."""

import gc
import weakref
from dataclasses import replace

import pytest
import torch
from small_teachers import SMALL

from turbovaed_cli.errors import ShapeError
from turbovaed_cli.models import teacher_form
from turbovaed_cli.models.teacher import Teacher, load_teacher
from turbovaed_cli.models.teacher_form import equal_student, fast_decoder
from turbovaed_cli.registry.rows import MODELS

EXACT = ("ltx", "ltx2.3")


def small(name: str, **config) -> Teacher:
    spec = MODELS[name].teacher
    torch.manual_seed(0)
    vae = spec.family.build({"_class_name": spec.class_name, **spec.config, **SMALL[name], **config})
    return Teacher(vae, replace(spec, latent_channels=spec.family.latent_channels(vae.config)))


def latents_of(teacher: Teacher, frames: int = 3) -> torch.Tensor:
    return torch.randn(2, teacher.spec.latent_channels, frames, 3, 4, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("frames", [1, 3])
@pytest.mark.parametrize("name", [*EXACT, "tiny"])
def test_it_decodes_what_the_class_does(name, frames):
    teacher = load_teacher("tiny") if name == "tiny" else small(name)
    assert fast_decoder(teacher.vae, teacher.spec) is not None
    latents = latents_of(teacher, frames)
    made, wanted = teacher.decode(latents), teacher.decode_by_class(latents)
    assert made.shape == wanted.shape and not torch.equal(made, wanted)
    assert torch.allclose(made, wanted, atol=1e-5 * wanted.abs().max())


def test_in_half_precision_it_is_no_farther_from_fp32():
    teacher = load_teacher("tiny")
    latents = latents_of(teacher)
    wanted = teacher.decode(latents)
    teacher.to(torch.bfloat16)
    made, by_class = ((way(latents).float() - wanted).square().mean() for way in (teacher.decode, teacher.decode_by_class))
    assert made < 1.1 * by_class


@pytest.mark.parametrize("name", [name for name in SMALL if name not in EXACT])
def test_a_decoder_that_no_student_equals_runs_as_it_is(name):
    """A timestep, padding that reflects, norms with gains, attention, or other layers."""
    teacher = small(name)
    assert fast_decoder(teacher.vae, teacher.spec) is None


def test_nearly_all_weights_are_those_of_the_teacher_in_memory():
    teacher = load_teacher("tiny")
    own = {parameter.data_ptr() for parameter in teacher.decoder.parameters()}
    student = equal_student(teacher.vae, teacher.spec)
    copied = [name for name, parameter in student.named_parameters() if parameter.data_ptr() not in own]
    assert {name.rpartition(".conv.")[0] for name in copied} == {"conv_out", "up_blocks.1.upsamplers.0.conv"}


def test_changed_weights_are_decoded_with():
    teacher = small("ltx")
    latents = latents_of(teacher)
    before = teacher.decode(latents)
    with torch.no_grad():
        teacher.vae.decoder.conv_out.conv.bias.add_(0.25)
    assert torch.allclose(teacher.decode(latents), before + 0.25, atol=1e-5)


@pytest.mark.parametrize("switch", ["fast", "use_tiling", "use_framewise_decoding"])
def test_it_can_be_switched_off_and_tiles_are_those_of_the_class(switch):
    teacher = small("ltx")
    latents = latents_of(teacher)
    setattr(teacher if switch == "fast" else teacher.vae, switch, switch != "fast")
    assert torch.equal(teacher.decode(latents), teacher.decode_by_class(latents))


def test_features_are_tapped_in_a_decode_of_the_class():
    teacher = small("ltx")
    latents, (tap,) = latents_of(teacher), ("decoder.mid_block",)
    video, features = teacher.decode_with_features(latents, [tap])
    assert torch.equal(video, teacher.decode_by_class(latents)) and features[tap].shape[0] == 2


@pytest.mark.parametrize("config", [{"resnet_norm_eps": 1e-2}])
def test_another_norm_is_no_students(config):
    teacher = small("ltx", **config)
    assert fast_decoder(teacher.vae, teacher.spec) is None


def test_a_form_that_is_not_used_any_more_is_freed():
    teacher = small("ltx")
    latents = latents_of(teacher)
    teacher.decode(latents)
    form = weakref.ref(teacher_form._ready[teacher.vae][1])
    teacher.fast = False
    teacher.decode(latents)
    gc.collect()
    assert form() is None


@pytest.mark.parametrize("shape", [(1, 7, 0, 2, 2), (1, 9, 2, 2, 2), (7, 2, 2, 2)], ids=str)
def test_latents_of_another_shape_or_without_frames_are_one_line(shape):
    teacher = small("ltx")
    shape = tuple(teacher.spec.latent_channels if size == 7 else size for size in shape)
    with pytest.raises(ShapeError, match="this teacher decodes"):
        teacher.decode(torch.zeros(shape))
