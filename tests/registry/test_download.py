"""Weights are found, asked for, downloaded and checked; nothing touches the network before consent."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from golden import load_golden, write_student, write_teacher
from hub import Hub
from limits import HANG_S

from turbovaed_cli.errors import MissingWeightsError, UnknownModelError
from turbovaed_cli.registry.download import I3D_FILE, no_consent, student_weights, teacher_folder
from turbovaed_cli.registry.pull import pull
from turbovaed_cli.registry.rows import MODELS


@pytest.fixture
def hub(tmp_path):
    golden = load_golden("ltx")
    folder = write_teacher(golden, tmp_path / "teacher")
    weights, _ = write_student(golden, tmp_path)
    files = {f"Lightricks/LTX-Video/vae/{path.name}": path.read_bytes() for path in folder.iterdir()}
    server = Hub(files | {"hustvl/Turbo-VAED/Turbo-VAED-LTX.pth": weights.read_bytes()})
    yield server
    server.close()


@pytest.fixture
def turbovaed(hub, tmp_path):
    environment = {
        **os.environ,
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(tmp_path / "hf"),
        "HF_HUB_DISABLE_XET": "1",
        "TORCH_HOME": str(tmp_path / "torch"),
        "NO_PROXY": "127.0.0.1,localhost",
    }
    environment.pop("HF_HUB_OFFLINE", None)

    def run(*arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "turbovaed_cli", *arguments]
        return subprocess.run(
            command,
            env={**environment, **more},
            capture_output=True,
            text=True,
            check=False,
            stdin=subprocess.DEVNULL,
            timeout=HANG_S,
        )

    return run


def test_pull_downloads_after_consent_and_prints_each_sha256(hub, turbovaed, tmp_path):
    done = turbovaed("models", "pull", "ltx", "--yes", "--json")
    assert done.returncode == 0, done.stderr
    files = {Path(item["path"]).name: item for item in json.loads(done.stdout)["files"]}
    assert set(files) == {"diffusion_pytorch_model.safetensors", "config.json", "Turbo-VAED-LTX.pth"}
    served = hub.files["Lightricks/LTX-Video/vae/diffusion_pytorch_model.safetensors"]
    assert files["diffusion_pytorch_model.safetensors"]["sha256"] == hashlib.sha256(served).hexdigest()
    assert "LTX-Video Open Weights License" in done.stderr
    # From now on the cache is enough: offline, and without another request.
    before = len(hub.requests)
    script = (
        "from turbovaed_cli.machine.imports import import_less; import_less()\n"
        "from turbovaed_cli import load_teacher; print(load_teacher('ltx').vae.config.latent_channels)"
    )
    environment = {**os.environ, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1"}
    assert (
        subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True).stdout.strip()
        == "6"
    )
    assert len(hub.requests) == before


def test_the_i3d_detector_is_pulled_but_not_trusted(hub, turbovaed, tmp_path, monkeypatch):
    """--yes agrees to a download, not to code: eval still wants the sha256."""
    import torch

    from turbovaed_cli.metrics import fvd

    refused = turbovaed("models", "pull", "i3d")
    assert refused.returncode == 3 and hub.requests == []
    assert "turbovaed models pull i3d --yes" in refused.stderr and "--i3d FILE" in refused.stderr
    content = b"TorchScript, says its publisher"
    hub.files[f"{I3D_FILE.repo}/{I3D_FILE.filename}"] = content
    done = turbovaed("models", "pull", "i3d", "--yes", "--json")
    assert done.returncode == 0, done.stderr
    (file,) = json.loads(done.stdout)["files"]
    digest = hashlib.sha256(content).hexdigest()
    assert file["sha256"] == digest and "code" in done.stderr
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hf" / "hub"))
    with pytest.raises(MissingWeightsError, match="is not confirmed") as error:
        fvd.load_detector(None, "", torch.device("cpu"))
    assert digest in error.value.hint


def test_without_consent_nothing_is_requested_and_two_lines_say_what_to_do(hub, turbovaed, tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"not looked into before the weights are there")
    for arguments in (
        ("models", "pull", "ltx"),
        ("distill", "--teacher", "ltx", "--data", str(tmp_path), "--run", str(tmp_path / "out")),
        ("cache-latents", "--teacher", "ltx", "--data", str(tmp_path), "--out", str(tmp_path / "out")),
    ):
        done = turbovaed(*arguments)
        assert done.returncode == 3
        assert len([line for line in done.stderr.strip().splitlines() if not line.startswith("left out")]) == 2
        assert " MB)" in done.stderr and "turbovaed models pull ltx" in done.stderr
        assert done.stdout == ""
    assert hub.requests == []
    assert not (tmp_path / "out").exists()


def test_a_file_that_is_not_what_the_server_said_is_refused(hub, turbovaed):
    hub.wrong_hash = True
    done = turbovaed("models", "pull", "ltx", "--yes")
    assert done.returncode == 1
    assert "sha256" in done.stderr


@pytest.mark.parametrize(
    ("path", "said"), [("Lightricks/LTX-Video/vae/config.json", "config.json"), ("Lightricks", "not on the hub")]
)
def test_what_the_hub_does_not_hold_is_one_clear_line(path, said, hub, turbovaed):
    hub.files = {name: content for name, content in hub.files.items() if not name.startswith(path)}
    done = turbovaed("models", "pull", "ltx", "--yes")
    assert done.returncode == 3
    assert said in done.stderr.splitlines()[-2] and "Traceback" not in done.stderr


def test_offline_says_so(turbovaed):
    done = turbovaed("models", "pull", "ltx", "--yes", HF_HUB_OFFLINE="1")
    assert done.returncode == 3
    assert "cannot be reached" in done.stderr


@pytest.mark.parametrize("endpoint", ["http://hub.invalid", "http://127.0.0.1:9"])
def test_without_network_one_line_says_what_to_fetch_elsewhere(endpoint, turbovaed):
    """At once: neither a line nor a wait of the client's own retries."""
    done = turbovaed("models", "pull", "ltx", "--yes", HF_ENDPOINT=endpoint)
    assert done.returncode == 3
    assert "thrown while requesting" not in done.stderr and "Retry" not in done.stderr
    error, hint = done.stderr.strip().splitlines()[-2:]
    assert "cannot be reached" in error
    assert "hf download Lightricks/LTX-Video vae/diffusion_pytorch_model.safetensors vae/config.json --local-dir DIR" in hint
    assert "--teacher DIR/vae" in hint and "--model DIR/Turbo-VAED-LTX.pth" in hint


@pytest.mark.thorough  # the hub's client waits between its attempts
def test_a_hub_that_fails_is_one_line_too(hub, turbovaed):
    hub.error = (503, "")
    done = turbovaed("models", "pull", "ltx", "--yes")
    assert done.returncode == 3 and "thrown while requesting" not in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize("command", [("export", "--out", "out.onnx"), ("reconstruct", "in.mp4")])
def test_a_missing_student_is_not_asked_for_as_a_teacher(command, turbovaed, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in.mp4").touch()
    done = turbovaed(*command, "--model", "ltx")
    assert done.returncode == 3
    hint = done.stderr.strip().splitlines()[-1]
    assert "--yes downloads these 169 MB (MIT)" in hint and "--model DIR/Turbo-VAED-LTX.pth" in hint and "--teacher" not in hint


def test_a_published_file_that_was_carried_over_needs_no_config(tmp_path):
    """It is known by its name; its shapes are checked all the same."""
    import torch

    from turbovaed_cli.errors import SettingsError, WeightFileError
    from turbovaed_cli.models.loading import build_student, load_student

    published = MODELS["hunyuan"].student
    weights = build_student(published.config).state_dict()
    path = tmp_path / published.published.filename
    torch.save(weights, path)
    student = load_student(path)
    assert student.config.teacher == "hunyuan" and student.config.scaling_factor == 0.476986
    path.rename(tmp_path / "mine.pth")
    with pytest.raises(SettingsError, match="JSON config") as error:
        load_student(tmp_path / "mine.pth")
    assert "models show" in error.value.hint
    (tmp_path / "mine.pth").rename(tmp_path / MODELS["ltx"].student.published.filename)
    with pytest.raises(WeightFileError):
        load_student(tmp_path / MODELS["ltx"].student.published.filename)


def test_an_lpips_backbone_is_checked_against_the_hash_in_its_name(tmp_path, monkeypatch):
    from dataclasses import replace

    from turbovaed_cli.registry import backbones

    content = b"not really a backbone"
    served = tmp_path / "served"
    served.mkdir()
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    for digest, works in ((hashlib.sha256(content).hexdigest()[:8], True), ("00000000", False)):
        name = f"vgg16-{digest}.pth"
        (served / name).write_bytes(content)
        trunk = replace(backbones.TRUNKS["vgg"], file_name=name, url=(served / name).as_uri())
        monkeypatch.setitem(backbones.TRUNKS, "vgg", trunk)
        if works:
            (file,) = pull("lpips-vgg", lambda *_: True).files
            assert file.path.read_bytes() == content
            assert backbones.trunk_path("vgg") == file.path
        else:
            with pytest.raises(MissingWeightsError, match="hash"):
                pull("lpips-vgg", lambda *_: True)
            assert backbones.trunk_path("vgg") is None


def test_consent_is_asked_with_the_size(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    asked = []
    with pytest.raises(MissingWeightsError):
        teacher_folder(MODELS["hunyuan"], lambda files, total: asked.append((files, total)) or False)
    (files, total) = asked[0]
    assert 980e6 < total < 990e6
    assert files[0].licence == MODELS["hunyuan"].teacher.licence
    with pytest.raises(MissingWeightsError, match=r"Turbo-VAED-Hunyuan\.pth"):
        student_weights(MODELS["hunyuan"], no_consent)


def test_local_folders_need_no_hub(ltx_teacher):
    from turbovaed_cli.registry.find import find_model

    assert teacher_folder(find_model(ltx_teacher)) == ltx_teacher


def test_unknown_names_are_refused(tmp_path):
    with pytest.raises(UnknownModelError):
        pull("lpips-squeeze", lambda *_: True)
    with pytest.raises(UnknownModelError):
        pull("nothing", lambda *_: True)
