"""Training checkpoints of Turbo-VAED, and Hummingbird-XT: students from other people's files."""

import json

import pytest
import torch
from conftest import Notes
from others import SHARED, check_precisions, largest_error, load_numbers
from safetensors.torch import save_file

from turbovaed_cli.errors import SettingsError, WeightFileError
from turbovaed_cli.models.decoders import load_decoder
from turbovaed_cli.models.streaming import StreamingDecoder


@pytest.fixture(scope="module")
def numbers():
    return load_numbers("turbo-vaed-training-checkpoint")


def write_checkpoint(numbers, path, *, averaged=True):
    """A file of the form that the authors' training writes."""
    ema = numbers.state("ema_keys") if averaged else {}
    checkpoint = {
        "epoch": 1, "current_step": 1200, "optimizer_state": {"gen_optimizer": {}, "disc_optimizer": {}},
        "state_dict": {"gen_model": numbers.state(), "dics_model": {"0.weight": torch.ones(1)}},
        "ema_state_dict": ema, "scaler_state": None, "sampler_state": {"epoch": 1, "seed": 0, "current_index": 2},
    }  # fmt: skip
    torch.save(checkpoint, path)
    return path


def check_frames(decoder, latents, wanted):
    assert decoder.decode(latents).sample.shape == wanted.shape
    check_precisions(decoder, latents, wanted)


def test_a_checkpoint_gives_its_averaged_weights_and_says_so(numbers, tmp_path):
    path, notes = write_checkpoint(numbers, tmp_path / "checkpoint-1200.ckpt"), Notes()
    decoder = load_decoder(path, config=numbers.meta["config"], teacher="hunyuan", report=notes)
    check_frames(decoder, numbers.latents, numbers.io["frames_ema"])
    assert notes.notes == [
        "checkpoint-1200.ckpt: ema_state_dict is used, the averaged weights; it also holds state_dict.gen_model, which is not used"
    ]
    assert (decoder.family, decoder.teacher, decoder.latents) == ("turbo-vaed", "hunyuan", "raw")
    assert isinstance(decoder.stream(), StreamingDecoder)


def test_a_checkpoint_without_averaged_weights_gives_those_of_the_last_step(numbers, tmp_path):
    path, notes = write_checkpoint(numbers, tmp_path / "checkpoint-1200.ckpt", averaged=False), Notes()
    (tmp_path / "config.json").write_text(json.dumps(numbers.meta["config"]))
    decoder = load_decoder(path, report=notes)
    check_frames(decoder, numbers.latents, numbers.io["frames"])
    assert notes.notes == ["checkpoint-1200.ckpt: state_dict.gen_model is used, the weights of the last step"]
    _, features = decoder.features(numbers.latents, ["mid_block", *(f"up_blocks.{i}" for i in range(4))])
    for name, feature in features.items():
        assert largest_error(feature, numbers.io[f"features.{name.replace('up_blocks.', 'up_block_')}"]) < 1e-4


def test_the_statistics_come_along_with_the_averaged_weights(numbers, tmp_path):
    """The averaged weights are parameters only; statistics are buffers."""
    state = numbers.state() | {"latents_mean": torch.arange(16.0)}
    torch.save({"ema_state_dict": numbers.state("ema_keys"), "state_dict": {"gen_model": state}}, tmp_path / "x.ckpt")
    assert load_decoder(tmp_path / "x.ckpt", config=numbers.meta["config"]).space.mean == tuple(range(16))


def test_the_authors_own_file(numbers):
    path = SHARED / "turbo-vaed-checkpoint-1200.ckpt"
    if not path.is_file():
        pytest.skip(f"{path} is not here")
    check_frames(load_decoder(path, config=numbers.meta["config"]), numbers.latents, numbers.io["frames_ema"])


def test_a_checkpoint_needs_its_config_and_all_of_its_keys(numbers, tmp_path):
    path = write_checkpoint(numbers, tmp_path / "checkpoint-1200.ckpt")
    with pytest.raises(SettingsError, match="needs the JSON config"):
        load_decoder(path)
    state = numbers.state()
    del state["decoder.conv_out.conv.bias"]
    save_file(state, tmp_path / "x.safetensors")
    with pytest.raises(WeightFileError, match=r"misses decoder key conv_out.conv.bias"):
        load_decoder(tmp_path / "x.safetensors", config=numbers.meta["config"])


def test_a_checkpoint_that_runs_code_is_refused(tmp_path):
    class Runs:
        def __reduce__(self):
            return print, ("this must not run",)

    torch.save({"ema_state_dict": {"x": Runs()}}, tmp_path / "x.ckpt")
    with pytest.raises(WeightFileError, match="not a weight file that can be read safely"):
        load_decoder(tmp_path / "x.ckpt")


# --- Hummingbird-XT -----------------------------------------------------------------------------------------------


def write_hummingbird(folder):
    numbers = load_numbers("hummingbird-wan22-small")
    (folder / "config.json").write_text(json.dumps(numbers.meta["config"]))
    save_file(numbers.state(), folder / "diffusion_pytorch_model.safetensors")
    return numbers


def test_a_hummingbird_folder(tmp_path):
    numbers = write_hummingbird(tmp_path)
    decoder = load_decoder(tmp_path)
    assert (decoder.family, decoder.teacher, decoder.latents, decoder.licence) == ("hummingbird", "wan2.2", "raw", "Apache-2.0")
    raw = decoder.space.raw(numbers.latents.double())
    check_frames(decoder, raw.float(), numbers.frames)
    stream = decoder.stream()
    made = [stream.push(piece) for piece in raw.float().split(2, dim=2)]
    assert largest_error(torch.cat([*made, stream.finish()], dim=2), numbers.frames) < 1e-4


def test_a_hummingbird_torch_file(tmp_path):
    numbers = write_hummingbird(tmp_path)
    state = {f"decoder.{key}": value for key, value in numbers.state().items()}
    torch.save({"state_dict": {"gen_model": state}}, tmp_path / "hummingbird.pth")
    decoder = load_decoder(tmp_path / "hummingbird.pth", teacher="wan2.2")
    assert decoder.family == "hummingbird"
    raw = decoder.space.raw(numbers.latents)
    assert largest_error(decoder.decode(raw).sample, numbers.frames) < 1e-4


def test_a_student_of_wan22_is_no_hummingbird(tmp_path):
    numbers = write_hummingbird(tmp_path)
    config = {key: value for key, value in numbers.meta["config"].items() if not key.startswith("scale_factor")}
    decoder = load_decoder(tmp_path / "diffusion_pytorch_model.safetensors", config=config)
    assert decoder.family == "turbo-vaed"
