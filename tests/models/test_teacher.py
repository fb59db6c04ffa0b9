"""Teachers are the published networks, say what they need, and never change a clip silently."""

import json

import pytest
import torch
from golden import NAMES, TEACHER_FILES, load_golden, write_teacher
from safetensors.torch import load_file, save_file

from turbovaed_cli.errors import (
    FrameCountError,
    MissingError,
    MissingWeightsError,
    SettingsError,
    ShapeError,
    UnknownModelError,
    WeightFileError,
)
from turbovaed_cli.models.network import num_params
from turbovaed_cli.models.teacher import decoder_params, decoder_params_of, load_teacher
from turbovaed_cli.models.video_dc_ae import VideoDCAE
from turbovaed_cli.registry.find import find_model
from turbovaed_cli.registry.rows import MODELS


@pytest.fixture(scope="module", params=NAMES)
def named_teacher(request, tmp_path_factory):
    golden = load_golden(TEACHER_FILES[request.param])
    return request.param, golden, load_teacher(write_teacher(golden, tmp_path_factory.mktemp(request.param)))


def test_tapped_features_match_the_published_ones(named_teacher):
    """A stock class with forward hooks gives what the published, modified classes gave."""
    name, golden, teacher = named_teacher
    wanted = {f"decoder.{block}": value for block, value in golden.features("teacher").items()}
    features = teacher.features(golden.io["latents"], list(wanted))
    for tap, value in wanted.items():
        # io.latents came from its own encoder, so nothing but the last bits may differ.
        assert torch.allclose(features[tap], value, atol=1e-4 if name == "video-dc-ae" else 1e-5, rtol=0), tap


def test_stopping_after_the_last_tap_changes_no_bit(named_teacher):
    name, golden, teacher = named_teacher
    taps = [pair.teacher_tap for pair in MODELS[name].student.pairs]
    stopped = teacher.features(golden.io["latents"], taps)
    full = {}
    modules = dict(teacher.vae.named_modules())
    handles = [
        modules[tap].register_forward_hook(
            lambda _m, _i, out, tap=tap: full.__setitem__(tap, out[0] if isinstance(out, tuple) else out)
        )
        for tap in taps
    ]
    teacher.decode_by_class(golden.io["latents"])
    for handle in handles:
        handle.remove()
    assert all(torch.equal(stopped[tap], full[tap]) for tap in taps)


@pytest.mark.parametrize("name", ["hunyuan", "cogvideox"])
def test_the_posterior_matches_the_published_one(name, tmp_path):
    golden = load_golden(name)
    posterior = load_teacher(write_teacher(golden, tmp_path)).encode(golden.io["video"])
    assert torch.allclose(posterior.mean, golden.io["teacher_posterior_mean"], atol=1e-5, rtol=0)
    assert torch.allclose(posterior.std, golden.io["teacher_posterior_std"], atol=1e-5, rtol=0)


def test_video_dc_ae_encodes_and_decodes_like_the_published_one(tmp_path):
    golden = load_golden("video-dc-ae-teacher")
    teacher = load_teacher(write_teacher(golden, tmp_path))
    posterior = teacher.encode(golden.io["video"])
    assert torch.allclose(posterior.mean, golden.io["latents"], atol=1e-4, rtol=0)
    assert not posterior.std.any()
    assert torch.allclose(teacher.decode(golden.io["latents"]), golden.io["teacher_sample"], atol=1e-4, rtol=0)


def test_video_dc_ae_has_the_published_number_of_parameters():
    with torch.device("meta"):
        vae = VideoDCAE()
    assert num_params(vae.encoder) == 220_439_936
    assert num_params(vae.decoder) == 239_022_211


def test_a_single_image_survives_video_dc_ae(tmp_path):
    teacher = load_teacher(write_teacher(load_golden("video-dc-ae-teacher"), tmp_path))
    assert teacher.decode(teacher.encode(torch.zeros(1, 3, 1, 64, 64)).mean).shape == (1, 3, 1, 64, 64)


def test_required_settings_are_set(tmp_path):
    """Both are on by default, and from 17 frames on they change the output."""
    teacher = load_teacher(write_teacher(load_golden("hunyuan"), tmp_path))
    assert teacher.vae.use_framewise_encoding is teacher.vae.use_framewise_decoding is False
    cog = load_teacher(write_teacher(load_golden("cogvideox"), tmp_path / "cog"))
    assert cog.vae.num_latent_frames_batch_size == 8


@pytest.mark.parametrize(
    ("name", "frames", "nearest"),
    [("ltx", 16, "9 or 17"), ("hunyuan", 16, "13 or 17"), ("cogvideox", 13, "9 or 17"), ("video-dc-ae", 4, "1 or 8")],
)
def test_a_wrong_frame_count_is_refused_with_the_nearest(name, frames, nearest):
    with pytest.raises(FrameCountError, match=str(frames)) as error:
        MODELS[name].teacher.check_frames(frames)
    assert nearest in error.value.hint


def test_a_wrong_size_is_refused_with_the_nearest(ltx_teacher):
    teacher = load_teacher(ltx_teacher)
    with pytest.raises(ShapeError, match="72x64") as error:
        teacher.encode(torch.zeros(1, 3, 9, 64, 72))
    assert "64x64" in error.value.hint
    with pytest.raises(FrameCountError):
        teacher.encode(torch.zeros(1, 3, 8, 64, 64))


def test_what_is_valid_does_round_trip(named_teacher):
    _, _, teacher = named_teacher
    spec = teacher.spec
    for frames in (1, spec.frames.at_least(2), spec.frames.at_least(9)):
        latents = teacher.encode(torch.zeros(1, 3, frames, 2 * spec.space_ratio, spec.space_ratio)).mean
        assert latents.shape == (1, spec.latent_channels, spec.latent_frames(frames), 2, 1)
        assert teacher.decode(latents).shape == (1, 3, frames, 2 * spec.space_ratio, spec.space_ratio)
        assert spec.pixel_frames(latents.shape[2]) == frames


def test_a_local_folder_brings_its_own_ratios(ltx_teacher):
    spec = find_model(ltx_teacher)
    assert spec.teacher.class_name == "AutoencoderKLLTXVideo"
    assert spec.teacher.latent_channels == load_golden("ltx").meta["teacher_config"]["latent_channels"]


def test_weights_of_another_class_are_refused_by_name(ltx_teacher, tmp_path):
    config = json.loads((ltx_teacher / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file({"decoder.nothing.weight": torch.zeros(1)}, tmp_path / "diffusion_pytorch_model.safetensors")
    with pytest.raises(WeightFileError, match=r"decoder\."):
        load_teacher(tmp_path)


def test_a_folder_without_weights_or_config_says_what_a_teacher_folder_has(ltx_teacher, tmp_path):
    with pytest.raises(SettingsError, match=r"config\.json"):
        find_model(tmp_path)
    (tmp_path / "config.json").write_text((ltx_teacher / "config.json").read_text())
    with pytest.raises(MissingError, match="safetensors"):
        load_teacher(tmp_path)


def test_a_class_that_is_no_teacher_is_refused(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": "AutoencoderKL"}))
    with pytest.raises(SettingsError, match="AutoencoderKL"):
        find_model(tmp_path)


def test_a_registered_teacher_without_weights_says_what_to_run(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(MissingWeightsError, match="1,680 MB") as error:
        load_teacher("ltx")
    assert "turbovaed models pull ltx" in error.value.hint
    assert error.value.exit_code == 3


def test_a_near_miss_is_suggested():
    with pytest.raises(UnknownModelError) as error:
        find_model("hunyan")
    assert "hunyuan" in error.value.hint


# --- the files of a local folder ---


def copied(source, target):
    """A folder of its own with the config of `source` and its weights as a state dict."""
    target.mkdir()
    (target / "config.json").write_text((source / "config.json").read_text())
    return target, load_file(source / "diffusion_pytorch_model.safetensors")


def sharded(folder, state, index="diffusion_pytorch_model.safetensors.index.json"):
    """Write `state` as two shards with an index, as diffusers' save_pretrained(max_shard_size=...) does."""
    names = [f"diffusion_pytorch_model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    weight_map = {key: names[i % 2] for i, key in enumerate(sorted(state))}
    for name in names:
        save_file({key: value for key, value in state.items() if weight_map[key] == name}, folder / name)
    (folder / index).write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}))
    return names


def same_decode(teacher, other):
    latents = torch.randn(1, 6, 2, 2, 2, generator=torch.Generator().manual_seed(0))
    return torch.equal(teacher.decode(latents), other.decode(latents))


def test_shards_are_read_and_each_is_part_of_the_identity(ltx_teacher, tmp_path):
    folder, state = copied(ltx_teacher, tmp_path / "sharded")
    names = sharded(folder, state)
    teacher = load_teacher(folder)
    assert same_decode(teacher, load_teacher(ltx_teacher))
    before = teacher.identity()["weights_sha256"]
    assert decoder_params_of(find_model(folder)) == decoder_params(teacher)
    assert find_model(folder).teacher.num_bytes == sum((folder / name).stat().st_size for name in names)
    for name in names:
        shard = load_file(folder / name)
        key = next(key for key in sorted(shard) if shard[key].is_floating_point())
        save_file(shard | {key: shard[key] + 1e-3}, folder / name)
        now = load_teacher(folder).identity()["weights_sha256"]
        assert now != before
        before = now


def test_diffusers_own_shards_are_read(ltx_teacher, tmp_path):
    vae = load_teacher(ltx_teacher).vae
    vae.save_pretrained(tmp_path / "vae", max_shard_size="200KB")
    assert len(list((tmp_path / "vae").glob("*-of-*.safetensors"))) > 2
    assert same_decode(load_teacher(tmp_path / "vae"), load_teacher(ltx_teacher))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda index: index["weight_map"].update(a="../../secret.safetensors"), "no safetensors file of its folder"),
        (lambda index: index["weight_map"].update(a="/etc/passwd"), "no safetensors file of its folder"),
        (lambda index: index["weight_map"].update(a="evil.bin"), "no safetensors file of its folder"),
        (lambda index: index["weight_map"].update(a="diffusion_pytorch_model-00001-of-00002.safetensors"), "disagree on a"),
        (lambda index: index["weight_map"].update(a="gone.safetensors"), "holds no gone.safetensors"),
        (lambda index: index["weight_map"].popitem(), "disagree on"),
        (lambda index: index.pop("weight_map"), "no weight_map"),
        (lambda index: index.update(weight_map=[1]), "no weight_map"),
    ],
)
def test_an_index_that_is_none_or_leaves_its_folder_is_refused(change, said, ltx_teacher, tmp_path):
    folder, state = copied(ltx_teacher, tmp_path / "sharded")
    sharded(folder, state)
    path = folder / "diffusion_pytorch_model.safetensors.index.json"
    index = json.loads(path.read_text())
    change(index)
    path.write_text(json.dumps(index))
    with pytest.raises((SettingsError, MissingError), match=said):
        load_teacher(folder)


def test_shards_without_their_index_say_what_is_missing(ltx_teacher, tmp_path):
    folder, state = copied(ltx_teacher, tmp_path / "sharded")
    sharded(folder, state)
    (folder / "diffusion_pytorch_model.safetensors.index.json").unlink()
    with pytest.raises(MissingError, match=r"index\.json"):
        load_teacher(folder)


@pytest.mark.parametrize(
    "name", ["diffusion_pytorch_model.fp16.safetensors", "my-vae.safetensors", "my-vae.pt", "pytorch_model.bin"]
)
def test_a_variant_or_a_single_file_is_read(name, ltx_teacher, tmp_path):
    folder, state = copied(ltx_teacher, tmp_path / "single")
    half = {key: value.half() for key, value in state.items()}
    save_file(half, folder / name) if name.endswith(".safetensors") else torch.save(half, folder / name)
    teacher = load_teacher(folder)
    assert torch.equal(teacher.vae.decoder.conv_in.conv.weight, half["decoder.conv_in.conv.weight"].float())
    assert len(teacher.identity()["weights_sha256"]) == 64
    assert decoder_params_of(find_model(folder)) == decoder_params(teacher)


def test_of_several_files_one_has_to_be_named(ltx_teacher, tmp_path):
    folder, state = copied(ltx_teacher, tmp_path / "vae")
    for variant in ("bf16", "fp16"):
        save_file({key: value.to(getattr(torch, f"{'b' * (variant == 'bf16')}float16")) for key, value in state.items()},
                  folder / f"diffusion_pytorch_model.{variant}.safetensors")  # fmt: skip
    with pytest.raises(SettingsError, match=r"bf16\.safetensors, .*fp16\.safetensors") as error:
        find_model(folder)
    assert error.value.hint == f"`teacher` {folder / 'diffusion_pytorch_model.bf16.safetensors'}"
    named = folder / "diffusion_pytorch_model.fp16.safetensors"
    spec = find_model(named)
    assert (spec.name, spec.teacher.where) == ("vae", str(named))
    assert torch.equal(load_teacher(spec).vae.decoder.conv_in.conv.weight, state["decoder.conv_in.conv.weight"].half().float())
    save_file(state, folder / "diffusion_pytorch_model.safetensors")  # diffusers' own name goes first
    assert same_decode(load_teacher(folder), load_teacher(ltx_teacher))


def test_weights_without_a_config_are_named(ltx_teacher, tmp_path):
    _, state = copied(ltx_teacher, tmp_path / "vae")
    (tmp_path / "vae" / "config.json").unlink()
    save_file(state, tmp_path / "vae" / "my-vae.safetensors")
    for where in (tmp_path / "vae", tmp_path / "vae" / "my-vae.safetensors"):
        with pytest.raises(SettingsError, match=r"my-vae\.safetensors and no config\.json") as error:
            find_model(where)
        assert "config.json" in error.value.hint


def test_a_vae_inside_a_larger_checkpoint_is_found_by_its_prefix(ltx_teacher, tmp_path):
    folder, state = copied(ltx_teacher, tmp_path / "vae")
    save_file({f"vae.{key}": value for key, value in state.items()}, folder / "my-vae.safetensors")
    assert same_decode(load_teacher(folder), load_teacher(ltx_teacher))
    assert decoder_params_of(find_model(folder)) == decoder_params(load_teacher(ltx_teacher))


def test_a_checkpoint_of_another_layout_is_refused_with_the_way_to_convert_it(ltx_teacher, tmp_path):
    folder, state = copied(ltx_teacher, tmp_path / "vae")
    save_file({f"decoder.up.{i}": value for i, value in enumerate(state.values())}, folder / "ltx-video-2b.safetensors")
    with pytest.raises(WeightFileError, match=r"ltx-video-2b\.safetensors is not in diffusers' layout") as error:
        load_teacher(folder)
    assert "from_single_file" in error.value.hint


def test_a_single_file_with_code_in_it_is_refused_and_not_run(ltx_teacher, tmp_path):
    import pickle

    folder, _ = copied(ltx_teacher, tmp_path / "vae")
    canary = tmp_path / "canary"

    class Payload:
        def __reduce__(self):
            return (canary.touch, ())

    (folder / "evil.pt").write_bytes(pickle.dumps(Payload()))
    with pytest.raises(WeightFileError, match=r"evil\.pt"):
        load_teacher(folder)
    assert not canary.exists()
