"""The contract users script against: results on stdout, two-line errors, exit codes, outputs whole or absent."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path

import pytest
from conftest import is_two_lines, make_video
from golden import TEACHER_FILES, load_golden, write_student, write_teacher

from turbovaed_cli.errors import SettingsError
from turbovaed_cli.registry.rows import MODELS
from turbovaed_cli.units import format_size, parse_size
from turbovaed_cli.video import probe

SMALL = ("--frames", "9", "--size", "64x64")


def test_the_whole_path_on_a_local_teacher(turbovaed, ltx_teacher, videos, small_student, tmp_path):
    config = tmp_path / "student.json"
    config.write_text(json.dumps(small_student))
    code, out, err = turbovaed(
        "cache-latents", "--teacher", ltx_teacher, "--data", videos, "--out", tmp_path / "c", *SMALL, "--json"
    )
    assert code == 0, err
    assert json.loads(out)["encoded"] == 7
    assert "--model not given" not in err

    run = tmp_path / "run"
    train = (
        "distill", "--teacher", ltx_teacher, "--latents", tmp_path / "c", "--run", run, "--accumulation", "1", "--student-config", config,
        "--recipe", "quick", "--perceptual", "ssim", "--save-every", "1", "--steps",
    )  # fmt: skip
    code, out, err = turbovaed(*train, "2", "--json")
    assert code == 0, err
    assert json.loads(out)["step"] == 2
    code, out, err = turbovaed(*train, "3", "--gradient-checkpointing")
    assert code == 0 and "resumed from 2" in out and "resumed from step 2" in err
    config = json.loads((run / "config.json").read_text())
    stages = config["settings"]["stages"]
    assert config["command_line"].startswith("turbovaed distill --teacher ") and config["command_line"].endswith(
        " --steps 2 --json"
    )
    code, out, err = turbovaed(*train, "3", "--lr", "0.5", "--ema-decay", "0.5", "--dry-run", "-v")
    assert (code, out) == (2, "") and is_two_lines(err)
    assert err.splitlines()[-4:-2] == ["--ema-decay 0.99 -> 0.5", "--lr 0.002 -> 0.5"]
    assert f"hint: repeat the first command to resume: {config['command_line']}; or start another with --run {run}-2" in err
    assert all(stage["gradient_checkpointing"] for stage in stages)

    code, out, err = turbovaed("eval", "--model", run, "--data", videos, *SMALL, "--json")
    assert code == 0, err
    document = json.loads(out)
    assert set(document["means"]) == {"teacher", "student", "ratio"} and document["schema_version"] == 1
    (kept,) = (run / "eval").iterdir()
    assert json.loads(kept.read_text())["means"] == document["means"]

    code, out, err = turbovaed("reconstruct", videos / "a.mp4", "--model", run, "--out", tmp_path / "out.mp4", "--json")
    assert code == 0, err
    assert json.loads(out)["num_frames"] == probe(tmp_path / "out.mp4").num_frames == 20


@pytest.mark.parametrize("name", ["hunyuan", "cogvideox", "video-dc-ae"])
def test_every_family_distils_from_a_local_folder(name, turbovaed, videos, tmp_path):
    """A student of the golden size, so that it takes seconds; its latents and ratios are the folder's own."""
    teacher = write_teacher(load_golden(TEACHER_FILES[name]), tmp_path / "vae")
    student = load_golden(name).meta["student_config"] | {
        "latent_channels": load_golden(TEACHER_FILES[name]).io["latents"].shape[1]
    }
    config = tmp_path / "student.json"
    config.write_text(json.dumps({key: value for key, value in student.items() if key not in ("latents_mean", "latents_std")}))
    frames = "8" if name == "video-dc-ae" else "9"
    code, out, err = turbovaed(
        "distill", "--teacher", teacher, "--data", videos, "--run", tmp_path / "run", "--student-config", config, "--steps", "1",
        "--accumulation", "1", "--frames", frames, "--size", "64", "--perceptual", "none", "--feature-weight", "1", "--recipe", "quick", "--start", "plain", "--json",
    )  # fmt: skip
    assert code == 0, err
    losses = json.loads(out)["losses"]
    assert sum(name.startswith("feature_") for name in losses) == (3 if name == "video-dc-ae" else 2)
    code, _, err = turbovaed("reconstruct", videos / "a.mp4", "--model", tmp_path / "run", "--out", tmp_path / "out.mp4")
    assert code == 0, err
    assert probe(tmp_path / "out.mp4").num_frames == 20


def test_without_model_the_embedded_pair_is_used_and_said_on_stderr(turbovaed, videos, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, err = turbovaed("reconstruct", videos / "a.mp4")
    assert code == 0, err
    assert "using the embedded pair, tiny" in err
    assert f"--out not given: writing {tmp_path / 'a-turbovaed.mp4'}" in err  # not beside the input
    assert "a-turbovaed.mp4" in out and "embedded" not in out
    assert probe(tmp_path / "a-turbovaed.mp4").num_frames == 20


def test_the_embedded_pair_evals_exports_and_decodes_a_published_layout_too(turbovaed, videos, tmp_path):
    code, out, _ = turbovaed("eval", "--data", videos, *SMALL, "--json")
    assert code == 0
    means = json.loads(out)["means"]
    assert 12 < means["student"]["psnr"] < 60  # test patterns of 64x64 are hard for it; random weights give 7 dB
    code, out, err = turbovaed("export", "--out", tmp_path / "student.onnx", *SMALL)
    assert code == 0, err
    assert "ONNX Runtime" in out and "next:" in err
    code, _, err = turbovaed("export", "--out", tmp_path / "student.onnx", *SMALL)
    assert code == 2 and is_two_lines(err)


def test_distill_measures_the_finished_student_where_val_is_given(turbovaed, ltx_teacher, videos, small_student, tmp_path):
    (tmp_path / "student.json").write_text(json.dumps(small_student))
    words = ("distill", "--teacher", ltx_teacher, "--data", videos, "--student-config", tmp_path / "student.json", *SMALL)
    code, out, err = turbovaed(
        *words, "--recipe", "quick", "--steps", "2", "--dtype", "fp32", "--run", tmp_path / "run", "--val", videos, "--json"
    )
    assert code == 0, err
    measured = json.loads(out)["evaluation"]
    assert measured["num_clips"] == 3 and measured["means"]["student"]["psnr"] > 0
    [kept] = (tmp_path / "run" / "eval").iterdir()
    assert json.loads(kept.read_text())["means"] == measured["means"]
    page = (tmp_path / "run" / "report.html").read_text()
    assert "median" in page and f"{measured['means']['student']['psnr']:.2f}" in page


def test_eval_judges_a_threshold_and_says_by_how_much_it_was_missed(turbovaed, ltx_student, ltx_teacher, videos):
    """The result comes first; the exit code is 4 and the miss one of the two lines."""
    pair = ("eval", "--model", ltx_student, "--teacher", ltx_teacher, "--data", videos, *SMALL, "--metrics", "psnr,flicker")
    code, out, err = turbovaed(*pair, "--fail-under", "psnr=0.1", "--fail-under", "flicker=0.01")
    assert code == 0, err
    code, out, err = turbovaed(*pair, "--fail-under", "psnr=1.9,flicker=0.01", "--json")
    assert code == 4 and is_two_lines(err), err
    assert "PSNR: " in err and "1.9 asked: short by " in err and " dB)" in err and "flicker" not in err.splitlines()[-2]
    assert json.loads(out)["means"]["student"]["psnr"] > 0


def test_eval_compares_several_models_in_one_table_of_80_columns(turbovaed, ltx_student, videos, monkeypatch, tmp_path):
    """--compare alone names all of them; with --model that one comes first."""
    for name in ("mine", "other"):
        shutil.copytree(MODELS["tiny"].teacher.path.parent / "student", tmp_path / name)
    monkeypatch.chdir(tmp_path)
    pixels = ("--data", videos, *SMALL, "--metrics", "psnr,ssim,vmaf,flicker,grid,seam,banding")
    code, out, err = turbovaed("eval", *pixels, "--compare", "mine", "other")
    assert code == 0, err
    lines = out.splitlines()
    names = [line.strip() for line in lines if line.strip() in ("mine", "other")]
    assert names == ["mine", "other"] * 3  # seven metrics are three tables
    assert sum(line.startswith("  student") for line in lines) == 6
    table = lines[: next(i for i, line in enumerate(lines) if line.startswith("protocol"))]
    assert max(len(line.rstrip()) for line in table) <= 80
    code, out, err = turbovaed("eval", *pixels, "--model", "tiny", "--compare", "mine", "--json")
    document = json.loads(out)
    assert code == 0 and [document["model"], *(other["model"] for other in document["comparisons"])] == ["tiny", "mine"]
    assert document["means"] == document["comparisons"][0]["means"]  # the same weights
    code, _, err = turbovaed("eval", *pixels, "mine")
    assert code == 2 and is_two_lines(err) and "--compare" in err


def test_a_published_weight_file_is_a_model(turbovaed, ltx_teacher, videos, tmp_path):
    weights, config = write_student(load_golden("ltx"), tmp_path)
    code, out, err = turbovaed(
        "eval", "--model", weights, "--config", config, "--teacher", ltx_teacher, "--data", videos, *SMALL, "--json"
    )
    assert code == 0, err
    assert len(json.loads(out)["clips"]) == 3


def test_skipped_inputs_are_named_and_end_with_5(turbovaed, ltx_teacher, videos, tmp_path):
    shutil.copytree(videos, tmp_path / "data")
    (tmp_path / "data" / "broken.mp4").write_bytes(b"no")
    code, out, err = turbovaed(
        "cache-latents", "--teacher", ltx_teacher, "--data", tmp_path / "data", "--out", tmp_path / "c", *SMALL, "--json"
    )
    assert code == 5
    assert [Path(item["path"]).name for item in json.loads(out)["skipped"]] == ["broken.mp4"]
    assert "skipped: " in err and "broken.mp4" in err


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("reconstruct", "nowhere.mp4"), 2, "nowhere.mp4"),
        (("eval", "--data", "nowhere"), 2, "nowhere"),
        (("distill", "--teacher", "hunyan", "--data", "."), 2, "hunyan"),
        (("distill", "--teacher", "tiny"), 2, "one of the two"),
        (("distill", "--nosuch"), 2, "--nosuch"),
        (("nosuch",), 2, "nosuch"),
        (("export",), 2, "--out"),
        (("export", "--out", "x.onnx", "--size", "abc"), 2, "abc"),
        (("bench", "--target", "torch,tpu"), 2, "tpu"),
        (("bench", "--fail-under", "fps"), 2, "fps=24"),
        (("bench", "--fail-under", "speedups=2"), 2, "did you mean speedup?"),
        (("bench", "--compare", "nowhere.json"), 2, "nowhere.json"),
        (("bench", "--memory-frames", "9,many"), 2, "9,many"),
        (("eval", "--data", ".", "--device", "cuda"), 3, "cuda"),
        (("eval", "--data", ".", "--device", "abacus"), 2, "abacus"),
        (("eval", "--data", ".", "--model", "nosuch"), 2, "nosuch"),
        (("eval", "--data", ".", "--fail-under", "pnsr=0.9"), 2, "pnsr"),
        (("eval", "--data", ".", "--fail-under", "psnr=30"), 2, "--fail-under psnr=0.969"),
        (("eval", "--data", ".", "--fail-under", "psnr=0.9,psnr=0.5"), 2, "twice"),
        (("eval", "--data", ".", "--model", "ltx", "--protocol", "mine"), 2, "standard, paper"),
        (("distill", "--data", ".", "--optimizer", "adamw"), 2, "give --lr too"),
        (("distill", "--data", ".", "--val", "nowhere"), 2, "nowhere"),
        (("eval", "--data", ".", "--metrics", "psnr,sism"), 2, "sism"),
        (("eval", "--data", ".", "--dataset", "davis"), 2, "davis"),
        (("models", "show", "nosuch"), 2, "nosuch"),
        (("eval", "--data", ".", "--model", "lxt"), 2, "did you mean ltx?"),
        (("distill", "--data", ".", "--recipe", "papper"), 2, "did you mean paper?"),
        (("distill", "--data", ".", "--optimizer", "adam"), 2, "did you mean adamw?"),
        (("distill", "--data", ".", "--lr-schedule", "cosin"), 2, "did you mean cosine?"),
        (("eval", "--data", ".", "--metrics", "pnsr"), 2, "did you mean psnr?"),
        (("eval", "--data", ".", "--protocol", "standart"), 2, "did you mean standard?"),
        (("bench", "--target", "tensorrt"), 2, "did you mean onnx?"),
        (("bench", "--target", "coreml", "--device", "iphone"), 2, "--device iphone needs --apple-team"),
        (("bench", "--compare", "nowhere.json"), 2, "nowhere.json is no result of bench --json: no such file or directory"),
        (("export", "--out", "x", "--format", "mlpackage"), 2, "did you mean coreml?"),
        (("export", "--out", "x", "--format", "onnx,tflite"), 2, "did you mean litert?"),
        (("export", "--out", "x", "--format", "pte"), 2, "did you mean executorch?"),
        (("export", "--out", "x", "--dtype", "half"), 2, "did you mean fp16?"),
        (("cache-latents", "--data", ".", "--out", "c", "--dtype", "bfloat16"), 2, "did you mean bf16?"),
        (("--json", "models"), 2, "after the command"),
        (("help", "distil"), 2, "Did you mean 'distill'?"),
    ],
)
def test_a_mistake_is_two_lines_and_an_exit_code(arguments, code, said, turbovaed, tmp_path, monkeypatch):
    import torch

    if "cuda" in arguments and torch.cuda.is_available():
        pytest.skip("this machine has what the test asks in vain for")
    monkeypatch.chdir(tmp_path)
    found, out, err = turbovaed(*arguments)
    assert found == code, err
    assert is_two_lines(err), err
    assert said in err and out == ""
    assert list(tmp_path.iterdir()) == []


CHECKING = ("options", "export", "bench")  # modules of the command line that look at places before any work
UNLOADED = {
    "models.pair": "load_pair",
    "latents.caching": "load_teacher",
    "training.prepare": "load_teacher",
    "benchmarking.bench": "load_pair",
}
WRITERS = {
    "reconstruct": ("reconstruct", "in.mp4", "--out", "{}"),
    "eval": ("eval", "--data", ".", "--report", "{}"),
    "export": ("export", "--out", "{}"),
    "bench": ("bench", "--report", "{}"),
    "ios-project": ("bench", "--ios-project", "{}"),
    "cache-latents": ("cache-latents", "--data", ".", "--out", "{}"),
    "merge": ("cache-latents", "--merge", ".", "--out", "{}"),
    "distill": ("distill", "--data", ".", "--run", "{}"),
    "dry-run": ("distill", "--data", ".", "--run", "{}", "--dry-run"),
}


@pytest.fixture
def loads_nothing(monkeypatch, tmp_path):
    """A command that loads a model fails with a TypeError."""
    for module, name in UNLOADED.items():
        monkeypatch.setattr(import_module(f"turbovaed_cli.{module}"), name, None)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in.mp4").touch()


@pytest.fixture(scope="module")
def read_only(tmp_path_factory):
    """A file system without a place to write, where this process may mount one."""
    folder = tmp_path_factory.mktemp("read-only")
    mount = shutil.which("mount")
    if (
        sys.platform != "linux"
        or mount is None
        or subprocess.run([mount, "-t", "tmpfs", "-o", "ro", "none", folder], check=False).returncode
    ):
        pytest.skip("no file system may be mounted here")
    yield folder
    subprocess.run(["umount", folder], check=True)


@pytest.mark.parametrize("command", WRITERS)
@pytest.mark.parametrize("place", ["in.mp4/x.mp4", "/proc/x.mp4", "a" * 252 + ".mp4"], ids=["below", "proc", "long"])
def test_an_output_that_cannot_be_written_is_refused_before_any_work(command, place, turbovaed, loads_nothing, tmp_path):
    code, out, err = turbovaed(*(word.format(place) for word in WRITERS[command]))
    assert code == 2 and is_two_lines(err) and out == "", err
    assert "cannot write" in err and "give a" in err
    assert [path.name for path in tmp_path.iterdir()] == ["in.mp4"]


@pytest.mark.parametrize("command", WRITERS)
def test_a_read_only_disk_is_refused_before_any_work(command, turbovaed, loads_nothing, read_only):
    code, _, err = turbovaed(*(word.format(read_only / "x.mp4") for word in WRITERS[command]))
    assert code == 2 and is_two_lines(err), err
    assert f"cannot write {read_only / 'x.mp4'}: the file system is read-only" in err


@pytest.mark.parametrize("command", [name for name in WRITERS if name not in ("export", "reconstruct")])  # which take both
def test_a_folder_is_no_file_and_a_file_no_folder(command, turbovaed, loads_nothing, tmp_path):
    wants_a_folder = command not in ("eval", "bench")
    (tmp_path / "there.mp4").mkdir()
    place = "in.mp4" if wants_a_folder else "there.mp4"
    code, _, err = turbovaed(*(word.format(place) for word in WRITERS[command]))
    assert code == 2 and is_two_lines(err) and "it is a fi" in err if wants_a_folder else "it is a fo" in err, err


def test_an_export_replaces_no_folder_of_somebodys(turbovaed, tmp_path):
    """--overwrite removed a folder that was called as the file."""
    (tmp_path / "student.onnx").mkdir()
    (tmp_path / "student.onnx" / "thesis.tex").touch()
    code, _, err = turbovaed("export", "--out", tmp_path / "student.onnx", "--overwrite", *SMALL)
    assert code == 2 and "it is a folder" in err
    (tmp_path / "file").touch()
    code, _, err = turbovaed("export", "--out", tmp_path / "file", "--format", "onnx,safetensors", "--overwrite", *SMALL)
    assert code == 2 and "it is a file, and --out is a folder" in err
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "student.onnx", "thesis.tex"]


def test_a_run_folder_that_cannot_be_written_is_no_reason_to_measure_first(turbovaed, loads_nothing, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text('{"schema_version": 1, "settings": {}}')
    (tmp_path / "run" / "eval").touch()
    code, _, err = turbovaed("eval", "--data", ".", "--model", "run")
    assert code == 2 and "--model run/model" in err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("reconstruct", "in.mp4", "--dtype", "float16"), "did you mean fp16?"),
        (("reconstruct", "in.mp4", "--crf", "99"), "--crf 99"),
        (("reconstruct", "in.mp4", "--out", "x.gif"), ".mp4"),
        (("reconstruct", "in.mp4", "--device", "gpu"), "did you mean cuda?"),
        (("reconstruct", "in.mp4", "--out", "in.mp4"), "is there already"),
        (("export", "--out", "x", "--format", "mlpackage"), "coreml"),
        (("eval", "--data", ".", "--dtype", "float16"), "fp16"),
        (("distill", "--data", ".", "--dtype", "float16"), "fp16"),
        (("bench", "--dtype", "float16"), "fp16"),
        (("bench", "--target", "tpu"), "--target tpu"),
        (("eval", "--data", ".", "--protocol", "standart"), "did you mean standard?"),
        (("distill", "--data", ".", "--perceptual", "lpisp"), "did you mean lpips or "),
        (("distill", "--data", ".", "--set", "lr_ned=1"), "did you mean lr_end"),
    ],
)
def test_values_are_checked_before_torch_is_loaded(words, said, tmp_path):
    (tmp_path / "in.mp4").touch()
    script = f"""
import sys
sys.argv = ["turbovaed", *{words!r}]
from turbovaed_cli.cli import main
try:
    main()
finally:
    print("torch" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 2 and said in done.stderr and is_two_lines(done.stderr), done.stderr
    assert done.stdout == "False\n"


@pytest.mark.parametrize(
    ("command", "left"),
    [
        *((name, "nothing was written; run it again") for name in ("reconstruct", "eval", "bench", "ios-project")),
        *((name, "what was finished is kept; the same command goes on") for name in ("cache-latents", "distill")),
        ("export", "what export.json lists is whole"),
    ],
)
@pytest.mark.parametrize("end", [KeyboardInterrupt(), OSError(28, "No space left on device")], ids=["interrupted", "full"])
def test_the_hint_says_what_is_left(command, left, end, turbovaed, loads_nothing, monkeypatch):
    def ends(*_arguments, **_options):
        raise end

    for module in CHECKING:
        monkeypatch.setattr(f"turbovaed_cli.cli.{module}.check_place", ends)
    code, _, err = turbovaed(*(word.format("x.mp4") for word in WRITERS[command]))
    assert code == (130 if isinstance(end, KeyboardInterrupt) else 1)
    assert is_two_lines(err) and left in err.splitlines()[-1]


@pytest.mark.parametrize(
    ("command", "helps"),
    [
        ("reconstruct", "--memory"),
        ("eval", "--frames"),
        ("bench", "--no-teacher"),
        ("export", "--format"),
        ("cache-latents", "--batch-size 1"),
        ("distill", "--gradient-checkpointing, a smaller --batch-size, --dtype bf16, --perceptual ssim"),
    ],
)
def test_too_little_memory_has_a_hint_with_options_of_that_command(command, helps, turbovaed, loads_nothing, monkeypatch):
    import torch

    for error, said in (
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. Including non-PyTorch memory, ..."), "2.00 GiB"),
        (RuntimeError("FIND was unable to find an engine to execute this computation"), "out of memory (FIND was unable"),
        (MemoryError(), "error: out of memory\n"),
    ):

        def ends(*_arguments, _error=error, **_options):
            raise _error

        for module in CHECKING:
            monkeypatch.setattr(f"turbovaed_cli.cli.{module}.check_place", ends)
        code, _, err = turbovaed(*(word.format("x.mp4") for word in WRITERS[command]))
        assert code == 1 and is_two_lines(err) and said in err and "non-PyTorch" not in err and "report it" not in err
        hint = err.splitlines()[-1]
        assert hint.startswith("hint: less memory: ") and helps in hint
    shown = turbovaed(command, "--help-all")[1]
    assert all(re.search(rf"{option}\b", shown) for option in re.findall(r"--[a-z-]+", hint)), hint


def test_a_home_is_expanded_in_every_option(turbovaed, tmp_path, monkeypatch):
    """Shells leave --data=~/x alone."""
    monkeypatch.setenv("HOME", str(tmp_path))
    home = str(tmp_path / "x")
    for words in (
        ("eval", "--data=~/x"),
        ("cache-latents", "--status", "--out=~/x"),
        ("cache-latents", "--merge=~/x", "--out", "y"),
        ("distill", "--latents=~/x"),
        ("distill", "--data=.", "--recipe=~/x.toml"),
        ("reconstruct", "~/x"),
        ("eval", "--data", ".", "--model=~/x"),
        ("eval", "--data", ".", "--compare", "tiny", "~/x"),
        ("models", "show", "~/x"),
        ("runs", "~/x"),
    ):
        code, _, err = turbovaed(*words)
        assert code == 2 and home in err and "~" not in err, err
    code, _, err = turbovaed("models", "show", "~nobody-of-this-name/x")
    assert code == 2 and "~nobody-of-this-name/x" in err


def test_without_a_command_there_is_help_and_no_error(turbovaed):
    code, out, err = turbovaed()
    assert code == 2 and "Usage" in out and "reconstruct" in out and err == ""


def test_help_and_version_are_commands_too(turbovaed):
    code, out, _ = turbovaed("help", "models", "show")
    assert code == 0 and "turbovaed models show" in out
    code, out, _ = turbovaed("help")
    assert code == 0 and "reconstruct" in out
    texts = {turbovaed(*words)[1] for words in (("version",), ("--version",), ("-V",))}
    assert len(texts) == 1 and texts.pop().startswith("turbovaed ")
    for words in (("version", "--json"), ("--version", "--json"), ("--json", "--version")):
        code, out, _ = turbovaed(*words)
        assert code == 0 and json.loads(out).keys() == {"schema_version", "turbovaed"}


def test_a_video_that_cannot_be_used_is_named_once(turbovaed, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken.mp4").write_bytes(b"no")
    code, _, err = turbovaed("cache-latents", "--data", tmp_path, "--out", tmp_path / "c")
    assert code == 2 and err.count("broken.mp4") == 1, err


def test_a_missed_check_ends_with_4(turbovaed, one_block_folder, tmp_path, monkeypatch):
    monkeypatch.setattr("turbovaed_cli.export.compare.MAX_ABS_FP32", 0.0)
    code, _, err = turbovaed("export", "--model", one_block_folder, "--out", tmp_path / "a.onnx", "--frames", "3", "--size", "32")
    assert code == 4 and is_two_lines(err)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "a.onnx.README.md",
        "a.onnx.latents.safetensors",
        "a.onnx.unverified",
        "export.json",
    ]


def test_dry_run_writes_nothing(turbovaed, ltx_teacher, videos, tmp_path):
    code, out, _ = turbovaed(
        "cache-latents", "--teacher", ltx_teacher, "--data", videos, "--out", tmp_path / "c", *SMALL, "--dry-run"
    )
    assert code == 0 and re.search(r"clips to encode\s+7\b", out) and "3 of them looked into" in out
    assert list(tmp_path.iterdir()) == []


def test_models_are_listed_shown_and_documented_as_json(turbovaed):
    _, out, _ = turbovaed("models", "list")
    assert all(name in out for name in ("ltx", "hunyuan", "cogvideox, cog", "video-dc-ae, dc", "tiny"))
    _, out, _ = turbovaed("models", "--json")
    assert [model["name"] for model in json.loads(out)["models"]] == [*MODELS]
    _, out, _ = turbovaed("models", "show", "ltx")
    assert "psnr: 31.68 (teacher 32.4)" in out and "measured on: arXiv:2508.09136, UCF-101, 17 frames of 256x256" in out
    assert json.loads(turbovaed("models", "show", "tiny", "--json")[1])["student"]["published results"] is None
    _, out, _ = turbovaed("models", "show", "cog")
    assert "num_latent_frames_batch_size: 8" in out and "8k+1" in out
    code, out, _ = turbovaed("models", "pull", "tiny", "--json")
    assert code == 0 and len(json.loads(out)["files"]) == 2


def test_env_and_version(turbovaed):
    code, out, _ = turbovaed("env", "--json")
    assert code == 0 and {"torch", "diffusers"} <= set(json.loads(out)["packages"])
    code, out, _ = turbovaed("--version")
    assert code == 0 and out.startswith("turbovaed ")


def test_debug_shows_the_traceback(tmp_path):
    command = [sys.executable, "-m", "turbovaed_cli", "reconstruct", "nowhere.mp4"]
    done = subprocess.run(
        command, env={**os.environ, "TURBOVAED_DEBUG": "1"}, capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert "Traceback" in done.stderr


def test_a_closed_pipe_is_no_traceback(tmp_path):
    command = f"{sys.executable} -m turbovaed_cli models show ltx | head -1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert "Traceback" not in done.stderr


def test_a_wrong_frame_count_names_the_nearest(turbovaed, ltx_teacher, videos, tmp_path):
    code, _, err = turbovaed(
        "cache-latents", "--teacher", ltx_teacher, "--data", videos, "--out", tmp_path / "c", "--frames", "16", "--size", "64"
    )
    assert code == 2 and "--frames 9 or 17" in err


def test_sizes_are_width_by_height():
    assert parse_size("640x480") == (480, 640)
    assert parse_size("64") == (64, 64)
    assert format_size(parse_size("720p")) == "1280x704"
    with pytest.raises(SettingsError):
        parse_size("0x5")


def test_an_encoding_error_leaves_no_output(turbovaed, ltx_student, ltx_teacher, tmp_path):
    source = make_video(tmp_path / "in.mp4", "testsrc2", "96x80", 60, "-movflags", "+faststart")
    source.write_bytes(source.read_bytes()[: source.stat().st_size // 2])
    code, _, err = turbovaed(
        "reconstruct", source, "--model", ltx_student, "--teacher", ltx_teacher, "--out", tmp_path / "out.mp4"
    )
    assert code == 1 and "damaged" in err
    assert [path.name for path in tmp_path.iterdir()] == ["in.mp4"]


@pytest.mark.parametrize(("number", "wanted"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_that_a_library_turns_into_another_error_still_ends_the_command_as_a_signal(
    number, wanted, turbovaed, monkeypatch
):
    """What a handler raises inside of safetensors' native code came out as a ValueError."""

    def swallow(*_):
        try:
            os.kill(os.getpid(), number)
            time.sleep(5)
        except BaseException as error:
            raise ValueError("could not determine the shape") from error

    monkeypatch.setattr("turbovaed_cli.machine.devices.environment", swallow)
    code, _, err = turbovaed("env")
    assert code == wanted and is_two_lines(err)


def test_precise_reaches_the_settings_of_both_commands(turbovaed, tmp_path, monkeypatch):
    taken = []

    def take(*_, **given):
        taken.append(given["settings"].precise)
        raise SettingsError("taken")

    def take_of_a_cache(spec, data, out, settings, **_):
        take(settings=settings)

    monkeypatch.setattr(import_module("turbovaed_cli.training.distill"), "distill", take)
    monkeypatch.setattr(import_module("turbovaed_cli.latents.caching"), "cache_latents", take_of_a_cache)
    for command in (
        ("distill", "--data", tmp_path, "--run", tmp_path / "r"),
        ("cache-latents", "--data", tmp_path, "--out", tmp_path / "c"),
    ):
        for options in ((), ("--precise",)):
            assert turbovaed(*command, *options)[0] == 2
    assert taken == [False, True] * 2
