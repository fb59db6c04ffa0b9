"""Whole optimizer steps of full-size networks on a fake CUDA device: devices, peaks of memory, launches, default runs in 20 GB, hours."""

import pytest
from fake_cuda import training
from fake_cuda.child import marked, run_cases, run_selected
from fake_cuda.memory import (
    BOUND_GB,
    HOUR_COLUMNS,
    IN_FULL,
    PAGE,
    STEP_COLUMNS,
    recipe_of,
    recipes_on_page,
    rows_of,
    table_of,
)

from turbovaed_cli.models.design import cost_of
from turbovaed_cli.registry.rows import MODELS
from turbovaed_cli.training.recipes import RECIPES
from turbovaed_cli.training.schedule import crop_of

# Operations that the same steps dispatched before weights were stepped together: 5889 and 5359.
MOST_OPS = {"ltx bf16 ssim": 3500, "ltx bf16 ssim cached": 3200}


# Default runs of models that differ, in `make test`; those of all models take minutes and are in `make faults`.
SELECTED = ("tiny", "wan2.1")
LEFT_OUT = {run: model for run, model in training.DEFAULT_RUNS.items() if model not in SELECTED}
# Steps whose kind the others have, for `make test-all`.
MORE = (
    "ltx fp16 everything checkpointed adamw", "cogvideox fp16 features teacher pixels", "tiny bf16 no perceptual loss adamw",
)  # fmt: skip
CASES = [case for case in training.CASES if case not in LEFT_OUT]


@pytest.fixture(scope="module")
def results(request):
    return run_selected(request, "training", CASES, MORE)


@pytest.mark.parametrize("case", marked((case for case in CASES if case not in training.CONTROLS), MORE))
def test_it_runs_on_the_device_alone_and_within_its_memory(case, results):
    results[case].check()


@pytest.mark.parametrize("case", training.CONTROLS)
def test_a_fault_is_seen(case, results):
    """The controls of the tests above."""
    assert training.CONTROLS[case][1] in (results[case].error or "")


def test_lpips_takes_hardly_more_memory_than_ssim(results):
    lpips, ssim = (results[f"ltx bf16 {name}"].check()["peak_gb"] for name in ("lpips", "ssim"))
    assert ssim < lpips < 1.3 * ssim


@pytest.mark.parametrize("case", MOST_OPS)
def test_a_step_launches_three_fifths_of_what_it_did(case, results):
    assert 1000 < results[case].check()["num_ops"] < MOST_OPS[case]


@pytest.mark.parametrize("model", MODELS)
def test_the_page_of_peaks_has_every_model_with_its_own_recipe_and_below_the_bound(model):
    rows = rows_of(PAGE.read_text(encoding="utf-8"))
    assert {recipe for name, recipe, _ in rows if name == model} == set(recipes_on_page(model))
    parts = {part: gb for (name, recipe, part), gb in rows.items() if (name, recipe) == (model, recipe_of(model))}
    settings = RECIPES[recipe_of(model)]
    start = {"start"} if settings.start == "fitted" and model in IN_FULL else set()
    assert parts.keys() == {stage.name for stage in settings.stages} | {"sample", "save"} | start
    assert all(0 < gb < BOUND_GB for gb in parts.values()), parts


def check_the_page(model, result):
    rows = rows_of(PAGE.read_text(encoding="utf-8"))
    for part, gb in result.check()["peaks_gb"].items():
        assert rows[model, recipe_of(model), part] == pytest.approx(gb, rel=0.03, abs=0.02), part


@pytest.mark.parametrize("model", SELECTED)
def test_the_page_of_peaks_has_the_figures_of_default_runs(model, results):
    check_the_page(model, results[f"default run of {model}"])


@pytest.mark.faults
@pytest.mark.parametrize("run", LEFT_OUT)
def test_so_it_has_of_every_other_model(run, request):
    """Each in a process of its own, as all together would take longer than a hang."""
    if not request.config.getoption("--all-faults"):
        pytest.skip("full-size networks, a minute for some: make faults")
    check_the_page(LEFT_OUT[run], run_cases("training", run)[run])


def test_the_page_of_hours_has_every_stage_of_every_models_own_recipe():
    rows = {(model, stage): steps for model, stage, steps, *_ in table_of(PAGE.read_text(encoding="utf-8"), STEP_COLUMNS)}
    stages = {model: RECIPES[recipe_of(model)].stages for model in MODELS}
    assert rows == {(model, stage.name): f"{stage.steps:,}" for model in MODELS for stage in stages[model]}


@pytest.mark.parametrize("model", MODELS)
def test_tflop_of_a_student_are_three_or_four_times_those_of_its_decode(model):
    """Forward, and backward for inputs and for weights; with checkpointing forward twice. By a count of its own (models/design.py)."""
    row, settings = MODELS[model], RECIPES[recipe_of(model)]
    frames = row.teacher.latent_frames(row.teacher.frames.at_least(settings.frames))
    counted = {
        cells[1]: float(cells[4]) for cells in table_of(PAGE.read_text(encoding="utf-8"), STEP_COLUMNS) if cells[0] == model
    }
    for stage in settings.stages:
        crop = crop_of(stage, row.teacher, settings.size)
        height, width = (side // row.teacher.space_ratio for side in (crop.pixels if crop else settings.size))
        decode = cost_of(row.student.config, (frames, height, width)).gflops / 1e3
        passes = (4 if stage.gradient_checkpointing else 3) * stage.batch_size * stage.accumulation
        assert counted[stage.name] == pytest.approx(decode * passes, rel=0.05), stage.name


@pytest.mark.parametrize("model", MODELS)
def test_hours_are_those_of_all_steps_at_two_fifths_of_a_cards_peak(model):
    text = PAGE.read_text(encoding="utf-8")
    (row,) = (cells for cells in table_of(text, HOUR_COLUMNS) if cells[0] == model)
    assert row[1] == recipe_of(model)
    steps = [cells for cells in table_of(text, STEP_COLUMNS) if cells[0] == model]
    whole, encoder = (sum(int(cells[2].replace(",", "")) * float(cells[at]) for cells in steps) for at in (-1, -2))
    tflop = [whole + encoder, whole - encoder]  # the encoder at half the rate, or none
    for text, work, rate in zip(row[2:], tflop * 2, (66.0, 66.0, 395.6, 395.6), strict=True):
        number, unit = text.strip("*").split()
        hours = float(number) * {"h": 1, "days": 24}[unit]
        assert hours == pytest.approx(work / rate / 3600, rel=0.06 if unit == "h" else 0.3, abs=0.5 if hours >= 10 else 0)
        assert text.startswith("**") == (work / rate / 3600 > 12)
