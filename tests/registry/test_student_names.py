"""Every teacher has a family of students with names, derived by one rule: full, lite, nano and causal."""

import inspect
import json
from dataclasses import replace

import pytest
import torch
from conftest import is_two_lines
from small_teachers import write_small_teacher
from torch.utils.flop_counter import FlopCounterMode

from turbovaed_cli.cli.completion import complete_model, complete_teacher
from turbovaed_cli.errors import MissingWeightsError, SettingsError, UnknownModelError
from turbovaed_cli.models.loading import build_student, load_student, teacher_of
from turbovaed_cli.models.network import StudentNetwork, num_params
from turbovaed_cli.registry import cost as cost_room
from turbovaed_cli.registry.cost import cost_of, latents_for
from turbovaed_cli.registry.download import embedded_student
from turbovaed_cli.registry.find import find_model, is_model_name, names_of_models, with_student
from turbovaed_cli.registry.members import FULL, RULES, light_config, member_in, member_of, members_of, widths_of
from turbovaed_cli.registry.rows import MODELS

ALL = list(MODELS.values())
OTHERS = [member_of(spec, member) for spec in ALL for member in members_of(spec) if member != FULL]


def latents_of(spec) -> tuple[int, int, int]:
    return spec.teacher.latent_frames(spec.teacher.frames.at_least(17)), 2, 2


@pytest.mark.parametrize("student", OTHERS, ids=lambda spec: spec.name)
def test_each_further_student_is_found_by_its_name_and_has_the_teacher(student):
    full = MODELS[student.teacher_name]
    assert find_model(student.name) == student and is_model_name(student.name)
    assert student.name == f"{full.name}-{student.member}" and student.teacher == full.teacher
    assert teacher_of(student.name, None, None) == full.name
    assert all(find_model(alias) == student for alias in student.aliases)


def test_names_are_distinct_and_those_of_the_registry_keep_their_meaning():
    names = names_of_models()
    assert len(names) == len(set(names)) and set(MODELS) < set(names)
    assert all(find_model(name) is spec for name, spec in MODELS.items())
    assert {"ltx", "ltx-lite", "ltx-nano", "ltx-causal", "wan-lite"} < set(names)


@pytest.mark.parametrize("spec", ALL, ids=lambda spec: spec.name)
def test_smaller_students_keep_to_their_share_or_are_as_narrow_as_the_latents_allow(spec):
    full = cost_of(spec.student.config, latents_of(spec))
    before = full
    for member in [one for one in members_of(spec) if one in RULES]:
        config = member_of(replace(spec, own_members={}), member).student.config
        cost = cost_of(config, latents_of(spec))
        share = RULES[member].gflops_share
        widths = widths_of(light_config(spec.student.config), spec.teacher.latent_channels, 1.0)
        least = min(cost_of(config | {"decoder_block_out_channels": one}, latents_of(spec)).gflops for one in widths)
        assert cost.gflops <= share * full.gflops or cost.gflops == least
        assert cost.params < full.params and cost.gflops < 0.8 * before.gflops
        assert all(channels % 8 == 0 for channels in config["decoder_block_out_channels"])
        assert config["decoder_block_out_channels"][-1] >= min(spec.teacher.latent_channels, 512)
        before = cost


@pytest.mark.parametrize("student", OTHERS, ids=lambda spec: spec.name)
def test_students_of_a_family_upsample_as_their_teacher_does(student):
    teacher = student.teacher
    frames = teacher.frames.at_least(17)
    side = 4 * teacher.space_ratio
    assert latents_for(student.student.config, frames, (side, side)) == (teacher.latent_frames(frames), 4, 4)


@pytest.mark.parametrize("student", OTHERS, ids=lambda spec: spec.name)
def test_costs_are_those_of_the_real_networks(student):
    config = {**student.student.config, "latent_channels": student.teacher.latent_channels}
    with torch.device("meta"):
        network = build_student(config)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(torch.empty(1, config["latent_channels"], 3, 2, 4, device="meta"))
    cost = cost_of(config, (3, 2, 4))
    assert cost.params == num_params(network) and cost.gflops * 1e9 == pytest.approx(counter.get_total_flops(), rel=1e-12)
    assert student.student.params_m == round(cost.params / 1e6, 3)


def test_defaults_of_the_cost_are_those_of_the_network():
    signature = inspect.signature(StudentNetwork.__init__).parameters
    assert {name: signature[name].default for name in cost_room._DEFAULTS} == cost_room._DEFAULTS


@pytest.mark.parametrize("student", OTHERS, ids=lambda spec: spec.name)
def test_aligned_blocks_are_there_and_have_the_resolution_of_the_full_student(student):
    """Features are compared with the teacher's, whose blocks have the resolutions that the full student's were paired for."""

    def shapes(spec):
        with torch.device("meta"):
            network = build_student({**spec.student.config, "decoder_block_out_channels": widths(spec)})
        blocks = [pair.student_block for pair in student.student.pairs]
        found = network.features(torch.empty(1, spec.teacher.latent_channels, 3, 2, 2, device="meta"), blocks, with_sample=False)[
            1
        ]
        return {name: value.shape[2:] for name, value in found.items()}

    def widths(spec):
        return [48] * len(spec.student.config["decoder_block_out_channels"])

    assert student.student.pairs and shapes(student) == shapes(MODELS[student.teacher_name])


def test_a_tail_of_2x2_patches_takes_the_place_of_a_last_block_that_upsamples_space_alone():
    full, lite = MODELS["wan2.1"].student, find_model("wan2.1-lite").student
    assert (full.config["patch_size"], lite.config["patch_size"]) == (1, 2)
    assert len(lite.config["decoder_block_out_channels"]) == len(full.config["decoder_block_out_channels"]) - 1
    assert len(lite.config["decoder_conv_types"]) == len(lite.config["decoder_layers_per_block"])


@pytest.mark.parametrize(
    ("name", "said", "hint"),
    [
        ("ltx-lit", "no model is called 'ltx-lit'", "did you mean ltx-lite"),
        ("sdxl-causal", "sdxl has no causal student: its teacher is of images alone", "its students: sdxl, sdxl-lite, sdxl-nano"),
        ("tiny-full", "no model is called 'tiny-full'", "did you mean tiny-"),
    ],
)
def test_names_that_are_none_get_a_hint(name, said, hint):
    with pytest.raises(UnknownModelError) as error:
        find_model(name)
    assert said in error.value.what and hint in error.value.hint


@pytest.mark.parametrize(
    "name", ["ltx-lite", "wan2.2-causal", *(n for n in ("tiny-lite",) if not embedded_student(find_model(n)).is_dir())]
)
def test_weights_that_nobody_published_come_with_the_command_that_distils_them(name):
    with pytest.raises(MissingWeightsError) as error:
        load_student(name)
    teacher, member = name.split("-")
    assert error.value.what == f"no weights of {name} were published"
    assert error.value.hint == f"distil one: turbovaed distill --teacher {teacher} --student {member} --data DIR"


def test_a_local_teacher_has_the_family_of_its_class(tmp_path):
    spec = find_model(write_small_teacher("sdxl", tmp_path / "vae"))
    lite = with_student(spec, "lite")
    assert (lite.name, lite.teacher_name, lite.teacher) == ("vae-lite", "vae", spec.teacher)
    assert lite.student.config["latent_channels"] == spec.teacher.latent_channels and lite.student.params_m is None
    with pytest.raises(SettingsError, match="images alone"):
        with_student(spec, "causal")
    with pytest.raises(SettingsError, match="`student` light is unknown"):
        with_student(spec, "light")


def test_a_teacher_named_by_a_student_is_not_asked_for_another_one():
    assert with_student(find_model("ltx-lite"), "lite") == find_model("ltx-lite")
    with pytest.raises(SettingsError, match="names the lite student, `student` the nano one"):
        with_student(find_model("ltx-lite"), "nano")


@pytest.mark.parametrize(
    ("model", "teacher", "member"),
    [
        ("ltx-lite", "ltx", "lite"),
        ("ltx", "ltx", FULL),
        ("vae-causal", "/home/me/vae", "causal"),
        ("my-lite", "/home/me/my-lite", FULL),
        ("", "", FULL),
    ],
)
def test_a_run_says_which_member_it_teaches_by_its_models_name(model, teacher, member):
    assert member_in(model, teacher) == member


def test_models_list_has_a_row_of_students_for_each_teacher_within_80_columns(turbovaed, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    code, out, _ = turbovaed("models")
    assert code == 0 and all(len(line) <= 80 for line in out.splitlines())
    rows = [line.split() for line in out.partition("Students: NAME, NAME-lite, NAME-nano, NAME-causal")[2].splitlines()]
    rows = [row for row in rows if row]
    assert {row[0] for row in rows} >= set(MODELS)
    lite = find_model("ltx-lite")
    assert next(row for row in rows if row[0] == "ltx")[3] == f"{lite.student.params_m:.1f}"


def test_models_show_takes_the_name_of_a_student(turbovaed):
    code, out, err = turbovaed("models", "show", "ltx-lite", "--json")
    assert code == 0, err
    document = json.loads(out)
    assert (document["name"], document["member"], document["teacher"]["name"]) == ("ltx-lite", "lite", "ltx")
    assert document["student"]["config"]["decoder_tail"] == "patches"
    assert "distill --teacher ltx --student lite" in document["student"]["published weights"]
    students = json.loads(turbovaed("models", "show", "ltx", "--json")[1])["students"]
    assert [one["name"] for one in students] == ["ltx", "ltx-lite", "ltx-nano", "ltx-causal"]
    assert students[0]["gflops"] == students[3]["gflops"] > students[1]["gflops"] > students[2]["gflops"]


def test_a_shell_completes_names_of_students():
    assert {"ltx", "ltx-lite", "ltx-causal"} <= {name for name in complete_teacher("ltx") if name.startswith("ltx")}
    assert "tiny-causal" in complete_model("tiny")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--student", "lit"), "--student lit is unknown"),
        (("--teacher", "sdxl", "--student", "causal"), "sdxl has no causal student"),
        (("--student", "lite", "--student-config", "s.json"), "--student and --student-config both bring a student"),
        (("--student", "lite", "--params", "500k"), "--params and --gflops design a student, and lite is one already"),
        (("--teacher", "tiny-lite", "--params", "500k"), "--params and --gflops design a student, and lite is one already"),
        (("--teacher", "tiny-lite", "--student", "causal"), "--teacher tiny-lite names the lite student"),
    ],
)
def test_a_student_that_cannot_be_is_two_lines_and_exit_code_2(arguments, said, turbovaed, videos, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, err = turbovaed("distill", "--data", videos, *arguments)
    assert code == 2 and is_two_lines(err) and said in err and out == "", err
    assert list(tmp_path.iterdir()) == []


def test_pulling_a_teacher_without_a_published_student_names_what_to_download(turbovaed, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for name in ("wan2.1", "wan2.1-lite"):
        code, _, err = turbovaed("models", "pull", name)
        assert code == 3 and is_two_lines(err) and "weights not on this machine" in err, err
