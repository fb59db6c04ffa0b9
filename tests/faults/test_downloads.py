"""Downloads that go wrong: each ends in one clear line with the command that mends it, and nothing wrong stays in the cache."""

import hashlib
import os
import resource
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from faulty import count_of
from hub import Hub
from limits import HANG_S

pytestmark = pytest.mark.faults
STUDENT = "hustvl/Turbo-VAED/Turbo-VAED-LTX.pth"
TEACHER = "Lightricks/LTX-Video/vae/diffusion_pytorch_model.safetensors"
AGAIN = "turbovaed models pull ltx --yes"


@pytest.fixture
def make_hub():
    """Small files under the names that the registry has; sizes there are for people, those that count come from the server."""
    made = []

    def make() -> Hub:
        content = bytes(range(256)) * 4000  # a megabyte; what is in it, pull does not ask
        made.append(Hub({TEACHER: content, "Lightricks/LTX-Video/vae/config.json": b"{}", STUDENT: content[::-1]}))
        return made[-1]

    yield make
    for server in made:
        server.close()


@pytest.fixture
def hub(make_hub):
    return make_hub()


@pytest.fixture
def pull(hub, tmp_path):
    return puller(hub, tmp_path)


def puller(hub: Hub, folder: Path):
    """The real command with the real client, in a process of its own."""
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("HF_")},
        "HF_ENDPOINT": hub.url, "HF_HOME": str(folder / "hf"), "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_ETAG_TIMEOUT": "2", "HF_HUB_DOWNLOAD_TIMEOUT": "2", "NO_PROXY": "127.0.0.1,localhost", "TORCH_HOME": str(folder / "torch"),
    }  # fmt: skip

    def run(*words: str, room: int | None = None, **more: str) -> subprocess.CompletedProcess[str]:
        def limit() -> None:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (room, room))

        command = [
            sys.executable,
            "-m",
            "turbovaed_cli",
            "models",
            "pull",
            *(words or ("ltx", "--yes")),
        ]
        return subprocess.run(
            command, env=environment | more, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL, timeout=HANG_S,
            preexec_fn=limit if room is not None else None,
        )  # fmt: skip

    return run


def files_in(tmp_path: Path) -> dict[str, bytes]:
    """What is in the cache by the names that somebody looks for."""
    return {path.name: path.read_bytes() for path in (tmp_path / "hf").rglob("snapshots/*/**/*") if path.is_file()}


def is_one_line(done: subprocess.CompletedProcess[str], code: int, *said: str) -> bool:
    lines = done.stderr.splitlines()
    found = [line for line in lines if line.startswith(("error: ", "hint: "))]
    assert done.returncode == code and len(found) == 2 and "Traceback" not in done.stderr, done.stderr
    assert all(words in "\n".join(found) for words in said), found
    return True


@pytest.fixture
def went_wrong(tally):
    def count() -> None:
        tally("downloads that went wrong", 1, 1)

    return count


def test_a_download_that_was_cut_goes_on_where_it_stopped(hub, pull, tmp_path, went_wrong):
    """The client writes ten MiB at a time: a cut behind the second of them is made good from there."""
    hub.files[TEACHER] = hub.files[TEACHER] * 25
    hub.cut_after = 24_000_000
    done = pull()
    assert done.returncode == 0, done.stderr
    assert hub.ranges == [f"bytes={2 * 10 * 1024 * 1024}-"]
    cached = files_in(tmp_path)
    assert (
        cached["diffusion_pytorch_model.safetensors"] == hub.files[TEACHER] and cached["Turbo-VAED-LTX.pth"] == hub.files[STUDENT]
    )
    went_wrong()


def test_a_wrong_hash_is_refused_and_does_not_stay(hub, pull, tmp_path, went_wrong):
    hub.wrong_hash = True
    is_one_line(pull(), 1, "sha256", AGAIN)
    assert hub.files[TEACHER] not in files_in(tmp_path).values() and "diffusion_pytorch_model.safetensors" not in files_in(
        tmp_path
    )
    assert not [path for path in (tmp_path / "hf").rglob("blobs/*") if path.stat().st_size > 1000]
    hub.wrong_hash = False
    assert pull().returncode == 0  # what the hint says
    went_wrong()


@pytest.mark.parametrize("more", [1000, -1000])
def test_a_wrong_size_is_refused(more, hub, pull, tmp_path, went_wrong):
    hub.wrong_size = more
    is_one_line(pull(), 3, "failed", AGAIN)
    assert "diffusion_pytorch_model.safetensors" not in files_in(tmp_path)
    went_wrong()


def test_offline_with_and_without_the_cache(hub, pull, went_wrong):
    is_one_line(pull(HF_HUB_OFFLINE="1"), 3, "not in the cache", "HF_HUB_OFFLINE", AGAIN)
    assert hub.requests == []
    assert pull().returncode == 0
    before = len(hub.requests)
    assert pull(HF_HUB_OFFLINE="1").returncode == 0 and len(hub.requests) == before
    went_wrong()


def test_servers_that_are_ill_or_silent(make_hub, tmp_path_factory, request, tally):
    """The client waits and tries again, longer each time; so these are tried at once."""
    if not count_of(request, quick=0, full=1):
        pytest.skip("half a minute of waiting: in full by make faults")
    cases = {
        "500": {"error": (500, "")},
        "503": {"error": (503, "")},
        "429": {"error": (429, "")},
        "stalls": {"stalls": True},
        "gone": {},
    }

    def try_one(name: str) -> bool:
        server = make_hub()
        for field, value in cases[name].items():
            setattr(server, field, value)
        folder = tmp_path_factory.mktemp(name)
        done = puller(server, folder)(**({"HF_ENDPOINT": "http://127.0.0.1:9"} if name == "gone" else {}))
        is_one_line(done, 3, "Lightricks/LTX-Video vae/", AGAIN)
        assert files_in(folder) == {}
        if name == "stalls":  # what the hint says
            server.stalls = False
            assert puller(server, folder)().returncode == 0
        return True

    with ThreadPoolExecutor(len(cases)) as pool:
        survived = list(pool.map(try_one, cases))
    tally("downloads that went wrong", len(cases), sum(survived))


@pytest.mark.parametrize(
    ("status", "code", "said"),
    [
        (401, "GatedRepo", ("gated", "HF_TOKEN", "https://huggingface.co/Lightricks/LTX-Video", AGAIN)),
        (403, "GatedRepo", ("gated", "HF_TOKEN", AGAIN)),
        (401, "RepoNotFound", ("not on the hub, or private", AGAIN)),
        (404, "RepoNotFound", ("not on the hub, or private", AGAIN)),
        (404, "EntryNotFound", ("holds no vae/", "--teacher")),
    ],
)
def test_what_the_server_says_is_one_line(status, code, said, hub, pull, tmp_path, went_wrong, request):
    if (status, code) not in [(401, "GatedRepo"), (404, "EntryNotFound")] and not count_of(request, quick=0, full=1):
        pytest.skip("in full by make faults")
    hub.error = (status, code)
    is_one_line(pull(), 3, *said)
    assert files_in(tmp_path) == {}
    went_wrong()


def test_on_a_full_disk(hub, pull, tmp_path, went_wrong):
    is_one_line(pull(room=200_000), 1, "no room", "free some space")
    assert "diffusion_pytorch_model.safetensors" not in files_in(tmp_path)
    assert pull().returncode == 0
    assert files_in(tmp_path)["diffusion_pytorch_model.safetensors"] == hub.files[TEACHER]
    went_wrong()


@pytest.mark.parametrize("name", ["ltx", "i3d", "lpips-alex"])
def test_without_consent_nothing_is_requested(name, hub, pull, tmp_path, request):
    if name != "ltx" and not count_of(request, quick=0, full=1):
        pytest.skip("in full by make faults")
    done = pull(name)
    is_one_line(done, 3, " MB)", f"models pull {name} --yes")
    assert hub.requests == [] and files_in(tmp_path) == {}


def test_the_size_is_said_before_anything_is_fetched(hub, pull):
    """With --yes too: the note stands before the first request; the server stops the rest."""
    hub.error = (404, "RepoNotFound")
    done = pull()
    lines = done.stderr.splitlines()
    assert lines.index("downloading 1.85 GB") < next(i for i, line in enumerate(lines) if line.startswith("error: "))
    assert "LTX-Video Open Weights License" in done.stderr


@pytest.mark.parametrize("fault", ["hash", "cut", "gone", "full"])
def test_a_backbone_of_lpips(fault, hub, tmp_path, monkeypatch, went_wrong):
    """torch.hub's client against the same server: its address is a field of the registry of backbones."""
    from dataclasses import replace

    from turbovaed_cli.errors import DiskFullError, MissingWeightsError
    from turbovaed_cli.registry import backbones
    from turbovaed_cli.registry.pull import pull as pull_here

    content = bytes(1_000_000)
    name = f"alexnet-{'0' * 8 if fault == 'hash' else hashlib.sha256(content).hexdigest()[:8]}.pth"
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    if fault != "gone":
        hub.files[f"torch/{name}"] = content
    if fault == "cut":
        hub.cut_after = 300_000
    trunk = replace(backbones.TRUNKS["alex"], file_name=name, url=f"{hub.url}/storage/torch/resolve/main/{name}")
    monkeypatch.setitem(backbones.TRUNKS, "alex", trunk)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        if fault == "full":
            resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, hard))
        with pytest.raises(DiskFullError if fault == "full" else MissingWeightsError) as error:
            pull_here("lpips-alex", lambda *_: True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)
    assert "\n" not in error.value.what and error.value.hint
    assert backbones.trunk_path("alex") is None
    if fault in ("cut", "full"):
        (file,) = pull_here("lpips-alex", lambda *_: True).files
        assert file.path.read_bytes() == content
    went_wrong()
