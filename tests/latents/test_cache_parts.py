"""Parts, claims and shares: who works on what, without anybody to ask."""

import subprocess
import sys

import pytest

from turbovaed_cli.errors import CorruptFileError, SettingsError
from turbovaed_cli.latents.parts import (
    KnownVideo,
    Shard,
    claim,
    holders,
    known_videos,
    num_parts,
    parse_shard,
    part_of,
    shard_from_environment,
)


def test_shares_are_counted_from_0_and_anything_else_is_refused():
    assert parse_shard("3/8") == Shard(3, 8)
    for text in ("8/8", "-1/8", "3", "a/b", "3/0", ""):
        with pytest.raises(SettingsError, match="is no share"):
            parse_shard(text)


ARRAY = {"SLURM_ARRAY_TASK_ID": "14", "SLURM_ARRAY_TASK_COUNT": "8", "SLURM_ARRAY_TASK_MIN": "10", "SLURM_ARRAY_TASK_STEP": "2"}


@pytest.mark.parametrize(
    ("environment", "wanted"),
    [
        ({}, None),
        ({"RANK": "1", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "MASTER_ADDR": "a"}, Shard(1, 4)),
        ({"RANK": "1", "WORLD_SIZE": "4"}, None),  # left in a shell
        ({"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "a"}, None),
        ({"SLURM_PROCID": "2", "SLURM_NTASKS": "3", "SLURM_STEP_NUM_TASKS": "3"}, Shard(2, 3)),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "3"}, None),  # a batch script, without srun
        (ARRAY | {"SLURM_PROCID": "0", "SLURM_NTASKS": "2"}, Shard(2, 8)),
        (ARRAY, Shard(2, 8)),
        (ARRAY | {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "MASTER_ADDR": "a"}, Shard(5, 16)),
        ({"JOB_COMPLETION_INDEX": "7", "JOB_COMPLETIONS": "10"}, Shard(7, 10)),
    ],
)
def test_a_share_is_read_from_what_slurm_torchrun_and_kubernetes_set(environment, wanted):
    assert shard_from_environment(environment)[0] == wanted


def test_an_index_without_its_count_says_what_is_missing():
    shard, said = shard_from_environment({"JOB_COMPLETION_INDEX": "7"})
    assert shard is None and "JOB_COMPLETIONS" in said
    shard, said = shard_from_environment({"SLURM_ARRAY_TASK_ID": "9", "SLURM_ARRAY_TASK_COUNT": "3", "SLURM_ARRAY_TASK_MIN": "1"})
    assert shard is None and "`shard`" in said


def test_shares_divide_parts_and_parts_divide_videos_evenly_and_for_good():
    names = [f"folder/{number}.mp4" for number in range(20_000)]
    parts = num_parts(len(names), shards=1)
    sizes = [0] * parts
    for name in names:
        sizes[part_of(name, parts)] += 1
    assert parts == 256 and min(sizes) > 40
    assert part_of("a.mp4", 7) == part_of("a.mp4", 7)
    assert num_parts(3, shards=1) == 1
    assert all(num_parts(count, shards) % shards == 0 for count in (1, 100, 10**6) for shards in (1, 3, 300))


def test_a_part_belongs_to_one_process_and_to_none_that_died(tmp_path):
    hold = "import sys, pathlib, turbovaed_cli.latents.parts as parts; parts.claim(pathlib.Path(sys.argv[1]), 3); print('held', flush=True); input()"
    other = subprocess.Popen(
        [sys.executable, "-c", hold.replace("parts.claim", "kept = parts.claim"), tmp_path],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert other.stdout.readline() == b"held\n"
    assert f"process {other.pid}" in claim(tmp_path, 3)
    assert [f"process {other.pid} " in who for who in holders(tmp_path)] == [True]
    mine = claim(tmp_path, 4)
    mine.close()
    other.kill()
    other.communicate()
    assert holders(tmp_path) == []
    part = claim(tmp_path, 3)
    facts = KnownVideo("17 bytes", "ab", 17, failed={"0": "damaged"})
    part.videos["a.mp4"] = facts
    part.close()
    assert dict(known_videos(tmp_path)) == {"a.mp4": facts}
    (record,) = (tmp_path / "parts").glob("part-003.json")
    record.unlink()
    part.close()  # no second time: the part may be another's by now
    assert not record.exists()


def test_claiming_removes_what_a_killed_worker_of_that_part_left_and_nothing_else(tmp_path):
    (tmp_path / "shards").mkdir()
    for name in (".part-003-abcd.safetensors.x1", ".part-004-abcd.safetensors.x2", "part-003-abcd.safetensors"):
        (tmp_path / "shards" / name).touch()
    claim(tmp_path, 3).close()
    assert sorted(path.name for path in (tmp_path / "shards").iterdir()) == [
        ".part-004-abcd.safetensors.x2",
        "part-003-abcd.safetensors",
    ]


def test_a_record_that_is_none_is_an_error_that_names_it(tmp_path):
    part = claim(tmp_path, 0)
    part.videos["a.mp4"] = KnownVideo("1")
    part.close()
    record = tmp_path / "parts" / "part-000.json"
    record.write_text(record.read_text().replace("a.mp4", "b.mp4"))
    with pytest.raises(CorruptFileError, match=r"part-000\.json"):
        claim(tmp_path, 0)
