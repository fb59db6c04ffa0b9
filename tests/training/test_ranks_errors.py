"""What one of several processes raises is called by its name: a peer that has gone, no way to join, or its own trouble."""

import os
import socket
import subprocess
import sys

import pytest
import torch
from torch import distributed

from turbovaed_cli.errors import LostRankError, UnavailableError
from turbovaed_cli.machine.ranks import _could_not_join, _lost

GLOO = "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:34251"
OWN = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    NotImplementedError("Could not run 'aten::nothing' with arguments from the 'CUDA' backend."),
    RuntimeError("Expected all tensors to be on the same device"),
]


@pytest.mark.parametrize("error", OWN, ids=lambda error: str(error)[:20])
def test_trouble_of_this_process_is_not_taken_for_a_lost_one(error):
    with pytest.raises(type(error)) as found, _lost():
        raise error
    assert found.value is error


@pytest.mark.parametrize("error", [RuntimeError(GLOO), distributed.DistBackendError("NCCL error: remote process exited")])
def test_a_peer_that_has_gone_is_lost_in_its_words(error):
    with pytest.raises(LostRankError, match=r"has gone \(") as found, _lost():
        raise error
    assert str(error) in found.value.what and "the same command goes on" in found.value.hint


def test_what_stops_processes_from_joining_is_no_lost_process():
    for error in (distributed.DistNetworkError("failed to bind"), RuntimeError(GLOO), ValueError("RANK expected")):
        with pytest.raises(LostRankError, match="could not join the 2 that train together") as found, _could_not_join(2):
            raise error
        assert "checkpoint" not in found.value.hint
    with pytest.raises(UnavailableError, match="RTX 4000") as found, _could_not_join(2):
        raise NotImplementedError("Using RTX 4000 series doesn't support faster communication broadband via P2P or IB.")
    assert "NCCL_P2P_DISABLE=1" in found.value.hint
    with pytest.raises(torch.OutOfMemoryError), _could_not_join(2):
        raise OWN[0]


def test_a_port_that_is_taken_ends_the_command_with_could_not_join(tmp_path):
    """A real set-up error, of torch's own store."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        several = {
            "RANK": "0",
            "LOCAL_RANK": "0",
            "WORLD_SIZE": "2",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(taken.getsockname()[1]),
        }
        words = ["distill", "--latents", str(tmp_path), "--run", str(tmp_path / "run"), "--device", "cpu"]
        done = subprocess.run(
            [sys.executable, "-m", "turbovaed_cli", *words], env=os.environ | several, capture_output=True, text=True, check=False
        )
    assert done.returncode == 1, done.stderr
    what, hint = done.stderr.strip().splitlines()[-2:]
    assert what.startswith("error: this process could not join the 2 that train together (") and "MASTER_PORT" in hint
    assert not (tmp_path / "run").exists()
