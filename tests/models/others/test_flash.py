"""Flash-VAED's students of Wan 2.1 and LTX-Video: golden numbers, streams, and strict keys."""

import pytest
import torch
from others import check_precisions, largest_error, load_numbers

from turbovaed_cli.errors import SettingsError, WeightFileError
from turbovaed_cli.models.decoders import load_decoder
from turbovaed_cli.models.others import flash_ltx
from turbovaed_cli.models.others.flash_ltx import load_flash_ltx
from turbovaed_cli.models.others.flash_wan import load_flash_wan
from turbovaed_cli.models.others.weights import ForeignWeights


@pytest.fixture(scope="module")
def wan_numbers():
    return load_numbers("flash-vaed-wan")


@pytest.fixture(scope="module")
def wan_file(wan_numbers, tmp_path_factory):
    return wan_numbers.write(tmp_path_factory.mktemp("flash"), "Flash_VAED_Wan.pth")


@pytest.fixture(scope="module")
def wan(wan_file):
    return load_decoder(wan_file)


@pytest.fixture(scope="module")
def ltx():
    numbers = load_numbers("flash-vaed-ltx-small")
    return load_flash_ltx(ForeignWeights(flash_ltx.__file__, numbers.state()))


def test_frames_and_layers_of_wan_are_the_golden_ones(wan, wan_numbers):
    taps = {"upsamples_3": (3, 16), "upsamples_7": (7, 1)}
    found, hooks = {}, []
    for name, (place, every) in taps.items():
        layer = wan.decoder.upsamples[place]
        hooks.append(layer.register_forward_hook(lambda _m, _i, y, name=name, every=every: found.update({name: y[:, ::every]})))
    check_precisions(wan, wan_numbers.latents, wan_numbers.frames)
    for hook in hooks:
        hook.remove()
    for name, layer in found.items():
        assert largest_error(layer, wan_numbers.io[f"taps.{name}"]) < 1e-5


def test_wan_takes_normalised_latents_unless_a_teacher_is_named(wan, wan_file, wan_numbers):
    assert (wan.family, wan.latents, wan.teacher) == ("flash-vaed-wan", "normalised", "wan2.1")
    assert wan.space.mean == pytest.approx(wan_numbers.meta["latents_mean"])
    raw = load_decoder(wan_file, teacher="wan2.1")
    assert raw.latents == "raw"
    found = raw.decode(raw.space.raw(wan_numbers.latents[:, :, :2])).sample
    assert largest_error(found, wan_numbers.frames[:, :, :5].clamp(-1, 1)) < 1e-4


def test_another_teacher_of_the_same_shape_is_refused(wan_file):
    with pytest.raises(SettingsError, match=r"decodes the latents of wan2.1 or qwen-image, not those of hunyuan"):
        load_decoder(wan_file, teacher="hunyuan")


@pytest.mark.parametrize("pieces", [[1] * 5, [2, 3], [1, 4]])
def test_a_stream_of_wan_equals_the_whole_clip(wan, wan_numbers, pieces):
    stream, whole = wan.stream(), wan.decode(wan_numbers.latents).sample
    made = [stream.push(piece) for piece in wan_numbers.latents.split(pieces, dim=2)]
    assert [x.shape[2] for x in made] == [4 * n - (3 if i == 0 else 0) for i, n in enumerate(pieces)]
    assert stream.finish().shape[2] == 0
    assert largest_error(torch.cat(made, dim=2), whole) < 1e-4


def test_a_stream_of_wan_remembers_beyond_81_frames(wan):
    """The published code forgets after 21 latents: its 22nd makes one frame again."""
    torch.manual_seed(0)
    latents = torch.randn(1, 16, 23, 1, 1)
    stream = wan.stream()
    made = [stream.push(piece) for piece in latents.split([20, 1, 1, 1], dim=2)]
    assert [x.shape[2] for x in made] == [77, 4, 4, 4]
    assert largest_error(torch.cat(made, dim=2), wan.decode(latents).sample) < 1e-4


def test_every_key_of_wan_is_accounted_for(wan_numbers, tmp_path):
    state = wan_numbers.state()
    del state["conv1.bias"], state["decoder.head.0.gamma"]
    with pytest.raises(WeightFileError, match=r"2 missing: conv1.bias, decoder.head.0.gamma"):
        load_flash_wan(ForeignWeights(tmp_path / "x.pth", state))


# --- LTX ----------------------------------------------------------------------------------------------------------


def test_frames_and_blocks_of_ltx_are_the_golden_ones(ltx):
    numbers = load_numbers("flash-vaed-ltx-small")
    blocks = {"mid_block": ltx.decoder.mid_block, **{f"up_block_{i}": block for i, block in enumerate(ltx.decoder.up_blocks)}}
    found, hooks = {}, []
    for name, block in blocks.items():
        hooks.append(block.register_forward_hook(lambda _m, _i, y, name=name: found.update({name: y})))
    check_precisions(ltx, numbers.latents, numbers.frames)
    for hook in hooks:
        hook.remove()
    for name, block in found.items():
        assert largest_error(block, numbers.io[f"features.{name}"]) < 1e-5


@pytest.mark.slow
def test_frames_of_the_full_size_are_the_golden_ones(tmp_path):
    """In fp32 alone: 67 M parameters."""
    numbers = load_numbers("flash-vaed-ltx")
    assert flash_ltx._encoder_shapes() == {key: tuple(shape) for key, shape in numbers.meta["encoder_keys"]}
    decoder = load_flash_ltx(ForeignWeights(tmp_path / "x.pth", numbers.state()))
    assert (decoder.latents, decoder.teacher, decoder.space.channels) == ("raw", "ltx", 128)
    with torch.no_grad():
        assert largest_error(decoder(numbers.latents), numbers.frames) < 1e-4


@pytest.mark.parametrize("pieces", [[1] * 9, [2, 3, 4], [9], [8, 0, 1], [1, 8]])
def test_a_stream_of_ltx_lags_by_47_frames(ltx, pieces):
    torch.manual_seed(0)
    latents = torch.randn(2, 16, 9, 1, 2)
    stream, whole = ltx.stream(), ltx.decode(latents).sample
    assert stream.lookahead_frames == 47
    for _ in range(2):
        made = [stream.push(piece) for piece in latents.split(pieces, dim=2)]
        assert sum(x.shape[2] for x in made) == whole.shape[2] - 47
        assert largest_error(torch.cat([*made, stream.finish()], dim=2), whole) < 1e-4


def test_a_stream_of_one_latent_makes_its_frames_at_the_end(ltx):
    latents, stream = torch.randn(1, 16, 1, 2, 2), ltx.stream()
    assert stream.push(latents).shape == (1, 3, 0, 64, 64)
    assert largest_error(stream.finish(), ltx.decode(latents).sample) < 1e-4


def test_keys_that_the_published_code_drops_are_expected_and_others_are_not(tmp_path):
    state = load_numbers("flash-vaed-ltx-small").state()
    extras = {"mean_of_means": torch.ones(16), "std_of_means": torch.ones(16)}
    assert load_flash_ltx(ForeignWeights(tmp_path / "x.pth", state | extras)).latent_channels == 16
    with pytest.raises(WeightFileError, match=r"1 unexpected: encoder.extra"):
        load_flash_ltx(ForeignWeights(tmp_path / "x.pth", state | {"encoder.extra": torch.ones(1)}))
    with pytest.raises(WeightFileError, match=r"93 missing: encoder.* and 89 more; 1 of another shape"):
        load_flash_ltx(ForeignWeights(tmp_path / "x.pth", state | {"encoder.conv_out.conv.bias": torch.ones(1)}))
