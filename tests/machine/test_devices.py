"""What is said of the machine is so: peaks of memory, and what torch.compile needs."""

import errno
import shutil
import threading

import pytest
import torch

from turbovaed_cli.errors import TurboVaedError, UnavailableError
from turbovaed_cli.machine.devices import check_compiler, forget_peak, has_tf32, is_out_of_memory, peak_mb, tf32

CPU = torch.device("cpu")


def test_a_peak_is_seen_after_it_is_gone_and_forgotten_when_asked():
    forget_peak(CPU)
    before = peak_mb(CPU)
    if before is None:
        pytest.skip("this system does not tell")
    torch.ones(50_000_000)  # 200 MB, freed at once
    assert peak_mb(CPU) > before + 150
    forget_peak(CPU)
    assert peak_mb(CPU) < before + 150


def test_compiling_without_a_compiler_is_refused_with_what_to_do(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(UnavailableError, match=r"C\+\+ compiler") as error:
        check_compiler(CPU)
    assert "leave out `compile`" in error.value.hint
    monkeypatch.setattr(shutil, "which", lambda name: "/opt/clang++" if name == "clang++" else None)
    check_compiler(CPU)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of 23.64 GiB"),
        RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("FIND was unable to find an engine to execute this computation"),
        RuntimeError("MPS backend out of memory (MPS allocated: 18.10 GB, other allocations: 1.10 GB, max allowed: 18.13 GB)."),
        RuntimeError("[Errno 2] DefaultCPUAllocator: not enough memory: you tried to allocate 4000000000 bytes."),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
        MemoryError(),
    ],
)
def test_every_way_of_running_out_of_memory_is_recognised(error):
    assert is_out_of_memory(error)


def test_a_real_allocation_that_fails_is_recognised_also_as_the_cause_of_another_error():
    with pytest.raises(RuntimeError) as refused:
        torch.empty(10**15)
    assert is_out_of_memory(refused.value)
    with pytest.raises(TurboVaedError) as raised_from:
        raise TurboVaedError("the piece was not decoded") from refused.value
    assert is_out_of_memory(raised_from.value)
    with pytest.raises(KeyError) as while_handling:
        _fail_while_handling(refused.value)
    assert is_out_of_memory(while_handling.value)


def _fail_while_handling(error):
    try:
        raise error
    except RuntimeError:
        raise KeyError("cleaning up")  # noqa: B904


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu!"),
        RuntimeError("CUDA error: invalid device ordinal"),
        ValueError("CUDA out of memory"),  # no allocator raises this type
        OSError(errno.ENOSPC, "No space left on device"),
        KeyboardInterrupt(),
    ],
)
def test_other_errors_are_not_taken_for_too_little_memory(error):
    assert not is_out_of_memory(error)


def test_errors_that_name_each_other_as_their_cause_end_the_search():
    one, other = RuntimeError("one"), RuntimeError("other")
    one.__cause__, other.__cause__ = other, one
    assert not is_out_of_memory(one)


def flags():
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    return cudnn.allow_tf32, matmul.allow_tf32, cudnn.enabled, cudnn.benchmark, cudnn.deterministic


@pytest.fixture
def no_tf32():
    """The flags as `resolve_device` leaves them on a machine with a GPU."""
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = flags()
    cudnn.allow_tf32, matmul.allow_tf32, cudnn.deterministic = False, False, True
    yield
    cudnn.allow_tf32, matmul.allow_tf32, _, _, cudnn.deterministic = before


@pytest.mark.parametrize(
    ("device", "dtype", "capability", "expected"),
    [
        ("cuda", torch.float32, (8, 0), True),
        ("cuda:1", torch.float32, (12, 0), True),
        ("cuda", torch.float32, (7, 5), False),
        ("cuda", torch.bfloat16, (9, 0), False),
        ("cuda", torch.float64, (9, 0), False),
        ("mps", torch.float32, None, False),
        ("cpu", torch.float32, None, False),
    ],
)
def test_tf32_is_for_fp32_on_the_gpus_that_have_it(device, dtype, capability, expected, monkeypatch):
    asked = []
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: asked.append(str(device)) or capability)
    assert has_tf32(torch.device(device), dtype) == expected
    assert asked in ([], [device])
    monkeypatch.setattr(torch.version, "hip", "6.4")  # on AMD GPUs, which torch calls cuda
    assert not has_tf32(torch.device(device), dtype)


def test_tf32_is_on_inside_alone_whatever_happens_there(no_tf32):
    before = flags()
    assert before[:2] == (False, False)
    with tf32():
        with tf32():
            assert flags() == (True, True, *before[2:])
        assert flags() == (True, True, *before[2:])
    assert flags() == before
    with pytest.raises(ValueError, match="inside"), tf32():
        raise ValueError("inside")
    assert flags() == before


def test_threads_take_turns_in_tf32(no_tf32):
    """Else the one that leaves last would restore what it found inside the other."""
    entered, seen = threading.Event(), []

    def enter():
        with tf32():
            entered.set()
            seen.append(flags()[:2])

    thread = threading.Thread(target=enter)
    with tf32():
        thread.start()
        assert not entered.wait(0.2)
        assert flags()[:2] == (True, True)
    thread.join()
    assert seen == [(True, True)] and flags()[:2] == (False, False)
