"""What differs between a run and its resume is said in options and units, the telling ones first."""

import json
from dataclasses import asdict, fields

import pytest

from turbovaed_cli.files.changes import Change, arrow, differences, in_words, shortened
from turbovaed_cli.settings import DistillSettings, Stage
from turbovaed_cli.training.recipes import RECIPES, RESUMABLE_CHANGES
from turbovaed_cli.training.resume import ONLY_IN_RECIPES, free_run, in_options

QUICK = RECIPES["quick"]


def config(settings=QUICK, command_line="", **more):
    found = {
        "command_line": command_line,
        "settings": asdict(settings),
        "model": "ltx",
        "teacher": {"where": "ltx", "weights_sha256": "a" * 64},
        "student_config": {"decoder_block_out_channels": [48, 64], "patch_size": 4},
        "data_fingerprint": "1",
        "init_sha256": None,
    }
    return json.loads(json.dumps(found | more))


def said(before, now):
    changes = [change for change in differences(before, now) if change.field not in RESUMABLE_CHANGES]
    return in_options(changes, before, now)


def test_a_recipe_is_named_once_and_not_by_all_that_it_sets():
    before = config(QUICK.with_changes(size=(128, 128)), "turbovaed distill --recipe quick --size 128 --params 2M")
    student = {"decoder_block_out_channels": [64, 128], "patch_size": 2}
    now = config(RECIPES["fast"], "turbovaed distill", student_config=student)
    assert said(before, now) == ["recipe: quick -> fast", "`size` 128x128 -> 256x256", "`params` 2M -> none"]


def test_settings_are_options_in_their_units_and_what_no_option_sets_has_its_name_in_recipes():
    now = QUICK.with_changes(
        size=(64, 96), ema_decay=0.5, lr=0.1, crop=(32, 48), crop_latents=8, clip_grad_norm=2.0, compile=True
    )
    assert said(config(), config(now)) == [
        "`size` 256x256 -> 96x64", "clip_grad_norm: 1 -> 2", "`ema_decay` 0.99 -> 0.5", "`compile` off -> on", "`crop` none -> 48x32",
        "crop_latents: 12 -> 8", "`lr` 0.002 -> 0.1",
    ]  # fmt: skip


def test_precise_is_a_change_only_if_it_is_on_in_one_of_two_runs():
    """The config.json of an earlier version does not have it."""
    earlier = config()
    del earlier["settings"]["precise"]
    assert said(earlier, config()) == []
    assert said(earlier, config(QUICK.with_changes(precise=True))) == ["`precise` none -> on"]
    assert said(config(QUICK.with_changes(precise=True)), config()) == ["`precise` on -> off"]


def test_a_stage_is_named_where_others_did_not_change():
    stages = (Stage("first", steps=5), Stage("second", steps=5, lr=0.1))
    before = DistillSettings(stages)
    one = DistillSettings((stages[0], Stage("second", steps=5, lr=0.2)))
    assert said(config(before), config(one)) == ["stage second: `lr` 0.1 -> 0.2"]
    assert said(config(before), config(before.with_changes(posterior="mean"))) == ["`posterior` sample -> mean"]
    like_a_preset = DistillSettings((stages[0], Stage("second", steps=5, lr=0.3)), recipe="quick")  # as quick.toml is called
    assert said(config(like_a_preset), config(RECIPES["fast"]))[0] == "recipe: quick -> fast"
    assert said(config(before), config(DistillSettings(stages[:1]))) == ["stages: first 5, second 5 -> first 5"]


def test_another_teacher_hides_what_follows_from_it_and_data_and_students_are_named():
    other = config(model="tiny", teacher={"where": "tiny", "weights_sha256": "b" * 64}, student_config={"patch_size": 1})
    assert said(config(), other) == ["`teacher` ltx -> tiny"]
    weights = config(teacher={"where": "ltx", "weights_sha256": "b" * 64})
    assert said(config(), weights) == ["weights of the teacher: aaaaaaaaaaaa -> bbbbbbbbbbbb"]
    assert said(config(), config(data_fingerprint="2")) == ["the contents of `data` or `latents` differ"]
    lines = ["turbovaed distill --data 'my clips'", "turbovaed distill --latents=cache --init ltx"]
    before, now = config(command_line=lines[0]), config(command_line=lines[1], data_fingerprint="2", init_sha256="c")
    assert said(before, now) == ["`data` my clips -> none", "`latents` none -> cache", "`init` none -> ltx"]
    assert said(config(), config(init_sha256="c")) == ["the student of `init` differs"]
    student = config(student_config={"decoder_block_out_channels": [48, 32], "patch_size": 4})
    assert said(config(), student) == ["student's decoder_block_out_channels: 48,64 -> 48,32"]
    assert said(config(command_line="turbovaed 'torn"), config(command_line="x", data_fingerprint="2")) != []


def test_no_value_is_python():
    values = [None, True, 1e-4, [1, 2], [[1, 2], [3]], {"frames": 9, "size": [64, 96]}, "text", []]
    assert [in_words(value) for value in values] == [
        "none",
        "on",
        "0.0001",
        "1,2",
        "1,2,3",
        "frames 9, size 96x64",
        "text",
        "none",
    ]
    assert arrow("`size`", [64, 96], None, "size") == "`size` 96x64 -> none" and arrow("recipe", "a", "b") == "recipe: a -> b"
    assert Change("settings.stages.2.lr", 1, 2).field == "lr"
    assert shortened(list("abc"), 2) == "a; b; and 1 more (-v lists them)" and shortened(["a"], 2) == "a"


def test_every_option_that_a_change_names_exists(capsys, monkeypatch):
    from turbovaed_cli import cli

    monkeypatch.setenv("COLUMNS", "300")
    monkeypatch.setattr("sys.argv", ["turbovaed", "distill", "--help-all"])
    with pytest.raises(SystemExit):
        cli.main()
    text = capsys.readouterr().out
    names = {field.name for kind in (DistillSettings, Stage) for field in fields(kind)} - ONLY_IN_RECIPES
    assert [name for name in sorted(names) if f"--{name.replace('_', '-')} " not in text] == []


def test_a_free_run_is_the_next_that_is_not_there(tmp_path):
    for name in ("ltx", "ltx-2", "a-7", "a b"):
        (tmp_path / name).mkdir()
    assert free_run(tmp_path / "ltx") == f"`run` {tmp_path}/ltx-3"
    assert free_run(tmp_path / "a-7") == f"`run` {tmp_path}/a-8"
    assert free_run(tmp_path / "a b") == f"`run` '{tmp_path}/a b-2'"
    assert free_run("s3://bucket/runs/ltx") == "another `run`"
