"""The same on a fake Apple GPU, where a float64 tensor is an error."""

import pytest
from fake_cuda import apple
from fake_cuda.child import marked, run_selected

MORE = ("tiny fp16 ssim adamw", "ltx bf16 ssim features cached", "hunyuan channels last fp32")


@pytest.fixture(scope="module")
def results(request):
    return run_selected(request, "apple", apple.CASES, MORE, kind="mps")


@pytest.mark.parametrize("case", marked((case for case in apple.CASES if case not in apple.CONTROLS), MORE))
def test_it_runs_on_the_device_alone_and_without_float64(case, results):
    results[case].check()


@pytest.mark.parametrize("case", apple.CONTROLS)
def test_float64_is_seen(case, results):
    """The control of the test above."""
    assert apple.CONTROLS[case][1] in (results[case].error or "")
