"""The student is the published architecture, number for number, and loads strictly."""

import json

import pytest
import torch
from golden import DATA, NAMES, load_golden, sample_frames, write_student
from safetensors.torch import save_file
from torch.nn.functional import conv3d, pad

from turbovaed_cli.errors import SettingsError, ShapeError, UnknownModelError, WeightFileError
from turbovaed_cli.models.kernels import Speedups
from turbovaed_cli.models.layers import RMS_EPS, pad_time
from turbovaed_cli.models.loading import build_student, load_student
from turbovaed_cli.models.network import num_params
from turbovaed_cli.models.streaming import FastDecoder
from turbovaed_cli.models.student import StudentDecoder
from turbovaed_cli.registry.rows import MODELS

PUBLISHED_PARAMS = {"ltx": 41.896, "hunyuan": 40.688, "cogvideox": 40.688, "video-dc-ae": 45.831}


@pytest.mark.parametrize("name", NAMES)
def test_parameter_counts_are_the_published_ones(name):
    with torch.device("meta"):
        student = build_student(MODELS[name].student.config)
    assert round(num_params(student) / 1e6, 3) == PUBLISHED_PARAMS[name] == MODELS[name].student.params_m
    assert student.spatial_compression_ratio == MODELS[name].teacher.space_ratio
    assert student.temporal_compression_ratio == MODELS[name].teacher.time_ratio


@pytest.mark.parametrize("name", NAMES)
def test_every_block_feature_matches_the_published_implementation(name, tmp_path):
    golden = load_golden(name)
    student = load_student(*write_student(golden, tmp_path))
    wanted = golden.features("student")
    with torch.no_grad():
        sample, features = student.features(golden.io["latents"], list(wanted))
        assert torch.equal(sample, student(golden.io["latents"]))
    assert set(features) == set(wanted)
    for block, feature in wanted.items():
        assert torch.allclose(features[block], feature, atol=1e-5, rtol=0), block


@pytest.mark.parametrize("name", ["ltx", "hunyuan"])
def test_gradient_checkpointing_computes_blocks_twice_and_gives_the_same_gradients(name, tmp_path):
    """Both kinds of tail; through our switch and through diffusers' own."""
    golden = load_golden(name)
    student = load_student(*write_student(golden, tmp_path)).train()
    runs = []
    student.mid_block.register_forward_pre_hook(lambda *_: runs.append("mid_block"))

    def gradients():
        runs.clear()
        student.zero_grad()
        sample, found = student.features(golden.io["latents"], ["mid_block", "up_blocks.1"])
        (sample.square().mean() + sum(feature.abs().mean() for feature in found.values())).backward()
        return {key: p.grad.clone() for key, p in student.named_parameters()}, len(runs)

    plain, once = gradients()
    student.checkpoint_blocks(enable=True)
    with_ours, twice = gradients()
    with torch.no_grad():
        student(golden.io["latents"])
    student.checkpoint_blocks(enable=False)
    student.enable_gradient_checkpointing()
    with_theirs, _ = gradients()
    student.disable_gradient_checkpointing()
    assert (once, twice, gradients()[1]) == (1, 2, 1)
    assert all(torch.equal(plain[key], with_ours[key]) and torch.equal(plain[key], with_theirs[key]) for key in plain)


@pytest.mark.parametrize("form", ["forward", "decode", "fewest multiplications"])
@pytest.mark.parametrize("name", NAMES)
def test_output_matches_the_published_implementation(name, form, tmp_path):
    """Within 1e-5, wherever fp32 determines the output that far: of the modules, and of what `decode` makes of them.

    The golden nets with patch_size 4 end in a norm over one single channel, x / sqrt(x^2 + 1e-8): a step, in which fp32
    decides a jump of the output by where in the last bits of x the zero lies, and every processor rounds them otherwise.
    There, an error of 2^-20 in x, half of what fp32 makes there at worst, is allowed for, times the slope and the weights behind.
    """
    golden = load_golden(name)
    student = load_student(*write_student(golden, tmp_path))
    before_last_norm = []
    student.norm_out.register_forward_hook(lambda _module, inputs, _output: before_last_norm.append(inputs[0]))
    latents = golden.io["latents"]
    with torch.no_grad():
        decoded = student(latents)
        if form == "decode":
            decoded = student.decode(latents).sample
        elif form == "fewest multiplications":
            decoded = FastDecoder(student, speedups=Speedups(winograd_channels=1)).decode(latents)
    error = (sample_frames(golden, decoded) - golden.io["student_sample"]).abs()
    allowed = torch.full_like(error, 1e-5)
    x = before_last_norm[-1]
    if x.shape[1] == 1:
        slope = RMS_EPS / (x.square() + RMS_EPS) ** 1.5
        weight = student.conv_out.conv.weight.abs().sum(dim=0, keepdim=True)  # (1, 1, 3, 3, 3), of the worst channel or more
        reach = conv3d(pad(pad_time(slope, 3), (1, 1, 1, 1)), weight)
        allowed = allowed + 2**-20 * sample_frames(golden, reach)
        assert (allowed > 2e-5).float().mean() < 0.1
    assert (error <= allowed).all()


@pytest.mark.parametrize(("name", "last"), [("ltx", "upsampler2d_2"), ("hunyuan", "conv_out")])
def test_under_autocast_the_end_that_makes_pixels_stays_in_fp32(name, last, tmp_path):
    """A student trained in bf16 decodes in fp32: what it learnt to make up for must not shift its colours then."""
    golden, seen = load_golden(name), []
    student = load_student(*write_student(golden, tmp_path))
    for module in ("conv_in", last, "conv_out"):
        student.get_submodule(module).register_forward_hook(lambda _module, _inputs, output: seen.append(output.dtype))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        student(golden.io["latents"])
        assert seen[0] == torch.bfloat16 and set(seen[1:]) == {torch.float32}
        student.to(torch.bfloat16)(golden.io["latents"].bfloat16())  # as in a pipeline of bf16 under autocast
    assert set(seen[3:]) == {torch.bfloat16}


def test_a_published_pth_loads_like_its_safetensors_twin(tmp_path):
    golden = load_golden("hunyuan")
    weights, config = write_student(golden, tmp_path)
    twin, published = load_student(weights, config), load_student(DATA / "published-layout-hunyuan.pth", config)
    for (name, a), (_, b) in zip(twin.state_dict().items(), published.state_dict().items(), strict=True):
        assert torch.equal(a, b), name
    assert torch.allclose(published.latents_mean, golden.student["latents_mean"])
    assert torch.allclose(published.latents_std, golden.student["latents_std"])


@pytest.mark.parametrize("name", NAMES)
def test_no_tensor_has_more_than_five_dimensions(name):
    golden = load_golden(name)
    student = build_student(golden.meta["student_config"])
    ranks = []

    class Watch(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            result = func(*args, **(kwargs or {}))
            ranks.extend(value.ndim for value in (result,) if isinstance(value, torch.Tensor))
            return result

    with Watch(), torch.no_grad():
        student(golden.io["latents"])
    assert ranks and max(ranks) <= 5


def test_save_pretrained_and_from_pretrained_give_the_same_student(tmp_path):
    golden = load_golden("ltx")
    student = load_student(*write_student(golden, tmp_path))
    student.save_pretrained(tmp_path / "saved")
    for again in (StudentDecoder.from_pretrained(tmp_path / "saved"), load_student(tmp_path / "saved")):
        with torch.no_grad():
            assert torch.equal(again(golden.io["latents"]), student(golden.io["latents"]))
        assert torch.equal(again.latents_mean, student.latents_mean)


def test_one_latent_frame_decodes_to_what_the_teacher_would_give():
    assert build_student(load_golden("ltx").meta["student_config"])(torch.zeros(1, 6, 1, 2, 2)).shape == (1, 3, 1, 64, 64)
    assert build_student(load_golden("video-dc-ae").meta["student_config"])(torch.zeros(1, 6, 1, 2, 2)).shape == (1, 3, 4, 64, 64)


@pytest.mark.parametrize(
    ("change", "said"), [("missing", "misses"), ("unexpected", "unexpected"), ("misshapen", "config makes it")]
)
def test_a_wrong_key_is_an_error_that_names_it(change, said, tmp_path):
    golden = load_golden("ltx")
    weights, config = write_student(golden, tmp_path)
    state, key = dict(golden.student), "mid_block.resnets.0.conv1.pointwise_conv.weight"
    if change == "missing":
        del state[key]
    elif change == "unexpected":
        key = "mid_block.resnets.7.conv1.pointwise_conv.weight"
        state[key] = torch.zeros(1)
    else:
        state[key] = state[key][:1]
    save_file(state, weights)
    with pytest.raises(WeightFileError) as error:
        load_student(weights, config)
    assert key in error.value.what
    assert said in error.value.what


def test_an_unknown_config_key_is_an_error_that_names_it(tmp_path):
    golden = load_golden("ltx")
    weights, config = write_student(golden, tmp_path)
    config.write_text(json.dumps(golden.meta["student_config"] | {"decoder_is_dw_cnv": []}))
    with pytest.raises(SettingsError, match="decoder_is_dw_cnv"):
        load_student(weights, config)


def test_a_pickle_with_code_in_it_is_refused_and_not_run(tmp_path):
    import pickle

    canary = tmp_path / "canary"

    class Payload:
        def __reduce__(self):
            return (canary.touch, ())

    (tmp_path / "evil.pth").write_bytes(pickle.dumps(Payload()))
    (tmp_path / "config.json").write_text(json.dumps(load_golden("ltx").meta["student_config"]))
    with pytest.raises(WeightFileError, match=r"evil\.pth"):
        load_student(tmp_path / "evil.pth")
    assert not canary.exists()


def test_latents_of_another_model_are_refused():
    student = build_student(load_golden("ltx").meta["student_config"])
    with pytest.raises(ShapeError, match="6"):
        student.decode(torch.zeros(1, 16, 1, 2, 2))


def test_an_unknown_name_is_an_error_with_the_known_ones():
    with pytest.raises(UnknownModelError, match="nosuch") as error:
        load_student("nosuch")
    assert "hunyuan" in error.value.hint


def test_a_small_input_takes_the_quick_path_to_the_same_numbers(monkeypatch):
    """The one torch would send to slow_conv3d; and with it, the gradients."""
    from turbovaed_cli.models import layers

    torch.manual_seed(0)
    convolution = layers.TimeReplicatedConv3d(24, 96)
    x = torch.randn(1, 24, 5, 24, 40, requires_grad=True)
    taken = []
    quick = layers.TimeReplicatedConv3d._taps_as_channels
    monkeypatch.setattr(layers.TimeReplicatedConv3d, "_taps_as_channels", lambda self, y: taken.append(1) or quick(self, y))
    ours, plain = convolution(x), convolution.conv(layers.pad_time(x, 3))
    assert taken
    assert (ours - plain).abs().max() < 1e-5
    (a,), (b,) = (torch.autograd.grad(y.square().mean(), x) for y in (ours, plain))
    assert torch.allclose(a, b, atol=1e-7)
