"""Repositories on the hub by their id: found in the cache, asked for with their size, downloaded without code or pickles."""

import json

import pytest
from conftest import is_two_lines
from golden import load_golden, write_teacher
from hub import TOKEN, Hub, use_hub

from turbovaed_cli import find_model, load_decoder, load_pair, load_student, load_teacher
from turbovaed_cli.cli.options import named_model
from turbovaed_cli.errors import MissingWeightsError, SettingsError, UnknownModelError
from turbovaed_cli.registry.hub import hub_folder, hub_id, parse_hub_id
from turbovaed_cli.registry.rows import MODELS

CARD = b"---\nlicense: apache-2.0\n---\n# A model\n"


@pytest.fixture
def hub(one_block_folder, tmp_path, monkeypatch):
    """A student of `tiny` at the root of one repository, a VAE of class LTX in vae/ of another."""
    student = {f"me/student/{path.name}": path.read_bytes() for path in one_block_folder.iterdir()}
    vae = write_teacher(load_golden("ltx"), tmp_path / "served")
    teacher = {f"them/pipeline/vae/{path.name}": path.read_bytes() for path in vae.iterdir()}
    server = Hub(
        student
        | {"me/student/README.md": CARD, "me/student/modeling.py": b"raise SystemExit", "me/student/old.bin": b"pickle"}
        | teacher
        | {"them/pipeline/README.md": CARD, "them/pipeline/model_index.json": b"{}", "them/pipeline/transformer/big.safetensors": b"0" * 999}
    )  # fmt: skip
    use_hub(server, tmp_path / "hf", monkeypatch)
    monkeypatch.chdir(tmp_path)
    yield server
    server.close()


class Asked:
    """Agrees to everything, and keeps what it was asked."""

    def __init__(self):
        self.questions = []

    def __call__(self, files, total_bytes):
        self.questions.append(([file.filename for file in files], total_bytes, files[0].licence))
        return True


@pytest.mark.parametrize(
    ("name", "repo", "file", "revision"),
    [
        ("user/name", "user/name", None, None),
        ("user/name@v1.0", "user/name", None, "v1.0"),
        ("user/na.me-1_2/vae/weights.pth", "user/na.me-1_2", "vae/weights.pth", None),
        ("user/name/w.safetensors@0a1b", "user/name", "w.safetensors", "0a1b"),
    ],
)
def test_an_id_is_a_repository_a_revision_and_perhaps_a_file(name, repo, file, revision):
    place = parse_hub_id(name)
    assert (place.repo, place.file, place.revision, str(place)) == (repo, file, revision, name)


@pytest.mark.parametrize(
    "name", ["ltx", "./user/name", "/user/name", "user/name/", "../name", "user/file.pth", "user/in.mp4", "a/b/c", "s3://a/b", "a/..b", ""]
)  # fmt: skip
def test_paths_are_no_ids(name):
    assert parse_hub_id(name) is None


def test_a_student_is_downloaded_after_consent_and_then_found_without_a_request(hub, one_block):
    asked = Asked()
    student = load_student("me/student", consent=asked)
    assert all(value.equal(one_block.state_dict()[name]) for name, value in student.state_dict().items())
    (_, zero, _), (files, total, licence) = asked.questions
    assert zero == 0 and licence == "apache-2.0" and total == sum(len(hub.files[f"me/student/{name}"]) for name in files)
    assert set(files) == {"README.md", "config.json", "diffusion_pytorch_model.safetensors"}  # no code, no pickles
    before = len(hub.requests)
    assert load_student("me/student").config.latent_channels == 8
    assert len(hub.requests) == before
    assert not [path for _, path in hub.requests if path.endswith((".py", ".bin"))]


def test_without_consent_nothing_is_requested(hub, turbovaed):
    for call in (load_student, load_teacher, find_model, hub_folder):
        with pytest.raises(MissingWeightsError, match="me/student is not on this machine") as error:
            call("me/student")
        assert "`consent=True`" in error.value.hint and "turbovaed models pull me/student --yes" in error.value.hint
    code, out, err = turbovaed("export", "--out", "out.onnx", "--model", "me/student")  # no terminal, no --yes
    assert (code, out) == (3, "") and is_two_lines(err) and "--yes downloads it" in err
    assert hub.requests == []


def test_a_teacher_is_found_in_vae_and_named_by_its_repository(hub, tmp_path):
    spec = find_model("them/pipeline", consent=True)
    teacher = spec.teacher
    assert (spec.name, teacher.where, teacher.origin) == ("pipeline", "them/pipeline", "them/pipeline")
    assert teacher.licence == "apache-2.0" and teacher.class_name == "AutoencoderKLLTXVideo"
    assert str(tmp_path) not in spec.title + teacher.origin
    assert load_teacher("them/pipeline").spec == teacher
    assert not [path for _, path in hub.requests if "transformer" in path]


def test_a_student_brings_the_teacher_that_its_config_names(hub, ltx_student):
    config = json.loads((ltx_student / "config.json").read_text()) | {"teacher": "them/pipeline"}
    hub.files |= {f"me/small/{path.name}": path.read_bytes() for path in ltx_student.iterdir()}
    hub.files["me/small/config.json"] = json.dumps(config).encode()
    alone = load_pair("me/small", with_teacher=False, consent=True)
    assert alone.teacher is None and alone.spec is None and alone.teacher_is == "them/pipeline"
    pair = load_pair("me/small", consent=True)
    assert pair.teacher.spec.hub == "them/pipeline" and pair.student.latent_channels == pair.teacher.spec.latent_channels


def test_a_decoder_of_any_family_is_taken_by_its_id(hub):
    assert load_decoder("me/student", consent=True).family == "turbo-vaed"
    own = load_decoder("them/pipeline", consent=True)
    assert own.latent_channels == 6 and own.licence == "apache-2.0"


def test_the_repository_of_a_row_is_that_row(hub):
    assert find_model("Lightricks/LTX-Video") is MODELS["ltx"]
    assert hub.requests == []


def test_a_folder_of_the_same_name_wins_and_is_noted(hub, one_block_folder, capsys, tmp_path):
    load_student("me/student", consent=True)
    (tmp_path / "me").mkdir()
    assert hub_id("me/student") is not None, "in the cache, and no such path"
    assert hub_id("me/other") is None, "a path that does not exist"
    with pytest.raises(UnknownModelError) as error:
        load_student("me/other", consent=True)
    assert "turbovaed models pull me/other" in error.value.hint
    (tmp_path / "me" / "student").symlink_to(one_block_folder)
    assert hub_id("me/student") is None
    assert named_model("me/student") == "me/student"
    assert "me/student is the folder here" in capsys.readouterr().err


def test_pull_brings_the_newest_files_and_only_these(hub, turbovaed):
    load_student("me/student", consent=True)
    hub.files["me/student/README.md"] = CARD + b"more\n"
    hub.commit = "b" * 40
    code, out, err = turbovaed("models", "pull", "me/student", "--yes", "--json")
    assert code == 0 and f"downloading {len(CARD) + 5} bytes" in err, err
    assert {file["path"].rpartition("/")[2] for file in json.loads(out)["files"]} == {
        "README.md", "config.json", "diffusion_pytorch_model.safetensors"
    }  # fmt: skip
    assert (hub_folder("me/student") / "README.md").read_bytes().endswith(b"more\n")


def test_one_file_is_taken_by_its_name(hub, one_block):
    import io

    import torch

    buffer = io.BytesIO()
    torch.save(one_block.state_dict(), buffer)
    hub.files["me/files/weights.pth"] = buffer.getvalue()
    with pytest.raises(SettingsError, match=r"no config\.json") as error:
        load_student("me/files", consent=True)
    assert "weights.pth" in error.value.hint
    path = hub_folder("me/files/weights.pth", consent=True)
    assert path.read_bytes() == buffer.getvalue()
    assert load_student("me/files/weights.pth", dict(one_block.config)).latent_channels == 8


def test_a_revision_is_its_own_download(hub):
    load_student("me/student@v1", consent=True)
    with pytest.raises(MissingWeightsError):
        load_student("me/student")
    with pytest.raises(MissingWeightsError, match="no such revision"):
        load_student("me/student@v2", consent=True)


def test_a_download_that_was_cut_is_not_taken_for_a_model(hub, monkeypatch):
    from huggingface_hub import constants

    del hub.files["me/student/diffusion_pytorch_model.safetensors"]
    hub.files["me/student/diffusion_pytorch_model-00001-of-00002.safetensors"] = b"half"
    hub.files["me/student/diffusion_pytorch_model.safetensors.index.json"] = json.dumps(
        {"weight_map": {"a": "diffusion_pytorch_model-00001-of-00002.safetensors", "b": "diffusion_pytorch_model-00002-of-00002.safetensors"}}
    ).encode()  # fmt: skip
    with pytest.raises(MissingWeightsError):
        hub_folder("me/student", consent=True)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(MissingWeightsError, match="cannot be reached"):
        hub_folder("me/student", consent=True)


@pytest.mark.parametrize("fault", ["unknown", "gated", "private", "offline", "network", "fails", "token"])
def test_every_failure_is_one_line_and_a_hint(fault, hub, turbovaed, monkeypatch):
    from huggingface_hub import constants

    name, said, hint = "me/student", "", "turbovaed models pull me/student --yes"
    if fault == "unknown":
        name, said, hint = "me/nothing", "me/nothing is not on the hub, or private", "HF_TOKEN"
    elif fault == "gated":
        hub.gated.add(name)
        said, hint = "is gated", "accept its licence at https://huggingface.co/me/student"
    elif fault == "private":
        hub.private[name] = True
        said, hint = "not on the hub, or private", "HF_TOKEN"
    elif fault == "offline":
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        said, hint = "cannot be reached", "HF_HUB_OFFLINE"
    elif fault == "network":
        monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
        said, hint = "cannot be reached", "hf download me/student --local-dir DIR"
    elif fault == "fails":
        hub.error = (500, "")
        said = "failed"
    elif fault == "token":
        hub.private[name] = True
        monkeypatch.setenv("HF_TOKEN", "hf_wrong")
        said, hint = "private", "HF_TOKEN"
    code, out, err = turbovaed("models", "pull", name, "--yes")
    assert (code, out) == (3, "") and is_two_lines(err), err
    assert said in err.splitlines()[-2] and hint in err.splitlines()[-1]


def test_a_private_repository_is_read_with_the_token(hub, monkeypatch):
    hub.private["me/student"] = True
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert load_student("me/student", consent=True).latent_channels == 8
