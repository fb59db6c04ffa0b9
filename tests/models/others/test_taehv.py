"""TAEHV in all widths, and LightTAE: golden numbers, latents of teachers, streams, and strict keys."""

import diffusers
import pytest
import torch
from others import check_precisions, largest_error, load_numbers

from turbovaed_cli.errors import FrameCountError, SettingsError, WeightFileError
from turbovaed_cli.models.decoders import load_decoder
from turbovaed_cli.models.others.taehv import load_taehv
from turbovaed_cli.models.others.weights import ForeignWeights
from turbovaed_cli.registry.find import find_model

NAMES = (
    "taehv-16ch", "taehv-24ch-h3", "taehv-48ch-super", "taehv-128ch-wide", "taehv-32ch", "taehv-48ch", "taehv-128ch",
)  # fmt: skip


@pytest.fixture(scope="module")
def sixteen():
    return load_numbers("taehv-16ch")


@pytest.fixture(scope="module")
def sixteen_file(sixteen, tmp_path_factory):
    return sixteen.write(tmp_path_factory.mktemp("taehv"), "taew2_1.pth")


@pytest.fixture(scope="module")
def wan(sixteen_file):
    return load_decoder(sixteen_file, teacher="wan2.1")


@pytest.mark.parametrize("name", NAMES)
def test_frames_are_the_golden_ones(name, tmp_path):
    numbers = load_numbers(name)
    decoder = load_taehv(ForeignWeights(tmp_path / name, numbers.state()))
    assert decoder.pixel_frames(numbers.latents.shape[2]) == numbers.frames.shape[2]
    assert decoder.latents == "normalised"
    check_precisions(decoder, numbers.latents, numbers.frames * 2 - 1)
    decoded = decoder.decode(numbers.latents).sample
    assert largest_error(decoded, (numbers.frames * 2 - 1).clamp(-1, 1)) < 1e-4


def test_the_frames_before_the_first_are_dropped(sixteen, wan):
    with torch.no_grad():
        every = wan.untrimmed(sixteen.latents)
    assert largest_error(every[:, :, :3], sixteen.channels_first(sixteen.io["startup_frames"])) < 1e-4
    assert largest_error(every[:, :, 3:], sixteen.frames) < 1e-4


def test_with_a_teacher_it_takes_raw_latents(sixteen, wan):
    mean, std = (torch.tensor(sixteen.meta[f"latents_{name}"]).view(-1, 1, 1, 1) for name in ("mean", "std"))
    assert (wan.latents, wan.teacher, wan.licence) == ("raw", "wan2.1", "MIT")
    raw = sixteen.latents * std + mean
    assert largest_error(wan.decode(raw).sample, (sixteen.frames * 2 - 1).clamp(-1, 1)) < 1e-4


def test_without_a_teacher_sixteen_channels_are_of_no_known_space(sixteen_file):
    """Their name would say it, and is not looked at."""
    decoder = load_decoder(sixteen_file)
    assert (decoder.latents, decoder.teacher, decoder.space) == ("normalised", None, None)


def test_the_scaling_factor_of_a_teacher_is_applied(sixteen, sixteen_file):
    decoder = load_decoder(sixteen_file, teacher="hunyuan")
    scaled = decoder.decode(sixteen.latents[:, :, :2] / 0.476986).sample
    assert largest_error(scaled, (sixteen.frames[:, :, :5] * 2 - 1).clamp(-1, 1)) < 1e-4
    assert decoder.space.scaling_factor == 0.476986


def test_cogvideox_keeps_every_frame_of_an_even_number_of_latents(sixteen, sixteen_file):
    """Its frames depend on that number, so it does not stream."""
    decoder = load_decoder(sixteen_file, teacher="cogvideox")
    latents = sixteen.latents[:, :, :4] / 0.7
    even, odd = decoder.decode(latents).sample, decoder.decode(latents[:, :, :3]).sample
    assert (even.shape[2], odd.shape[2]) == (16, 9) == (decoder.pixel_frames(4), decoder.pixel_frames(3))
    assert torch.allclose(even[:, :, 3:12], odd, atol=1e-5)
    assert decoder.stream() is None


@pytest.mark.parametrize("pieces", [[1, 1, 1, 1, 1], [2, 3], [5], [0, 1, 4]])
def test_a_stream_equals_the_decode_of_the_whole_clip(wan, pieces):
    torch.manual_seed(0)
    latents = torch.randn(2, 16, 5, 1, 2)
    stream, whole = wan.stream(), wan.decode(latents).sample
    for _ in range(2):  # after the end of a clip the next one can begin
        made = [stream.push(piece) for piece in latents.split(pieces, dim=2)]
        assert torch.cat(made, dim=2).shape == whole.shape
        assert stream.lookahead_frames == 0
        assert stream.finish().shape[2] == 0
        assert largest_error(torch.cat(made, dim=2), whole) < 1e-5


def test_a_stream_keeps_nine_frames_whatever_it_has_seen(wan):
    stream = wan.stream()
    stream.push(torch.randn(1, 16, 4, 2, 2))
    kept = list(stream._memory.kept.values())
    assert [x.shape[1] for x in kept] == [1] * 9
    assert all(x.untyped_storage().nbytes() == 4 * x.numel() for x in kept)  # not views of a piece


def test_an_empty_stream_and_other_sizes_are_refused(wan):
    with pytest.raises(FrameCountError, match="no latents were pushed"):
        wan.stream().finish()
    stream = wan.stream()
    stream.push(torch.randn(1, 16, 1, 2, 2))
    with pytest.raises(SettingsError, match="only the frames may differ"):
        stream.push(torch.randn(1, 16, 1, 2, 3))
    with pytest.raises(SettingsError, match=r"\(1, 5, 16, 2, 3\).*\(batch, 16, frames"):
        wan.decode(torch.randn(1, 5, 16, 2, 3))


def test_minimax_h3_refuses_other_numbers_of_latents(tmp_path):
    numbers = load_numbers("taehv-24ch-h3")
    decoder = load_taehv(ForeignWeights(tmp_path / "taeh3.pth", numbers.state()))
    assert decoder.pixel_frames(7) == 22
    assert decoder.stream() is None
    with pytest.raises(FrameCountError, match="6 latent frames") as error:
        decoder.decode(numbers.latents[:, :, :6])
    assert error.value.hint == "nearest: 2 or 7"


# --- LightTAE -----------------------------------------------------------------------------------------------------


def test_lighttae_is_taehv_on_raw_latents(sixteen, sixteen_file):
    decoder = load_decoder(sixteen_file, family="lighttae", teacher="wan2.1")
    assert (decoder.family, decoder.latents, decoder.teacher) == ("lighttae", "raw", "wan2.1")
    assert len(decoder.space.mean) == 16
    assert largest_error(decoder.decode(sixteen.latents).sample, (sixteen.frames * 2 - 1).clamp(-1, 1)) < 1e-4


def test_lighttae_of_hunyuan_has_another_activation_and_range(tmp_path):
    numbers = load_numbers("taehv-32ch")
    decoder = load_decoder(numbers.write(tmp_path), family="lighttae", teacher="hunyuan1.5")
    assert [layer.negative_slope for layer in decoder.modules() if isinstance(layer, torch.nn.LeakyReLU)] == [0.2] * 29
    with torch.no_grad():
        assert torch.equal(decoder(numbers.latents), decoder.untrimmed(numbers.latents)[:, :, 3:])


def test_lighttae_takes_a_local_folder_of_its_teachers_class(sixteen_file, tmp_path):
    diffusers.AutoencoderKLWan(base_dim=4, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1).save_pretrained(tmp_path / "wan")
    decoder = load_decoder(sixteen_file, family="lighttae", teacher=tmp_path / "wan")
    assert (decoder.family, decoder.latents, decoder.teacher) == ("lighttae", "raw", None)
    by_name = load_decoder(sixteen_file, family="lighttae", teacher="wan2.1")
    latents = torch.randn(1, 16, 2, 2, 2)
    assert torch.equal(decoder.decode(latents).sample, by_name.decode(latents).sample)


def test_lighttae_needs_its_teacher(sixteen_file):
    with pytest.raises(SettingsError, match="LightTAE takes the raw latents of one teacher, which its keys do not name") as error:
        load_decoder(sixteen_file, family="lighttae")
    assert error.value.hint == "`teacher` wan2.1 or wan2.2 or qwen-image or hunyuan1.5"
    with pytest.raises(SettingsError, match="not cogvideox"):
        load_decoder(sixteen_file, family="lighttae", teacher="cogvideox")


# --- keys ---------------------------------------------------------------------------------------------------------


def test_channels_and_strides_name_some_teachers(tmp_path):
    decoder = load_decoder(load_numbers("taehv-48ch-super").write(tmp_path))
    assert (decoder.latents, decoder.teacher, decoder.space.channels) == ("normalised", "wan2.2", 48)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"decoder.22.bias": None}, "1 missing: decoder.22.bias"),
        ({"encoder.4.conv.0.bias": None}, "1 missing: encoder.4.conv.0.bias"),
        ({"encoder.99.weight": torch.ones(1), "more": torch.ones(1)}, "2 unexpected: encoder.99.weight, more"),
        (
            {"decoder.8.weight": torch.ones(128, 128, 3, 3)},
            r"1 of another shape: decoder.8.weight \(128, 128, 3, 3\) instead of \(128, 256, 3, 3\)",
        ),
        ({f"{i}.bias": torch.ones(1) for i in range(9)}, "9 unexpected: 0.bias, 1.bias, 2.bias, 3.bias and 5 more"),
        ({"decoder.1.bias": torch.ones(256, dtype=torch.int64)}, "decoder.1.bias not floating point"),
        ({"decoder.1.bias": torch.full((256,), torch.nan)}, "NaN or infinity in decoder.1.bias"),
    ],
)
def test_every_key_is_accounted_for(sixteen, tmp_path, change, message):
    state = {key: value for key, value in (sixteen.state() | change).items() if value is not None}
    with pytest.raises(WeightFileError, match=message):
        load_taehv(ForeignWeights(tmp_path / "x.pth", state))


def test_the_encoder_may_be_absent(sixteen, tmp_path):
    state = {key: value for key, value in sixteen.state().items() if not key.startswith("encoder.")}
    assert load_taehv(ForeignWeights(tmp_path / "x.pth", state)).latent_channels == 16


def test_half_precision_files_are_read_in_full(sixteen, tmp_path):
    state = {key: value.half() for key, value in sixteen.state().items()}
    assert load_taehv(ForeignWeights(tmp_path / "x.pth", state)).dtype == torch.float32


def test_a_teacher_of_other_channels_is_refused(sixteen_file):
    with pytest.raises(SettingsError, match="decodes latents of 16 channels, 4x8x8; the teacher ltx makes 128 channels, 8x32x32"):
        load_decoder(sixteen_file, teacher="ltx")


def test_statistics_of_ltx_come_from_its_weights(tmp_path, ltx_teacher, monkeypatch):
    """128 channels fit all LTX versions, none of which keeps its statistics in the config."""
    from turbovaed_cli.errors import MissingWeightsError

    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    path = load_numbers("taehv-128ch-wide").write(tmp_path)
    assert load_decoder(path).teacher is None
    with pytest.raises(MissingWeightsError) as error:
        load_decoder(path, teacher="ltx2")
    assert "models pull ltx2" in error.value.hint
    assert find_model("ltx2").teacher.path is None
