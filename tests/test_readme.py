"""What the README says is so: every command parses, every flag exists, the tree is the tree."""

import re
import shlex
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", README, re.DOTALL)
COMMANDS = sorted(
    {
        line.partition("#")[0].strip()
        for kind, block in BLOCKS
        if kind == "sh"
        for line in block.splitlines()
        if line.startswith("turbovaed ")
    }
)


HELP = {name: ["--help"] for name in ("models", "runs", "env", "help", "version")}  # which have no more than that


@pytest.fixture(scope="session")
def helps() -> dict[str, str]:
    """The help of every command, wide enough that no flag is cut."""
    names = {command.split()[1] for command in COMMANDS}
    script = "import sys; sys.argv = ['turbovaed', *sys.argv[1:]]; from turbovaed_cli.cli import main; main()"
    return {
        name: subprocess.run(
            [sys.executable, "-c", script, name, *HELP.get(name, ["--help-all"])],
            capture_output=True,
            text=True,
            check=True,
            env={"COLUMNS": "300"},
        ).stdout
        for name in names
    }


def test_there_are_commands():
    assert len(COMMANDS) > 8


@pytest.mark.parametrize("command", COMMANDS)
def test_every_flag_of_every_command_exists(command, helps):
    words = shlex.split(command)
    for word in words[2:]:
        if word.startswith("--"):
            assert re.search(rf"{re.escape(word)}\b", helps[words[1]]), word


@pytest.mark.parametrize("command", [command for command in COMMANDS if " --crop " in command])
def test_crops_of_the_readme_fit_into_its_clips(command, monkeypatch, tmp_path):
    """Every check of the command that needs no weights and no videos lets it pass."""
    from turbovaed_cli import cli
    from turbovaed_cli.training.checks import check_distill_settings
    from turbovaed_cli.training.schedule import crop_of

    given = []

    def teach(spec, run, *, settings, **_):
        given.append((spec, settings))
        raise SystemExit

    monkeypatch.setattr(import_module("turbovaed_cli.training.distill"), "distill", teach)
    monkeypatch.setattr(sys, "argv", shlex.split(command))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        cli.main()
    ((spec, settings),) = given
    check_distill_settings(settings)
    spec.teacher.check_frames(settings.frames)
    spec.teacher.check_size(*settings.size)
    crops = [crop_of(stage, spec.teacher, stage.size or settings.size) for stage in settings.stages]
    assert all(crop is not None for crop in crops)


def test_every_command_is_in_the_readme():
    from turbovaed_cli.cli.app import app

    named = {command.name for command in app.registered_commands} | {group.name for group in app.registered_groups}
    assert named == {command.split()[1] for command in COMMANDS}


def test_the_two_commands_are_in_the_makefile():
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"^make (\w+)", README, re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE)


def test_the_tree_names_every_module():
    tree = next(block for _, block in BLOCKS if block.startswith("turbovaed_cli/"))
    for path in (ROOT / "turbovaed_cli").rglob("*.py"):
        if path.name != "__init__.py":
            assert re.search(rf"\b{path.name}\b", tree), path
    for name in re.findall(r"\b\w+\.(?:py|sh)\b", tree):
        assert list(ROOT.glob(f"*/{name}")) or list(ROOT.glob(f"*/*/{name}")) or list(ROOT.glob(f"turbovaed_cli/**/{name}")), name


def test_python_blocks_run(tmp_path, videos):
    """On a real clip, with the embedded pair."""
    for kind, block in BLOCKS:
        if kind == "python":
            script = (
                block.replace('"in.mp4"', repr(str(videos / "a.mp4")))
                .replace("frames=17", "frames=9")
                .replace("(256, 256)", "(64, 64)")
            )
            script += "\nassert decoded.shape == streamed.shape == (1, 3, 9, 64, 64) and not decoded.requires_grad"
            script += "\nassert not streamed.requires_grad and torch.allclose(streamed, decoded, atol=1e-4)\n"
            subprocess.run([sys.executable, "-c", script], check=True, cwd=tmp_path)


def test_the_registry_table_is_the_registry():
    from turbovaed_cli.registry.rows import MODELS

    for spec in MODELS.values():
        row = next(line for line in README.splitlines() if line.startswith(f"| `{spec.name}`"))
        assert f"{spec.teacher.decoder_params_m:.1f} M" in row and f"{spec.student.params_m:.1f} M" in row
        assert f"{spec.teacher.time_ratio}x{spec.teacher.space_ratio}x{spec.teacher.space_ratio}" in row


def test_the_lines_that_make_pipeline_latents_raw_do_so():
    """Those marked `py`: they need a pipeline's latents, which are made here by diffusers' own code."""
    import torch
    from diffusers import LTXPipeline

    from turbovaed_cli import load_student

    (lines,) = [block for kind, block in BLOCKS if kind == "py"]
    student, raw, (t, h, w) = load_student("tiny"), torch.randn(1, 32, 3, 4, 5), (3, 4, 5)
    normalised = LTXPipeline._normalize_latents(raw, student.latents_mean, student.latents_std, student.config.scaling_factor)
    names = {"packed": LTXPipeline._pack_latents(normalised), "student": student, "t": t, "h": h, "w": w}
    exec(lines, names)
    assert torch.allclose(names["latents"], raw, atol=1e-5)
