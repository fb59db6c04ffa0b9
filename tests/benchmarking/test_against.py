"""Bench puts further decoders beside a student: rows of their own, on the same latents."""

import sys

import pytest
from trio import write_trio

from turbovaed_cli.benchmarking import child
from turbovaed_cli.benchmarking.bench import _Asked, _decoders_of, _memory_over_length, bench
from turbovaed_cli.errors import SettingsError
from turbovaed_cli.models.pair import load_pair
from turbovaed_cli.reporting import quiet
from turbovaed_cli.settings import BenchSettings

SMALL = {"frames": 9, "size": (32, 32), "warmup": 1, "repeats": 2}


@pytest.fixture(scope="module")
def trio(tmp_path_factory):
    return write_trio(tmp_path_factory.mktemp("trio"))


def test_memory_is_that_of_forms_that_each_decoder_has(trio, monkeypatch):
    """The work of the processes that measure it, done in this one."""
    settings, teacher = BenchSettings(("torch",), memory_frames=(9,), **SMALL), str(trio.teacher)
    pair = load_pair(str(trio.student), teacher, against=[str(trio.flash), teacher], with_teacher=False)
    job = {"decoders": _decoders_of(pair, _Asked(str(trio.student), teacher)), "teacher": teacher}
    monkeypatch.setattr(
        sys.modules["turbovaed_cli.benchmarking.bench"], "peak_in_child", lambda job, of: (child._memory_of_length(job, of), [])
    )
    forms = {row.form: row.peak_mb for row in _memory_over_length(job, settings, quiet)}
    kinds = ("whole clip", "streamed")
    assert list(forms) == [*kinds, *(f"flash.safetensors, {kind}" for kind in kinds), "vae, whole clip"]  # a VAE does not stream
    assert all(peak is not None for peak in forms.values())
    assert child._memory_of_length({**job, "memory": ["whole clip", 9], "of": "teacher"}, settings) is not None


@pytest.mark.thorough
def test_a_rival_is_a_model_too(trio):
    measured = bench(str(trio.flash), BenchSettings(("torch",), teacher=False, **SMALL), teacher=str(trio.teacher))
    (row,) = measured.rows
    assert row.network == "student" and row.measured and row.psnr_db > 90 and measured.params > 100_000


def test_a_model_is_not_put_beside_itself(trio):
    with pytest.raises(SettingsError, match="twice"):
        bench(str(trio.student), BenchSettings(("torch",), **SMALL), teacher=str(trio.teacher), against=[str(trio.student)])
