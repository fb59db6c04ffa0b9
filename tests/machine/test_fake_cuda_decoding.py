"""Encoding, every form of decoding, samples and the metrics of `eval` of full-size networks on a fake CUDA device."""

import pytest
from fake_cuda import decoding
from fake_cuda.child import marked, run_selected

MORE = (
    "hunyuan plain bf16", "hunyuan channels last fp16", "cogvideox channels last bf16",
    *(f"{model} windows" for model in ("hunyuan", "cogvideox", "wan2.1")),
)  # fmt: skip


@pytest.fixture(scope="module")
def results(request):
    return run_selected(request, "decoding", decoding.CASES, MORE)


@pytest.mark.parametrize("case", marked(decoding.CASES, MORE))
def test_it_runs_on_the_device_alone(case, results):
    results[case].check()
