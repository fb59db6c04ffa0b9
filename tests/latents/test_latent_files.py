"""Latents of every usual origin come out as the raw (C, t, h, w) that was meant, or with an error that says what is missing."""

import inspect
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from turbovaed_cli.cli import main
from turbovaed_cli.errors import SettingsError, ShapeError
from turbovaed_cli.latents.latent_files import LatentSpace, is_latents_file, read_latents
from turbovaed_cli.models.loading import build_student, load_student
from turbovaed_cli.models.pair import load_pair
from turbovaed_cli.reconstruction.reconstruct import reconstruct
from turbovaed_cli.registry.rows import MODELS
from turbovaed_cli.settings import ReconstructSettings
from turbovaed_cli.video import probe, read_clip, read_frames

CHANNELS = 6
SPACE = LatentSpace(CHANNELS, tuple(i / 2 for i in range(CHANNELS)), tuple(2.0 + i for i in range(CHANNELS)), 0.7, 2, 8)


@pytest.fixture
def raw():
    """(C, t, h, w), spread as the raw latents of SPACE are."""
    noise = torch.randn(CHANNELS, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    return SPACE.raw(noise)


class Told:
    """A reporter that keeps what it is told."""

    def __init__(self):
        self.notes, self.warnings = [], []

    def note(self, text="", *, warning=False, **_):
        (self.warnings if warning else self.notes).append(text)

    def track(self, items, *_, **__):
        return items


# --- where it is ---


@pytest.mark.parametrize("suffix", [".safetensors", ".latent", ".SAFETENSORS"])
@pytest.mark.parametrize("name", ["latents", "latent_tensor", "samples", "whatever", "abc.mean"])
def test_any_lone_tensor_of_a_safetensors_file_is_the_latents(name, suffix, raw, tmp_path):
    extra = {"latent_format_version_0": torch.empty(0)} if name == "latent_tensor" else {}
    save_file({name: raw, **extra}, tmp_path / f"z{suffix}")
    assert is_latents_file(tmp_path / f"z{suffix}")
    assert torch.equal(read_latents(tmp_path / f"z{suffix}", SPACE).latents, raw)


@pytest.mark.parametrize("suffix", [".pt", ".pth"])
@pytest.mark.parametrize(
    "wrapped",
    [lambda z: z, lambda z: {"latents": z}, lambda z: {"samples": z, "seed": 3, "prompt": "a cat"}, lambda z: z.requires_grad_()],
)
def test_what_torch_saved_is_read_without_running_code(wrapped, suffix, raw, tmp_path):
    torch.save(wrapped(raw[None].clone()), tmp_path / f"z{suffix}")
    found = read_latents(tmp_path / f"z{suffix}", SPACE).latents
    assert torch.equal(found, raw) and not found.requires_grad


def test_a_pickle_with_code_is_refused_and_not_run(tmp_path):
    import pickle

    canary = tmp_path / "canary"

    class Payload:
        def __reduce__(self):
            return (canary.touch, ())

    (tmp_path / "z.pt").write_bytes(pickle.dumps(Payload()))
    with pytest.raises(SettingsError, match=r"z\.pt is not a latents file that can be read safely") as error:
        read_latents(tmp_path / "z.pt")
    assert "save_file" in error.value.hint and not canary.exists()


def test_an_older_comfyui_file_is_scaled_as_comfyui_does(raw, tmp_path):
    """nodes.LoadLatent multiplies by 1 / 0.18215 what has no latent_format_version_0."""
    save_file({"latent_tensor": raw[None]}, tmp_path / "old.latent")
    save_file({"latent_tensor": raw[None], "latent_format_version_0": torch.tensor([])}, tmp_path / "new.latent")
    old, new = (read_latents(tmp_path / f"{name}.latent", SPACE) for name in ("old", "new"))
    assert torch.allclose(old.latents, raw / 0.18215) and "ComfyUI" in old.notes[0]
    assert torch.equal(new.latents, raw) and not new.notes


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        ({"a": torch.zeros(1, 6, 1, 2, 2), "b": torch.zeros(1)}, "no latents: a, b"),
        ({}, "no tensor at all"),
        ({"a.mean": torch.zeros(6, 1, 2, 2), "b.mean": torch.zeros(6, 1, 2, 2)}, "2 clips"),
        ({"latents": torch.zeros(1, 6, 1, 2, 2, dtype=torch.uint8)}, "uint8"),
        ({"latents": torch.full((1, 6, 1, 2, 2), torch.nan)}, "NaN"),
    ],
)
def test_a_file_without_one_clips_latents_says_how_to_save_one(tensors, said, tmp_path):
    save_file(tensors, tmp_path / "z.safetensors")
    with pytest.raises(SettingsError, match=said) as error:
        read_latents(tmp_path / "z.safetensors", SPACE)
    assert "NaN" in said or "save_file" in error.value.hint


def test_a_torch_file_of_something_else_is_refused(tmp_path):
    torch.save([1, 2], tmp_path / "z.pt")
    with pytest.raises(SettingsError, match="holds a list"):
        read_latents(tmp_path / "z.pt", SPACE)


# --- its shape ---


@pytest.mark.parametrize(
    ("laid_out", "frames"),
    [
        (lambda z: z, 3),
        (lambda z: z[None], 3),
        (lambda z: z.transpose(0, 1), 3),
        (lambda z: z.transpose(0, 1)[None], 3),
        (lambda z: z[None, :, 0], 1),
        (lambda z: z[:, 0], 1),
        (lambda z: z[:, :1], 1),
        (lambda z: z.half(), 3),
        (lambda z: z.bfloat16(), 3),
    ],
)
def test_usual_layouts(laid_out, frames, raw, tmp_path):
    save_file({"latents": laid_out(raw).contiguous()}, tmp_path / "z.safetensors")
    found = read_latents(tmp_path / "z.safetensors", SPACE).latents
    assert found.shape == (CHANNELS, frames, 4, 5) and found.dtype == torch.float32
    assert torch.allclose(found, raw[:, :frames], rtol=1e-2, atol=1e-2)


def test_frames_first_is_said_and_what_cannot_be_told_too(raw, tmp_path):
    told = Told()
    save_file({"latents": raw.transpose(0, 1)[None].contiguous()}, tmp_path / "z.safetensors")
    read_latents(tmp_path / "z.safetensors", SPACE, report=told)
    assert "CogVideoX" in told.notes[0]
    save_file({"latents": torch.randn(1, CHANNELS, CHANNELS, 2, 2)}, tmp_path / "z.safetensors")
    assert "channels first" in read_latents(tmp_path / "z.safetensors", SPACE).notes[0]


@pytest.mark.parametrize("batch", [True, False])
def test_packed_latents_are_unpacked_as_diffusers_does(batch, raw, tmp_path):
    from diffusers import LTXPipeline

    packed = LTXPipeline._pack_latents(raw[None])
    assert torch.equal(LTXPipeline._unpack_latents(packed, 3, 4, 5), raw[None])
    save_file({"latents": (packed if batch else packed[0]).contiguous()}, tmp_path / "z.safetensors")
    assert torch.equal(read_latents(tmp_path / "z.safetensors", SPACE, shape=(3, 4, 5)).latents, raw)
    by_size = read_latents(tmp_path / "z.safetensors", SPACE, expected=(3, 4, 5))
    assert torch.equal(by_size.latents, raw) and "`frames` and `size`" in by_size.notes[0]
    for wrong in ({}, {"expected": (3, 4, 6)}):
        with pytest.raises(ShapeError, match="packed") as error:
            read_latents(tmp_path / "z.safetensors", SPACE, **wrong)
        assert "`latents_shape` T,H,W" in error.value.hint and "/ 2 + 1, height / 8" in error.value.hint
    with pytest.raises(ShapeError, match="60 tokens are not 3 x 4 x 4"):
        read_latents(tmp_path / "z.safetensors", SPACE, shape=(3, 4, 4))


@pytest.mark.parametrize(
    ("shape", "said"),
    [((2, 6, 1, 2, 2), "2 clips"), ((1, 60, 7), "7 channels"), ((6,), r"\(1, C, t, h, w\)"), ((2, 60, 6), "2 clips")],
)
def test_other_shapes_are_refused(shape, said, tmp_path):
    save_file({"latents": torch.zeros(shape)}, tmp_path / "z.safetensors")
    with pytest.raises(ShapeError, match=said):
        read_latents(tmp_path / "z.safetensors", SPACE, shape=(3, 4, 5))


def test_a_shape_that_is_not_the_files_is_refused(raw, tmp_path):
    save_file({"latents": raw}, tmp_path / "z.safetensors")
    assert torch.equal(read_latents(tmp_path / "z.safetensors", SPACE, shape=(3, 4, 5)).latents, raw)
    with pytest.raises(ShapeError, match=r"not \(3, 5, 4\)"):
        read_latents(tmp_path / "z.safetensors", SPACE, shape=(3, 5, 4))
    for shape in ((3, 4), (0, 4, 5)):
        with pytest.raises(SettingsError, match="three numbers"):
            read_latents(tmp_path / "z.safetensors", SPACE, shape=shape)


# --- raw or normalised ---


def test_raw_is_the_inverse_of_what_ltx_pipelines_do():
    from diffusers import LTXPipeline

    raw = torch.randn(1, CHANNELS, 2, 3, 4)
    mean, std = torch.tensor(SPACE.mean), torch.tensor(SPACE.std)
    normalised = LTXPipeline._normalize_latents(raw, mean, std, SPACE.scaling_factor)
    assert torch.allclose(SPACE.raw(normalised[0]), raw[0], atol=1e-5)
    assert torch.allclose(SPACE.normalised(raw[0]), normalised[0], atol=1e-5)
    assert torch.allclose(
        SPACE.raw(normalised[0]), LTXPipeline._denormalize_latents(normalised, mean, std, SPACE.scaling_factor)[0], atol=1e-5
    )


def test_raw_is_what_cogvideox_pipelines_decode():
    """Its own decode_latents, with a VAE that gives back what it is given: (B, t, C, h, w) in."""
    from diffusers import CogVideoXPipeline

    space = build_student(MODELS["cogvideox"].student.config).space
    assert space.scaling_factor == 0.7 and not any(space.mean) and set(space.std) == {1.0}
    vae = SimpleNamespace(decode=lambda z: SimpleNamespace(sample=z))
    pipeline = SimpleNamespace(vae=vae, vae_scaling_factor_image=space.scaling_factor)
    normalised = torch.randn(1, 3, 16, 2, 2)
    wanted = CogVideoXPipeline.decode_latents(pipeline, normalised)[0]
    assert torch.allclose(space.raw(normalised[0].transpose(0, 1)), wanted, atol=1e-6)


def test_raw_is_what_hunyuan_and_wan_pipelines_decode():
    """Their formulas, which stand inside of their calls: z / scaling_factor, and z / (1 / std) + mean."""
    space = build_student(MODELS["hunyuan"].student.config).space
    z = torch.randn(16, 2, 3, 3)
    assert torch.allclose(space.raw(z), z / 0.476986)
    wan = LatentSpace(16, tuple(torch.randn(16).tolist()), tuple((1 + torch.rand(16)).tolist()))
    mean, inverse = torch.tensor(wan.mean).view(16, 1, 1, 1), 1.0 / torch.tensor(wan.std).view(16, 1, 1, 1)
    assert torch.allclose(wan.raw(z), z / inverse + mean, atol=1e-6)


def test_normalised_latents_are_converted_and_said(raw, tmp_path):
    save_file({"latents": SPACE.normalised(raw)}, tmp_path / "z.safetensors")
    told = Told()
    found = read_latents(tmp_path / "z.safetensors", SPACE, latents_are="normalised", report=told)
    assert torch.allclose(found.latents, raw, atol=1e-5)
    assert "made raw" in told.notes[0] and not told.warnings and found.name == "latents"


def test_a_spread_that_speaks_for_the_other_is_a_warning_and_changes_nothing(raw, tmp_path):
    normalised = SPACE.normalised(raw)
    for content, latents_are, other in ((normalised, "raw", "normalised"), (raw, "normalised", "raw")):
        save_file({"latents": content}, tmp_path / "z.safetensors")
        told = Told()
        found = read_latents(tmp_path / "z.safetensors", SPACE, latents_are=latents_are, report=told)
        assert len(told.warnings) == 1 and f"`latents_are` {other}" in told.warnings[0]
        assert torch.allclose(found.latents, content if latents_are == "raw" else SPACE.raw(content))
    save_file({"latents": raw}, tmp_path / "z.safetensors")
    assert not read_latents(tmp_path / "z.safetensors", SPACE).warnings


def test_where_both_are_the_same_there_is_nothing_to_warn_of(tmp_path):
    space = LatentSpace(CHANNELS, (0.0,) * CHANNELS, (1.0,) * CHANNELS)
    save_file({"latents": torch.randn(CHANNELS, 2, 4, 4)}, tmp_path / "z.safetensors")
    assert not read_latents(tmp_path / "z.safetensors", space).warnings
    assert "the same" in read_latents(tmp_path / "z.safetensors", space, latents_are="normalised").notes[0]


# Cut from a clip that a Wan 2.1 model generated: examples/test_latents_wan.pth of madebyollin/taehv, MIT, Copyright (c) 2025 Ollin Boer
# Bohan. Its metadata has the statistics of that latent space.
GENERATED = Path(__file__).parents[1] / "data" / "wan2.1-generated.safetensors"
SHARED = Path(__file__).resolve().parents[3] / "shared"


def space_of_wan() -> LatentSpace:
    with safe_open(GENERATED, "pt") as file:
        mean, std = (json.loads(file.metadata()[name]) for name in ("latents_mean", "latents_std"))
    return LatentSpace(16, tuple(mean), tuple(std), 1.0, 4, 8)


def test_the_statistics_of_wan_are_those_of_diffusers():
    from diffusers import AutoencoderKLWan

    defaults = inspect.signature(AutoencoderKLWan.__init__).parameters
    assert space_of_wan().mean == tuple(defaults["latents_mean"].default)
    assert space_of_wan().std == tuple(defaults["latents_std"].default)


@pytest.mark.parametrize("where", [GENERATED, SHARED / "latents" / "wan2.1-generated.safetensors"])
def test_a_generated_latent_of_wan_is_seen_to_be_normalised(where, tmp_path):
    if not where.is_file():
        pytest.skip("shared/latents is not on this machine")
    space, told = space_of_wan(), Told()
    assert "looks normalised" in read_latents(where, space, report=told).warnings[0]
    assert "`latents_are` normalised" in told.warnings[0]
    found = read_latents(where, space, latents_are="normalised")
    assert not found.warnings
    save_file({"latents": found.latents}, tmp_path / "raw.safetensors")
    assert not read_latents(tmp_path / "raw.safetensors", space).warnings
    assert "looks raw" in read_latents(tmp_path / "raw.safetensors", space, latents_are="normalised").warnings[0]


@pytest.mark.parametrize("contrast", [1.0, 0.7, 0.5, 0.4, 0.3, 0.1, 0.01, 0.0])
@pytest.mark.parametrize("latents_are", ["raw", "normalised"])
def test_a_clip_of_little_contrast_is_no_reason_to_warn(contrast, latents_are, tmp_path):
    """Its channels vary less than those of the clips that the statistics are from, whichever form it has."""
    space = space_of_wan()
    normalised = contrast * read_latents(GENERATED, space).latents
    save_file({"latents": space.raw(normalised) if latents_are == "raw" else normalised}, tmp_path / "z.safetensors")
    assert not read_latents(tmp_path / "z.safetensors", space, latents_are=latents_are).warnings


def test_a_few_values_are_no_reason_to_warn(tmp_path):
    space = space_of_wan()
    fitting = torch.tensor([-1.0, 1.0, 0.9, -0.9]).view(1, 1, 2, 2).expand(16, 1, 2, 2)  # normalised, as far as four values show
    for times, warns in ((1, False), (3, False), (4, True)):
        save_file({"latents": fitting.repeat(1, times, 1, 1)}, tmp_path / "z.safetensors")
        assert bool(read_latents(tmp_path / "z.safetensors", space).warnings) == warns, times


@pytest.mark.skipif(not (SHARED / "videos" / "val").is_dir(), reason="the clips of shared/videos are not on this machine")
def test_real_clips_of_the_embedded_teacher_give_no_warning(tmp_path):
    """Bikes has the least contrast of them after the flat one, a third of what the statistics are from."""
    pair = load_pair("tiny")
    space = pair.student.space
    names = ["train/bikes", "train/blocks", "train/bottles", "train/frog", "val/bunny", "val/people", "reported/flat-gray"]
    for name in names:
        for frames, side in ((1, 128), (5, 64), (9, 128)):
            clip = read_clip(SHARED / "videos" / f"{name}.mp4", frames, (side, side))
            raw = pair.teacher.encode(clip[None]).mean[0]
            save_file({"latents": raw.contiguous()}, tmp_path / "raw.safetensors")
            assert not read_latents(tmp_path / "raw.safetensors", space).warnings, (name, frames)
            save_file({"latents": space.normalised(raw).contiguous()}, tmp_path / "normalised.safetensors")
            assert not read_latents(tmp_path / "normalised.safetensors", space, latents_are="normalised").warnings, (name, frames)


def test_an_unknown_kind_is_refused(raw, tmp_path):
    save_file({"latents": raw}, tmp_path / "z.safetensors")
    with pytest.raises(SettingsError, match="`latents_are` scaled"):
        read_latents(tmp_path / "z.safetensors", SPACE, latents_are="scaled")


# --- through the commands ---


@pytest.fixture(scope="module")
def tiny():
    student = load_student("tiny")
    space = student.space
    raw = space.raw(0.7 * torch.randn(32, 3, 4, 6, generator=torch.Generator().manual_seed(1)))
    return space, raw


def test_the_same_video_comes_out_of_raw_normalised_and_packed_latents(tiny, tmp_path):
    import numpy as np
    from diffusers import LTXPipeline

    space, raw = tiny
    pair = load_pair("tiny", with_teacher=False)
    save_file({"latents": raw}, tmp_path / "raw.safetensors")
    torch.save(space.normalised(raw)[None], tmp_path / "normalised.pt")
    torch.save({"latents": LTXPipeline._pack_latents(space.normalised(raw)[None])}, tmp_path / "packed.pth")
    videos = []
    for name, settings in (
        ("raw.safetensors", ReconstructSettings()),
        ("normalised.pt", ReconstructSettings(latents_are="normalised")),
        ("packed.pth", ReconstructSettings(latents_are="normalised", latents_shape=(3, 4, 6))),
    ):
        out = tmp_path / f"{name}.mp4"
        reconstruct(tmp_path / name, out, pair, settings)
        assert (probe(out).num_frames, probe(out).height, probe(out).width) == (5, 32, 48)
        videos.append(np.stack(list(read_frames(out))).astype(int))
    assert all(abs(video - videos[0]).max() <= 2 for video in videos)


def turbovaed(monkeypatch, capsys, *words):
    monkeypatch.setattr("sys.argv", ["turbovaed", *map(str, words)])
    with pytest.raises(SystemExit) as end:
        main()
    told = capsys.readouterr()
    return end.value.code, told.out, told.err


def test_reconstruct_takes_pipeline_latents(tiny, tmp_path, monkeypatch, capsys):
    from diffusers import LTXPipeline

    space, raw = tiny
    torch.save(LTXPipeline._pack_latents(space.normalised(raw)[None]), tmp_path / "z.pt")
    monkeypatch.chdir(tmp_path)
    code, _, err = turbovaed(monkeypatch, capsys, "reconstruct", "z.pt")
    assert code == 2 and "--latents-shape" in err
    code, _, err = turbovaed(monkeypatch, capsys, "reconstruct", "z.pt", "--latents-shape", "3,4,6")
    assert code == 0 and "warning" in err and "--latents-are normalised" in err
    code, _, err = turbovaed(
        monkeypatch, capsys, "reconstruct", "z.pt", "--latents-shape", "3x4x6", "--latents-are", "normalised", "--overwrite"
    )
    assert code == 0 and "warning" not in err
    for wrong in ("3,4", "a,b,c", "0,4,6"):
        assert turbovaed(monkeypatch, capsys, "reconstruct", "z.pt", "--latents-shape", wrong)[0] == 2


@pytest.mark.thorough  # with other latents, what test_export.py has
def test_export_and_bench_take_them_too(tiny, tmp_path, monkeypatch, capsys):
    from diffusers import LTXPipeline

    space, raw = tiny
    torch.save(LTXPipeline._pack_latents(space.normalised(raw)[None]), tmp_path / "z.pt")
    about = ["--latents", tmp_path / "z.pt", "--frames", 5, "--size", "48x32"]
    code, _, err = turbovaed(
        monkeypatch, capsys, "export", "--format", "safetensors", "--out", tmp_path / "out", *about, "--latents-are", "normalised"
    )
    assert code == 0, err
    kept = read_latents(tmp_path / "out" / "latents.safetensors", space)
    assert torch.allclose(kept.latents, raw, atol=1e-4)
    code, out, err = turbovaed(
        monkeypatch, capsys, "bench", "--target", "torch", "--no-teacher", "--repeats", 1, "--warmup", 1, "--json", *about,
        "--latents-are", "normalised", "--latents-shape", "3,4,6",
    )  # fmt: skip
    assert code == 0 and json.loads(out)["latents"] == "latents of z.pt"
