"""`distill --hours`: timed steps set the length of every stage once, and a resume keeps it."""

import json
import re
from dataclasses import asdict, replace

import pytest
import torch
from test_distill import TINY, Notes, trainer_of

from turbovaed_cli.errors import RunFolderError, SettingsError
from turbovaed_cli.machine.ranks import Ranks
from turbovaed_cli.registry.find import find_model
from turbovaed_cli.reporting import quiet
from turbovaed_cli.runs.rundir import RunDir
from turbovaed_cli.settings import DistillSettings, Stage
from turbovaed_cli.training import length
from turbovaed_cli.training.distill import distill, estimate_distill
from turbovaed_cli.training.estimate import forecast, timed_steps
from turbovaed_cli.training.length import SHARE_OF_STEPS, scaled_to_hours, seconds_per_step, stages_in_hours, with_lengths
from turbovaed_cli.training.recipes import as_toml, read_changes, read_recipe
from turbovaed_cli.training.schedule import learning_rate

LONG, SHORT = Stage("long", steps=3000, warmup_steps=300, lr_schedule="cosine"), Stage("short", steps=1000, warmup_steps=20)
TWO = DistillSettings((LONG, SHORT), hours=1.0)
SECONDS = (0.2, 0.4)  # of a step of each stage of QUICK, in place of what this machine takes
QUICK = replace(
    TINY,
    stages=(
        Stage("a", steps=30, accumulation=1, crop=(32, 32), warmup_steps=3, perceptual="none", feature_weight=0.0),
        Stage("b", steps=10, accumulation=1, crop=(32, 32), perceptual="none", feature_weight=0.0),
    ),
    sample_every=0,
)


def steps_of(stages) -> list[int]:
    return [stage.steps for stage in stages]


@pytest.mark.parametrize("hours", [0.01, 0.5, 1.0, 24.0])
def test_stages_fill_the_hours_and_keep_their_shares_of_the_time(hours):
    seconds = (0.2, 1.5)
    stages = scaled_to_hours(replace(TWO, hours=hours), seconds)
    spent = [stage.steps * time for stage, time in zip(stages, seconds, strict=True)]
    asked = hours * 3600 * SHARE_OF_STEPS
    assert asked - 2 * sum(seconds) < sum(spent) <= asked + max(seconds)
    assert spent[0] / sum(spent) == pytest.approx(3000 * 0.2 / (3000 * 0.2 + 1000 * 1.5), abs=max(seconds) / sum(spent))


def test_warm_up_and_decay_scale_with_a_stage():
    """The learning rate is the same at the same share of a stage."""
    stages = scaled_to_hours(replace(TWO, hours=8.0), (0.2, 1.5))
    factor = stages[0].steps / LONG.steps
    assert factor > 10 and [stage.warmup_steps for stage in stages] == [round(300 * factor), round(20 * factor)]
    for step in (29, 100, 299, 300, 1500, 2900):
        assert learning_rate(stages[0], round((step + 1) * factor) - 1) == pytest.approx(learning_rate(LONG, step), rel=0.05)


def test_hours_that_are_too_short_say_what_a_step_takes():
    with pytest.raises(
        SettingsError, match=r"`hours` 0\.001 is too short for recipe own: a step of each stage takes 13 s"
    ) as error:
        scaled_to_hours(replace(TWO, hours=0.001), (10.0, 3.0))
    assert "raise `hours`" in error.value.hint


def test_timing_changes_no_bit_of_the_run(ltx_teacher, videos, small_student, tmp_path):
    """Nor the state of torch's random numbers."""
    trainer = trainer_of(find_model(ltx_teacher), videos, replace(QUICK, workers=2), tmp_path, small_student)
    before, random, stages = trainer.state.digest(), torch.get_rng_state(), trainer.settings.stages
    notes = Notes()
    assert seconds_per_step(trainer, 1, notes) > 0 and notes.notes == ["`hours`: timing some steps of stage b"]
    assert trainer.state.digest() == before and torch.equal(torch.get_rng_state(), random)
    assert trainer.settings.stages == stages and trainer.state.step == 0


def test_the_slowest_rank_sets_the_length_for_all(ltx_teacher, videos, small_student, tmp_path):
    """Here the other ranks are slower in every stage; test_ranks.py has two real ones."""
    trainer = trainer_of(find_model(ltx_teacher), videos, QUICK, tmp_path, small_student)
    trainer.settings = replace(trainer.settings, hours=1.0)

    class Among(Ranks):
        def most(self, values):
            return [max(value, peer) for value, peer in zip(values, (5.0, 20.0), strict=True)]

    trainer.ranks = Among(1, 0, 0, torch.device("cpu"))
    assert steps_of(stages_in_hours(trainer, quiet)) == steps_of(scaled_to_hours(trainer.settings, (5.0, 20.0)))


@pytest.fixture(scope="module")
def finished(ltx_teacher, videos, small_student, tmp_path_factory):
    """A run of 0.001 hours, 3.6 s, at SECONDS per step, and the arguments that it began with."""
    spec, run = find_model(ltx_teacher), tmp_path_factory.mktemp("hours") / "run"
    arguments = {"data": videos, "settings": replace(QUICK, hours=0.001), "student_config": small_student}
    notes = Notes()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(length, "seconds_per_step", lambda trainer, index, report: SECONDS[index])
        distill(spec, run, **arguments, report=notes)
    return spec, run, arguments, notes


def test_the_steps_are_recorded_and_told_before_the_first(finished):
    _, run, _, notes = finished
    settings = json.loads((run / "config.json").read_text())["settings"]
    steps = [stage["steps"] for stage in settings["stages"]]
    assert settings["hours"] == 0.001 and steps == [10, 3] and RunDir(run).steps()[-1] == 13
    assert "recipe own in 0.001 hours: 13 steps see 13 clips (a 10, b 3)" in notes.notes


def test_a_resume_keeps_the_steps_without_timing_anything(finished):
    spec, run, arguments, _ = finished
    before = (run / "config.json").read_bytes()
    notes = Notes()
    result = distill(spec, run, **arguments, report=notes)
    assert result.resumed_from == result.step == RunDir(run).steps()[-1]
    assert not any("timing" in text for text in notes.notes) and (run / "config.json").read_bytes() == before


@pytest.mark.parametrize(
    ("change", "said", "hint"),
    [
        (
            {"hours": 8.0},
            r"with `hours` 0\.001, which set its \d+ steps; a resume cannot change them to `hours` 8$",
            "`hours` 0.001",
        ),
        ({"steps": 50}, r"with `hours` 0\.001, which set its \d+ steps; a resume cannot change them$", "without `steps`"),
    ],
)
def test_a_resume_with_another_length_is_refused(change, said, hint, finished):
    spec, run, arguments, _ = finished
    other = arguments | {"settings": arguments["settings"].with_changes(**change)}
    for command in (distill, estimate_distill):
        with pytest.raises(RunFolderError, match=said) as error:
            command(spec, run, **other)
        assert hint in error.value.hint and "`init`" in error.value.hint


def test_a_run_of_steps_does_not_go_on_in_hours(ltx_teacher, videos, small_student, tmp_path):
    RunDir(tmp_path / "run").snapshot({"settings": asdict(QUICK)}, {})
    with pytest.raises(
        RunFolderError, match=r"was started without `hours`, with 40 steps; a resume cannot .* to `hours` 2"
    ) as error:
        trainer_of(find_model(ltx_teacher), videos, replace(QUICK, hours=2.0), tmp_path, small_student)
    assert "leaving out `hours`" in error.value.hint


def test_a_resume_with_another_warm_up_is_still_seen(ltx_teacher, videos, small_student, tmp_path):
    """The recorded one is that of the scaled schedule, so the same recipe comes to the same."""
    settings = replace(QUICK, hours=1.0)
    recorded = replace(settings, stages=with_lengths(settings.stages, [300, 100]))
    RunDir(tmp_path / "run").snapshot({"settings": asdict(recorded)}, {})
    again = trainer_of(find_model(ltx_teacher), videos, settings, tmp_path, small_student).settings.stages
    assert [(stage.steps, stage.warmup_steps) for stage in again] == [(300, 30), (100, 0)]
    other = settings.with_changes(warmup_steps=6)
    assert trainer_of(find_model(ltx_teacher), videos, other, tmp_path, small_student).settings.stages[0].warmup_steps == 60


def test_hours_and_steps_are_one_or_the_other():
    with pytest.raises(SettingsError, match="`hours` and `steps` both set the length"):
        TWO.with_changes(hours=2.0, steps=10)
    assert TWO.with_changes(steps=10).hours == 0 and TWO.with_changes(lr=1.0).hours == 1.0


def test_hours_are_a_field_of_a_recipe_file(tmp_path):
    (tmp_path / "own.toml").write_text(as_toml(replace(TWO, recipe="own", hours=2.5)))
    assert read_recipe(str(tmp_path / "own.toml")).hours == 2.5
    assert read_changes(["hours=3"]) == {"hours": 3.0}


def test_a_dry_run_has_the_steps_in_hours_the_time_of_each_stage_and_its_price(
    ltx_teacher, cache, small_student, tmp_path, monkeypatch
):
    monkeypatch.setattr(length, "seconds_per_step", lambda trainer, index, report: SECONDS[index])
    arguments = {"latents": cache, "settings": replace(QUICK, hours=0.5), "student_config": small_student}
    found = estimate_distill(find_model(ltx_teacher), tmp_path / "run", **arguments, dollars_per_hour=2.5)
    assert [stage.steps for stage in found.stages] == [5238, 1746] and found.steps == 5238 + 1746
    for stage in found.stages:
        assert stage.hours == pytest.approx(stage.steps * stage.seconds_per_step / 3600)
    assert found.hours == pytest.approx(found.seconds / 3600) == pytest.approx(sum(stage.hours for stage in found.stages))
    assert found.dollars == pytest.approx(2.5 * found.hours)
    assert not (tmp_path / "run").exists()


def test_timed_steps_are_those_after_the_untimed(ltx_teacher, videos, small_student, tmp_path):
    trainer = trainer_of(find_model(ltx_teacher), videos, QUICK, tmp_path, small_student)
    seconds, share = timed_steps(trainer, 2, 1, 3)
    assert trainer.state.step == 6 and seconds > 0 and 0 <= share <= 1
    trainer.settings = replace(trainer.settings, hours=1.0)
    assert forecast(trainer).startswith("recipe own in 1 hour: 40 steps see 40 clips")


@pytest.fixture
def words(finished, tmp_path):
    """The command of `finished`, without hours, for the shell."""
    spec, run, arguments, _ = finished
    (tmp_path / "own.toml").write_text(as_toml(QUICK))
    (tmp_path / "student.json").write_text(json.dumps(arguments["student_config"]))
    sources = ("--teacher", spec.teacher.where, "--data", arguments["data"], "--student-config", tmp_path / "student.json")
    return ("distill", *sources, "--run", run, "--recipe", tmp_path / "own.toml", "--device", "cpu")


def test_the_command_keeps_the_hours_of_a_run_unless_it_gives_others(words, turbovaed):
    code, _, err = turbovaed(*words)
    assert code == 0 and "resumed from step 13" in err
    for options, said in (
        (("--hours", 3), "--hours 0.001, which set its 13 steps; a resume cannot change them to --hours 3\n"),
        (("--steps", 30), "--hours 0.001, which set its 13 steps; a resume cannot change them\n"),
        (("--steps", 30, "--hours", 3), "--hours and --steps both set the length"),
        (("--hours", -1), "--hours is -1.0; it must be at least 0"),
    ):
        code, out, err = turbovaed(*words, *options)
        assert code == 2 and out == "" and said in err, err


def test_a_price_is_for_a_dry_run(words, turbovaed, monkeypatch, tmp_path):
    for price, options, said in ((2.5, (), "--dollars-per-hour is for --dry-run"), (-1, ("--dry-run",), "must be at least 0")):
        code, out, err = turbovaed(*words, "--dollars-per-hour", price, *options)
        assert code == 2 and out == "" and said in err, err
    monkeypatch.setattr(length, "seconds_per_step", lambda trainer, index, report: SECONDS[index])
    monkeypatch.setenv("COLUMNS", "80")
    new = (*words, "--run", tmp_path / "new", "--hours", 0.5, "--dry-run", "--dollars-per-hour", 2.5)
    code, out, err = turbovaed(*new)
    assert code == 0, err
    assert re.search(r"steps left +clips a step +s a step +hours +waiting +memory MB\na +5238 +1 +[\d.]+ +\d+\.\d\d ", out), out
    assert re.search(
        r"steps +6984, for --hours 0\.5\ntime +about .* on this cpu, \d+\.\d\d hours\ncost +\$\d+\.\d\d at \$2\.50 per hour", out
    ), out
    assert not (tmp_path / "new").exists() and max(map(len, out.splitlines())) <= 80
