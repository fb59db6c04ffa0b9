"""README is a page one gladly reads, and what it states is so: its bounds, its models, its lines for pipelines; and the plan of the house."""

import re
import sys
from importlib import import_module

import pages
import pytest
from pages import README, ROOT

TEXT = README.read_text(encoding="utf-8")
HOUSE = (ROOT / "docs" / "contributing.md").read_text(encoding="utf-8").partition("## The house")[2].partition("\n## ")[0]
GUIDES = ROOT / "docs" / "guides"
PACKAGE = ROOT / "turbovaed_cli"
WITH_CROPS = [words for words in pages.commands(GUIDES / "distill.md") if "--crop" in words]


def test_it_is_short():
    assert 500 < len(pages.words(pages.prose(README))) <= 1200


def test_the_first_picture_is_seen_at_once():
    assert any("![" in line for line in TEXT.splitlines()[:8])


def test_sentences_are_short():
    sentences = pages.sentences(README)
    assert len(sentences) > 40 and max(len(pages.words(sentence)) for sentence in sentences) <= 30


def test_cells_are_short():
    assert 0 < max(len(pages.words(cell)) for cell in pages.cells(README)) <= 12


def rooms() -> set[str]:
    """The rooms that docs/contributing.md names."""
    table = HOUSE[HOUSE.index("| room |") :].partition("\n\n")[0]
    return set(re.findall(r"`(\w+)/`", table))


def test_every_room_is_named_and_every_named_room_is_there():
    there = {path.parent.name for path in PACKAGE.glob("*/__init__.py")} | {"assets"}
    assert rooms() == there


def test_every_file_on_the_top_level_is_named():
    named = set(re.findall(r"`(\w+\.py)`", HOUSE))
    there = {path.name for path in PACKAGE.glob("*.py")} - {"__init__.py", "__main__.py"}
    assert named == there


def test_make_targets_are_in_the_makefile():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"^make ([\w-]+)", TEXT, re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE)


def test_the_models_are_those_of_the_registry():
    from turbovaed_cli import MODELS

    for spec in MODELS.values():
        row = next(line for line in TEXT.splitlines() if line.startswith(f"| `{spec.name}`"))
        assert spec.title in row and all(f"(`{alias}`)" in row for alias in spec.aliases)
        assert f"{spec.teacher.decoder_params_m:.1f} M" in row and f"{spec.student.params_m:.1f} M" in row
        assert f"{spec.teacher.time_ratio}x{spec.teacher.space_ratio}x{spec.teacher.space_ratio}" in row
        assert str(spec.teacher.frames).removesuffix(" (or 1)") in row
        assert spec.student.published is None or spec.student.published.filename in row


def test_figures_are_those_of_the_measurements():
    measured = (ROOT / "docs" / "measurements.md").read_text(encoding="utf-8")
    table = TEXT[TEXT.index("| what | figure |") :].partition("\n\n")[0]
    figures = [row.split("|")[2] for row in table.splitlines()[2:]] + re.findall(
        r"\d+\.\d+ dB|\d+\.\d %", TEXT.partition("## ")[0]
    )
    assert len(figures) >= 8
    for figure in re.findall(r"\d+\.\d+ dB|\d+\.\d+ %|\d+\.\d+x|\d+ of \d+|0\.\d+", " ".join(figures)):
        assert figure in measured, figure


@pytest.mark.parametrize("words", WITH_CROPS, ids=" ".join)
def test_crops_fit_into_the_clips(words, monkeypatch, tmp_path):
    """Every check of the command that needs no weights and no videos lets it pass."""
    from turbovaed_cli import cli
    from turbovaed_cli.training.checks import check_distill_settings
    from turbovaed_cli.training.schedule import crop_of

    given = []

    def teach(spec, run, *, settings, **_):
        given.append((spec, settings))
        raise SystemExit

    monkeypatch.setattr(import_module("turbovaed_cli.training.distill"), "distill", teach)
    monkeypatch.setattr(sys, "argv", ["turbovaed", *words])
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        cli.main()
    ((spec, settings),) = given
    check_distill_settings(settings)
    spec.teacher.check_frames(settings.frames)
    spec.teacher.check_size(*settings.size)
    crops = [crop_of(stage, spec.teacher, stage.size or settings.size) for stage in settings.stages]
    assert all(crop is not None for crop in crops)


def test_there_is_a_command_with_crops():
    assert WITH_CROPS


def py_block(path, start: str) -> str:
    """The block of lines that need a pipeline, and are run here on what diffusers' own code makes."""
    return next(block for block in pages.blocks(path, "py") if start in block)


def test_the_lines_that_make_pipeline_latents_raw_do_so():
    import torch
    from diffusers import LTXPipeline

    from turbovaed_cli import load_student

    student, raw, (t, h, w) = load_student("tiny"), torch.randn(1, 32, 3, 4, 5), (3, 4, 5)
    normalised = LTXPipeline._normalize_latents(raw, student.latents_mean, student.latents_std, student.config.scaling_factor)
    names = {"packed": LTXPipeline._pack_latents(normalised), "student": student, "t": t, "h": h, "w": w}
    exec(py_block(GUIDES / "python.md", "packed.reshape"), names)
    assert torch.allclose(names["latents"], raw, atol=1e-5)


@pytest.mark.parametrize("path", [README, GUIDES / "python.md", GUIDES / "pipelines.md"], ids=lambda path: path.name)
def test_a_pipeline_decodes_with_the_student(path):
    """A whole diffusers pipeline with a small transformer of random weights, around the embedded teacher."""
    import torch
    from diffusers import FlowMatchEulerDiscreteScheduler, LTXPipeline, LTXVideoTransformer3DModel

    from turbovaed_cli import load_teacher

    transformer = LTXVideoTransformer3DModel(
        in_channels=32, out_channels=32, num_attention_heads=2, attention_head_dim=16, cross_attention_dim=32, num_layers=1,
        caption_channels=16,
    )  # fmt: skip
    pipe = LTXPipeline(FlowMatchEulerDiscreteScheduler(), load_teacher("tiny").vae, None, None, transformer)
    pipe.set_progress_bar_config(disable=True)

    class Prompted:
        """The pipeline of the page: called with a prompt, which it embeds as zeros; its offload is to the CPU."""

        vae = pipe.vae

        def enable_model_cpu_offload(self):
            pipe.enable_model_cpu_offload(device="cpu")

        def __call__(self, prompt):
            embeds, mask = torch.zeros(1, 4, 16), torch.ones(1, 4)
            return pipe(
                prompt_embeds=embeds, prompt_attention_mask=mask, height=64, width=64, num_frames=9, num_inference_steps=1,
                guidance_scale=1.0, output_type="pt", generator=torch.Generator().manual_seed(0),
            )  # fmt: skip

    names = {"pipe": Prompted(), "prompt": "a bunny"}
    teachers = Prompted()("a bunny").frames[0]
    exec(py_block(path, "attach_student").replace('"ltx"', '"tiny"'), names)
    assert names["frames"].shape == (9, 3, 64, 64) and not torch.equal(names["frames"], teachers)
    assert vars(pipe.vae)["decode"].__self__.student.teacher == "tiny"
