"""Options: made from settings classes, read strictly, completed by the shell, and named in errors as they are typed."""

import shlex
import tomllib
from dataclasses import fields, replace
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from turbovaed_cli.choices import check_choice
from turbovaed_cli.cli import console
from turbovaed_cli.cli.app import app
from turbovaed_cli.cli.exits import command
from turbovaed_cli.cli.help import HelpfulCommand, flags_by_name
from turbovaed_cli.cli.options import RecipeChanges
from turbovaed_cli.errors import SettingsError
from turbovaed_cli.registry.members import members_of, name_of_member
from turbovaed_cli.registry.rows import MODELS
from turbovaed_cli.settings import (
    BenchSettings,
    CacheSettings,
    DistillSettings,
    EvalSettings,
    ExportSettings,
    ReconstructSettings,
    Stage,
)
from turbovaed_cli.training.recipes import RECIPES, as_toml, read_changes, read_recipe

# What scripts of earlier versions may use.
FLAGS = {
    "bench": "--apple-team --compare --compile --config --data --device --dtype --fail-under --frames --hdr --ios-project --json --latents "
    "--latents-are --latents-shape --layout --memory-frames --model --no-teacher --overwrite --quiet --repeats --report --seed --size "
    "--target --teacher --threads --verbose --warmup --yes -q -v",
    "cache-latents": "--batch-size --clips-per-video --data --device --dry-run --dtype --frames --hdr --json --max-failures --merge --out "
    "--precise --quiet --retry-failed --shard --shard-mb --size --status --stride --teacher --verbose --workers --yes -q -v",
    "distill": "--accumulation --adversarial-weight --batch-size --compile --crop --data --device --dry-run --dtype --ema-decay "
    "--feature-weight --frames --gflops --gradient-checkpointing --hdr --init --json --latents --licence --log --lr --lr-schedule --nproc "
    "--optimizer --params --perceptual --perceptual-weight --posterior --precise --quiet --recipe --run --sample-every --save-every --seed "
    "--size --start --steps --stride --student-config --teacher --teacher-weight --val --verbose --warmup-steps --workers --yes -q -v",
    "env": "--json",
    "eval": "--clips-per-video --compare --config --data --dataset --device --dtype --fail-under --frames --hdr --i3d --i3d-sha256 --json "
    "--lpips-weights --metrics --model --overwrite --protocol --quiet --report --size --speed --stride --teacher --verbose --yes -q -v",
    "export": "--chunk --config --data --dtype --format --frames --hdr --json --latents --latents-are --latents-shape --layout --model --out "
    "--overwrite --quiet --seed --size --states --teacher --verbose --yes -q -v",
    "models design": "--frames --gflops --json --params --size",
    "models list": "--json",
    "models pull": "--json --quiet --verbose --yes -q -v",
    "models show": "--json",
    "models": "--json",
    "reconstruct": "--bits --codec --compare --config --crf --device --dtype --fast --fps --hdr --json --latents-are --latents-shape --memory "
    "--model --no-fast --out --overlap --overwrite --quiet --sound --teacher --verbose --window --yes -q -v",
    "runs": "--json --quiet -q",
    "version": "--json",
}


def _command(words: str):
    found = typer.main.get_command(app)
    for word in words.split():
        found = found.commands[word]
    return found


@pytest.mark.parametrize("words", FLAGS)
def test_every_flag_of_earlier_versions_is_there(words):
    flags = {flag for param in _command(words).params for flag in (*param.opts, *param.secondary_opts)}
    assert set(FLAGS[words].split()) - flags == set()


def _read(kind, line: str):
    """What a command with the options of a settings class gets from a command line."""
    taken = []

    def take(*, settings: kind) -> None:
        taken.append(settings)

    one = typer.Typer()
    one.command(cls=HelpfulCommand)(command(take))
    one(shlex.split(line), standalone_mode=False)
    return taken[0]


@pytest.mark.parametrize(
    "kind", [BenchSettings, CacheSettings, EvalSettings, ExportSettings, ReconstructSettings], ids=lambda kind: kind.__name__
)
def test_without_options_settings_have_their_defaults(kind):
    assert _read(kind, "") == kind()


@pytest.mark.parametrize(
    ("kind", "line", "wanted"),
    [
        (
            ReconstructSettings,
            "--memory 4GB --no-fast --bits 10 --crf 0 --latents-shape 1x2x3 --device cuda:1",
            {"memory": 4 * 10**9, "fast": False, "bits": 10, "crf": 0, "latents_shape": (1, 2, 3), "device": "cuda:1"},
        ),
        (ReconstructSettings, "--fast", {}),
        (
            EvalSettings,
            "--size 640x480 --metrics psnr,ssim --lpips-weights a,b --lpips-weights c --i3d d",
            {"size": (480, 640), "metrics": ("psnr", "ssim"), "lpips_weights": (Path("a,b"), Path("c")), "i3d": Path("d")},
        ),
        (
            ExportSettings,
            "--size 256,720p --dtype fp16,int8 --chunk 4 --states",
            {"sizes": ((256, 256), (704, 1280)), "precisions": ("fp16", "int8"), "chunk": 4, "states": True},
        ),
        (
            BenchSettings,
            "--target onnx --target torch --layout 5d,4d-sum --memory-frames 17,33 --device iphone:Lab",
            {"targets": ("onnx", "torch"), "layouts": ("5d", "4d-sum"), "memory_frames": (17, 33), "device": "iphone:Lab"},
        ),
        (CacheSettings, "--max-failures 0 --precise", {"max_failures": 0, "precise": True}),
        (
            RecipeChanges,
            "--lr 0.1 --crop 64x32 --compile --log wandb,tensorboard",
            {"lr": 0.1, "crop": (32, 64), "compile": True, "log": ("wandb", "tensorboard")},
        ),
    ],
)
def test_options_become_settings(kind, line, wanted):
    assert _read(kind, line) == (RecipeChanges(wanted) if kind is RecipeChanges else replace(kind(), **wanted))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            "--set weight_decy=1",
            "error: --set weight_decy=1: no setting is called weight_decy\nhint: did you mean weight_decay or",
        ),
        ("--set weight_decay=much", "--set weight_decay=much is not a number"),
        ("--set keep_checkpoints=1.5", "keep_checkpoints=1.5 is not a whole number"),
        ("--set compile=perhaps", "is not true or false"),
        ("--set betas=0.9", "is not 2 numbers"),
        ("--set weight_decay", "is not NAME=VALUE"),
        ("--set start=fited", "--set start=fited is unknown\nhint: did you mean fitted?"),
        ("--set device=gpu", "did you mean cuda?"),
        ("--set name=x", "no setting is called name"),
        ("--set eps=1 --set eps=2", "eps is set twice"),
        ("--set lr=1 --lr 1", "set the same"),
        ("--set optimizer=adamw", "give --lr too"),
        ("--steps 0", "error: --steps is 0; it must be at least 1\nhint: raise --steps, or take --recipe quick"),
    ],
)
def test_a_change_of_a_recipe_that_is_wrong_is_refused(turbovaed, words, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, err = turbovaed("distill", "--data", ".", "--recipe", "quick", *words.split())
    assert (code, out) == (2, "") and said in err, err
    assert list(tmp_path.iterdir()) == []


def test_set_changes_any_field_of_a_recipe():
    changes = read_changes(
        ["lr_end=0.5", "betas=0.8,0.9", "crop=64x32", "log=wandb,trackio", "fit_batch=on", "keep-checkpoints=7"]
    )
    settings = RECIPES["night"].with_changes(**changes)
    assert (settings.betas, settings.fit_batch, settings.keep_checkpoints) == ((0.8, 0.9), True, 7)
    assert settings.log == ("wandb", "trackio")
    assert all((stage.lr_end, stage.crop) == (0.5, (32, 64)) for stage in settings.stages)
    for kind in (Stage, DistillSettings):  # every field can be set to its default
        for one in fields(kind):
            if one.name not in ("name", "stages", "recipe") and isinstance(one.default, bool | int | float | str):
                text = str(one.default)
                assert read_changes([f"{one.name}={text}"]) == {one.name: one.default}


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_as_toml_is_the_same_recipe(recipe, tmp_path):
    (tmp_path / "mine.toml").write_text(as_toml(RECIPES[recipe]))
    assert read_recipe(str(tmp_path / "mine.toml")) == RECIPES[recipe]


def test_the_shown_recipe_is_the_one_that_would_run(turbovaed, tmp_path, monkeypatch):
    """With every change; what is printed is a recipe, whose own is the same."""
    monkeypatch.chdir(tmp_path)
    changes = ("--steps", "30", "--crop", "64x32", "--set", "eps=1e-7", "--log", "wandb", "--batch-size", "2")
    code, out, err = turbovaed("distill", "--teacher", "ltx", *changes, "--show-recipe")
    assert (code, err) == (0, "")
    shown = tomllib.loads(out)
    assert (shown["eps"], shown["log"], shown["fit_batch"]) == (1e-7, ["wandb"], False)
    assert sum(stage["steps"] for stage in shown["stages"]) == 30
    assert all((stage["crop"], stage["batch_size"]) == ([32, 64], 2) for stage in shown["stages"])
    Path("mine.toml").write_text(out)
    assert turbovaed("distill", "--recipe", "mine.toml", "--show-recipe")[1] == out
    assert '"eps": 1e-07' in turbovaed("distill", "--recipe", "mine.toml", "--show-recipe", "--json")[1]
    assert [path.name for path in tmp_path.iterdir()] == ["mine.toml"]


def students_of(*teachers):
    """The names of these teachers, and of all their students."""
    return {name_of_member(name, member) for name in teachers for member in members_of(MODELS[name])}


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ("distill --teacher l", students_of("ltx", "ltx0.9.5", "ltx2", "ltx2.3", "ltx2.5")),
        ("eval --model ru", {"runs/", "runs/mine"}),
        ("eval --model runs/m", {"runs/mine/"}),
        ("eval --model hun", students_of("hunyuan", "hunyuan1.5")),
        ("export --format onnx,core", {"onnx,coreml", "onnx,coreai"}),
        ("distill --recipe n", {"night", "night-480", "night-images"}),
        ("distill --recipe o", {"own.toml"}),
        ("eval --metrics ps", {"psnr"}),
        ("bench --target torch,li", {"torch,litert"}),
        ("reconstruct --dtype bf", {"bf16"}),
        ("models show vid", students_of("video-dc-ae")),
        ("models pull lp", {"lpips-vgg", "lpips-alex"}),
        ("distill --set weight", {"weight_decay="}),
        ("cache-latents --hdr t", {"tonemap"}),
    ],
)
def test_a_shell_completes_values(line, wanted, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "mine").mkdir(parents=True)
    (tmp_path / "runs" / "mine" / "config.json").write_text('{"schema_version": 1, "settings": {}}')
    (tmp_path / "own.toml").touch()
    words = f"turbovaed {line}"
    monkeypatch.setenv("_TURBOVAED_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", words)
    monkeypatch.setenv("COMP_CWORD", str(len(words.split()) - 1))
    done = CliRunner().invoke(app, prog_name="turbovaed")
    assert done.exit_code == 0 and set(done.output.split()) == wanted


def test_errors_name_arguments_and_the_terminal_prints_options(capsys):
    console.call_arguments(flags_by_name(_command("reconstruct")) | flags_by_name(_command("export")))
    try:
        for text, shown in {
            "`crf` is 99": "--crf is 99",
            "give `latents_are=raw`": "give --latents-are raw",
            "add `overwrite=True`": "add --overwrite",
            "`fast=False` or `fast=True`": "--no-fast or --fast",
            "leave out `precisions`, or `dtype=fp32`": "leave out --dtype, or --dtype fp32",
            "`nothing_of_ours` and `a b` stay": "`nothing_of_ours` and `a b` stay",
        }.items():
            assert console.in_flags(text) == shown
        console.print_error(SettingsError("`crf` is 99", "give `crf=16`"))
        console.warn("`data` is empty")
        console.ConsoleReporter().note("`seed` is 0")
        assert capsys.readouterr().err == "error: --crf is 99\nhint: give --crf 16\nwarning: --data is empty\n--seed is 0\n"
    finally:
        console.call_arguments({})
    assert console.in_flags("`crf` is 99") == "`crf` is 99"


def test_in_python_errors_name_arguments():
    with pytest.raises(SettingsError, match=r"^`sound` loud is unknown$"):
        check_choice("`sound`", "loud", ("keep", "drop"))


def test_the_names_to_choose_from_are_those_there_are():
    """They are known before torch is loaded, and used for help."""
    from turbovaed_cli import choices, settings
    from turbovaed_cli.benchmarking.targets.table import targets
    from turbovaed_cli.evaluation.scores import PROTOCOLS
    from turbovaed_cli.export.formats.table import exporters
    from turbovaed_cli.machine import devices
    from turbovaed_cli.metrics import METRICS
    from turbovaed_cli.training import fitted_start, trackers
    from turbovaed_cli.video.codecs import VIDEO_CODECS

    assert tuple(exporters()) == settings.FORMATS
    assert tuple(targets()) == settings.TARGETS
    assert {name for row in (exporters() | targets()).values() for name in row.precisions} == set(settings.PRECISIONS)
    assert tuple(devices.DTYPES) == choices.DTYPES
    assert (tuple(METRICS), tuple(PROTOCOLS), tuple(VIDEO_CODECS)) == (choices.METRIC_NAMES, settings.PROTOCOLS, settings.CODECS)
    assert (fitted_start.STARTS, tuple(trackers.TRACKERS)) == (settings.STARTS, settings.TRACKERS)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["models", "design", "ltx", "--params", "8M", "--size", "foo"], "--size foo is not a size"),
        (["models", "design", "ltx", "--params", "10"], "or give another --student-config FILE"),  # an option of distill
        (["bench", "--target", ","], "--target names nothing"),
        (["export", "--size", "", "--out", "x"], "--size names nothing"),
        (["distill", "--data", ".", "--set", "steps=5", "--steps", "10"], "--set steps and --steps set the same"),
        (["distill", "--data", ".", "--set", "crop=foo"], "--set crop=foo: foo is not a size"),
        (["distill", "--data", ".", "--log", "tensorboard, wand"], "--log wand is unknown"),
    ],
)
def test_messages_name_options_of_any_command_and_empty_lists_are_refused(words, said, turbovaed, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, err = turbovaed(*words)
    assert code == 2 and said in err and out == "" and "Traceback" not in err


def test_arguments_are_options_in_tables_and_documents_too(capsys):
    """A recipe's field without an option of its own is --set NAME."""
    from turbovaed_cli.cli import console
    from turbovaed_cli.cli.table import print_table

    console.call_arguments({"clips_per_video": "--clips-per-video", "weight_decay": "--set weight_decay"})
    try:
        print_table("", ["what", "why"], [("rFVD", "more `clips_per_video`, please")])
        console.print_json({"why": "`clips_per_video` is 1", "`other`": "`weight_decay=0`"})
        out = capsys.readouterr().out
    finally:
        console.call_arguments({})
    assert "more --clips-per-video, please" in out
    assert '"--clips-per-video is 1"' in out and '"--set weight_decay=0"' in out and "`other`" in out
