"""Killed anywhere, a distillation resumes to the very bits of one that was never stopped."""

import json
import os
import signal
import subprocess
import sys
import time
import typing
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from limits import HANG_S
from safetensors.torch import load_file

from turbovaed_cli.errors import CorruptFileError, RunFolderError, TurboVaedError
from turbovaed_cli.machine.signals import stop_requests
from turbovaed_cli.models.loading import load_student
from turbovaed_cli.registry.find import find_model
from turbovaed_cli.runs.rundir import RunDir
from turbovaed_cli.settings import DistillSettings
from turbovaed_cli.stage import Stage
from turbovaed_cli.training import state as training_state
from turbovaed_cli.training.distill import distill
from turbovaed_cli.training.recipes import RECIPES, read_recipe
from turbovaed_cli.training.resume import machine_changes
from turbovaed_cli.training.trainer import Trainer

# Three stages: what a checkpoint holds, and where a stage ends, must not be seen in the weights.
RECIPE = """
ema_decay = 0.9
discriminator_channels = 8
dtype = "fp32"
[[stages]]
name = "reconstruct"
steps = 2
accumulation = 2
perceptual = "none"
lr = 0.01
lr_schedule = "cosine"
[[stages]]
name = "crops"
steps = 2
accumulation = 1
batch_size = 2
crop = [32, 64]
perceptual = "none"
lr = 0.005
[[stages]]
name = "adversarial"
steps = 2
accumulation = 2
perceptual = "none"
teacher_weight = 0.5
adversarial_weight = 0.05
lr = 0.005
"""


@pytest.fixture(scope="module")
def recipe(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("recipe") / "three.toml"
    path.write_text(RECIPE)
    return path


@pytest.fixture(scope="module")
def settings(recipe) -> DistillSettings:
    return read_recipe(str(recipe)).with_changes(frames=9, size=(64, 64), save_every=1, sample_every=0)


class StopsAfter:
    """Watches a run and throws after so many steps, as a Ctrl-C would that came a moment after a checkpoint."""

    class Stopped(Exception):
        pass

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def track(self, items, label, total=None, start=0):
        for count, item in enumerate(items):
            if label == "distilling" and count == self.steps:
                raise self.Stopped
            yield item

    def note(self, text="", **values):
        pass


def everything(run: Path, step: int = 6) -> dict[str, torch.Tensor]:
    """Every tensor of the last checkpoint and of model/."""
    found = {}
    for path in [*(run / "checkpoints" / f"step_{step:07d}").glob("*.safetensors"), *(run / "model").glob("*.safetensors")]:
        found |= {f"{path.parent.name}/{path.stem}/{name}": value for name, value in load_file(path).items()}
    return found


def differing(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> list[str]:
    assert a.keys() == b.keys()
    return [name for name in a if not torch.equal(a[name], b[name])]


@pytest.fixture(scope="module")
def teach(ltx_teacher, cache, small_student, settings):
    """Distil into a folder, all the way or for some steps; the same call resumes."""

    def teach(run: Path, steps: int | None = None, settings: DistillSettings = settings):
        arguments = {"latents": cache, "settings": settings, "student_config": small_student}
        if steps is None:
            return distill(find_model(ltx_teacher), run, **arguments)
        with pytest.raises(StopsAfter.Stopped):
            distill(find_model(ltx_teacher), run, **arguments, report=StopsAfter(steps))
        return None

    return teach


@pytest.fixture(scope="module")
def uninterrupted(teach, tmp_path_factory):
    run = tmp_path_factory.mktemp("uninterrupted") / "run"
    teach(run)
    return everything(run)


def test_a_causal_student_that_is_aligned_with_its_teacher_resumes_to_the_same_bits(ltx_teacher, cache, small_student, tmp_path):
    """One with cheap convolutions and patches at its end."""
    kinds = {"decoder_conv_types": ("2+1d", "depthwise", "2+1d", "3d", "2+1d"), "decoder_tail": "patches"}
    stage = Stage("only", steps=2, accumulation=1, lr=0.01, perceptual="none", feature_weight=0.1)
    arguments = {
        "latents": cache, "settings": DistillSettings((stage,), save_every=1, sample_every=0, dtype="fp32"),
        "student_config": small_student | kinds | {"decoder_causal": True},
    }  # fmt: skip
    spec, whole, halves = find_model(ltx_teacher), tmp_path / "whole", tmp_path / "halves"
    losses = distill(spec, whole, **arguments).losses
    with pytest.raises(StopsAfter.Stopped):
        distill(spec, halves, **arguments, report=StopsAfter(1))
    distill(spec, halves, **arguments)
    assert differing(everything(whole, 2), everything(halves, 2)) == []
    assert load_student(whole).config.decoder_causal and any("feature" in name for name in losses)


CARD = {"device": "cuda", "cuda": "NVIDIA L4", "cuda_runtime": "13.0", "cudnn": "9.19.0", "packages": {"torch": "2.13.0"}}


@pytest.mark.parametrize(
    ("now", "said"),
    [
        ({}, []),
        ({"device": "cuda:1"}, []),  # another of several equal cards
        ({"driver": "580.95.05", "gpus": 8}, []),
        ({"cuda": "NVIDIA L40S"}, ["GPU: NVIDIA L4 -> NVIDIA L40S"]),
        ({"cudnn": "9.20.0", "cuda_runtime": "13.2"}, ["CUDA: 13.0 -> 13.2", "cuDNN: 9.19.0 -> 9.20.0"]),
        ({"packages": {"torch": "2.14.0"}}, ["torch: 2.13.0 -> 2.14.0"]),
        ({"device": "cpu", "cuda": None}, ["device: cuda -> cpu"]),
    ],
)
def test_another_card_or_cudnn_is_a_change_of_machine(now, said):
    assert machine_changes(CARD, CARD | now) == said


def test_of_runs_on_a_cpu_and_of_earlier_versions_what_is_known_counts():
    on_cpu = CARD | {"device": "cpu"}
    assert machine_changes(on_cpu, on_cpu | {"cuda": "NVIDIA L40S", "cudnn": None}) == []
    assert machine_changes(on_cpu, on_cpu | {"packages": {"torch": "2.14.0"}}) == ["torch: 2.13.0 -> 2.14.0"]
    earlier = {"cuda": "NVIDIA L4", "packages": {"torch": "2.13.0"}}
    assert machine_changes(earlier, CARD) == [] and machine_changes({"packages": []}, CARD) == []
    assert machine_changes(earlier, CARD | {"cuda": "NVIDIA L40S"}) == ["GPU: NVIDIA L4 -> NVIDIA L40S"]


def test_a_resume_on_another_machine_warns_and_goes_on(teach, settings, ltx_teacher, cache, small_student, tmp_path):
    run = RunDir(tmp_path / "run")
    teach(run.root, 1)
    env = json.loads(run.env.read_text())
    assert env["device"] == "cpu" and env["cudnn"] is None

    class Heard(StopsAfter):
        warnings: typing.ClassVar[list[str]] = []

        def note(self, text="", *, warning=False, **values):
            self.warnings += [text] if warning else []

    for elsewhere, count in (({}, 0), ({"device": "cuda", "cuda": "NVIDIA L4"}, 1)):
        run.env.write_text(json.dumps(env | elsewhere))
        with pytest.raises(StopsAfter.Stopped):
            distill(
                find_model(ltx_teacher), run.root, latents=cache, settings=settings, student_config=small_student, report=Heard(1)
            )
        assert sum("the last bits may differ" in text for text in Heard.warnings) == count
    assert "device: cuda -> cpu" in next(text for text in Heard.warnings if "last bits" in text)


def test_a_step_without_memory_names_the_checkpoint_and_what_takes_less(teach, uninterrupted, tmp_path, monkeypatch):
    learn, run = Trainer.learn, tmp_path / "run"

    def out_of_memory(trainer, batches):
        if trainer.state.step == 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB. Including non-PyTorch memory, ...")
        return learn(trainer, batches)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "learn", out_of_memory)
        with pytest.raises(TurboVaedError, match=r"step 3 does not fit in the memory of this cpu: CUDA out of memory\.") as error:
            teach(run)
    assert error.value.exit_code == 1
    assert error.value.hint.startswith("the same command with `gradient_checkpointing` goes on from step 2; with another `run`, ")
    assert "`crop`" in error.value.hint and "`batch_size`" in error.value.hint and "`dtype` bf16" in error.value.hint
    assert "ssim" not in error.value.hint  # the stage has no perceptual loss
    assert teach(run).resumed_from == 2 and differing(everything(run), uninterrupted) == []


@pytest.mark.parametrize("stop", [1, 2, 3, 4, 5])
def test_stopping_anywhere_and_going_on_gives_the_weights_of_one_go(stop, teach, uninterrupted, tmp_path):
    """Inside every stage, and exactly where one ends."""
    teach(tmp_path / "run", stop)
    result = teach(tmp_path / "run")
    assert result.resumed_from == stop
    assert differing(everything(tmp_path / "run"), uninterrupted) == []
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert [line["stage"] for line in lines] == ["reconstruct"] * 2 + ["crops"] * 2 + ["adversarial"] * 2
    assert lines[2]["data"] == {"clips": 2, "frames": 9, "height": 32, "width": 64}
    assert {"teacher", "adversarial", "discriminator", "adaptive_weight"} <= lines[5].keys() - lines[3].keys()
    assert lines[1]["lr"] < lines[0]["lr"] and lines[2]["lr"] == 0.005


def test_the_shipped_recipe_resumes_in_both_its_stages(teach, tmp_path):
    """Muon, a fitted start, crops, SSIM and bf16, shortened: stopped after every single step."""
    settings = RECIPES["fast"].with_changes(steps=4, dtype="bf16", perceptual="ssim", save_every=1, sample_every=0)
    first, second = settings.stages
    settings = replace(settings, stages=(replace(first, steps=2, crop_latents=1), replace(second, steps=2)))
    teach(tmp_path / "once", settings=settings)
    for stop in (1, 1, 1):
        teach(tmp_path / "often", stop, settings)
    assert teach(tmp_path / "often", settings=settings).resumed_from == 3
    assert differing(everything(tmp_path / "often", step=4), everything(tmp_path / "once", step=4)) == []


def test_gradient_checkpointing_may_come_and_go_and_changes_no_bit(teach, settings, uninterrupted, tmp_path):
    """In every stage: also where the adaptive weight asks for gradients of its own."""
    saving = settings.with_changes(gradient_checkpointing=True)
    teach(tmp_path / "run", 1)
    teach(tmp_path / "run", 4, saving)
    teach(tmp_path / "run", settings=settings)
    assert differing(everything(tmp_path / "run"), uninterrupted) == []


def test_precise_is_part_of_what_a_run_is(teach, settings, tmp_path):
    """Of a run on a CPU too, which computes the same with it and without."""
    short = replace(settings, stages=(replace(settings.stages[0], steps=2),))
    precise, run = replace(short, precise=True), tmp_path / "run"
    teach(run, 1, precise)
    assert json.loads((run / "config.json").read_text())["settings"]["precise"] is True
    with pytest.raises(RunFolderError, match="other settings: `precise` on -> off"):
        teach(run, settings=short)
    teach(run, settings=precise)
    teach(tmp_path / "other", settings=short)
    assert differing(everything(run, step=2), everything(tmp_path / "other", step=2)) == []


def test_a_compiled_run_resumes_as_one_and_is_not_mixed_with_others(teach, settings, tmp_path, monkeypatch):
    """With torch's quickest backend: graphs are captured and differentiated as always, code is not generated."""
    monkeypatch.setattr(torch._inductor.config, "deterministic", False)
    short = replace(settings, stages=tuple(replace(settings.stages[index], steps=1) for index in (0, 2)))
    compiled, captured, compile_as_always = replace(short, compile=True), [], torch.compile
    monkeypatch.setattr(
        torch, "compile", lambda f, **options: captured.append(f) or compile_as_always(f, backend="aot_eager", **options)
    )
    for name, chosen in (("plain", short), ("once", compiled)):
        teach(tmp_path / name, settings=chosen)
    teach(tmp_path / "twice", 1, compiled)
    with pytest.raises(RunFolderError, match="`compile` on -> off"):
        teach(tmp_path / "twice", settings=short)
    teach(tmp_path / "twice", settings=compiled)
    plain, once, twice = (everything(tmp_path / name, step=2) for name in ("plain", "once", "twice"))
    assert len(captured) == 3
    assert torch._inductor.config.deterministic  # the code it generates otherwise is chosen by timing it
    assert differing(twice, once) == []
    assert once.keys() == plain.keys()
    # Adam's first steps go by the sign of a gradient, so a last bit may cost a weight both of them.
    student = [name for name in once if "/student/" in name]
    assert student and all(torch.allclose(once[name], plain[name], atol=0.03) for name in student)


# The scaler has a test of its own.
PIECES = ("student", "heads", "ema", "optimizer", "step", "discriminator", "discriminator_optimizer")


@pytest.mark.parametrize("piece", PIECES)
def test_leaving_out_any_piece_of_state_is_seen(piece, teach, uninterrupted, tmp_path, monkeypatch):
    """The control of the test above: with one piece not restored the weights must differ (or the steps no longer fit)."""
    teach(tmp_path / "run", 5)
    pieces = {path.stem for path in RunDir(tmp_path / "run").latest_checkpoint().glob("*.safetensors")}
    assert pieces == {*PIECES, "scaler"}
    monkeypatch.setattr(training_state.TrainingState, f"_{piece}_in", lambda *_: None)
    teach(tmp_path / "run")
    assert differing(everything(tmp_path / "run"), uninterrupted)


def test_a_schedule_may_grow_behind_the_stage_that_is_on_but_not_before_it(teach, settings, tmp_path):
    run = tmp_path / "run"
    teach(run, 3)
    first, second, third = settings.stages
    longer = replace(settings, stages=(replace(first, steps=3), second, third))
    with pytest.raises(RunFolderError, match=r"at step 3, in stage crops of 2, 2, 2 steps; not in reconstruct 3"):
        teach(run, settings=longer)
    with pytest.raises(RunFolderError, match="at step 3"):
        teach(run, settings=replace(settings, stages=(first, replace(second, steps=1), third)))
    teach(run, settings=replace(settings, stages=(first, second, replace(third, steps=1))))
    assert RunDir(run).steps()[-1] == 5


def test_the_gradient_scaler_is_part_of_the_state(teach, settings, tmp_path, monkeypatch):
    """In fp16 the first steps overflow and lower the scale; forgetting that would skip other steps after a resume."""
    half = replace(settings, dtype="fp16", stages=(replace(settings.stages[0], steps=4),))

    def run(name: str, *stops: int) -> dict[str, torch.Tensor]:
        for stop in stops:
            teach(tmp_path / name, stop, half)
        teach(tmp_path / name, settings=half)
        return everything(tmp_path / name, step=4)

    once = run("once")
    assert differing(run("twice", 2), once) == []
    monkeypatch.setattr(training_state.TrainingState, "_scaler_in", lambda *_: None)
    assert differing(run("forgetful", 2), once)


def command(teacher: Path, cache: Path, config: Path, run: Path, recipe: Path, *more: str) -> list[str]:
    return [
        sys.executable, "-m", "turbovaed_cli", "distill", "--teacher", str(teacher), "--latents", str(cache),
        "--run", str(run), "--student-config", str(config), "--recipe", str(recipe), "--frames", "9", "--size", "64",
        "--dtype", "fp32", "--save-every", "1", "--sample-every", "0", *more,
    ]  # fmt: skip


@pytest.fixture
def shell(ltx_teacher, cache, small_student, recipe, tmp_path):
    config = tmp_path / "student.json"
    config.write_text(json.dumps(small_student))
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}  # the same bits need the same threads

    def start(run: Path) -> subprocess.Popen[str]:
        words = command(ltx_teacher, cache, config, run, recipe)
        return subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    return start


def wait_for(condition, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + HANG_S
    while not condition():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.002)


@pytest.mark.slow
@pytest.mark.thorough  # tests/faults/test_kills.py does the same in make test
def test_killed_then_terminated_it_ends_in_the_same_bits(shell, uninterrupted, tmp_path):
    """Real signals to the real command: SIGKILL while a checkpoint is half-written, then a SIGTERM."""
    run = tmp_path / "run"
    checkpoints = run / "checkpoints"
    process = shell(run)
    wait_for(lambda: any(checkpoints.glob(".step_0000001.*")) or RunDir(run).steps(), process)
    process.kill()
    process.wait()
    before = max(RunDir(run).steps(), default=0)
    process = shell(run)
    wait_for(lambda: max(RunDir(run).steps(), default=0) > before, process)
    process.terminate()
    _, errors = process.communicate(timeout=HANG_S)
    assert process.returncode == 143, errors
    assert "goes on from there" in errors
    process = shell(run)
    _, errors = process.communicate(timeout=HANG_S)
    assert process.returncode == 0, errors
    assert "resumed from step" in errors
    assert differing(everything(run), uninterrupted) == []
    assert not list(checkpoints.glob(".*"))


def test_a_signal_that_comes_twice_at_once_still_ends_at_a_checkpoint(monkeypatch):
    """A cluster sends it to every process, and torchrun passes on the one it got; a later one ends at once, as the command says."""

    class Terminated(BaseException):
        pass

    def raise_terminated(*_):
        raise Terminated

    before = signal.signal(signal.SIGTERM, raise_terminated)
    try:
        with stop_requests() as received:
            signal.raise_signal(signal.SIGTERM)
            signal.raise_signal(signal.SIGTERM)
            assert received == [signal.SIGTERM]
            monkeypatch.setattr("turbovaed_cli.machine.signals.SAME_REQUEST_S", -1.0)
            with pytest.raises(Terminated):
                signal.raise_signal(signal.SIGTERM)
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.mark.slow
def test_ctrl_c_reaches_the_whole_group_and_still_ends_at_a_checkpoint(ltx_teacher, videos, small_student, recipe, tmp_path):
    """A terminal sends SIGINT to every process of the group: an ffmpeg at work must not look like a damaged video."""
    config, run = tmp_path / "student.json", tmp_path / "run"
    config.write_text(json.dumps(small_student))
    arguments = command(ltx_teacher, videos, config, run, recipe, "--steps", "500")
    arguments = [word if word != "--latents" else "--data" for word in arguments]
    process = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)
    wait_for(lambda: len(RunDir(run).steps()) >= 2, process)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=HANG_S)
    assert process.returncode == 130, errors
    assert "goes on from there" in errors
    warnings = [line for line in errors.splitlines() if line.startswith("warning")]
    assert all("its teacher's decoder" in line for line in warnings), warnings  # the small teacher's student is larger


def test_a_damaged_checkpoint_is_named_not_used(teach, tmp_path):
    teach(tmp_path / "run", 2)
    damaged = tmp_path / "run" / "checkpoints" / "step_0000002" / "ema.safetensors"
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 1
    damaged.write_bytes(content)
    with pytest.raises(CorruptFileError, match=r"step_0000002.ema\.safetensors"):
        teach(tmp_path / "run")
