"""`distill --data` with shares of drawn and recoloured clips: functions of (seed, number), resumable, refused for a cache."""

import json
import shutil

import pytest
import torch

from turbovaed_cli.errors import RunFolderError, SettingsError
from turbovaed_cli.models.loading import load_student
from turbovaed_cli.registry.find import find_model
from turbovaed_cli.runs.rundir import RunDir
from turbovaed_cli.settings import DistillSettings, Stage
from turbovaed_cli.training.batches import Mix, VideoClips
from turbovaed_cli.training.distill import distill
from turbovaed_cli.training.recipes import as_toml, read_changes, read_recipe
from turbovaed_cli.video import list_videos, probe

TINY = DistillSettings(
    (Stage("only", steps=4, accumulation=2, perceptual="ssim", lr=1e-3),),
    frames=9,
    size=(64, 64),
    augment=0.5,
    synthetic=0.3,
    dtype="fp32",
    save_every=2,
    sample_every=0,
)


@pytest.fixture(scope="module")
def infos(videos):
    return [probe(path) for path in list_videos(videos)]


@pytest.fixture(scope="module")
def run(ltx_teacher, videos, small_student, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "run"
    distill(find_model(ltx_teacher), folder, data=videos, settings=TINY, student_config=small_student)
    return folder


def test_a_batch_mixes_filmed_recoloured_and_drawn_clips_and_depends_on_its_number_alone(infos):
    plain, mixed, again = (VideoClips(infos, 9, (64, 64), 1, mix=mix) for mix in (Mix(), Mix(0.5, 0.3), Mix(0.5, 0.3)))
    kinds = {"drawn": 0, "same": 0, "recoloured": 0}
    for index in range(20):
        before, video, names = plain.batch_at(0, index, 2).video, mixed.batch_at(0, index, 2).video, mixed.names_at(0, index, 2)
        assert index >= 3 or torch.equal(video, again.batch_at(0, index, 2).video)
        assert video.shape == (2, 3, 9, 64, 64) and float(video.min()) >= -1 and float(video.max()) <= 1
        for number in range(2):
            is_drawn = names[number].startswith(f"drawn clip {2 * index + number} (")
            is_same = torch.equal(video[number], before[number])
            assert is_drawn or names[number] == plain.names_at(0, index, 2)[number]
            kinds["drawn" if is_drawn else "same" if is_same else "recoloured"] += 1
    assert kinds["drawn"] >= 5 and kinds["same"] >= 7 and kinds["recoloured"] >= 7, kinds
    assert not torch.equal(mixed.batch_at(1, 0, 8).video, mixed.batch_at(0, 0, 8).video)


def test_shares_are_kept_over_many_draws(infos):
    stream = VideoClips(infos, 9, (64, 64), 1, mix=Mix(0.0, 0.25))
    names = stream.names_at(0, 0, 2000)
    assert abs(sum(name.startswith("drawn clip") for name in names) / 2000 - 0.25) < 0.03


def test_resuming_equals_never_stopping(run, ltx_teacher, videos, small_student, tmp_path):
    folder = tmp_path / "run"
    for steps in (2, 4):
        settings = TINY.with_changes(steps=steps)
        distill(find_model(ltx_teacher), folder, data=videos, settings=settings, student_config=small_student)
    straight, resumed = (load_student(str(where)).state_dict() for where in (run, folder))
    assert all(torch.equal(straight[name], resumed[name]) for name in straight)
    config = RunDir(folder).read_config()
    assert (config["settings"]["augment"], config["settings"]["synthetic"], config["drawing"]) == (0.5, 0.3, 1)


def test_a_resume_with_other_shares_is_refused_and_a_run_of_an_earlier_version_has_none(
    run, ltx_teacher, videos, small_student, tmp_path
):
    spec = find_model(ltx_teacher)
    with pytest.raises(RunFolderError) as error:
        distill(spec, run, data=videos, settings=TINY.with_changes(augment=0.0), student_config=small_student)
    assert "`augment` 0.5 -> 0" in error.value.what
    plain = TINY.with_changes(augment=0.0, synthetic=0.0, steps=1)
    distill(spec, tmp_path / "run", data=videos, settings=plain, student_config=small_student)
    folder = RunDir(tmp_path / "run")
    config = folder.read_config()
    assert "drawing" not in config
    first, of_mixed = (json.loads(RunDir(where).metrics_lines()[0])["loss"] for where in (folder.root, run))
    assert first != of_mixed  # other clips
    for name in ("augment", "synthetic"):
        del config["settings"][name]
    older = RunDir(tmp_path / "older")
    shutil.copytree(folder.root, older.root)
    older.config.unlink()
    older.snapshot(config, {})
    with pytest.raises(RunFolderError, match=r"other settings: `synthetic` none -> 0\.2$"):
        distill(spec, older.root, data=videos, settings=plain.with_changes(synthetic=0.2), student_config=small_student)
    assert distill(spec, older.root, data=videos, settings=plain, student_config=small_student).resumed_from == 1


@pytest.mark.parametrize("name", ["augment", "synthetic"])
def test_cached_clips_take_no_shares_and_the_hint_names_the_command_that_does(name, ltx_teacher, tmp_path):
    settings = TINY.with_changes(augment=0.0, synthetic=0.0).with_changes(**{name: 0.3})
    with pytest.raises(SettingsError, match=f"`{name}` is for `data`") as error:
        distill(find_model(ltx_teacher), tmp_path / "run", latents=tmp_path, settings=settings)
    assert f"cache-latents --{name} 0.3" in error.value.hint and not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("name", "share"), [("augment", 1.01), ("augment", float("nan")), ("synthetic", 1.0), ("synthetic", -0.5)]
)
def test_a_share_outside_its_range_is_refused(name, share, ltx_teacher, videos, tmp_path):
    with pytest.raises(SettingsError, match=f"`{name}` is {share:g}; it must be"):
        distill(find_model(ltx_teacher), tmp_path / "run", data=videos, settings=TINY.with_changes(**{name: share}))


def test_recipes_set_shares(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text('augment = 0.3\nsynthetic = 0.2\n[[stages]]\nname = "only"\n')
    assert (read_recipe(str(path)).augment, read_recipe(str(path)).synthetic) == (0.3, 0.2)
    path.write_text(as_toml(TINY))
    assert read_recipe(str(path)) == TINY
    assert read_changes(["synthetic=0.25"]) == {"synthetic": 0.25}
