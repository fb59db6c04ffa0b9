"""Whole optimizer steps of full-size networks on a fake CUDA device: devices, peaks of memory, launches, and default runs in 20 GB."""

import pytest
from fake_cuda import training
from fake_cuda.child import run_cases
from fake_cuda.memory import BOUND_GB, PAGE, recipe_of, recipes_of, rows_of

from turbovaed_cli.registry.rows import MODELS

# Operations that the same steps dispatched before weights were stepped together: 5889 and 5359.
MOST_OPS = {"ltx bf16 ssim": 3500, "ltx bf16 ssim cached": 3200}


@pytest.fixture(scope="module")
def results():
    return run_cases("training")


@pytest.mark.parametrize("case", [case for case in training.CASES if case not in training.CONTROLS])
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


def test_the_page_of_peaks_has_every_model_and_recipe_and_the_figures_of_default_runs(results):
    rows = rows_of(PAGE.read_text(encoding="utf-8"))
    assert {(model, recipe) for model, recipe, _ in rows} == {(model, recipe) for model in MODELS for recipe in recipes_of(model)}
    for model in MODELS:
        recipe = recipe_of(model)
        for part, gb in results[f"default run of {model}"].check()["peaks_gb"].items():
            assert rows[model, recipe, part] == pytest.approx(gb, rel=0.03, abs=0.02), (model, part)
        assert all(gb < BOUND_GB for (name, of, _), gb in rows.items() if (name, of) == (model, recipe))
