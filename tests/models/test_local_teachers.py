"""A local VAE folder is itself: its own name, size, statistics and licence, and no path of its maker's disk in what is published."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from golden import load_golden, write_student, write_teacher
from safetensors.torch import save_file

from turbovaed_cli.cli import main
from turbovaed_cli.errors import SettingsError
from turbovaed_cli.evaluation.evaluate import clip_frames, evaluate
from turbovaed_cli.export.export import export_student
from turbovaed_cli.files.documents import names_only
from turbovaed_cli.models.loading import build_student, load_student
from turbovaed_cli.models.pair import load_pair
from turbovaed_cli.models.teacher import decoder_params, load_teacher
from turbovaed_cli.registry.find import find_model, with_licence
from turbovaed_cli.registry.rows import MODELS
from turbovaed_cli.report.run_page import report_of_eval, write_report
from turbovaed_cli.runs.rundir import RunDir
from turbovaed_cli.settings import DistillSettings, EvalSettings, ExportSettings, Stage
from turbovaed_cli.training.distill import distill
from turbovaed_cli.units import human_bytes

ONE_STEP = DistillSettings(
    (Stage("only", steps=1, accumulation=1, perceptual="none", feature_weight=0.0),), frames=9, size=(64, 64), dtype="fp32",
    start="plain", save_every=1, sample_every=1,
)  # fmt: skip


def turbovaed(monkeypatch, capsys, *words):
    """Exit code, stdout and stderr of a command."""
    monkeypatch.setattr("sys.argv", ["turbovaed", *map(str, words)])
    with pytest.raises(SystemExit) as end:
        main()
    told = capsys.readouterr()
    return end.value.code, told.out, told.err


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """A user's own VAE, in a folder below a home folder."""
    return write_teacher(load_golden("ltx"), tmp_path_factory.mktemp("home-of-erika") / "secret" / "myvae")


@pytest.fixture(scope="module")
def run(own, videos, small_student):
    """A run beside it, from videos that are somewhere below a home folder too."""
    folder = own.parent / "runs" / "mine"
    data = own.parent / "family films"
    shutil.copytree(videos, data)
    distill(find_model(own), folder, data=data, settings=ONE_STEP, student_config=small_student)
    return folder


# --- what it is ---


def test_its_name_is_its_folders(own, monkeypatch):
    spec = find_model(own)
    assert spec.name == "myvae" and "myvae" in spec.title and "LTX-Video" not in spec.title
    monkeypatch.chdir(own)
    assert find_model(".").name == "myvae"
    monkeypatch.chdir(own.parent)
    assert find_model("./myvae").name == "myvae"


def test_a_pipeline_folder_names_the_pipeline(own, tmp_path):
    shutil.copytree(own, tmp_path / "my-pipeline" / "vae")
    spec = find_model(tmp_path / "my-pipeline")
    assert (spec.name, spec.teacher.path) == ("my-pipeline", tmp_path / "my-pipeline" / "vae")


def test_a_folder_that_is_called_as_a_registry_row_does_not_pass_for_it(own, tmp_path):
    shutil.copytree(own, tmp_path / "ltx")
    assert find_model(tmp_path / "ltx").name not in MODELS


def test_models_show_counts_what_is_in_the_folder(own, monkeypatch, capsys):
    code, out, _ = turbovaed(monkeypatch, capsys, "models", "show", own, "--json")
    told = json.loads(out)
    row, teacher = MODELS["ltx"], load_teacher(own)
    assert code == 0 and told["name"] == "myvae"
    assert told["teacher"]["decoder"] == f"{decoder_params(teacher) / 1e6:.3f} M parameters"
    with torch.device("meta"):
        student = build_student(find_model(own).student.config)
    assert told["student"]["parameters"] == f"{sum(p.numel() for p in student.parameters()) / 1e6:.3f} M"
    size = (own / "diffusion_pytorch_model.safetensors").stat().st_size
    assert told["teacher"]["size"] == human_bytes(size)
    assert told["teacher"]["licence"] == "unknown: that of the VAE in myvae"
    assert (
        row.teacher.licence not in out and str(row.teacher.decoder_params_m) not in out and str(row.student.params_m) not in out
    )


@pytest.mark.parametrize("name", list(MODELS))
def test_models_show_still_shows_the_registry(name, monkeypatch, capsys):
    code, out, _ = turbovaed(monkeypatch, capsys, "models", "show", name, "--json")
    told = json.loads(out)
    assert code == 0 and MODELS[name].teacher.licence in told["teacher"]["licence"]
    assert told["student"]["parameters"] == f"{MODELS[name].student.params_m} M"


# --- its licence ---


@pytest.mark.parametrize(
    ("file", "text", "licence"),
    [
        ("README.md", "---\nlicense: apache-2.0\ntags: [vae]\n---\n# A VAE\n", "apache-2.0"),
        ("README.md", "---\nlicense: other\nlicense_name: 'my-licence-1.0'\n---\n", "my-licence-1.0"),
        ("README.md", "---\nlicense: other\n---\n", None),
        ("README.md", "# A VAE\nlicense: mit\n", None),
        ("LICENSE", "\n   Apache License\n   Version 2.0, January 2004\n", "Apache License, Version 2.0, January 2004"),
        ("LICENSE.txt", "MIT License\n\nCopyright (c) somebody\n", "MIT License"),
        ("LICENCE.md", "# Our own licence\nAll rights reserved.\n", "Our own licence"),
        ("LICENSE", "", None),
        ("licensed.py", "MIT License", None),
    ],
)
@pytest.mark.parametrize("place", ["beside", "of the pipeline"])
def test_its_licence_is_what_its_folder_states(file, text, licence, place, own, tmp_path):
    folder = tmp_path / "pipeline" / "vae"
    shutil.copytree(own, folder)
    if place == "of the pipeline":
        (folder.parent / "model_index.json").write_text("{}")
    (folder if place == "beside" else folder.parent).joinpath(file).write_text(text)
    assert find_model(folder).teacher.licence == (licence or "unknown: that of the VAE in vae")


def test_a_folder_above_that_is_no_pipeline_states_nothing(own, tmp_path):
    """The LICENSE of a repository that holds a VAE is read too, for example."""
    shutil.copytree(own, tmp_path / "code" / "vae")
    (tmp_path / "code" / "LICENSE").write_text("MIT License")
    assert "unknown" in find_model(tmp_path / "code" / "vae").teacher.licence


def test_a_licence_can_be_given_for_a_folder_but_not_for_a_registry_row(own):
    assert with_licence(find_model(own), " CC BY 4.0 ").teacher.licence == "CC BY 4.0"
    for spec, licence, said in (
        (MODELS["ltx"], "MIT", "is known"),
        (find_model(own), "a\nb", "one line"),
        (find_model(own), " ", "one line"),
    ):
        with pytest.raises(SettingsError, match=said):
            with_licence(spec, licence)


def test_the_card_states_no_licence_that_nobody_stated(run):
    card = (run / "model" / "README.md").read_text()
    assert "license: unknown\n" in card and "license_name" not in card
    assert "unknown: that of the VAE in myvae" in card
    assert not any(spec.teacher.licence in card for spec in MODELS.values())


def test_distill_takes_the_licence_from_its_user(own, videos, monkeypatch, capsys, tmp_path):
    shutil.copytree(own, tmp_path / "vae-of-ours")
    monkeypatch.chdir(tmp_path)
    command = ["distill", "--teacher", "vae-of-ours", "--data", videos, "--recipe", "quick", "--steps", 1, "--frames", 9, "--size", 64,
               "--perceptual", "none", "--start", "plain", "--batch-size", 1, "--params", "3M", "--sample-every", 0]  # fmt: skip
    code, out, err = turbovaed(monkeypatch, capsys, *command, "--licence", 'Ours: "1.0"')
    assert code == 0, err
    assert "runs/vae-of-ours" in out  # the run's name is the folder's
    card = (tmp_path / "runs" / "vae-of-ours" / "model" / "README.md").read_text()
    assert "license: other\nlicense_name: ours-1.0\n" in card and '**teacher\'s** licence: Ours: "1.0"' in card
    # The licence is no setting of the training: it may be told later, and the run goes on.
    code, _, err = turbovaed(monkeypatch, capsys, *command, "--licence", "MIT")
    assert code == 0, err
    assert "license: mit\n" in (tmp_path / "runs" / "vae-of-ours" / "model" / "README.md").read_text()


def test_a_run_and_a_cache_of_an_earlier_version_go_on(own, run, videos, small_student, tmp_path):
    """They have the registry row's name and licence for the folder."""
    shutil.copytree(run, tmp_path / "run")
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    config["model"] = config["student_config"]["teacher"] = "ltx"
    config["teacher"]["licence"] = MODELS["ltx"].teacher.licence
    (tmp_path / "run" / "config.json").write_text(json.dumps(config))
    result = distill(
        find_model(own), tmp_path / "run", data=own.parent / "family films", settings=ONE_STEP, student_config=small_student
    )
    assert result.resumed_from == 1


def test_a_cache_whose_licence_is_worded_otherwise_is_the_same_cache(own):
    from turbovaed_cli.latents.cache import manifest_differences

    before = {"teacher": {"weights_sha256": "a", "licence": "LTX"}, "clip": {"frames": 9}}
    assert manifest_differences(before, {**before, "teacher": {"weights_sha256": "a", "licence": "unknown"}}) == []
    assert manifest_differences(before, {**before, "teacher": {"weights_sha256": "b", "licence": "LTX"}}) == [
        "weights of `teacher`: a -> b"
    ]


# --- what its student inherits ---


@pytest.mark.parametrize(("name", "factor"), [("ltx", 1.0), ("hunyuan", 0.476986), ("cogvideox", 0.7), ("video-dc-ae", 1.0)])
def test_published_students_have_the_scaling_that_pipelines_divide_by(name, factor, tmp_path, monkeypatch):
    """The published file, under its registry name, brings the factor though its own JSON says 1."""
    golden = load_golden(name)
    weights, _ = write_student(golden, tmp_path)
    spec = MODELS[name]
    assert spec.student.config["scaling_factor"] == factor
    small = golden.meta["student_config"] | {"scaling_factor": factor}
    monkeypatch.setitem(MODELS, name, replace(spec, student=replace(spec.student, config=small)))
    monkeypatch.setattr("turbovaed_cli.models.loading.find_model", lambda _: MODELS[name])
    monkeypatch.setattr("turbovaed_cli.models.loading.student_weights", lambda *_: weights)
    assert load_student(name).config.scaling_factor == factor


def test_the_factors_of_the_registry_are_those_of_diffusers_classes():
    import inspect

    import diffusers

    for name in ("hunyuan", "cogvideox"):
        spec = MODELS[name]
        default = inspect.signature(getattr(diffusers, spec.teacher.class_name).__init__).parameters["scaling_factor"].default
        assert name == "cogvideox" or default == spec.student.config["scaling_factor"]  # CogVideoX-2b's differs from 5B's


@pytest.mark.parametrize(("name", "factor"), [("hunyuan", 0.31), ("cogvideox", 1.15258426)])
def test_a_student_takes_scaling_from_its_teachers_own_config(name, factor, videos, tmp_path):
    golden = load_golden(name)
    golden.meta["teacher_config"] |= {"scaling_factor": factor, "_use_default_values": []}
    folder = write_teacher(golden, tmp_path / "vae")
    spec = find_model(folder)
    assert spec.student.config["scaling_factor"] == factor
    config = golden.meta["student_config"] | {"scaling_factor": 1.0}
    settings = replace(ONE_STEP, frames=spec.teacher.frames.at_least(9), sample_every=0)
    distill(spec, tmp_path / "run", data=videos / "a.mp4", settings=settings, student_config=config)
    student = load_student(tmp_path / "run")
    assert student.config.scaling_factor == factor and student.config.teacher == "vae"


def test_a_student_of_an_ltx_folder_takes_the_statistics_of_its_checkpoint(run, own):
    student, teacher = load_student(run), load_teacher(own)
    buffers = dict(teacher.vae.named_buffers())
    assert torch.allclose(student.latents_mean, buffers["latents_mean"])
    assert torch.allclose(student.latents_std, buffers["latents_std"])


# --- what is published ---


def forbidden(own: Path) -> list[str]:
    """What must not be in any file: folders above those that were named, and the home folder of this machine."""
    code = Path(__file__).resolve().parents[2]
    return [str(own.parent), own.parent.parent.name, str(Path.home()) + "/", str(code) + "/", "/site-packages/"]


def leaks(folder: Path, own: Path) -> list[tuple[str, str]]:
    files = [folder] if folder.is_file() else [path for path in folder.rglob("*") if path.is_file()]
    assert files
    return [(path.name, text) for path in files for text in forbidden(own) if text.encode() in path.read_bytes()]


def test_no_path_is_in_the_model_or_the_report_of_a_run(run, own):
    assert leaks(run / "model", own) == [] and leaks(run / "report.html", own) == []
    page = (run / "report.html").read_text()
    assert "AutoencoderKLLTXVideo (local folder myvae)" in page and "student of myvae" not in page
    assert re.search(r"<title>mine\b", page)
    assert json.loads((run / "config.json").read_text())["teacher"]["where"] == str(own.resolve())  # what resuming needs


def test_no_path_is_in_the_report_of_an_evaluation(run, own, tmp_path):
    data, settings = own.parent / "family films", EvalSettings(frames=9, size=(64, 64), metrics=("psnr",))
    pair = load_pair(str(run))
    result = evaluate(pair, data, settings)
    page = report_of_eval(result, pair, lambda clip: clip_frames(pair, clip, settings), settings, data)
    write_report(tmp_path / "page.html", page)
    assert leaks(tmp_path / "page.html", own) == []
    assert "family films" in (tmp_path / "page.html").read_text()


def test_no_path_is_in_an_export(one_block, own, tmp_path):
    latents = own.parent / "latents.safetensors"
    save_file({"latents": torch.randn(1, one_block.config.latent_channels, 3, 6, 4)}, latents)
    settings = ExportSettings(frames=5, sizes=((48, 32),), latents=latents)
    export_student(one_block, ("torch-export", "safetensors"), tmp_path / "out", settings)
    assert leaks(tmp_path / "out", own) == []
    assert str(tmp_path) not in (tmp_path / "out" / "export.json").read_text()
    assert "latents of latents.safetensors" in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("/home/erika/vae", "vae"),
        ("/home/erika/my films", "my films"),
        ("~/vae", "vae"),
        (r"C:\Users\Erika\vae", "vae"),
        (Path("/home/erika/vae"), "vae"),
        ({"teacher": {"where": "/home/erika/vae", "steps": 3}}, {"teacher": {"where": "vae", "steps": 3}}),
        ("LPIPS: /home/erika/vgg.pth is no backbone (see '/srv/x/y.md')", "LPIPS: vgg.pth is no backbone (see 'y.md')"),
        ("runs/mine and s3://bucket/runs/mine stay, as do 3/4 and https://example.org/a/b", None),
        (None, None),
    ],
)
def test_absolute_paths_become_names(value, shown):
    assert names_only(value) == (value if shown is None else shown)


def test_the_run_folder_is_still_its_own_model(run):
    assert RunDir.is_run(run) and load_pair(str(run)).teacher_is
