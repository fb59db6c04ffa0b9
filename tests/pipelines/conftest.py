"""One thread, and no warnings of diffusers about parts that a tiny pipeline leaves out."""

import logging

import pytest
import torch

pytest.importorskip("transformers", reason="diffusers has no pipelines without it: pip install transformers")
logging.getLogger("diffusers").setLevel(logging.ERROR)


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    """Tensors are so small that a second thread only costs."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
