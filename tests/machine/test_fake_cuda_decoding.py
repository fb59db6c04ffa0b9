"""Encoding, every form of decoding, samples and the metrics of `eval` of full-size networks on a fake CUDA device."""

import pytest
from fake_cuda import decoding
from fake_cuda.child import run_cases


@pytest.fixture(scope="module")
def results():
    return run_cases("decoding")


@pytest.mark.parametrize("case", decoding.CASES)
def test_it_runs_on_the_device_alone(case, results):
    results[case].check()
