"""Any decoder reconstructs: one that streams piece by piece, another in windows; several stand side by side."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import Notes, make_video
from safetensors.torch import save_file
from trio import write_trio, write_wan

from turbovaed_cli.errors import SettingsError
from turbovaed_cli.models.pair import load_pair
from turbovaed_cli.reconstruction.columns import column_labels
from turbovaed_cli.reconstruction.reconstruct import reconstruct, reconstructed_frames
from turbovaed_cli.settings import ReconstructSettings
from turbovaed_cli.video import read_frames, to_model, to_uint8

PLAIN = ReconstructSettings(codec="ffv1")


@pytest.fixture(scope="module")
def trio(tmp_path_factory):
    return write_trio(tmp_path_factory.mktemp("trio"))


@pytest.fixture(scope="module")
def taehv(tmp_path_factory):
    """A pair of a TAEHV file and the Wan teacher that names its latents."""
    teacher, path = write_wan(tmp_path_factory.mktemp("wan"))
    return load_pair(str(path), str(teacher))


@pytest.fixture(scope="module")
def own(trio):
    """A VAE's own decoder as a model: it only takes whole clips."""
    return load_pair(str(trio.teacher))


def noise(frames, height=64, width=64):
    return np.random.default_rng(0).integers(0, 255, (frames, height, width, 3), np.uint8)


@torch.no_grad()
def at_once(pair, source):
    latents = pair.teacher.encode(to_model(source)[None]).mean
    return to_uint8(pair.student.decode(latents).sample[0].clamp(-1, 1))


def test_a_decoder_that_streams_gives_the_frames_of_the_whole_clip(taehv):
    source, notes = noise(13, 32, 32), Notes()
    made = np.stack(list(reconstructed_frames(iter(source), 32, 32, taehv, PLAIN, num_frames=13, report=notes)))
    assert np.abs(made.astype(int) - at_once(taehv, source).astype(int)).max() <= 1
    assert any("at once: at most" in note for note in notes.notes) and not any("approximation" in note for note in notes.notes)


def test_a_decoder_of_whole_clips_is_exact_in_one_window_and_says_when_it_is_not(own):
    short, notes = noise(17), Notes()
    made = np.stack(list(reconstructed_frames(iter(short), 64, 64, own, PLAIN, num_frames=17, report=notes)))
    assert np.array_equal(made, at_once(own, short)) and notes.notes == []
    long = noise(40)
    made = list(reconstructed_frames(iter(long), 64, 64, own, PLAIN, num_frames=40, report=notes))
    assert len(made) == 40 and "windows of 33 frames" in notes.notes[0] and "approximation" in notes.notes[0]


def test_a_limit_on_memory_is_refused_where_windows_are_not_planned(own, trio, tmp_path):
    video = make_video(tmp_path / "in.mp4", size="64x64", frames=9)
    with pytest.raises(SettingsError, match="decodes whole clips only"):
        reconstruct(video, tmp_path / "out.mkv", own, replace(PLAIN, memory=10**10))
    beside = load_pair(str(trio.student), str(trio.teacher), against=[str(trio.flash)])
    with pytest.raises(SettingsError, match="`against` works in windows"):
        reconstruct(video, tmp_path / "out.mkv", beside, replace(PLAIN, memory=10**10))


def test_latents_of_any_length_are_decoded(own, taehv, tmp_path):
    for pair, sizes in ((own, (12, 2, 2)), (taehv, (4, 3, 4))):
        latents = torch.randn(1, 16, *sizes, generator=torch.Generator().manual_seed(0))
        save_file({"latents": latents}, tmp_path / "l.safetensors")
        notes = Notes()
        result = reconstruct(tmp_path / "l.safetensors", tmp_path / "l.mkv", pair, PLAIN, overwrite=True, report=notes)
        frames = np.stack(list(read_frames(tmp_path / "l.mkv")))
        assert result.num_frames == len(frames) == pair.student.pixel_frames(sizes[0])
        with torch.no_grad():
            whole = to_uint8(pair.student.decode(latents).sample[0].clamp(-1, 1))
        is_windowed = any("windows of 9 latent frames" in note for note in notes.notes)
        assert is_windowed == (pair is own)
        distance = np.abs(frames.astype(int) - whole).mean(axis=(1, 2, 3))
        if not is_windowed:
            assert distance.max() < 0.5
            continue
        assert distance[:9].max() < 0.5  # of the first window, far from the cut
        shifted = np.abs(frames[1:].astype(int) - whole[:-1]).mean()
        assert distance.mean() < 0.3 * shifted, (distance, shifted)  # windows are joined at the right frames


def test_further_decoders_add_a_column_each(trio, tmp_path):
    video = make_video(tmp_path / "in.mp4", size="64x64", frames=9)
    pair = load_pair(str(trio.student), str(trio.teacher), against=[str(trio.flash)])
    plain = replace(pair, beside=())
    compare = replace(PLAIN, compare=True)
    assert column_labels(pair, compare) == ("source", "teacher", "student", "flash.safetensors")
    assert column_labels(pair, PLAIN) == ("source", "student", "flash.safetensors") and column_labels(plain, PLAIN) == ()
    result = reconstruct(video, tmp_path / "four.mkv", pair, compare)
    reconstruct(video, tmp_path / "three.mkv", plain, compare)
    four, three = (np.stack(list(read_frames(tmp_path / f"{name}.mkv"))) for name in ("four", "three"))
    assert result.width == 4 * 64 and np.array_equal(four[:, :, : 3 * 64], three)
    flash = load_pair(str(trio.flash), str(trio.teacher))
    reconstruct(video, tmp_path / "flash.mkv", flash, PLAIN)
    alone = np.stack(list(read_frames(tmp_path / "flash.mkv")))
    assert np.abs(four[:, 15:, 3 * 64 :].astype(int) - alone[:, 15:].astype(int)).max() <= 1  # below the label


def test_only_decoders_of_the_same_latents_stand_beside(trio, taehv):
    with pytest.raises(SettingsError, match="decodes latents of"):
        load_pair(str(trio.student), str(trio.teacher), against=[taehv.name])
    with pytest.raises(SettingsError, match="twice"):
        load_pair(str(trio.student), str(trio.teacher), against=[str(trio.flash), str(trio.flash)])


def test_a_latent_space_that_keys_cannot_tell_is_never_guessed(taehv):
    with pytest.raises(SettingsError, match="does not name its teacher"):
        load_pair(taehv.name)
    assert load_pair(taehv.name, otherwise=taehv.teacher_is).student.latents == "raw"
    assert load_pair(f"taehv:{taehv.name}", taehv.teacher_is, with_teacher=False).student.family == "taehv"
