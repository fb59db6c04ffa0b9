"""The form of a decode on a GPU is chosen by a trial: here of students on a CPU, with `can_choose` patched, or of stand-ins."""

import json
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
import torch
from members import NAMED, built
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from turbovaed_cli.errors import SettingsError
from turbovaed_cli.models import gpu_form
from turbovaed_cli.models.gpu_form import (
    FUSED,
    GRAPHS,
    LAYOUT,
    MODULES,
    VARIABLE,
    GpuDecoder,
    can_choose,
    decode_on_gpu,
    relative_error,
    tried,
)  # fmt: skip
from turbovaed_cli.models.streaming import FastDecoder, StreamingDecoder

CPU = torch.device("cpu")
VIDEO = torch.rand(1, 3, 4, 8, 8) * 2 - 1


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """No choice is known."""
    monkeypatch.setenv("TURBOVAED_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setattr(gpu_form, "_IN_MEMORY", {})
    return tmp_path / "cache"


@pytest.fixture
def on_gpu(monkeypatch):
    """The CPU passes for a GPU, on which the forms take the time of `taken` and nothing is captured."""
    monkeypatch.setattr(gpu_form, "can_choose", lambda *_: True)
    taken = {MODULES: 4.0, LAYOUT: 3.0, FUSED: 2.0}
    asked = []

    def tried_without_a_clock(forms, device):
        asked.append(list(forms))
        for name in taken.keys() & forms.keys():
            forms[name]()()
        return gpu_form.Choice(min(taken.keys() & forms.keys(), key=lambda name: taken[name]), dict(taken))

    monkeypatch.setattr(gpu_form, "tried", tried_without_a_clock)
    return taken, asked


def form(seconds=0.0, video=VIDEO, error=None):
    def decode():
        time.sleep(seconds)
        if error:
            raise error
        return video

    return lambda: decode


def test_the_fastest_form_is_chosen_and_times_are_kept():
    choice = tried({MODULES: form(0.03), LAYOUT: form(0.02), FUSED: form(0.005), GRAPHS: form(0.01)}, CPU)
    assert choice.form == FUSED and choice.ms[FUSED] < choice.ms[GRAPHS] < choice.ms[LAYOUT] < choice.ms[MODULES]
    assert choice.notes == [] and str(choice).startswith("fused (modules 3")


def test_a_later_form_has_to_be_clearly_faster(monkeypatch):
    times = iter((100.0, 98.0, 96.0))
    monkeypatch.setattr(gpu_form, "_milliseconds", lambda *_: next(times))
    assert tried({MODULES: form(), LAYOUT: form(), FUSED: form()}, CPU).form == FUSED
    times = iter((100.0, 98.0, 97.5))
    assert tried({MODULES: form(), LAYOUT: form(), FUSED: form()}, CPU).form == MODULES


def test_a_form_that_fails_or_differs_is_left_out_with_a_note():
    wrong, broken = VIDEO.clone(), VIDEO.clone()
    wrong[:, :, 2] += 0.1
    broken[0, 0, 3, 0, 0] = torch.nan
    choice = tried(
        {MODULES: form(0.01), LAYOUT: form(video=wrong), FUSED: form(error=RuntimeError("no kernel\nmore")), GRAPHS: form(video=broken)},
        CPU,
    )  # fmt: skip
    assert choice.form == MODULES and set(choice.ms) == {MODULES}
    assert "channels-last is left out: its video differs" in choice.notes[0]
    assert choice.notes[1] == "fused is left out: RuntimeError: no kernel" and "graphs is left out" in choice.notes[2]


def test_rounding_of_half_precision_is_no_difference():
    rounded = VIDEO.bfloat16()
    other = (VIDEO * (1 + 0.03 * torch.randn_like(VIDEO))).bfloat16()
    assert set(tried({MODULES: form(video=rounded), FUSED: form(video=other)}, CPU).ms) == {MODULES, FUSED}
    assert set(tried({MODULES: form(video=rounded.float()), FUSED: form(video=other.float())}, CPU).ms) == {MODULES}


def test_the_modules_may_be_the_ones_that_fail():
    full = torch.OutOfMemoryError("CUDA out of memory")
    assert tried({MODULES: form(error=full), LAYOUT: form()}, CPU).form == LAYOUT
    with pytest.raises(torch.OutOfMemoryError):
        tried({MODULES: form(error=full), LAYOUT: form(error=RuntimeError("no"))}, CPU)


def test_the_relative_error_is_over_all_frames():
    wanted = torch.ones(1, 3, 2, 4, 4)
    made = wanted.clone()
    made[:, :, 1] = 1.5
    assert relative_error(made, wanted) == pytest.approx((0.25 / 2) ** 0.5)
    assert relative_error(wanted * 0, wanted * 0) == 0 and relative_error(wanted, wanted * 0) == 1


def test_a_clip_is_decoded_by_the_chosen_form_and_its_shape_is_tried_once(on_gpu, cache):
    student = built(NAMED["8x8x8"], dtype=torch.float32)
    taken, asked = on_gpu
    with torch.no_grad():
        for seed in range(2):
            latents = torch.randn(1, 4, 2, 2, 2, generator=torch.Generator().manual_seed(seed))
            assert (decode_on_gpu(student, latents) - student(latents)).abs().max() <= 1e-4
        assert asked == [[MODULES, LAYOUT, FUSED, GRAPHS]] and set(student.ready()._forms) == {FUSED}
        decode_on_gpu(student, latents[:, :, :1])
        assert len(asked) == 2  # another shape
        taken[MODULES] = 1.0
        assert torch.equal(decode_on_gpu(student, latents[..., :1]), student(latents[..., :1]))
    assert len(list(cache.iterdir())) == 3


def test_a_stream_takes_the_form_that_was_chosen_for_its_pieces(on_gpu):
    student = built(NAMED["8x8x8"], dtype=torch.float32)
    latents = torch.randn(1, 4, 6, 2, 2)
    _, asked = on_gpu
    with torch.no_grad():
        for _ in range(2):
            stream = StreamingDecoder(student)
            made = torch.cat([*map(stream.push, latents.split(2, dim=2)), stream.finish()], dim=2)
            assert (made - student(latents)).abs().max() <= 1e-4
    assert asked == [[LAYOUT, FUSED, GRAPHS]] and student.ready().choices["stream"].form == FUSED
    (*_, stage) = [stage for stage in student.ready().for_pieces(latents[:, :, :2]).stages() if hasattr(stage, "prepare")]
    assert type(stage.prepare).__name__ == "FusedPreparation"


def test_memory_that_is_planned_leaves_streams_as_they_are(on_gpu, tmp_path):
    student = built(NAMED["images"], dtype=torch.float32)
    for options in ({"rows": 1}, {"spill": tmp_path}):
        stream = StreamingDecoder(student, **options)
        stream.push(torch.randn(1, 4, 2, 2, 2))
    assert on_gpu[1] == []


def test_the_choice_is_kept_in_the_cache_folder(on_gpu, cache, monkeypatch):
    student = built(NAMED["8x8x8"], dtype=torch.float32)
    latents = torch.randn(1, 4, 2, 2, 2)
    _, asked = on_gpu

    def again():
        monkeypatch.setattr(gpu_form, "_IN_MEMORY", {})  # as another process
        with torch.no_grad():
            decode_on_gpu(student, latents)
        return len(asked)

    assert again() == 1 and again() == 1
    (path,) = cache.glob("gpu-form-*.json")
    document = json.loads(path.read_text())
    assert document["form"] == FUSED and document["ms"][MODULES] == 4.0 and document["key"]["shape"] == [1, 4, 2, 2, 2]
    assert {"device", "student", "dtype", "torch", "triton", "cudnn", "turbovaed"} <= document["key"].keys()
    for damage in ("{", '{"form": "other", "ms": {}, "notes": []}', '{"form": "fused", "ms": "fast", "notes": []}'):
        path.write_text(damage)
        before = len(asked)
        assert again() == before + 1 and json.loads(path.read_text())["form"] == FUSED


def test_without_a_place_for_a_file_the_choice_is_kept_in_memory(on_gpu, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    student, latents = built(NAMED["8x8x8"], dtype=torch.float32), torch.randn(1, 4, 2, 2, 2)
    for place in ({"TURBOVAED_CACHE": str(tmp_path / "file")}, {"TURBOVAED_CACHE": "", "XDG_CACHE_HOME": "", "HOME": "~"}):
        for name, value in place.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(gpu_form, "_IN_MEMORY", {})
        before = len(on_gpu[1])
        monkeypatch.chdir(tmp_path)
        with torch.no_grad():
            for _ in range(2):
                decode_on_gpu(student, latents)
        assert len(on_gpu[1]) == before + 1
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_the_choice_depends_on_all_that_can_change_it(monkeypatch):
    student, other, same = (built(NAMED[name], seed, torch.float32) for name, seed in (("8x8x8", 0), ("images", 0), ("8x8x8", 1)))
    latents = torch.zeros(1, 4, 2, 2, 2)
    keys = [
        student.ready()._key("whole", latents),
        student.ready()._key("stream", latents),
        student.ready()._key("whole", latents[:, :, :1]),
        other.ready()._key("whole", latents),
        GpuDecoder(student, torch.bfloat16)._key("whole", latents),
    ]
    with torch.backends.cudnn.flags(allow_tf32=not torch.backends.cudnn.allow_tf32):
        keys.append(student.ready()._key("whole", latents))
    monkeypatch.setattr(gpu_form, "_triton_version", lambda: "0.1")
    monkeypatch.setattr(torch, "__version__", "0.2")
    keys.append(student.ready()._key("whole", latents))
    assert len({json.dumps(key, sort_keys=True) for key in keys}) == len(keys)
    assert same.ready()._key("whole", latents) == keys[-1]  # not on its weights


@pytest.mark.parametrize("name", [MODULES, LAYOUT, FUSED])
def test_the_variable_names_a_form_and_nothing_is_tried(name, on_gpu, monkeypatch, cache):
    monkeypatch.setenv(VARIABLE, name)
    student, latents = built(NAMED["8x8x8"], dtype=torch.float32), torch.randn(1, 4, 4, 2, 2)
    with torch.no_grad():
        wanted = student(latents)
        assert (decode_on_gpu(student, latents) - wanted).abs().max() <= 1e-4
        stream = StreamingDecoder(student)
        made = torch.cat([*map(stream.push, latents.split(2, dim=2)), stream.finish()], dim=2)
        assert (made - wanted).abs().max() <= 1e-4
    assert on_gpu[1] == [] and not cache.exists()
    assert student.ready().choices["whole"].form == name
    assert set(student.ready()._forms) == {LAYOUT if name == MODULES else name}  # modules do not stream


def test_a_named_form_may_be_the_compiled_one(on_gpu, monkeypatch):
    monkeypatch.setenv(VARIABLE, "compiled")
    seen = []
    monkeypatch.setattr(gpu_form, "_compiled_forward", lambda: lambda student, latents: seen.append(student) or student(latents))
    student = built(NAMED["images"], dtype=torch.float32)
    with torch.no_grad():
        decode_on_gpu(student, torch.randn(1, 4, 2, 2, 2))
    assert seen == [student]


def test_another_name_is_refused_with_the_names_there_are(on_gpu, monkeypatch):
    monkeypatch.setenv(VARIABLE, "grafs")
    with pytest.raises(SettingsError) as refused, torch.no_grad():
        decode_on_gpu(built(NAMED["images"], dtype=torch.float32), torch.randn(1, 4, 2, 2, 2))
    assert refused.value.what == "TURBOVAED_GPU_FORM grafs is unknown"
    assert refused.value.hint == "did you mean graphs? one of: auto, modules, channels-last, fused, graphs, compiled"


def test_the_switch_of_a_student_comes_first(on_gpu, monkeypatch):
    """`fast = False`: modules, and streams in the layout alone."""
    monkeypatch.setattr(type(built(NAMED["images"])), "decodes_fast", False)
    student, latents = built(NAMED["images"], dtype=torch.float32), torch.randn(1, 4, 2, 2, 2)
    student.fast = False
    with torch.no_grad():
        assert torch.equal(student.decode(latents).sample, student(latents))
        StreamingDecoder(student).push(latents)
    assert on_gpu[1] == [] and type(student.ready()) is FastDecoder
    student.fast = None
    with torch.no_grad():
        student.decode(latents)
    assert len(on_gpu[1]) == 1
    with_gradients = student.decode(latents).sample
    assert with_gradients.requires_grad and len(on_gpu[1]) == 1


def test_a_student_whose_weights_are_offloaded_decodes_by_its_modules(on_gpu, monkeypatch):
    """As `enable_model_cpu_offload` does: a form would be made again for every clip."""
    student, latents = built(NAMED["images"], dtype=torch.float32), torch.randn(1, 4, 2, 2, 2)
    monkeypatch.setattr(type(student), "decodes_fast", False)
    student._hf_hook = SimpleNamespace(pre_forward=lambda module: module)
    with torch.no_grad():
        assert torch.equal(student.decode(latents).sample, student(latents))
    assert on_gpu[1] == [] and student.fast_form_of is None


def test_a_decoded_clip_leaves_no_buffers(on_gpu):
    student, latents = built(NAMED["8x8x8"], dtype=torch.float32), torch.randn(1, 4, 2, 2, 2)
    with torch.no_grad():
        for _ in range(2):
            decode_on_gpu(student, latents)
            (form,) = student.ready()._forms.values()
            assert form.scratch.blocks() == []


def test_nothing_is_tried_without_a_gpu_or_contents():
    cuda, latents = torch.device("cuda"), torch.zeros(1)
    assert not can_choose(CPU, latents) and not can_choose(torch.device("mps"), latents)
    with FakeTensorMode():
        assert not can_choose(cuda, torch.zeros(1))
    fake = FakeTensorMode().from_tensor(latents)
    assert not can_choose(cuda, fake)
    with FlopCounterMode(display=False):
        assert not can_choose(cuda, latents)


def test_a_gpu_with_contents_is_tried(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    assert can_choose(torch.device("cuda"), torch.zeros(1))
    for where, name in (
        (torch.cuda, "is_current_stream_capturing"),
        (torch, "is_autocast_enabled"),
        (torch.compiler, "is_compiling"),
    ):
        with monkeypatch.context() as patched:
            patched.setattr(where, name, lambda *_: True)
            assert not can_choose(torch.device("cuda"), torch.zeros(1))


def test_a_student_that_is_dropped_takes_its_forms_along(on_gpu):
    """A trial leaves nothing that keeps a student's weights alive."""
    script = """
import gc, weakref, torch
from members import NAMED, built
from turbovaed_cli.models import gpu_form
gpu_form.can_choose = lambda *_: True
gc.disable()
student = built(NAMED["images"], dtype=torch.float32)
latents = torch.randn(1, 4, 2, 2, 2)
with torch.no_grad():
    gpu_form.decode_on_gpu(student, latents)
    student.stream().push(latents)
weight = weakref.ref(student.ready()._kernels[0])
gone = weakref.ref(student)
del student
assert gone() is None and weight() is None
"""
    import os

    done = subprocess.run(
        [sys.executable, "-c", script], env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}, check=False
    )
    assert done.returncode == 0
