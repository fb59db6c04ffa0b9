"""HunyuanVideo 1.5: an encode in pieces with kept keys and values, exact up to a cap and bounded beyond it."""

import diffusers
import pytest
import torch
from small_teachers import close, write_small_teacher

from turbovaed_cli.models.encoding import approximation_of, encoded, encodes_exactly, piece_lengths
from turbovaed_cli.models.teacher import Teacher, load_teacher
from turbovaed_cli.registry.rows import MODELS
from turbovaed_cli.registry.teachers.hunyuan15 import KEPT_FRAMES, HunyuanVideo15, _causal_mask

EXACT = 4 * (KEPT_FRAMES - 1) + 1


@pytest.fixture(scope="module")
def teacher(tmp_path_factory) -> Teacher:
    return load_teacher(write_small_teacher("hunyuan1.5", tmp_path_factory.mktemp("teacher"))).double()


def video_for(frames: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(1, 3, frames, 32, 32, generator=generator, dtype=torch.float64) * 2 - 1


def in_pieces(teacher: Teacher, video: torch.Tensor, at_once: int = 4, split: int = 6) -> torch.Tensor:
    return torch.cat(list(encoded(teacher, video.split(split, dim=2), at_once)), dim=2)


@pytest.mark.parametrize("at_once", [4, 16])
@pytest.mark.parametrize("frames", [1, 5, 25])
def test_pieces_give_the_latents_of_the_whole_clip(frames, at_once, teacher):
    video = video_for(frames)
    whole = teacher.encode(video).mean
    made = in_pieces(teacher, video, at_once)
    assert encodes_exactly(teacher) and made.shape == whole.shape
    assert (made - whole).abs().max() <= 1e-9
    assert close(teacher.encode(video).mean, whole)  # the network is as it was


def test_in_single_precision_too(teacher, tmp_path):
    single = load_teacher(write_small_teacher("hunyuan1.5", tmp_path))
    video = video_for(17).float()
    assert (in_pieces(single, video) - single.encode(video).mean).abs().max() <= 1e-5


def test_attention_sees_every_kept_frame_and_none_after_the_cap(teacher):
    """Up to the cap the latents are exact. Beyond it they depend on the last frames only, and the error is small, not zero."""
    video = video_for(EXACT + 8)
    whole, made = teacher.posterior(video).mean, in_pieces(teacher, video)
    error = (made - whole).abs()
    assert error[:, :, :KEPT_FRAMES].max() <= 1e-9
    assert 1e-6 < error[:, :, KEPT_FRAMES:].max() <= 0.1 * whole.std()


def test_memory_does_not_grow_with_the_video(teacher):
    pieces = teacher.family.piecewise(teacher.vae)
    encode = pieces.begin({})
    carry = encode.func.__self__
    sizes = []
    for i in range(2):
        with torch.no_grad():
            encode(video_for(5 if i == 0 else 4 * KEPT_FRAMES, seed=i))
        (seen,) = carry.seen.values()
        sizes.append(seen.keys.numel() + sum(kept.numel() for kept in carry.kept.values()))
    assert sizes[0] == sizes[1] and seen.count == 2 + KEPT_FRAMES


def test_two_streams_on_one_network_do_not_disturb_each_other(teacher):
    videos = [video_for(13, seed) for seed in (1, 2)]
    wanted = [teacher.encode(video).mean for video in videos]
    streams = [encoded(teacher, video.split(3, dim=2), 4) for video in videos]
    parts: list[list[torch.Tensor]] = [[], []]
    for first, second in zip(*streams, strict=True):
        parts[0].append(first)
        parts[1].append(second)
    assert all((torch.cat(made, dim=2) - whole).abs().max() <= 1e-9 for made, whole in zip(parts, wanted, strict=True))


def test_an_error_leaves_the_network_as_it_was(teacher):
    video = video_for(9)
    wanted = teacher.encode(video).mean

    def fail(*_):
        raise MemoryError

    handle = teacher.vae.encoder.mid_block.attentions[0].proj_out.register_forward_hook(fail)
    with pytest.raises(MemoryError):
        in_pieces(teacher, video)
    handle.remove()
    assert close(teacher.encode(video).mean, wanted)
    assert (in_pieces(teacher, video) - wanted).abs().max() <= 1e-9


def test_a_note_states_the_length_up_to_which_it_is_exact(teacher):
    assert approximation_of(teacher, 4, EXACT) is None
    for frames in (0, EXACT + 1):
        assert f"the first {EXACT} frames exactly" in approximation_of(teacher, 4, frames)
    assert piece_lengths(teacher, 33) == [32, 16, 8, 4]


def test_features_are_those_of_a_full_decode(teacher):
    latents = torch.randn(1, 4, 3, 2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    taps = [pair.teacher_tap for pair in MODELS["hunyuan1.5"].student.pairs]
    features = teacher.features(latents, taps)
    _, wanted = teacher.decode_with_features(latents, taps)
    assert all(close(features[tap], wanted[tap]) for tap in taps)
    assert [features[tap].shape[2] for tap in taps] == [3, 5]


def test_statistics_and_folders(teacher):
    assert isinstance(teacher.family, HunyuanVideo15)
    assert teacher.family.statistics(teacher.vae) == {"scaling_factor": 1.03682}
    assert (teacher.spec.time_ratio, teacher.spec.space_ratio, teacher.spec.latent_channels) == (4, 16, 4)


def test_clips_of_a_batch_are_encoded_and_decoded_as_alone(teacher):
    """The mask of the class fits one clip only."""
    videos = torch.cat([video_for(9, seed) for seed in (0, 1)])
    latents = teacher.encode(videos).mean
    assert torch.allclose(latents, torch.cat([teacher.encode(video[None]).mean for video in videos]), rtol=0, atol=1e-9)
    decoded = teacher.decode(latents)
    assert torch.allclose(decoded, torch.cat([teacher.decode(latent[None]) for latent in latents]), rtol=0, atol=1e-9)


def test_its_attention_has_the_mask_of_the_class():
    block = diffusers.models.autoencoders.autoencoder_kl_hunyuanvideo15.HunyuanVideo15AttnBlock
    mask = block.prepare_causal_attention_mask(3, 4, torch.float64, torch.device("cpu"))
    assert torch.equal(_causal_mask(3, 4, torch.float64, torch.device("cpu"))[0, 0], mask)
