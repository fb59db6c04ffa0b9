"""`push`: a run becomes a repository on the hub, after consent, in one commit, and without anything private."""

import hashlib
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import Notes, is_two_lines
from hub import TOKEN, USER, Hub, use_hub
from huggingface_hub import ModelCard
from PIL import Image, PngImagePlugin
from safetensors.torch import load_file, save_file

from turbovaed_cli import distill, evaluate, find_model, load_pair, load_student, push
from turbovaed_cli.errors import OutputExistsError, SettingsError, TurboVaedError, UnknownModelError
from turbovaed_cli.models.loading import build_student
from turbovaed_cli.report.run_page import keep_evaluation
from turbovaed_cli.settings import DistillSettings, EvalSettings, Stage

REPO = f"{USER}/small"
WEIGHTS = "diffusion_pytorch_model.safetensors"
STAGE = Stage("only", steps=2, accumulation=1, perceptual="none", feature_weight=0.0)
SETTINGS = DistillSettings((STAGE,), frames=9, size=(64, 64), dtype="fp32", save_every=2, sample_every=1)


@pytest.fixture(scope="module")
def finished(ltx_teacher, cache, videos, small_student, tmp_path_factory):
    """A run of two steps on a local teacher, with a sample and an evaluation."""
    run = tmp_path_factory.mktemp("runs") / "mine"
    distill(find_model(ltx_teacher), run, latents=cache, settings=SETTINGS, student_config=small_student)
    pair, measured = load_pair(str(run)), EvalSettings(frames=9, size=(64, 64), metrics=("psnr", "ssim"))
    keep_evaluation(evaluate(pair, videos, measured), pair, measured, videos)
    return run


@pytest.fixture
def run(finished, tmp_path):
    """A copy that a test may change."""
    return Path(shutil.copytree(finished, tmp_path / "somewhere" / "mine"))


@pytest.fixture
def hub(tmp_path, monkeypatch):
    server = Hub({})
    use_hub(server, tmp_path / "hf", monkeypatch)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # between the client's tries
    yield server
    server.close()


def test_everything_goes_up_in_one_commit_into_a_private_repository(run, hub):
    result = push(run, REPO, consent=True)
    assert hub.private == {REPO: True} and result.private and len(hub.commits) == 1
    names = {file.name for file in result.files}
    evaluation = f"eval/{next((run / 'eval').glob('*.json')).name}"
    assert {"README.md", "config.json", WEIGHTS, "manifest.json", "sample.png", evaluation} <= names
    assert {name.removeprefix(f"{REPO}/") for name in hub.files} == names
    for file in result.files:
        content = hub.files[f"{REPO}/{file.name}"]
        assert (file.num_bytes, file.sha256) == (len(content), hashlib.sha256(content).hexdigest())
    assert result.url == f"{hub.url}/{REPO}" and result.changed
    ours, theirs = load_student(run).state_dict(), load_student(REPO, consent=True).state_dict()
    assert all(value.equal(theirs[name]) for name, value in ours.items())


def test_nothing_private_is_in_any_file(run, hub, ltx_teacher, videos):
    """The run records where teacher and data were, and the machine; none of it goes up."""
    assert str(ltx_teacher) in (run / "config.json").read_text(), "or the test shows nothing"
    push(run, REPO, consent=True)
    for name, content in hub.files.items():
        for secret in (str(ltx_teacher.parent), str(videos), str(run), "/tmp/", "env.json"):
            assert secret.encode() not in content and secret not in name, (name, secret)
    document = json.loads(next(content for name, content in hub.files.items() if "/eval/" in name))
    assert document["model"] == REPO and {Path(clip["path"]).name for clip in document["clips"]} == {
        clip["path"] for clip in document["clips"]
    }


def _plant(run: Path, where: str) -> str:
    """Put something private into a file of a run's model; return the file that an error has to name."""
    model = run / "model"
    (model / "manifest.json").unlink()  # which would notice
    if where == "weights":
        tensors = load_file(model / WEIGHTS)
        save_file({**tensors, "/home/jane/secret": tensors[min(tensors)].clone()}, model / WEIGHTS)
        return WEIGHTS
    if where == "card":
        (model / "README.md").write_text("---\nlicense: mit\n---\nTrained on /home/jane/videos.\n")
    elif where == "windows":
        (model / "README.md").write_text("---\nlicense: mit\n---\nTrained on C:\\Users\\jane\\videos.\n")
    elif where == "user":
        (model / "README.md").write_text("---\nlicense: mit\n---\nAsk janedoe.\n")
    elif where == "token":
        (model / "README.md").write_text(f"---\nlicense: mit\n---\nUse {TOKEN}.\n")
    return "README.md"


@pytest.mark.parametrize(("where", "said"), [("card", "/home/jane/videos"), ("windows", r"C:\Users\jane"), ("user", "janedoe"), ("token", "hf_aaa...")])  # fmt: skip
def test_a_private_text_in_a_file_refuses_the_push(where, said, run, hub, monkeypatch):
    monkeypatch.setattr("getpass.getuser", lambda: "janedoe")
    name = _plant(run, where)
    with pytest.raises(SettingsError) as error:
        push(run, REPO, consent=True)
    assert f"{name} holds" in error.value.what and said in error.value.what
    assert not hub.files and not hub.private
    found = error.value.what.partition(": ")[2]
    push(run, REPO, consent=True, allow=(found,))
    assert hub.files


def test_a_path_in_the_config_or_the_notes_of_a_picture_is_left_out(run, hub):
    """They are written anew: known keys, and pixels."""
    config = json.loads((run / "model" / "config.json").read_text())
    (run / "model" / "manifest.json").unlink()
    (run / "model" / "config.json").write_text(
        json.dumps(config | {"teacher": "/home/jane/vae", "_name_or_path": "/home/jane/x"})
    )
    notes = PngImagePlugin.PngInfo()
    notes.add_text("Source", "/home/jane/a.mp4")
    strip = max((run / "samples").glob("*.png"))
    with Image.open(strip) as picture:
        picture.load()
        picture.save(strip, pnginfo=notes)
    push(run, REPO, consent=True)
    assert json.loads(hub.files[f"{REPO}/config.json"])["teacher"] == "vae"
    assert not [name for name, content in hub.files.items() if b"/home/jane" in content]


def test_a_path_in_the_name_of_a_tensor_is_refused(run, hub):
    from turbovaed_cli.pipelines.package import check_private

    _plant(run, "weights")
    with pytest.raises(SettingsError, match="/home/jane/secret"):
        check_private(run / "model", REPO)


def test_the_card_says_what_it_is_and_how_well_it_does(run, hub):
    push(run, REPO, consent=True)
    text = hub.files[f"{REPO}/README.md"].decode()
    card = ModelCard(text)
    data = card.data
    assert (data.license, data.pipeline_tag, "turbo-vaed" in data.tags) == ("unknown", "text-to-video", True)
    document = json.loads(next((run / "eval").glob("*.json")).read_text())
    by_metric = {result.metric_type: result for result in data.eval_results}
    assert set(by_metric) == {"psnr", "ssim"} and data.model_name == "small"
    result = by_metric["psnr"]
    assert result.metric_value == document["means"]["student"]["psnr"]
    assert result.metric_args["teacher"] == document["means"]["teacher"]["psnr"]
    assert result.dataset_name in next((run / "eval").glob("*.json")).name and result.dataset_args["protocol"] == "standard"
    assert result.dataset_args["frames"] == 9 and result.dataset_args["size"] == [64, 64]
    assert ModelCard(f"---\n{data.to_yaml()}\n---\n").data.to_dict() == data.to_dict()
    assert f'load_student("{REPO}", consent=True)' in text and "attach_student(pipe, student)" in text
    assert f"type `{REPO}` into `path_or_hub_id`" in text
    assert f"--model {REPO} --format comfyui" in text and "| only | 2 |" in text and "9 frames of 64x64" in text
    assert "LPIPS-Alex was not measured" in text or "Not measured otherwise" in text
    assert "![teacher, student and source](sample.png)" in text


@pytest.mark.parametrize(("causal", "said"), [(True, "come out at once (look-ahead 0)"), (False, "frames after the latents")])
@pytest.mark.usefixtures("hub")
def test_the_card_states_how_long_a_stream_waits(causal, said, small_student, tmp_path):
    student = build_student(small_student | {"decoder_causal": causal})
    student.save_pretrained(tmp_path / "saved")
    push(tmp_path / "saved", REPO, dry_run=True, out=tmp_path / "out")
    text = (tmp_path / "out" / "README.md").read_text()
    assert said in text and (causal or f"comes out {student.stream().lookahead_frames} frames" in text)


def test_from_a_teacher_on_the_hub_to_a_student_there(hub, ltx_teacher, cache, small_student, tmp_path):
    """Run, config and card name the repository of the teacher, by which the student finds it again."""
    hub.files |= {f"them/vae/{path.name}": path.read_bytes() for path in ltx_teacher.iterdir()}
    hub.files["them/vae/README.md"] = b"---\nlicense: other\nlicense_name: some-licence\n---\n"
    run = tmp_path / "runs" / "mine"
    distill(find_model("them/vae", consent=True), run, latents=cache, settings=SETTINGS, student_config=small_student)
    assert json.loads((run / "config.json").read_text())["teacher"]["where"] == "them/vae"
    push(run, REPO, consent=True)
    data = ModelCard(hub.files[f"{REPO}/README.md"].decode()).data
    assert data.base_model == "them/vae" and data.to_dict()["base_model_relation"] == "finetune"
    assert (data.license, data.license_name) == ("other", "some-licence")
    pair = load_pair(REPO, consent=True)
    assert (pair.teacher_is, pair.teacher.spec.hub) == ("them/vae", "them/vae")


def test_a_card_that_was_changed_by_hand_is_kept_and_checked_by_the_hub(run, hub):
    (run / "model" / "README.md").write_text("---\nlicense: mit\n---\nMine.\n")
    notes = Notes()
    push(run, REPO, consent=True, report=notes)
    assert hub.files[f"{REPO}/README.md"].endswith(b"Mine.\n") and any("kept" in note for note in notes.notes)
    (run / "model" / "README.md").write_text("---\nlicense: my own\n---\nMine.\n")
    with pytest.raises(TurboVaedError, match="the hub refuses the card") as error:
        push(run, REPO, consent=True)
    assert '"license"' in error.value.what and len(hub.commits) == 1
    (run / "model" / "README.md").write_text("---\nlicense: [\n---\nMine.\n")
    with pytest.raises(SettingsError, match="header"):
        push(run, REPO, consent=True)


def test_a_dry_run_writes_the_folder_and_asks_nobody(run, hub, tmp_path, turbovaed):
    code, out, err = turbovaed("push", run, REPO, "--dry-run", "--out", tmp_path / "out", "--json")
    assert code == 0, err
    document = json.loads(out)
    assert {file["name"] for file in document["files"]} == {
        path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*") if path.is_file()
    }
    assert load_student(tmp_path / "out").latent_channels == 6 and hub.requests == [] and "nothing was uploaded" in err
    with pytest.raises(OutputExistsError):
        push(run, REPO, dry_run=True, out=tmp_path / "out")
    assert turbovaed("push", run, REPO, "--dry-run")[0] == 2


def test_overwriting_replaces_nothing_but_an_earlier_package(run, hub, tmp_path):
    """The run, a folder that contains it, and folders with files that `push` did not write are all refused."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years")
    before = sorted(tmp_path.rglob("*"))
    for out, error in ((run, SettingsError), (run / "model", SettingsError), (run.parent, SettingsError), (tmp_path / "mine", OutputExistsError)):  # fmt: skip
        with pytest.raises(error, match="holds"):
            push(run, REPO, dry_run=True, out=out, overwrite=True)
    assert sorted(tmp_path.rglob("*")) == before
    for _ in range(2):
        push(run, REPO, dry_run=True, out=run / "published", overwrite=True)


def test_without_consent_nothing_is_created(run, hub, turbovaed):
    code, out, err = turbovaed("push", run, REPO)
    assert (code, out) == (3, "") and is_two_lines(err), err
    assert "without consent" in err and "--yes" in err
    assert not [path for method, path in hub.requests if method != "GET"] and not hub.private
    code, out, err = turbovaed("push", run, REPO, "--yes")
    assert code == 0 and f"uploaded to {hub.url}/{REPO}" in err, err
    assert "it/s" not in err and "B/s" not in err, "a bar of the client's own"
    code, out, err = turbovaed("push", run, REPO, "--yes")
    assert code == 0 and "nothing has changed" in err, err


def test_public_is_said_twice(run, hub):
    push(run, REPO, consent=True, public=True)
    assert hub.private == {REPO: False}
    with pytest.raises(SettingsError, match="is public"):
        push(run, REPO, consent=True)


def test_after_a_cut_what_was_sent_whole_is_not_sent_again(run, hub):
    hub.cut_put = (run / "model" / WEIGHTS).stat().st_size - 1  # the picture is smaller
    assert next((run / "samples").glob("*.png")).stat().st_size < hub.cut_put
    with pytest.raises(TurboVaedError, match="failed") as error:
        push(run, REPO, consent=True)
    assert "not sent again" in error.value.hint and error.value.exit_code == 1
    assert not hub.commits and not hub.files
    hub.cut_put = None
    done = set(hub.objects)
    assert len(done) == 1
    hub.refuses_commits = True
    hub.sent.clear()
    with pytest.raises(TurboVaedError):
        push(run, REPO, consent=True)
    assert {digest for digest, _ in hub.sent} == {hashlib.sha256((run / "model" / WEIGHTS).read_bytes()).hexdigest()}
    hub.refuses_commits = False
    hub.sent.clear()
    push(run, REPO, consent=True)
    assert hub.sent == [] and len(hub.commits) == 1


def test_the_transfer_is_lfs_and_xet_is_as_it_was_afterwards(run, hub):
    from huggingface_hub import constants

    before = constants.HF_HUB_DISABLE_XET
    push(run, REPO, consent=True)
    assert constants.HF_HUB_DISABLE_XET is before
    (batch,) = [json.loads(body) for body in hub.bodies if b'"hash_algo"' in body]
    assert batch["operation"] == "upload" and "xet" not in batch["transfers"]
    assert not [path for _, path in hub.requests if "xet" in path]


@pytest.mark.parametrize("fault", ["token", "wrong token", "foreign", "offline", "network", "fails"])
def test_every_failure_is_one_line_and_a_hint(fault, run, hub, turbovaed, monkeypatch):
    from huggingface_hub import constants

    repo, wanted, said = REPO, 3, ""
    if fault == "token":
        monkeypatch.delenv("HF_TOKEN")
        said = "there is no token"
    elif fault == "wrong token":
        monkeypatch.setenv("HF_TOKEN", "hf_wrong")
        said = "refuses the token"
    elif fault == "foreign":
        repo, said = "others/small", "may not write"
    elif fault == "offline":
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        said = "HF_HUB_OFFLINE"
    elif fault == "network":
        monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
        said = "cannot be reached"
    elif fault == "fails":
        hub.error = (500, "")
        wanted, said = 1, "failed"
    code, out, err = turbovaed("push", run, repo, "--yes")
    assert (code, out) == (wanted, "") and is_two_lines(err) and said in err.splitlines()[-2], err
    assert not hub.commits


def test_a_model_folder_is_pushed_with_its_run_or_alone(run, hub, one_block_folder):
    push(run / "model", REPO, consent=True)
    assert f"{REPO}/sample.png" in hub.files
    push(one_block_folder, f"{USER}/alone", consent=True, sample=False)
    text = hub.files[f"{USER}/alone/README.md"].decode()
    assert "Nothing was measured" in text and "Not recorded" in text and "license: apache-2.0" in text
    for where in (run / "samples", run / "nothing"):
        with pytest.raises(UnknownModelError):
            push(where, REPO, consent=True)


def test_figures_of_older_weights_are_left_out_and_old_evaluations_removed(run, hub):
    push(run, REPO, consent=True)
    weights = run / "model" / WEIGHTS
    newer = weights.stat().st_mtime + 1000
    os.utime(weights, (newer, newer))
    notes = Notes()
    push(run, REPO, consent=True, report=notes)
    assert any("older than the weights" in note for note in notes.warnings)
    assert not [name for name in hub.files if "/eval/" in name]
    assert "Nothing was measured" in hub.files[f"{REPO}/README.md"].decode()


def test_of_a_pipeline_folder_the_student_is_pushed(hub, one_block_folder, tmp_path):
    shutil.copytree(one_block_folder, tmp_path / "saved" / "vae")
    result = push(tmp_path / "saved", REPO, dry_run=True, out=tmp_path / "out")
    assert WEIGHTS in {file.name for file in result.files}


@pytest.mark.parametrize("repo", ["small", "a/b/c", f"{USER}/small@main", "./x/y", "runs/file.pth"])
def test_a_repository_is_user_slash_name(repo, run, hub):
    with pytest.raises(SettingsError, match="no repository"):
        push(run, repo, consent=True)


def test_every_licence_of_the_registry_has_an_id_of_the_hub():
    from hub_card import errors_of_card

    from turbovaed_cli.registry.rows import MODELS
    from turbovaed_cli.report.card import CardFacts, card, facts_of_teacher

    for spec in MODELS.values():
        facts = CardFacts(
            facts_of_teacher(spec, None, None, {}),
            1,
            spec.teacher.latent_channels,
            spec.teacher.time_ratio,
            spec.teacher.space_ratio,
        )
        text = card(replace(facts, place="user/name"))
        data = ModelCard(text).data
        assert errors_of_card(text) == []
        assert data.license != "other" or data.license_link, spec.name
        assert data.base_model == spec.teacher.repo
