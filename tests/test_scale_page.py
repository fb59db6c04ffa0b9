"""What docs/guides/scale.md says is so: its commands parse, its scripts and manifests too, its arithmetic adds up."""

import math
import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
import yaml
from conftest import load_golden, write_teacher
from safetensors import safe_open

from turbovaed_cli.cli.app import app
from turbovaed_cli.latents.cache import LatentCache
from turbovaed_cli.latents.caching import cache_latents
from turbovaed_cli.latents.parts import Shard, shard_from_environment
from turbovaed_cli.registry.find import find_model
from turbovaed_cli.registry.specs import ModelSpec
from turbovaed_cli.settings import CacheSettings
from turbovaed_cli.training.recipes import RECIPES

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "guides" / "scale.md").read_text()
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", PAGE, re.DOTALL)
JOBS = [yaml.safe_load(block) for kind, block in BLOCKS if kind == "yaml"]
VIDEOS = 1_000_000


def commands() -> Iterator[list[str]]:
    """The words behind `turbovaed` of every command in a block, also behind torchrun, srun and accelerate."""
    for kind, block in BLOCKS:
        for line in block.replace("\\\n", " ").splitlines() if kind == "sh" else ():
            words = shlex.split(line.replace("bash -c '", "").rstrip("'"), comments=True)
            at = next((index for index, word in enumerate(words) if word in ("turbovaed", "turbovaed_cli")), None)
            if at is not None:
                yield [word for word in words[at + 1 :] if word != "&"]
    for job in JOBS:
        yield job["spec"]["template"]["spec"]["containers"][0]["command"][1:]


COMMANDS = list(commands())


def table(head: str) -> list[list[str]]:
    """The cells of the rows of the table whose head begins so, without marks and commas."""
    lines = PAGE[PAGE.index(head) :].splitlines()[2:]
    rows = lines[: next((index for index, line in enumerate(lines) if not line.startswith("|")), len(lines))]
    return [[cell.strip(" `").replace(",", "") for cell in row.strip("|").split("|")] for row in rows]


def bytes_of_clip(spec: ModelSpec, frames: int, side: int) -> tuple[int, int, int]:
    """(pixels, mean, std) of a cached clip."""
    teacher = spec.teacher
    place = 4 * teacher.latent_frames(frames) * (side // teacher.space_ratio) ** 2
    has_one_std = teacher.class_name == "AutoencoderKLLTXVideo"
    return frames * side * side * 3, place * teacher.latent_channels, place * (1 if has_one_std else teacher.latent_channels)


def test_there_are_commands():
    assert len(COMMANDS) > 12 and {words[0] for words in COMMANDS} == {"cache-latents", "distill"}


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_every_command_parses(words):
    """By the parser of the command itself; nothing is run."""
    found = typer.main.get_command(app).commands[words[0]]  # type: ignore[attr-defined]
    found.make_context(words[0], list(words[1:]))


def test_a_command_that_does_not_exist_is_seen():
    """The control of the test above."""
    found = typer.main.get_command(app).commands["distill"]  # type: ignore[attr-defined]
    with pytest.raises(Exception, match="--shards"):
        found.make_context("distill", ["--shards", "8"])


@pytest.mark.parametrize("script", [block for kind, block in BLOCKS if kind == "sh"] + [ROOT / "tools" / "two_machines.sh"])
def test_every_script_is_one(script):
    text = script if isinstance(script, str) else script.read_text()
    subprocess.run(["bash", "-n"], input=text, text=True, check=True)


def test_the_array_and_the_indexed_job_share_all_the_work():
    first, last = map(int, re.search(r"--array=(\d+)-(\d+)", PAGE).groups())
    count = last - first + 1
    of_slurm = {
        "SLURM_ARRAY_TASK_COUNT": str(count),
        "SLURM_ARRAY_TASK_MIN": str(first),
        "SLURM_PROCID": "0",
        "SLURM_NTASKS": "1",
    }
    tasks = [shard_from_environment(of_slurm | {"SLURM_ARRAY_TASK_ID": str(task)})[0] for task in range(first, last + 1)]
    assert tasks == [Shard(index, count) for index in range(count)]
    (job,) = JOBS
    count = job["spec"]["completions"]
    given = {item["name"]: item["value"] for item in job["spec"]["template"]["spec"]["containers"][0]["env"]}
    pods = [shard_from_environment(given | {"JOB_COMPLETION_INDEX": str(index)})[0] for index in range(count)]
    assert pods == [Shard(index, count) for index in range(count)]


def test_the_bytes_of_clips_are_those_of_the_registry():
    rows = table("| teacher | clip |")
    assert len(rows) == 4
    for name, clip, *cells in rows:
        frames, height, width = map(int, clip.split("x"))
        assert height == width
        parts = bytes_of_clip(find_model(name), frames, height)
        assert list(map(int, cells[:4])) == [*parts, sum(parts)]
        assert cells[4] == f"{sum(parts) * VIDEOS / 1e12:.2f} TB"
    clips = CacheSettings().shard_mb * 10**6 // sum(bytes_of_clip(find_model("ltx"), 17, 256))
    assert f"({CacheSettings().shard_mb} MB: {clips} clips of `ltx` at 17x256x256)" in PAGE


@pytest.mark.parametrize("name", ["ltx", "hunyuan"])
def test_real_caches_have_the_bytes_of_the_formula(name, videos, tmp_path):
    """Of small teachers of the two architectures."""
    spec = find_model(str(write_teacher(load_golden(name), tmp_path / "vae")))
    cache_latents(spec, videos, tmp_path / "latents", CacheSettings(frames=9, size=(64, 64), clips_per_video=1))
    cache = LatentCache(tmp_path / "latents")
    sizes = {"video": 0, "mean": 0, "std": 0}
    for path in (cache.root / "shards").glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            for key in file.keys():  # noqa: SIM118 - it is no mapping
                sizes[key.rpartition(".")[2]] += file.get_tensor(key).nbytes
    assert tuple(size // len(cache) for size in sizes.values()) == bytes_of_clip(spec, 9, 64)
    on_disk = sum(path.stat().st_size for path in (cache.root / "shards").glob("*.safetensors"))
    assert 0 < (on_disk - sum(sizes.values())) / len(cache) < 400  # "some 300 bytes"


def test_cached_clips_stay_when_their_videos_go(ltx_teacher, videos, tmp_path):
    """A zip at a time."""
    names = sorted(path for path in videos.rglob("*.mp4"))
    encoded = []
    for number, path in enumerate(names):
        folder = tmp_path / f"zip-{number}"
        folder.mkdir()
        (folder / path.name).write_bytes(path.read_bytes())
        settings = CacheSettings(frames=9, size=(64, 64), clips_per_video=1)
        encoded.append(cache_latents(find_model(ltx_teacher), folder, tmp_path / "latents", settings).encoded)
        (folder / path.name).unlink()
    assert sum(encoded) == len(LatentCache(tmp_path / "latents")) == len(names) > 1


def test_the_clips_that_recipes_see_are_those_of_the_settings():
    rows = table("| `--recipe` |")
    assert {row[0] for row in rows} == set(RECIPES) - {"night-images"}  # which takes single frames
    a_clip = sum(bytes_of_clip(find_model("ltx"), 17, 256))
    for name, steps, seen, share, zips, gigabytes in rows:
        clips = RECIPES[name].clips
        assert (int(steps), int(seen)) == (RECIPES[name].steps, clips)
        assert share == f"{100 * clips / VIDEOS:.1f} %"
        assert int(zips) == math.ceil(clips * 2048 / VIDEOS)
        assert gigabytes == f"{clips * a_clip / 1e9:.0f} GB"


def test_the_hours_and_the_cost_add_up():
    rows = table("| r, clips/s")
    assert len(rows) == 3
    for rate, gpu_hours, *on, cost in rows:
        hours = VIDEOS / float(rate) / 3600
        assert gpu_hours == f"{hours:.2f}" and cost == f"{2 * hours:.0f}"
        assert on == [f"{hours / count:.2f}" for count in (1, 8, 64)]
    assert f"{2048 * 1.08 / 1000:.1f} TB, {VIDEOS // 2048} videos in each" in PAGE
    a_clip = sum(bytes_of_clip(find_model("ltx"), 17, 256)) / 1e6
    assert f"writes r x {a_clip:.1f} MB/s" in PAGE
    assert f"read {64 * 20 * 2.2 / 1000:.1f} GB/s and write {64 * 20 * a_clip / 1000:.1f}" in PAGE


def test_the_gradients_are_those_of_the_students():
    rows = table("| student | gradient |")
    assert len(rows) == 2
    for name, gradient, *sent in rows:
        megabytes = 4 * find_model(name).student.params_m
        assert gradient == f"{megabytes:.1f} MB"
        assert sent == [f"{2 * (count - 1) / count * megabytes:.0f} MB" for count in (2, 8, 64)]
