"""Offloading to a fake CUDA device: the teacher's decoder does not enter it, the student does, for the decode alone."""

import pytest
from fake_cuda import pipelines
from fake_cuda.child import run_cases


@pytest.fixture(scope="module")
def results():
    return run_cases("pipelines")


@pytest.mark.parametrize("case", pipelines.CASES)
def test_models_are_where_they_should_be(case, results):
    results[case].check()
