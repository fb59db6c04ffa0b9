"""What strangers send as weights runs no code, opens nothing but itself, and ends in one line, in every command that takes some."""

import ast
import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import hostile
import pytest
import torch
from faulty import count_of
from safetensors.torch import load_file, save, save_file

import turbovaed_cli
from turbovaed_cli import cli
from turbovaed_cli.files.sealed import sealed, write_manifest
from turbovaed_cli.files.whole import sha256_of
from turbovaed_cli.registry.rows import MODELS
from turbovaed_cli.registry.specs import ASSETS

pytestmark = pytest.mark.faults
PACKAGE = Path(turbovaed_cli.__file__).parent
WEIGHTS = "diffusion_pytorch_model.safetensors"
CUT = ("--frames", "5", "--size", "32")
_opened: list[str] = []
_watching = [False]


def _hook(event: str, arguments: tuple[object, ...]) -> None:
    if _watching[0] and event in ("open", "os.system", "subprocess.Popen", "os.exec", "os.posix_spawn"):
        _opened.append(f"{event} {arguments[0]}")


sys.addaudithook(_hook)


@dataclass(frozen=True)
class Door:
    """One way for a file into one command: what lies at `path` under a folder of its own, and the words that lead there."""

    name: str
    words: tuple[str, ...]
    path: str
    prepare: Callable[[Path], object]
    good: Callable[[], dict[str, torch.Tensor]] | None = None  # what belongs there


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    from conftest import make_video

    folder = tmp_path_factory.mktemp("clip")
    make_video(folder / "a.mp4", size="32x32", frames=5)
    return folder


@pytest.fixture
def turbovaed(capsys, monkeypatch):
    """A command line in this process: (exit code, stderr); any exception but its exit goes through."""

    def run(*arguments: object) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["turbovaed", *map(str, arguments)])
        capsys.readouterr()
        _opened.clear()
        _watching[0] = True
        try:
            cli.main()
        except SystemExit as end:
            return end.code, capsys.readouterr().err
        finally:
            _watching[0] = False
        raise AssertionError

    return run


def student_beside(root: Path) -> None:
    shutil.copy(ASSETS / "tiny" / "student" / "config.json", root / "config.json")


def copied(part: str) -> Callable[[Path], None]:
    return lambda root: shutil.copytree(ASSETS / "tiny" / part, root / "folder")


def tiny(part: str) -> Callable[[], dict[str, torch.Tensor]]:
    return lambda: load_file(ASSETS / "tiny" / part / WEIGHTS)


def latents() -> dict[str, torch.Tensor]:
    return {"latents": torch.zeros(32, 3, 4, 4)}


RECONSTRUCT = ("reconstruct", "{clip}/a.mp4", "--out", "{root}/out.mp4")
EVAL = ("eval", "--data", "{clip}", *CUT, "--metrics", "psnr")
EXPORT = ("export", "--out", "{root}/out.onnx", *CUT)
BENCH = ("bench", "--target", "torch", *CUT, "--repeats", "1", "--warmup", "1")
DISTILL = ("distill", "--data", "{clip}", *CUT, "--run", "{root}/run", "--steps", "1", "--recipe", "quick")
CACHE = ("cache-latents", "--data", "{clip}", *CUT, "--out", "{root}/latents")
NOTHING = lambda _root: None  # noqa: E731 - a door that needs no more than the file

_STUDENTS = {"reconstruct": RECONSTRUCT, "eval": EVAL, "export": EXPORT, "bench": BENCH}
_TEACHERS = {
    "reconstruct": RECONSTRUCT, "eval": EVAL, "export": (*EXPORT, "--data", "{clip}"), "bench": BENCH, "distill": DISTILL,
    "cache-latents": CACHE,
}  # fmt: skip
_FILE = ("--model", "{file}", "--config", "{root}/config.json", "--teacher", "tiny")
DOORS = [
    *(
        Door(f"{name} --model FILE{suffix}", (*words, *_FILE), f"student{suffix}", student_beside, tiny("student"))
        for name, words in _STUDENTS.items()
        for suffix in (".safetensors", ".pth")
    ),
    *(
        Door(f"{name} --model DIR", (*words, "--model", "{root}/folder"), f"folder/{WEIGHTS}", copied("student"), tiny("student"))
        for name, words in _STUDENTS.items()
    ),
    *(
        Door(f"{name} --teacher DIR", (*words, "--teacher", "{root}/folder"), f"folder/{WEIGHTS}", copied("teacher"), tiny("teacher"))
        for name, words in _TEACHERS.items()
    ),
    Door("models design DIR", ("models", "design", "{root}/folder", "--params", "300k"), f"folder/{WEIGHTS}", copied("teacher")),
    Door("distill --init FILE", (*DISTILL, "--init", "{file}"), "student.pth", student_beside, tiny("student")),
    Door("distill --init DIR", (*DISTILL, "--init", "{root}/folder"), f"folder/{WEIGHTS}", copied("student"), tiny("student")),
    Door("eval --compare", (*EVAL, "--compare", "tiny", "{root}/folder"), f"folder/{WEIGHTS}", copied("student"), tiny("student")),
    Door("reconstruct LATENTS", ("reconstruct", "{file}", "--out", "{root}/out.mp4"), "z.safetensors", NOTHING, latents),
    Door("export --latents", (*EXPORT, "--latents", "{file}"), "z.safetensors", NOTHING, latents),
    Door("bench --latents", (*BENCH, "--latents", "{file}"), "z.safetensors", NOTHING, latents),
    Door("eval --lpips-weights", (*EVAL[:-1], "lpips", "--lpips-weights", "{file}"), "alex.pth", NOTHING),
    Door("eval, the cached backbone", (*EVAL[:-1], "lpips"), "torch/hub/checkpoints/alexnet-owt-7be5be79.pth", NOTHING),
    Door("eval --i3d", (*EVAL[:-1], "rfvd", "--i3d", "{file}"), "i3d.pt", NOTHING),
    Door("eval --i3d --i3d-sha256", (*EVAL[:-1], "rfvd", "--i3d", "{file}", "--i3d-sha256", "0" * 64), "i3d.pt", NOTHING),
    Door("the hub's cache, --model", (*RECONSTRUCT, "--model", "ltx"), "hub/student", NOTHING),
    Door("the hub's cache, --teacher", (*CACHE, "--teacher", "ltx"), "hub/teacher", NOTHING),
    Door("the hub's cache, a lone file", (*CACHE, "--teacher", "dc"), "hub/lone", NOTHING),
]  # fmt: skip
# In the hub's cache a file lies behind a commit.
HUB = {
    "hub/student": ("hustvl/Turbo-VAED", "Turbo-VAED-LTX.pth"),
    "hub/teacher": ("Lightricks/LTX-Video", f"vae/{WEIGHTS}"),
    "hub/lone": ("hpcai-tech/Open-Sora-v2-Video-DC-AE", "F32T4C128_AE.safetensors"),
}


def in_hub(root: Path, name: str) -> Path:
    repo, file = HUB[name]
    place = root / "hub" / f"models--{repo.replace('/', '--')}"
    (place / "refs").mkdir(parents=True)
    (place / "refs" / "main").write_text("a" * 40)
    path = place / "snapshots" / ("a" * 40) / file
    path.parent.mkdir(parents=True)
    if "vae" in file:
        path.with_name("config.json").write_text('{"_class_name": "AutoencoderKLLTXVideo"}')
    return path


def is_one_line(code: int, err: str) -> bool:
    lines = err.splitlines()
    errors, hints = ([line for line in lines if line.startswith(start)] for start in ("error: ", "hint: "))
    return code in (1, 2, 3) and len(errors) == len(hints) == 1 and "Traceback" not in err and "please report" not in err


class Tried:
    """Counts, and the sentences that say what went wrong."""

    def __init__(self) -> None:
        self.number, self.wrong = 0, []

    def see(self, what: str, code: int, err: str, root: Path) -> None:
        self.number += 1
        canary = elsewhere()
        left = [path.name for path in root.rglob("out*") if path.is_file()]
        if not is_one_line(code, err) or canary or left or (root / "marker").exists():
            self.wrong.append(f"{what}: exit {code}, opened {canary}, left {left}: {err.strip()[-300:]}")


def elsewhere() -> list[str]:
    """What was opened that a file led to, but should not have."""
    return [item for item in _opened if item.endswith(("/canary", "canary.safetensors", "/etc/passwd", ".index.json"))]


def selected(request, number: int, of: int = 8) -> bool:
    """Whether door `number` is tried: in make test one of eight, by the seed."""
    return bool(count_of(request, quick=0, full=1)) or number % of == request.config.getoption("--fault-seed") % of


def put(door: Door, tmp_path: Path, content: bytes, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, list[str], Path]:
    root = tmp_path / "door"
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir()
    door.prepare(root)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(root / "hub"))
    monkeypatch.setenv("TORCH_HOME", str(root / "torch"))
    path = in_hub(root, door.path) if door.path in HUB else root / door.path
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return root, list(door.words), path


@pytest.mark.parametrize("door", DOORS, ids=lambda door: door.name)
def test_every_hostile_weight_file_through_every_door(door, turbovaed, clip, tmp_path, monkeypatch, request, tally):
    if not selected(request, DOORS.index(door)):
        pytest.skip("another seed, or make faults")
    marker = tmp_path / "door" / "marker"
    planted = hostile.pickles(marker)
    others = {
        **hostile.wrong_tables(torch.zeros(2)),
        **hostile.lying_headers(),
        **dict(hostile.spoilt(door.good()) if door.good else ()),
    }
    if not count_of(request, quick=0, full=1):  # every payload goes through some door in make test too
        names, turn = list(others), DOORS.index(door)
        planted = {name: planted[name] for name in (list(planted) * 2)[turn % 6 : turn % 6 + 2]}
        others = {name: others[name] for name in names[turn % 7 :: 7]}
    else:
        turn = DOORS.index(door) + request.config.getoption("--fault-seed")
        others = dict(list(others.items())[turn % 6 :: 6])  # over the doors, every one many times
    tried = Tried()
    for name, content in (planted | others).items():
        root, words, path = put(door, tmp_path, content, monkeypatch)
        code, err = turbovaed(*(word.format(root=root, clip=clip, file=path) for word in words))
        tried.see(f"{door.name}, {name}", code, err, root)
    tally("hostile weight files, through every command", tried.number, tried.number - len(tried.wrong))
    assert not tried.wrong, "\n".join(tried.wrong)


def test_good_files_go_through_the_same_doors(turbovaed, clip, tmp_path, monkeypatch, request):
    """The control: what is refused above is refused for what is in it."""
    doors = [door for door in DOORS if door.good and door.name.startswith(("reconstruct", "cache-latents", "export --l"))]
    for door in doors[::4] if count_of(request, quick=0, full=1) else doors[:1]:
        good = door.good()
        content = save(good) if not door.path.endswith(".pth") else hostile.saved(good)
        root, words, path = put(door, tmp_path, content, monkeypatch)
        code, err = turbovaed(*(word.format(root=root, clip=clip, file=path) for word in words))
        assert code == 0, f"{door.name}: {err}"


def test_the_payloads_bite(tmp_path):
    """The control: loaded as the trusting do, each runs its code."""
    for name, content in hostile.pickles(tmp_path / "marker").items():
        if name == "torn zip pickle":
            continue
        path = tmp_path / "planted.pt"
        path.write_bytes(content)
        if name == "TorchScript":
            torch.jit.load(path)
        elif name.startswith("pickle"):
            import pickle

            pickle.loads(content)
        else:
            torch.load(path, weights_only=False)
        assert (tmp_path / "marker").exists(), name
        (tmp_path / "marker").rmdir() if (tmp_path / "marker").is_dir() else (tmp_path / "marker").unlink()


# --- documents ----------------------------------------------------------------------------------------------------

_CONFIGS = {
    **{f"{name} --config": ((*words, *_FILE), "config.json", "student") for name, words in _STUDENTS.items()},
    **{f"{name} --model DIR": ((*words, "--model", "{root}/folder"), "folder/config.json", "student") for name, words in _STUDENTS.items()},
    **{f"{name} --teacher DIR": ((*words, "--teacher", "{root}/folder"), "folder/config.json", "teacher") for name, words in _TEACHERS.items()},
    "models show DIR": (("models", "show", "{root}/folder"), "folder/config.json", "teacher"),
    "models design DIR": (("models", "design", "{root}/folder", "--params", "300k"), "folder/config.json", "teacher"),
    "distill --student-config": ((*DISTILL, "--student-config", "{root}/config.json"), "config.json", "student"),
    "distill --init": ((*DISTILL, "--init", "{root}/folder"), "folder/config.json", "student"),
    "bench --compare": ((*BENCH, "--compare", "{root}/config.json"), "config.json", None),
    "distill --recipe": ((*DISTILL, "--recipe", "{root}/r.toml"), "r.toml", None),
    "distill --latents": (("distill", "--latents", "{root}/cache", "--run", "{root}/run"), "cache/manifest.json", None),
    "export beside": (EXPORT, "export.json", None),
}  # fmt: skip


@pytest.mark.parametrize("door", _CONFIGS)
def test_every_hostile_document_through_every_door(door, turbovaed, clip, tmp_path, request, tally):
    if not selected(request, list(_CONFIGS).index(door)):
        pytest.skip("another seed, or make faults")
    words, place, part = _CONFIGS[door]
    content = dict(hostile.documents())
    if door == "distill --recipe":
        content |= {"nested": b"a = " + b"[" * 50_000, "hex": b"seed = 0x" + b"f" * 9000, "digits": b"seed = " + b"9" * 9000}
    if part and door != "models show DIR" and count_of(request, quick=0, full=1):
        good = json.loads((ASSETS / "tiny" / part / "config.json").read_text())
        wrong = dict(hostile.wrong_configs(good))
        # What may be left out or put differently is no error: only what must be one is tried here, the rest in test_fuzz.
        keys = ("latent_channels", "decoder_block_out_channels", "decoder_layers_per_block", "out_channels", "layers_per_block")
        keys = keys[1:] if door == "distill --student-config" else keys  # which has the teacher's channels
        content |= {name: value for name, value in wrong.items() if name.rpartition(" ")[0] in keys and name[-1] in "0136"}
        content = dict(list(content.items())[(list(_CONFIGS).index(door) + request.config.getoption("--fault-seed")) % 4 :: 4])
    elif not count_of(request, quick=0, full=1):
        turn = list(_CONFIGS).index(door)
        content = dict(list(content.items())[turn % 3 :: 3])
    tried = Tried()
    for name, text in content.items():
        root = tmp_path / "door"
        shutil.rmtree(root, ignore_errors=True)
        root.mkdir()
        for source in ("student", "teacher") if part is None else (part,):
            if not (root / "folder").exists():
                copied(source)(root)
        shutil.copy(ASSETS / "tiny" / "student" / WEIGHTS, root / "student.safetensors")
        (root / place).parent.mkdir(exist_ok=True)
        (root / place).write_bytes(text)
        code, err = turbovaed(*(word.format(root=root, clip=clip, file=root / "student.safetensors") for word in words))
        tried.see(f"{door}, {name}", code, err, root)
    tally("hostile documents, through every command", tried.number, tried.number - len(tried.wrong))
    assert not tried.wrong, "\n".join(tried.wrong)


def test_python_beside_weights_is_not_run(turbovaed, clip, tmp_path, tally):
    """auto_map, custom classes and modules named like ours lie in model folders; nobody looks at them."""
    code_of = f"import os; os.mkdir({str(tmp_path / 'marker')!r})"
    more = {
        "auto_map": {"AutoModel": "evil.Evil", "AutoencoderKL": "evil.Evil"},
        "custom_pipeline": "evil",
        "trust_remote_code": True,
    }
    tried = 0
    for part, words in (("student", (*RECONSTRUCT, "--model")), ("teacher", (*CACHE, "--teacher"))):
        for key, value in more.items():
            root = tmp_path / f"{part}-{key}"
            root.mkdir()
            copied(part)(root)
            config = root / "folder" / "config.json"
            config.write_text(json.dumps({**json.loads(config.read_text()), key: value}))
            for name in ("evil.py", "__init__.py", "diffusers.py", "sitecustomize.py"):
                (root / "folder" / name).write_text(code_of)
            code, err = turbovaed(*(word.format(root=root, clip=clip) for word in words), root / "folder")
            assert code == 0 or is_one_line(code, err), err
            assert not any(".py" in item and "folder" in item for item in _opened)
            tried += 1
    assert not (tmp_path / "marker").exists()
    tally("hostile weight files, through every command", tried, tried)


@pytest.mark.parametrize("target", ["../canary.safetensors", "/etc/passwd"])
def test_an_index_of_shards_leads_nowhere(target, turbovaed, clip, tmp_path, tally):
    from turbovaed_cli import StudentDecoder

    copied("student")(tmp_path)
    folder = tmp_path / "folder"
    (folder / WEIGHTS).rename(tmp_path / "canary.safetensors")
    index = {"metadata": {"total_size": 4}, "weight_map": {"conv_in.conv.weight": target}}
    (folder / f"{WEIGHTS}.index.json").write_text(json.dumps(index))
    code, err = turbovaed(*(word.format(root=tmp_path, clip=clip) for word in RECONSTRUCT), "--model", folder)
    assert is_one_line(code, err) and not elsewhere()
    with pytest.raises((OSError, ValueError, RuntimeError)):
        StudentDecoder.from_pretrained(folder)
    tally("hostile weight files, through every command", 2, 2)


def test_diffusers_own_loader_takes_no_pickle_of_a_student(tmp_path):
    from turbovaed_cli import StudentDecoder

    copied("student")(tmp_path)
    (tmp_path / "folder" / WEIGHTS).unlink()
    (tmp_path / "folder" / "diffusion_pytorch_model.bin").write_bytes(hostile.saved({"a": hostile.Touch(tmp_path / "marker")}))
    for options in ({}, {"use_safetensors": False}):
        with pytest.raises(OSError, match="safetensors"):
            StudentDecoder.from_pretrained(tmp_path / "folder", **options)
    assert not (tmp_path / "marker").exists()


# --- run folders and latent caches --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run_folder(clip, tmp_path_factory, request):
    import subprocess

    if not count_of(request, quick=0, full=1):
        pytest.skip("in full by make faults")
    run = tmp_path_factory.mktemp("run") / "run"
    words = [word.format(root=run.parent, clip=clip) for word in DISTILL]
    subprocess.run([sys.executable, "-m", "turbovaed_cli", *words], check=True, capture_output=True)
    return run


def copy_of(run: Path, tmp_path: Path) -> Path:
    shutil.rmtree(tmp_path / "run", ignore_errors=True)
    return shutil.copytree(run, tmp_path / "run")


def test_a_run_folder_whose_seals_fit_is_still_not_believed(run_folder, turbovaed, clip, tmp_path, request, tally):
    """Whoever can write the folder can seal it again: what lies in checkpoints and model/ is checked for itself."""
    marker = tmp_path / "marker"
    planted = hostile.pickles(marker) | hostile.lying_headers()
    planted |= {f"spoilt: {name}": content for name, content in hostile.spoilt(load_file(run_folder / "model" / WEIGHTS))}
    planted = dict(list(planted.items())[request.config.getoption("--fault-seed") % 8 :: 8])  # a second each
    tried = Tried()
    for name, content in planted.items():
        run = copy_of(run_folder, tmp_path)
        (run / "model" / "README.md").unlink()
        (run / "model" / "manifest.json").unlink()
        (run / "model" / WEIGHTS).write_bytes(content)
        write_manifest(run / "model")
        code, err = turbovaed(*(word.format(root=tmp_path, clip=clip) for word in RECONSTRUCT), "--model", run)
        tried.see(f"model/, {name}", code, err, tmp_path)
        checkpoint = next((run / "checkpoints").iterdir())
        for piece in ("student", "ema", "optimizer", "step")[: count_of(request, quick=1, full=4)]:
            good = (checkpoint / f"{piece}.safetensors").read_bytes()
            spoilt = dict(hostile.spoilt(load_file(checkpoint / f"{piece}.safetensors"))) if piece not in ("step",) else {}
            bad = spoilt.get(name.removeprefix("spoilt: "), content)
            if name in ("spoilt: NaN", "spoilt: infinity", "spoilt: whole numbers", "spoilt: truths", "spoilt: complex"):
                continue  # numbers in the shape of numbers: training says what it finds in them
            (checkpoint / "manifest.json").unlink()
            (checkpoint / f"{piece}.safetensors").write_bytes(bad)
            write_manifest(checkpoint, step=1)
            words = [word.format(root=tmp_path, clip=clip) for word in DISTILL]
            code, err = turbovaed(*words[: words.index("--steps") + 1], "2", *words[words.index("--steps") + 2 :])
            tried.see(f"checkpoint {piece}, {name}", code, err, tmp_path)
            (checkpoint / f"{piece}.safetensors").write_bytes(good)
    tally("hostile weight files, through every command", tried.number, tried.number - len(tried.wrong))
    assert not tried.wrong, "\n".join(tried.wrong)


@pytest.mark.parametrize("name", ["../canary", "/etc/passwd", "..", "sub/canary", ""])
def test_manifests_name_files_of_their_own_folder_only(name, run_folder, turbovaed, clip, tmp_path, tally):
    run = copy_of(run_folder, tmp_path)
    (run / "canary").write_text("canary")
    entry = {"sha256": sha256_of(run / "canary"), "bytes": 6}
    for manifest, words in (
        (run / "model" / "manifest.json", (*RECONSTRUCT, "--model", str(run))),
        (next((run / "checkpoints").iterdir()) / "manifest.json", tuple(word if word != "1" else "2" for word in DISTILL)),
    ):
        before = json.loads(manifest.read_text())
        rest = {key: value for key, value in before.items() if key not in ("seal", "schema_version")}
        manifest.write_text(sealed({**rest, "files": {**before["files"], name: entry}}))
        code, err = turbovaed(*(word.format(root=tmp_path, clip=clip) for word in words))
        assert is_one_line(code, err) and "no file of its folder" in err, err
        assert not elsewhere()
    cache = tmp_path / "cache"
    (cache / "shards").mkdir(parents=True)
    save_file({"k.mean": torch.zeros(1)}, cache / "canary.safetensors")
    (cache / "manifest.json").write_text(sealed({"clip": {"frames": 5, "size": [32, 32], "stride": 1}, "teacher": {}}))
    shard = {"file": name, "sha256": "0" * 64, "bytes": 4, "clips": [{"key": "k"}]}
    (cache / "shards" / "a.json").write_text(sealed(shard))
    code, err = turbovaed("distill", "--latents", cache, "--run", tmp_path / "other")
    assert is_one_line(code, err) and "no file of its folder" in err, err
    tally("hostile documents, through every command", 3, 3)


def test_a_hostile_shard_in_a_sealed_cache(turbovaed, clip, tmp_path, request, tally):
    from turbovaed_cli import find_model
    from turbovaed_cli.latents.caching import cache_latents
    from turbovaed_cli.settings import CacheSettings

    made = tmp_path / "made"
    cache_latents(find_model("tiny"), clip, made, CacheSettings(frames=5, size=(32, 32)))
    (shard,) = (made / "shards").glob("*.json")
    about, good = json.loads(shard.read_text()), load_file(made / "shards" / json.loads(shard.read_text())["file"])
    planted = {**hostile.pickles(tmp_path / "marker"), **hostile.lying_headers()}
    planted |= {"other keys": save({"a": torch.zeros(1)}), "another shape": dict(hostile.spoilt(good))["another shape"]}
    planted |= {
        f"{end} without dimensions": save({**good, next(k for k in good if k.endswith(end)): torch.zeros(())})
        for end in ("mean", "video")
    }
    tried = Tried()
    items = list(planted.items())[:: count_of(request, quick=12, full=4)]
    for name, content in items:
        (made / "shards" / about["file"]).write_bytes(content)
        rest = {key: value for key, value in about.items() if key not in ("seal", "schema_version")}
        shard.write_text(sealed({**rest, "sha256": sha256_of(made / "shards" / about["file"])}))
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
        code, err = turbovaed("distill", "--latents", made, "--run", tmp_path / "run", "--steps", "1", "--recipe", "quick")
        tried.see(f"shard, {name}", code, err, tmp_path)
    tally("hostile weight files, through every command", tried.number, tried.number - len(tried.wrong))
    assert not tried.wrong, "\n".join(tried.wrong)


# --- TorchScript, ONNX, and what the package calls ----------------------------------------------------------------


def test_torchscript_is_loaded_only_with_its_sha256(turbovaed, clip, tmp_path, monkeypatch, tally):
    """Through every door, with another file's sha256 and without one; with its own, it is what somebody vouched for."""
    planted = tmp_path / "i3d.pt"
    planted.write_bytes(hostile.torchscript(tmp_path / "marker"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    words = [word.format(clip=clip) for word in (*EVAL[:-1], "rfvd")]
    for more in ((), ("--i3d-sha256", ""), ("--i3d-sha256", "0" * 64), ("--i3d-sha256", sha256_of(planted)[:63])):
        code, err = turbovaed(*words, "--i3d", planted, *more)
        assert is_one_line(code, err) and not (tmp_path / "marker").exists(), err
    from turbovaed_cli.registry.download import I3D_FILE

    HUB["hub/i3d"] = (I3D_FILE.repo, I3D_FILE.filename)
    path = in_hub(tmp_path, "hub/i3d")
    path.write_bytes(planted.read_bytes())
    from turbovaed_cli.metrics import fvd

    with pytest.raises(fvd.MissingWeightsError, match="is not confirmed"):
        fvd.load_detector(None, "", torch.device("cpu"))
    assert not (tmp_path / "marker").exists()
    code, err = turbovaed(*words, "--i3d", planted, "--i3d-sha256", sha256_of(planted))
    assert is_one_line(code, err) and (tmp_path / "marker").exists()  # the control: vouched for, its code runs
    tally("hostile weight files, through every command", 5, 5)


def external(path: Path, location: str) -> Path:
    import onnx

    weight = onnx.TensorProto(name="w", data_type=onnx.TensorProto.FLOAT, dims=[4], data_location=onnx.TensorProto.EXTERNAL)
    weight.external_data.add(key="location", value=location)
    weight.external_data.add(key="length", value="16")
    x, y = (onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [4]) for name in ("x", "y"))
    graph = onnx.helper.make_graph([onnx.helper.make_node("Add", ["x", "w"], ["y"])], "g", [x], [y], [weight])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=10)
    path.write_bytes(model.SerializeToString())
    return path


@pytest.mark.parametrize("way", ["parent", "absolute", "symlink"])
def test_data_of_an_onnx_file_never_leaves_its_folder(way, tmp_path, tally):
    from turbovaed_cli.export.formats import onnx as exporter

    canary = tmp_path / "canary"
    canary.write_bytes(torch.full((4,), 1234.5).numpy().tobytes())
    folder = tmp_path / "folder"
    folder.mkdir()
    if way == "symlink":
        (folder / "data").symlink_to(canary)
    path = external(folder / "a.onnx", {"parent": "../canary", "absolute": str(canary)}.get(way, "data"))
    graph = type("Graph", (), {"inputs": {"x": torch.zeros(4)}})()
    for read in (
        lambda: exporter.session(path).run(None, {"x": torch.zeros(4).numpy()}),
        lambda: exporter.load(path, graph)({"x": torch.zeros(4)}),
        lambda: exporter.anatomy(path),
        lambda: exporter.first_non_finite(path, graph),
    ):
        with pytest.raises(Exception, match=r"(?i)external|outside|path|escape|symlink|link"):
            read()
    tally("hostile weight files, through every command", 4, 4)


def calls() -> list[tuple[str, str, ast.Call]]:
    """(file, name, call) of every call of something with a dotted name."""
    found = []
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name | ast.Attribute):
                found.append((path.relative_to(PACKAGE).as_posix(), dotted(node.func), node))
    return found


def dotted(node: ast.expr) -> str:
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else "()"


def test_the_package_calls_nothing_that_runs_what_it_reads():
    """pickle, eval, numpy's pickles, remote code, hub code: nowhere. torch.load everywhere with weights_only."""
    every = calls()
    names, options = [name for _, name, _ in every], {word.arg for _, _, call in every for word in call.keywords}
    forbidden = ("pickle.load", "pickle.loads", "eval", "exec", "torch.hub.load", "yaml.load", "np.load", "numpy.load", "joblib.load",
                 "load_state_dict_from_url", "AutoModel.from_pretrained", "DiffusionPipeline.from_pretrained", "__import__")  # fmt: skip
    assert not [name for name in names if name in forbidden]
    loads = [call for _, name, call in every if name == "torch.load"]
    assert loads and all(
        any(word.arg == "weights_only" and ast.unparse(word.value) == "True" for word in call.keywords) for call in loads
    )
    assert "trust_remote_code" not in options
    places = {(path, name) for path, name, _ in every}
    assert {path for path, name in places if name == "torch.jit.load"} == {"metrics/fvd.py"}
    # The student's own, and that of the file without diffusers that an export has just written.
    own = {"models/student.py", "models/student_vae.py", "export/formats/comfyui.py"}
    assert {path for path, name in places if name.endswith("from_pretrained")} == own
    # ONNX files, exported programs and packages are opened where we have just written them, by whoever wrote them.
    assert {path for path, name in places if name in ("onnx.load", "onnxruntime.InferenceSession")} == {"export/formats/onnx.py"}
    assert {path for path, name in places if name.endswith("export.load")} <= {"export/formats/torch_files.py"}
    assert all(
        spec.student.published is None or spec.student.published.filename.endswith((".pth", ".safetensors"))
        for spec in MODELS.values()
    )
