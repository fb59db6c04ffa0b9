"""MagiHuman's TurboV3: golden numbers, windows, streams, and its JSON."""

import json

import pytest
import torch
from others import check_precisions, largest_error, load_numbers

from turbovaed_cli.errors import SettingsError, WeightFileError
from turbovaed_cli.models.decoders import load_decoder
from turbovaed_cli.models.others.magihuman import load_magihuman
from turbovaed_cli.models.others.weights import ForeignWeights


def loaded(name, tmp_path, **changes):
    numbers = load_numbers(name)
    return numbers, load_magihuman(ForeignWeights(tmp_path / name, numbers.state()), numbers.meta["config"] | changes)


@pytest.mark.parametrize("name", [pytest.param("magihuman-small", marks=pytest.mark.thorough), "magihuman-small-shuffle"])
def test_frames_are_the_golden_ones(name, tmp_path):
    numbers, decoder = loaded(name, tmp_path)
    assert (decoder.latents, decoder.teacher) == ("normalised", "wan2.2")
    assert decoder.space.mean == pytest.approx(numbers.meta["latents_mean"])
    assert decoder.space.std == pytest.approx(numbers.meta["latents_std"])
    check_precisions(decoder, numbers.latents, numbers.frames)
    with torch.no_grad():
        raw = decoder.own(numbers.latents[:, :, :2])
        assert largest_error(decoder.window(raw, is_first=True), numbers.io["decoder_first_chunk"]) < 1e-4
        assert largest_error(decoder.window(raw, is_first=False), numbers.io["decoder_later_chunk"]) < 1e-4
        for frames in (2, 3):
            if (key := f"frames_first_{frames}_latents") in numbers.io:
                assert largest_error(decoder(numbers.latents[:, :, :frames]), numbers.io[key]) < 1e-4


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return loaded("magihuman-small-shuffle", tmp_path_factory.mktemp("magihuman"))[1]


@pytest.mark.parametrize("frames", [1, 4, 13])
@pytest.mark.parametrize("piece", [1, 13])
def test_a_stream_decodes_the_windows_of_the_whole_clip(small, frames, piece):
    torch.manual_seed(0)
    latents = torch.randn(1, 48, frames, 1, 2)
    stream, whole = small.stream(), small.decode(latents).sample
    for _ in range(2):
        made, seen = [], 0
        for one in latents.split(piece, dim=2):
            made.append(stream.push(one))
            seen += one.shape[2]
            assert small.pixel_frames(seen) - sum(x.shape[2] for x in made) <= stream.lookahead_frames == 20
        made.append(stream.finish())
        assert largest_error(torch.cat(made, dim=2), whole) < 1e-5


def test_the_windows_are_those_of_the_json(tmp_path):
    _, decoder = loaded("magihuman-small-shuffle", tmp_path, first_chunk_size=7, step_size=7)
    stream = decoder.stream()
    assert [stream.push(torch.randn(1, 48, 1, 1, 1)).shape[2] for _ in range(16)] == [0] * 7 + [25] + [0] * 6 + [28, 0]


def test_a_checkpoint_and_the_only_json_next_to_it(tmp_path):
    """Its keys are those of the averaged weights in a training checkpoint, with heads that are not used."""
    numbers = load_numbers("magihuman-small-shuffle")
    heads = {"module.aligned_feature_projection_heads.0.0.conv.weight": torch.ones(1)}
    weights = {f"module.{key}": value for key, value in numbers.state().items()} | heads
    torch.save({"ema_state_dict": weights}, tmp_path / "checkpoint-340000.ckpt")
    with pytest.raises(SettingsError, match=r"needs the JSON of its constructor arguments, and no .json file is next to it"):
        load_decoder(tmp_path / "checkpoint-340000.ckpt")
    (tmp_path / "TurboV3.json").write_text(json.dumps(numbers.meta["config"]))
    decoder = load_decoder(tmp_path / "checkpoint-340000.ckpt", teacher="wan2.2")
    assert (decoder.family, decoder.latents, decoder.licence) == ("magihuman", "raw", "Apache-2.0")
    raw = decoder.space.raw(numbers.latents)
    assert largest_error(decoder.decode(raw).sample, numbers.frames) < 1e-4
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(SettingsError, match=r"2 .json files are next to it"):
        load_decoder(tmp_path / "checkpoint-340000.ckpt")


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"step_size": 0}, SettingsError, "step_size is 0|step_size has 0|config's step_size"),
        ({"decoder_is_dw_conv": "no"}, SettingsError, "decoder_is_dw_conv is 'no'"),
        ({"decoder_layers_per_block": [1, 1, 1, 1, 10**9]}, SettingsError, "decoder_layers_per_block"),
        ({"use_unpatchify": True}, WeightFileError, "upsampler2d_1"),
        ({"decoder_spatio_only": [False] * 4}, WeightFileError, "2 missing: decoder.up_blocks.2.upsamplers.0.time_conv"),
    ],
)
def test_a_json_that_does_not_fit_is_refused(tmp_path, changes, error, message):
    with pytest.raises(error, match=message):
        loaded("magihuman-small-shuffle", tmp_path, **changes)


def test_a_json_without_a_list_is_refused(tmp_path):
    numbers = load_numbers("magihuman-small-shuffle")
    config = {key: value for key, value in numbers.meta["config"].items() if key != "decoder_layers_per_block"}
    with pytest.raises(SettingsError, match="the config has no decoder_layers_per_block"):
        load_magihuman(ForeignWeights(tmp_path / "x.ckpt", numbers.state()), config)
