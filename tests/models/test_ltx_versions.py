"""The newer LTX teachers: what each class needs, its features, its exact encode, and a decoder that takes a timestep."""

import json
from dataclasses import replace

import pytest
import torch
from small_teachers import close, small_student, write_small_teacher

from turbovaed_cli.errors import SettingsError
from turbovaed_cli.latents.planning import made_by
from turbovaed_cli.models.encoding import encoded, encodes_exactly
from turbovaed_cli.models.loading import build_student, load_student
from turbovaed_cli.models.pair import load_pair
from turbovaed_cli.models.teacher import Teacher, load_teacher
from turbovaed_cli.registry.find import find_model, with_decode_timestep
from turbovaed_cli.registry.rows import MODELS
from turbovaed_cli.settings import CacheSettings, DistillSettings
from turbovaed_cli.stage import Stage
from turbovaed_cli.training.alignment import build_heads
from turbovaed_cli.training.distill import distill

NAMES = ("ltx0.9.5", "ltx2", "ltx2.3")
ONE_STEP = DistillSettings(
    (Stage("only", steps=1, accumulation=1, perceptual="none", feature_weight=1.0, teacher_weight=1.0),), frames=9, size=(64, 64),
    dtype="fp32", start="plain", save_every=1, sample_every=0,
)  # fmt: skip


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("teachers")
    return {name: write_small_teacher(name, root / f"small-{name}") for name in NAMES}


@pytest.fixture(scope="module")
def teachers(folders) -> dict[str, Teacher]:
    return {name: load_teacher(folder) for name, folder in folders.items()}


def latents_for(teacher: Teacher, frames: int = 3) -> torch.Tensor:
    return torch.randn(2, teacher.spec.latent_channels, frames, 2, 3, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", NAMES)
def test_a_folder_is_matched_by_its_config_alone(name, folders):
    found, row = find_model(folders[name]).teacher, MODELS[name].teacher
    assert found.family == row.family
    assert (found.time_ratio, found.space_ratio, found.frames) == (8, 32, row.frames)


@pytest.mark.parametrize("name", NAMES)
def test_features_of_a_stopped_decode_are_those_of_a_whole_one(name, teachers):
    teacher = teachers[name]
    latents, taps = latents_for(teacher), [pair.teacher_tap for pair in MODELS[name].student.pairs]
    video, whole = teacher.decode_with_features(latents, taps)
    stopped = teacher.features(latents, taps)
    assert video.shape == (2, 3, 17, 64, 96) and close(video, teacher.decode(latents))
    assert [whole[tap].shape[2:] for tap in taps] == [(3, 2, 3), (5, 4, 6)]
    assert all(close(whole[tap], stopped[tap]) for tap in taps)


@pytest.mark.parametrize("name", NAMES)
def test_the_student_of_the_row_learns_every_feature(name, teachers, folders):
    teacher, pairs = teachers[name], MODELS[name].student.pairs
    student = build_student(small_student(folders[name]))
    heads = build_heads(student, teacher, pairs)
    latents = latents_for(teacher)
    video, learnt = student.features(latents, [pair.student_block for pair in pairs])
    losses = heads(learnt, teacher.features(latents, [pair.teacher_tap for pair in pairs]))
    assert video.shape == teacher.decode(latents).shape
    assert losses.keys() == {"mid_block", "up_blocks.1"} and all(loss > 0 for loss in losses.values())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("at_once", [8, 16])
def test_the_encode_in_pieces_is_the_encode_of_the_whole(name, at_once, teachers):
    teacher = load_copy(teachers[name])
    video = torch.rand(1, 3, 33, 64, 64, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 2 - 1
    whole = teacher.encode(video).mean
    made = torch.cat(list(encoded(teacher, video.split(5, dim=2), at_once)), dim=2)
    assert encodes_exactly(teacher)
    assert made.shape == whole.shape and (made - whole).abs().max() <= 1e-6 and whole.abs().max() > 1e-2


def load_copy(teacher: Teacher) -> Teacher:
    """The same teacher in fp64, which encodes with its class rather than in the fast form."""
    copy = load_teacher(teacher.spec.path).double()
    copy.fast = False
    return copy


@pytest.mark.parametrize("name", NAMES)
def test_a_latent_sees_as_far_as_the_family_states(name, teachers):
    """So that tiles of frames, which overlap as far, are exact."""
    teacher = load_copy(teachers[name])
    reach = teacher.family.reach(teacher.vae)
    columns = reach // 32 + 3
    video = torch.rand(1, 3, 9, 32, 32 * columns, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 2 - 1
    whole = teacher.encode(video).mean
    for beyond, is_seen in ((reach, False), (reach - 64, True)):
        changed = video.clone()
        changed[..., : 32 * (columns - 1) - beyond] = 0.5
        assert torch.allclose(teacher.encode(changed).mean[..., -1], whole[..., -1], rtol=0, atol=1e-12) is not is_seen


# --- configs that are refused -----------------------------------------------------------------------------------------


def changed(folder, path, **changes):
    """A folder with the config of another one, in which some keys are changed, or dropped if their value is None."""
    config = json.loads((folder / "config.json").read_text()) | changes
    path.mkdir()
    (path / "config.json").write_text(json.dumps({name: value for name, value in config.items() if value is not None}))
    return path


@pytest.mark.parametrize(
    ("name", "changes", "reason"),
    [
        ("ltx0.9.5", {"decoder_inject_noise": [True, True, True, False]}, "no function of the latents"),  # 0.9.1
        ("ltx2", {"decoder_causal": True}, "decode causally"),
        ("ltx2", {"decoder_causal": None}, "decode causally"),  # the class's default is True
        ("ltx2.3", {"decoder_causal": None}, "decode causally"),
        ("ltx2", {"timestep_conditioning": True}, "needs more than latents"),
        ("ltx2", {"decoder_inject_noise": True}, "needs more than latents"),
    ],
)
def test_a_decoder_of_another_kind_is_refused_with_the_reason(name, changes, reason, folders, tmp_path):
    with pytest.raises(SettingsError, match=reason):
        find_model(changed(folders[name], tmp_path / "vae", **changes))


# --- the timestep -----------------------------------------------------------------------------------------------------


def test_the_timestep_is_fixed_and_matters(folders):
    spec = find_model(folders["ltx0.9.5"])
    default, zero = load_teacher(spec), load_teacher(with_decode_timestep(spec, 0.0))
    latents = latents_for(default)
    assert close(default.decode(latents), default.decode(latents))
    assert (default.decode(latents) - zero.decode(latents)).abs().max() > 1e-3
    assert close(default.decode(latents), load_teacher(with_decode_timestep(spec, 0.05)).decode(latents))
    taps = ["decoder.mid_block"]
    assert not torch.equal(default.features(latents, taps)[taps[0]], zero.features(latents, taps)[taps[0]])


def test_the_timestep_identifies_the_decoder_and_not_the_latents(folders):
    spec = find_model(folders["ltx0.9.5"])
    default, other = load_teacher(spec), load_teacher(with_decode_timestep(spec, 0.1))
    assert default.identity()["decoder_inputs"] == {"decode_timestep": 0.05} != other.identity()["decoder_inputs"]
    assert made_by(default, CacheSettings()) == made_by(other, CacheSettings())


@pytest.mark.parametrize(("name", "timestep", "reason"), [("ltx", 0.05, "takes no timestep"), ("ltx0.9.5", 1.5, "is 1.5")])
def test_a_timestep_is_refused_where_it_makes_no_sense(name, timestep, reason):
    with pytest.raises(SettingsError, match=reason):
        with_decode_timestep(MODELS[name], timestep)
    assert with_decode_timestep(MODELS[name], None) is MODELS[name]


def test_reconstruct_takes_a_timestep_only_to_compare(turbovaed, videos):
    code, _, err = turbovaed("reconstruct", videos / "a.mp4", "--decode-timestep", "0.1")
    assert code == 2 and "--decode-timestep is for --compare" in err


@pytest.fixture(scope="module")
def run(folders, videos, tmp_path_factory):
    """A run whose teacher decodes with another timestep than the row's."""
    folder = tmp_path_factory.mktemp("runs") / "late"
    spec = with_decode_timestep(find_model(folders["ltx0.9.5"]), 0.2)
    distill(spec, folder, data=videos / "a.mp4", settings=ONE_STEP, student_config=small_student(folders["ltx0.9.5"]))
    return folder


def test_a_run_keeps_the_timestep_of_its_teacher(run, folders, videos):
    assert json.loads((run / "config.json").read_text())["teacher"]["decoder_inputs"] == {"decode_timestep": 0.2}
    assert load_pair(str(run)).teacher.family.decode_timestep == 0.2
    assert load_pair(str(run), decode_timestep=0.3).teacher.family.decode_timestep == 0.3
    assert load_pair(str(run), str(folders["ltx2"])).teacher.family.decode_timestep is None
    student = small_student(folders["ltx0.9.5"])
    with pytest.raises(SettingsError, match=r"`decode_timestep` 0\.2 -> 0\.05"):
        distill(find_model(folders["ltx0.9.5"]), run, data=videos / "a.mp4", settings=ONE_STEP, student_config=student)


def test_the_student_takes_no_timestep_and_its_card_states_the_teachers(run):
    student = load_student(run)
    assert student.config.timestep_conditioning is False
    card = (run / "model" / "README.md").read_text()
    assert "fixed inputs: `decode_timestep` 0.2. The student takes latents alone." in card
    with pytest.raises(SettingsError, match="takes latents alone"):
        build_student({**student.config, "timestep_conditioning": True})


def test_a_student_of_ltx_2_learns_with_features(folders, videos, tmp_path):
    spec = find_model(folders["ltx2"])
    settings = replace(ONE_STEP, stages=(replace(ONE_STEP.stages[0], teacher_weight=0.0),))
    config = small_student(folders["ltx2"])
    result = distill(spec, tmp_path / "run", data=videos / "a.mp4", settings=settings, student_config=config)
    assert {name: loss > 0 for name, loss in result.losses.items() if name.startswith("feature")} == {
        "feature_mid_block": True, "feature_up_blocks.1": True,
    }  # fmt: skip
    assert "fixed inputs" not in (tmp_path / "run" / "model" / "README.md").read_text()
