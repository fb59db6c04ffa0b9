"""A student attached to pipelines of every class: the frames are our own decode of the pipeline's latents, whatever is switched on."""

import copy

import pytest
import torch
from tiny_pipelines import CAUSAL, PIPELINES, SELECTED, random, sequentially_offloaded, shown, student_of, tiny_pipeline, vae_of

from turbovaed_cli import attach_student
from turbovaed_cli.errors import FrameCountError, SettingsError, ShapeError
from turbovaed_cli.models import memory
from turbovaed_cli.pipelines import within
from turbovaed_cli.pipelines.space import check_same_space, space_of
from turbovaed_cli.registry.rows import MODELS


class Given:
    """One tiny pipeline with a student attached, and a copy of the student that nothing happens to."""

    def __init__(self, name, changes):
        self.name, row = name, PIPELINES[name][0]
        self.vae = vae_of(row)
        self.student = student_of(row, self.vae, changes)
        self.reference = copy.deepcopy(self.student)
        self.tiny = tiny_pipeline(name, self.vae)
        self.pipe = self.tiny.pipe
        self.attached = attach_student(self.pipe, self.student)

    def run(self, **more):
        """The frames, and the latents of each decode."""
        latents, decode = [], self.pipe.vae.decode

        def recorded(z, *arguments, **options):
            latents.append(z.detach().clone())
            return decode(z, *arguments, **options)

        self.pipe.vae.decode = recorded
        try:
            return self.tiny.run(**more), latents
        finally:
            self.pipe.vae.decode = decode

    def check(self, **more):
        """Compare the frames with our own decode of the same latents."""
        frames, latents = self.run(**more)
        with torch.no_grad():
            ours = [self.reference.decode(z.float()).sample.to(z.dtype) for z in latents]
        ours = shown(self.name, ours)
        assert frames.shape == ours.shape and len(frames[0]) > 1
        assert (frames - ours).abs().max() <= (1e-5 if frames.dtype == torch.float32 else 2**-8)


@pytest.fixture(scope="module", params=[*SELECTED, "ltx, causal"])
def given(request):
    name, _, causal = request.param.partition(", ")
    return Given(name, CAUSAL if causal else {})


def nothing(given):
    pass


def tiling_and_slicing(given):
    given.pipe.vae.enable_tiling()
    given.pipe.vae.enable_slicing()


def model_offload(given):
    given.pipe.enable_model_cpu_offload(device="cpu")


def sequential_offload(given):
    given.pipe.remove_all_hooks()
    sequentially_offloaded(given.pipe)


def bf16(given):
    given.pipe.remove_all_hooks()
    given.pipe.to("cpu", torch.bfloat16)


def casting_and_group_offload(given):
    given.pipe.to(torch.float32)
    for part in (given.pipe.vae, given.pipe.transformer):
        part.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)
    given.pipe.enable_group_offload(torch.device("cpu"), offload_type="leaf_level")


OPTIONS = (nothing, tiling_and_slicing, model_offload, sequential_offload, bf16, casting_and_group_offload)


@pytest.mark.parametrize("option", OPTIONS, ids=lambda option: option.__name__)
def test_frames_are_our_own_decode_of_the_same_latents(given, option):
    """Options add up, from top to bottom."""
    option(given)
    given.check()
    assert next(given.student.parameters()).dtype == torch.float32


@pytest.fixture(scope="module")
def ltx():
    vae = vae_of("ltx")
    return tiny_pipeline("ltx", vae), student_of("ltx", vae)


def state_of(pipe):
    """What a pipeline and its VAE hold: the very objects, by name."""
    return [{name: id(value) for name, value in vars(part).items()} for part in (pipe, pipe.vae)]


def test_restoring_gives_the_very_same_pipeline(ltx):
    tiny, student = ltx
    frames, before = tiny.run(), state_of(tiny.pipe)
    attached = attach_student(tiny.pipe, student)
    assert attached.is_attached
    attached.restore()
    assert state_of(tiny.pipe) == before and not attached.is_attached
    attached.restore()  # a second time does nothing
    with attach_student(tiny.pipe, student):
        assert not torch.equal(tiny.run(), frames)
    assert torch.equal(tiny.run(), frames)


def test_a_block_restores_and_hooks_of_offload_stay(ltx):
    tiny, student = ltx
    tiny.pipe.enable_model_cpu_offload(device="cpu")
    hook, frames = tiny.pipe.vae._hf_hook, tiny.run()
    hook = tiny.pipe.vae._hf_hook  # each call makes new ones
    with attach_student(tiny.pipe, student):
        assert tiny.pipe.vae._hf_hook is hook
    assert tiny.pipe.vae._hf_hook is hook and torch.equal(tiny.run(), frames)
    tiny.pipe.remove_all_hooks()


def test_a_second_student_is_refused_until_the_first_is_out(ltx):
    tiny, student = ltx
    with attach_student(tiny.pipe, student), pytest.raises(SettingsError, match="has a student attached"):
        attach_student(tiny.pipe, student)
    attach_student(tiny.pipe, student).restore()


def test_a_decode_function_that_was_there_before_comes_back(ltx):
    tiny, student = ltx
    theirs = tiny.pipe.vae.decode = lambda *_: None
    attach_student(tiny.pipe, student).restore()
    assert tiny.pipe.vae.decode is theirs
    del tiny.pipe.vae.decode


def test_a_pipeline_without_a_vae_is_refused():
    with pytest.raises(SettingsError, match="of the class str, which has no `vae`") as error:
        attach_student("Lightricks/LTX-Video", student_of("ltx", vae_of("ltx")))
    assert "from_pretrained" in error.value.hint


def test_the_limit_of_memory_can_be_set_as_it_is_given(ltx):
    tiny, student = ltx
    with attach_student(tiny.pipe, student, memory="800MB") as attached:
        assert attached.memory == 800_000_000
        attached.memory = "4GB"
        assert attached.memory == 4_000_000_000
        for wrong in (-1, "4 gigs"):
            with pytest.raises(SettingsError):
                attached.memory = wrong
        assert attached.memory == 4_000_000_000


def test_a_loaded_student_is_exact_again_after_latents_of_less_precision(ltx, tmp_path):
    tiny, student = ltx
    student.save_pretrained(tmp_path)
    latents = random(1, 8, 2, 2, 3)
    with attach_student(tiny.pipe, tmp_path):
        first, half, last = (
            tiny.pipe.vae.decode(latents.to(dtype)).sample for dtype in (torch.float32, torch.bfloat16, torch.float32)
        )
    assert half.dtype == torch.bfloat16 and torch.equal(first, last)


@pytest.mark.parametrize("student", [None, torch.nn.Conv2d(1, 1, 1), 3], ids=["None", "a layer", "a number"])
def test_what_is_no_decoder_is_refused(ltx, student):
    with pytest.raises(SettingsError, match="not a decoder"):
        attach_student(ltx[0].pipe, student)


@pytest.mark.parametrize(
    ("shape", "error"), [((1, 8, 0, 2, 3), FrameCountError), ((8, 1, 2, 3), ShapeError), ((1, 4, 1, 2, 3), ShapeError)]
)
def test_latents_of_another_shape_are_named(ltx, shape, error):
    tiny, student = ltx
    with attach_student(tiny.pipe, student), pytest.raises(error, match="latents"):
        tiny.pipe.vae.decode(torch.zeros(shape))


def test_a_compiled_vae_or_decode_shows_the_same_frames(ltx):
    """Compiled before the student is attached, or after."""
    tiny, student = ltx
    vae, latents = tiny.pipe.vae, random(1, 8, 2, 2, 3)
    with torch.no_grad():
        wanted = student.decode(latents).sample
    tiny.pipe.vae = torch.compile(vae, backend="eager")
    try:
        with attach_student(tiny.pipe, student):
            assert torch.equal(tiny.pipe.vae.decode(latents).sample, wanted)
            assert torch.equal(torch.compile(vae.decode, backend="eager")(latents).sample, wanted)
    finally:
        tiny.pipe.vae = vae
    assert "decode" not in vars(vae)


@pytest.mark.parametrize(
    ("row", "of", "said"),
    [
        ("hunyuan", "ltx", "4 channels and 4x8x8"),
        ("wan2.2", "wan2.1", "4x16x16 pixels"),
        ("cogvideox", "hunyuan", "another scaling factor"),
        ("wan2.1", "hunyuan", "another mean"),
        ("hunyuan", "wan2.1", "another scaling factor"),
        ("ltx", "ltx2", "another mean"),
    ],
)
def test_a_student_of_another_latent_space_is_refused(row, of, said):
    other = vae_of(of)
    if row == "ltx":
        other.latents_mean += 1
    tiny = tiny_pipeline({"wan2.1": "wan2.1", "hunyuan": "hunyuan", "ltx": "ltx", "ltx2": "ltx2"}[of], other)
    with pytest.raises(SettingsError, match=said) as error:
        attach_student(tiny.pipe, student_of(row, vae_of(row)))
    assert f"this student of {row} does not fit" in error.value.what and "turbovaed distill" in error.value.hint
    assert error.value.what.count(". ") == 0 and "decode" not in vars(tiny.pipe.vae)


def test_without_common_statistics_the_teachers_class_decides():
    vae = vae_of("hunyuan")
    student = student_of("hunyuan", vae)
    student.register_to_config(scaling_factor=1.0, teacher="cogvideox")
    with pytest.raises(SettingsError, match="its teacher cogvideox is of the class AutoencoderKLCogVideoX"):
        check_same_space(student, space_of(vae))
    student.register_to_config(teacher=None)
    check_same_space(student, space_of(vae))


def test_the_pipelines_own_scaling_is_used():
    """The published HunyuanVideo config says 1.0, and its pipeline divides by 0.476986."""
    vae = vae_of("hunyuan")
    student = student_of("hunyuan", vae)
    reference = copy.deepcopy(student)
    student.register_to_config(scaling_factor=1.0)
    tiny = tiny_pipeline("hunyuan", vae)
    with attach_student(tiny.pipe, student):
        frames = tiny.run()
    latents = tiny.run("latent") / MODELS["hunyuan"].student.config["scaling_factor"]
    with torch.no_grad():
        assert (frames - shown("hunyuan", [reference.decode(latents).sample])).abs().max() < 1e-5


class Notes:
    """A reporter that keeps its notes."""

    def __init__(self):
        self.notes = []

    def note(self, text="", **_):
        self.notes.append(text)


def test_long_clips_are_decoded_in_pieces_to_the_same_pixels(ltx, monkeypatch):
    tiny, student = ltx
    report, latents = Notes(), torch.randn(2, 8, 5, 2, 2)
    with torch.no_grad():
        whole = student.decode(latents).sample
    monkeypatch.setattr(memory, "_PIXELS_PER_PIECE", 1)
    with attach_student(tiny.pipe, student, memory="4GB", report=report) as attached:
        pieces = attached.decode(latents).sample
        assert torch.equal(attached.decode(latents, None, return_dict=False)[0], pieces)
    # A piece is small enough for the direct form of some convolutions, the clip is not: equal within the rounding of both.
    assert (pieces - whole).abs().max() < 1e-4 and report.notes[0].startswith("decoding 1 latent frame at once")


def test_too_little_memory_is_an_error_that_keeps_the_latents(ltx):
    tiny, student = ltx
    latents = torch.randn(1, 8, 3, 2, 2)
    with attach_student(tiny.pipe, student, memory=1_000_000) as attached:
        with pytest.raises(SettingsError, match="is too little to decode 17 frames"):
            attached.decode(latents)
        assert torch.equal(attached.latents, latents)
        attached.memory = 0
        attached.decode(attached.latents)
        assert attached.latents is None
    with pytest.raises(SettingsError, match="not an amount"):
        attach_student(tiny.pipe, student, memory="much")
    assert "decode" not in vars(tiny.pipe.vae)


def test_without_a_limit_the_smallest_pieces_are_tried(ltx, monkeypatch):
    _, student = ltx
    latents = torch.randn(1, 8, 2, 2, 2)
    monkeypatch.setattr(within, "free_memory_bytes", lambda _: 0)
    with torch.no_grad():
        assert (within.decode_collected(student, latents) - student.decode(latents).sample).abs().max() < 1e-5


def test_a_plan_is_made_once_for_latents_of_one_shape(ltx, monkeypatch):
    tiny, student = ltx
    plan, planned = within.pieces_within, []
    monkeypatch.setattr(within, "pieces_within", lambda *arguments: planned.append(1) or plan(*arguments))
    with attach_student(tiny.pipe, student, memory="4GB") as attached:
        for frames in (2, 2, 3):
            attached.decode(torch.randn(1, 8, frames, 2, 2))
    assert len(planned) == 2


def test_a_student_from_a_folder_takes_the_precision_of_the_latents(ltx, tmp_path):
    tiny, student = ltx
    student.save_pretrained(tmp_path)
    with attach_student(tiny.pipe, tmp_path) as attached:
        for dtype in (torch.bfloat16, torch.float32):
            assert attached.decode(torch.randn(1, 8, 1, 2, 2, dtype=dtype)).sample.dtype == dtype
            assert next(attached.student.parameters()).dtype == dtype


class Normalised(torch.nn.Module):
    """A decoder of another family, which takes normalised latents and does not stream."""

    family, teacher, latents, space, licence = "test", None, "normalised", None, "unknown: a test"

    def __init__(self, student, space):
        super().__init__()
        self.student, self.of = student, space
        for name in ("latent_channels", "temporal_compression_ratio", "spatial_compression_ratio", "pixel_frames", "dtype"):
            setattr(self, name, getattr(student, name))

    def decode(self, z, temb=None, return_dict=True):
        return self.student.decode(self.of.raw(z), temb, return_dict)

    def stream(self):
        return None


class Streaming(Normalised):
    """The same, piece by piece."""

    latents = "raw"

    def stream(self):
        return self.student.stream()


@pytest.mark.parametrize("kind", [Normalised, Streaming])
def test_decoders_of_other_families_get_the_latents_that_they_take(ltx, kind):
    tiny, student = ltx
    latents = torch.randn(1, 8, 3, 2, 2)
    with torch.no_grad(), attach_student(tiny.pipe, kind(student, space_of(tiny.pipe.vae).space())) as attached:
        assert (attached.decode(latents).sample - student.decode(latents).sample).abs().max() < 1e-4  # statistics add rounding
