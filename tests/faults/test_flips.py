"""One bit that changes on disk is seen, wherever it is: in checkpoints, models, manifests and latents."""

import random
import shutil
from pathlib import Path

import pytest
import torch
from faulty import count_of
from safetensors.torch import save_file

from turbovaed_cli.errors import CorruptFileError, SettingsError, TurboVaedError
from turbovaed_cli.files.sealed import read_sealed, sealed, write_manifest
from turbovaed_cli.latents.cache import ClipSource, LatentCache
from turbovaed_cli.latents.caching import cache_latents
from turbovaed_cli.latents.status import cache_status
from turbovaed_cli.latents.writer import CacheWriter
from turbovaed_cli.models.loading import build_student, load_student
from turbovaed_cli.registry.find import find_model
from turbovaed_cli.runs.rundir import RunDir
from turbovaed_cli.settings import CacheSettings

pytestmark = pytest.mark.faults


def flips(path: Path, count: int, rng: random.Random):
    """The file with one other bit in turn: every bit of a small one, else `count` at random; and as it was in the end."""
    content = path.read_bytes()
    bits = 8 * len(content)
    for bit in range(bits) if bits <= count else rng.sample(range(bits), count):
        changed = bytearray(content)
        changed[bit // 8] ^= 1 << bit % 8
        path.write_bytes(changed)
        yield bit
    path.write_bytes(content)


def undetected(folder: Path, read, count: int, seed: int) -> tuple[int, list[str]]:
    """How many flips of how many files were tried, and which of them `read` took for good."""
    rng, tried, missed = random.Random(seed), 0, []
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        for bit in flips(path, count, rng):
            tried += 1
            try:
                read()
            except TurboVaedError:
                continue
            missed.append(f"{path.name} bit {bit}")
    read()
    return tried, missed


@pytest.fixture
def tried(request):
    """Flips per file, and the seed."""
    return count_of(request, quick=60, full=2000), request.config.getoption("--fault-seed")


def test_in_a_checkpoint(tried, tmp_path, tally):
    run = RunDir(tmp_path)
    run.save_checkpoint(3, lambda folder: save_file({"weights": torch.randn(500)}, folder / "student.safetensors"), keep=1)
    count, missed = undetected(run.checkpoints, run.latest_checkpoint, *tried)
    tally("flipped bits of a checkpoint", count, count - len(missed))
    assert missed == [] and count >= 100


def test_in_a_model(tried, ltx_student, tmp_path, tally):
    shutil.copytree(ltx_student, tmp_path / "model")
    write_manifest(tmp_path / "model")
    count, missed = undetected(tmp_path / "model", lambda: load_student(tmp_path / "model"), *tried)
    tally("flipped bits of a model", count, count - len(missed))
    assert missed == [] and count >= 100


def test_in_a_latent_cache(tried, tmp_path, tally):
    made_by = {"teacher": {"name": "none"}, "clip": {"frames": 1, "size": [8, 8], "stride": 1}, "dtype": "fp32"}
    with CacheWriter(tmp_path, made_by, shard_mb=1) as writer:
        clip = ClipSource("a.mp4", "a" * 64, 0, 1, 1, (8, 8))
        writer.add_all([(clip, torch.randn(2, 1, 1, 1), torch.rand(2, 1, 1, 1), torch.zeros(1, 8, 8, 3, dtype=torch.uint8))])

    def read():
        cache = LatentCache(tmp_path)
        cache.read(0)

    count, missed = undetected(tmp_path, read, *tried)
    tally("flipped bits of a latent cache", count, count - len(missed))
    assert missed == [] and count >= 100


def test_in_what_workers_know_of_the_videos(tried, ltx_teacher, videos, tmp_path, tally):
    """The whole folder that a caching run leaves, as a rerun, a look at it and a reader see it."""
    settings = CacheSettings(frames=9, size=(32, 32))
    cache_latents(find_model(ltx_teacher), videos, tmp_path / "c", settings)

    def read():
        cache_status(tmp_path / "c")
        cache = LatentCache(tmp_path / "c")
        for index in range(len(cache)):
            cache.read(index)

    for lock in (tmp_path / "c" / "parts").glob("*.lock"):  # empty while nobody holds them
        lock.unlink()
    count, missed = undetected(tmp_path / "c", read, *tried)
    tally("flipped bits of a latent cache", count, count - len(missed))
    assert missed == [] and count >= 200


def test_a_flip_that_nobody_looks_for_is_missed(tmp_path):
    """The control: without the seal, a flip in a manifest's white space or numbers would pass."""
    text = sealed({"step": 3, "files": {}})
    (tmp_path / "manifest.json").write_text(text)
    assert read_sealed(tmp_path / "manifest.json")["step"] == 3
    (tmp_path / "manifest.json").write_text(text.replace('"step": 3', '"step": 2'))
    with pytest.raises(CorruptFileError, match="seal"):
        read_sealed(tmp_path / "manifest.json")
    (tmp_path / "manifest.json").write_text('{"schema_version": 1, "step": 3, "files": {}}')  # of an earlier turbovaed
    assert read_sealed(tmp_path / "manifest.json")["step"] == 3


def test_swapped_truncated_and_foreign_files_are_named(ltx_student, tmp_path):
    run = RunDir(tmp_path / "run")
    for step in (1, 2):
        run.save_checkpoint(
            step, lambda folder, step=step: save_file({"w": torch.full((4,), float(step))}, folder / "w.safetensors"), keep=2
        )
    first, second = (run.checkpoint_path(step) for step in (1, 2))
    shutil.copytree(second, tmp_path / "kept")
    (second / "w.safetensors").write_bytes((first / "w.safetensors").read_bytes())
    with pytest.raises(CorruptFileError, match=r"step_0000002.w\.safetensors"):
        run.latest_checkpoint()
    shutil.rmtree(second)
    shutil.copytree(first, second)
    with pytest.raises(CorruptFileError, match="holds step 1"):
        run.latest_checkpoint()
    shutil.rmtree(second)
    shutil.copytree(tmp_path / "kept", second)
    (second / "w.safetensors").unlink()
    with pytest.raises(CorruptFileError, match=r"misses w\.safetensors"):
        run.latest_checkpoint()
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "manifest.json").write_text("[]")
    with pytest.raises((CorruptFileError, SettingsError)):
        LatentCache(tmp_path / "foreign")
    assert build_student(dict(load_student(ltx_student).config)) is not None
