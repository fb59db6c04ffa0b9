"""A student designed for a budget costs what the table says, fits, and is the least changed of those that use the budget."""

import json
import re
from dataclasses import replace

import pytest
import torch
from conftest import is_two_lines
from golden import TEACHER_FILES, load_golden, write_teacher
from hypothesis import given, settings
from hypothesis import strategies as st
from small_teachers import write_small_teacher
from torch.utils.flop_counter import FlopCounterMode

from turbovaed_cli.benchmarking.timed_design import DecodeTimes
from turbovaed_cli.cli.scatter import Point, scatter
from turbovaed_cli.errors import FrameCountError, SettingsError
from turbovaed_cli.models.design import FILLED, Budget, cost_of, design_student
from turbovaed_cli.models.loading import build_student, read_config
from turbovaed_cli.models.network import num_params
from turbovaed_cli.models.teacher import decoder_params, decoder_params_of, load_teacher
from turbovaed_cli.registry.cost import StudentCost
from turbovaed_cli.registry.find import find_model
from turbovaed_cli.registry.members import light_config
from turbovaed_cli.registry.rows import MODELS

ALL = list(MODELS.values())
IN_MAKE_TEST = ("tiny", "ltx", "wan2.1", "hunyuan", "sdxl")  # a class of each kind; the others are in make test-all
SOME_FIRST = [spec if spec.name in IN_MAKE_TEST else pytest.param(spec, marks=pytest.mark.thorough) for spec in ALL]


def frames_of(spec) -> int:
    return spec.teacher.frames.at_most(17)


def build_on_meta(config):
    with torch.device("meta"):
        return build_student(config)


def counted(config, latents) -> tuple[int, float]:
    """Parameters and GFLOPs of the real network, counted by torch while it decodes without memory."""
    student = build_on_meta(config)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        student(torch.empty(1, config["latent_channels"], *latents, device="meta"))
    return num_params(student), counter.get_total_flops() / 1e9


@pytest.mark.parametrize(
    ("name", "latents", "params_m", "gflops"),
    [
        ("ltx", (3, 16, 16), 41.896, 813),
        ("hunyuan", (5, 64, 64), 40.688, 6597),
        ("cogvideox", (5, 64, 64), 40.688, 6597),
        ("video-dc-ae", (5, 16, 16), 45.831, 1561),  # 20 frames
    ],
)
def test_the_published_students_cost_what_is_known_of_them(name, latents, params_m, gflops):
    """At 17x512x512."""
    cost = cost_of(MODELS[name].student.config, latents)
    assert (round(cost.params / 1e6, 3), round(cost.gflops)) == (params_m, gflops)


@pytest.mark.parametrize("spec", SOME_FIRST, ids=lambda value: value.name)
def test_costs_are_those_of_the_real_network(spec):
    """Of candidates in both layouts, and of a single frame."""
    budget = Budget(params=4_000_000, frames=frames_of(spec))
    design = design_student(spec, budget)
    light = min((one for one in design.table if one.layout == "light"), key=lambda one: one.change)
    configs = [(one.config, (3, 2, 4)) for one in (design.chosen, design.published, light)]
    for config, latents in [*configs, (configs[0][0], (1, 1, 1))]:
        cost, (params, gflops) = cost_of(config, latents), counted(config, latents)
        assert (cost.params, cost.gflops) == (params, pytest.approx(gflops, rel=1e-12))


def test_costs_are_those_of_a_real_small_network_that_computes():
    config = load_golden("ltx").meta["student_config"]
    student = build_student(config)
    latents = torch.randn(1, config["latent_channels"], 2, 3, 2)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        student(latents)
    cost = cost_of(config, (2, 3, 2))
    assert cost.params == num_params(student)
    assert cost.gflops * 1e9 == pytest.approx(counter.get_total_flops(), rel=1e-12)


@settings(deadline=None, max_examples=20)
@given(
    st.sampled_from(ALL),
    st.none() | st.integers(100_000, 300_000_000),
    st.none() | st.floats(10, 3000),
)
def test_what_is_chosen_fits_every_limit_and_uses_the_budget_with_least_change(spec, params, gflops):
    budget = Budget(params, gflops, frames_of(spec))
    if params is None and gflops is None:
        with pytest.raises(SettingsError, match="above 0"):
            design_student(spec, budget)
        return
    try:
        design = design_student(spec, budget)
    except SettingsError as error:
        assert "the smallest has channels" in error.what and error.hint.startswith("raise `")
        return
    chosen = design.chosen
    assert params is None or chosen.params <= params
    assert gflops is None or chosen.gflops <= gflops
    assert chosen in design.table and design.published in design.table
    rivals = [one for one in design.table if one.fits and one.of_teacher < 1]
    assert build_on_meta(design.config).config.decoder_causal is False
    assert chosen.used >= FILLED * max(one.used for one in rivals)
    # Whatever fills the budget as well was changed more.
    assert chosen.change <= min(one.change for one in rivals if one.used >= chosen.used)
    channels = chosen.channels
    base = spec.student.config if chosen.layout == "full" else light_config(spec.student.config)
    published = base["decoder_block_out_channels"]
    rises = [i for i in range(1, len(published)) if published[i] >= published[i - 1]]
    assert all(channels[i] >= channels[i - 1] for i in rises) and channels[-1] >= min(spec.teacher.latent_channels, 512)
    assert chosen.layout != "full" or channels[0] % spec.student.config["patch_size"] ** 2 == 0
    assert all(one.fits == (one.params <= (params or 1e12) and one.gflops <= (gflops or 1e12)) for one in design.table)


@pytest.mark.parametrize("spec", ALL, ids=lambda spec: spec.name)
def test_the_budget_of_the_published_student_gives_the_published_student(spec):
    latents = (spec.teacher.latent_frames(frames_of(spec)), *(256 // spec.teacher.space_ratio for _ in range(2)))
    cost = cost_of(spec.student.config, latents)
    for budget in (Budget(params=cost.params), Budget(gflops=cost.gflops), Budget(cost.params, cost.gflops)):
        design = design_student(spec, replace(budget, frames=frames_of(spec)))
        assert design.chosen == design.published
        assert design.config == dict(spec.student.config)


@pytest.mark.parametrize("spec", SOME_FIRST, ids=lambda value: value.name)
def test_a_budget_below_the_smallest_is_refused_with_its_cost_and_the_hint_works(spec):
    for params, gflops in ((1000, None), (None, 0.5), (1000, 0.5)):
        budget = Budget(params, gflops, frames_of(spec))
        with pytest.raises(SettingsError, match="the smallest has channels") as error:
            design_student(spec, budget)
        words = error.value.hint.split(",")[0].split()
        raised = {words[i - 2].strip("`"): float(words[i]) for i in range(3, len(words), 4)}
        raised = {name: int(value) if name == "params" else value for name, value in raised.items()}
        assert raised.keys() == {name for name in ("params", "gflops") if getattr(budget, name)}
        again = design_student(spec, replace(budget, **raised))
        assert again.chosen.fits
        assert f"channels {','.join(map(str, again.smallest.channels))}, " in error.value.what


def test_a_design_only_holds_for_frames_and_sizes_the_teacher_takes():
    with pytest.raises(FrameCountError):
        design_student(MODELS["video-dc-ae"], Budget(params=8_000_000, frames=17))
    large, small = (design_student(MODELS["ltx"], Budget(params=8_000_000, gflops=300, size=(side, side))) for side in (512, 256))
    assert large.chosen.gflops == pytest.approx(4 * cost_of(large.config, (3, 8, 8)).gflops)
    assert small.chosen.gflops < 300


def test_the_teachers_size_is_read_without_loading_it(ltx_teacher, tmp_path):
    spec = find_model(ltx_teacher)
    assert decoder_params_of(spec) == decoder_params(load_teacher(spec))
    assert decoder_params_of(MODELS["tiny"]) == decoder_params(load_teacher("tiny"))
    assert decoder_params_of(replace(spec, teacher=replace(spec.teacher, path=tmp_path))) is None


def small_or_golden(name, folder):
    return write_teacher(load_golden(TEACHER_FILES[name]), folder) if name in TEACHER_FILES else write_small_teacher(name, folder)


@pytest.mark.parametrize("spec", SOME_FIRST, ids=lambda spec: spec.name)
def test_a_designed_student_aligns_and_takes_a_training_step(spec, turbovaed, videos, tmp_path):
    """Of the small local teacher of every class: heads appear wherever channels differ from the teacher's."""
    name = spec.name
    teacher = name if name == "tiny" else small_or_golden(name, tmp_path / "vae")
    params = {"hunyuan": "800k", "cogvideox": "800000", "tiny": "0.6M"}.get(name, "2M")
    frames = "8" if name == "video-dc-ae" else "9"
    command = (
        "distill", "--teacher", teacher, "--data", videos, "--run", tmp_path / "run", "--accumulation", "1", "--frames", frames,
        "--size", "64", "--perceptual", "none", "--feature-weight", "1", "--recipe", "quick", "--start", "plain", "--sample-every", "0", "--json",
    )  # fmt: skip
    code, out, err = turbovaed(*command, "--params", params, "--steps", "1")
    assert code == 0, err
    document = json.loads(out)
    design = document["design"]
    assert "chosen" in err and "published" in err
    assert sum(key.startswith("feature_") for key in document["losses"]) == len(MODELS[name].student.pairs)
    kept = json.loads((tmp_path / "run" / "config.json").read_text())["student_config"]
    assert kept["decoder_block_out_channels"] == design["chosen"]["channels"] == design["config"]["decoder_block_out_channels"]
    assert kept["decoder_layers_per_block"] == design["chosen"]["layers"]
    assert document["student_params"] == design["chosen"]["params"] <= 2_000_000

    code, _, err = turbovaed(*command, "--steps", "2")
    assert code == 2 and is_two_lines(err) and "was started with other settings: student" in err
    code, out, err = turbovaed(*command, "--params", params, "--steps", "2", "-q")
    assert code == 0 and json.loads(out)["resumed_from"] == 1
    assert all(line.startswith("warning: the student has") for line in err.splitlines()), err  # larger than its small teacher


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--params", "8X"), "8X"),
        (("--params", "0"), "--params 0"),
        (("--params", "1.2.3M"), "1.2.3M"),
        (("--gflops", "0"), "above 0"),
        (("--gflops", "nan"), "above 0"),
        (("--params", "1k"), "the smallest has channels 32,32, layers 0,0,1: 300,816 parameters"),
        (("--params", "8M", "--init", "tiny"), "--init"),
        (("--gflops", "50", "--student-config", "s.json"), "--student-config"),
    ],
)
def test_a_budget_that_cannot_be_is_two_lines_and_exit_code_2(arguments, said, turbovaed, videos, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, err = turbovaed("distill", "--data", videos, *arguments)
    assert code == 2 and is_two_lines(err) and said in err and out == ""
    assert list(tmp_path.iterdir()) == []


def test_models_design_shows_the_table_and_a_document(turbovaed, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    code, out, err = turbovaed("models", "design", "ltx", "--params", "8M")
    assert code == 0 and "chosen" in out and "64,128,256,512" in out and "the smallest possible" in err
    assert all(len(line.rstrip()) <= 80 for line in out.splitlines())
    assert "octaves" not in out + err and re.search(r"64,128,256,512 .* 1\.00x +no", out)
    _, out, _ = turbovaed("models", "design", "ltx", "--params", "8M", "--gflops", "50", "--json")
    document = json.loads(out)
    assert document["chosen"]["params"] <= 8_000_000 and document["chosen"]["gflops"] <= 50
    assert build_student(document["config"]).config.decoder_block_out_channels == document["chosen"]["channels"]


def test_a_tight_budget_of_flops_gives_the_light_layout_and_a_wide_one_the_published():
    """At a quarter of the FLOPs the published layout would have to be much narrower; at three quarters it hardly changes."""
    full = cost_of(MODELS["ltx"].student.config, (3, 8, 8)).gflops
    tight, wide = (design_student(MODELS["ltx"], Budget(gflops=share * full)) for share in (0.25, 0.75))
    assert (tight.chosen.layout, wide.chosen.layout) == ("light", "full")
    assert {"ltx", "ltx-lite", "ltx-nano"} <= {one.name for one in tight.table}
    assert tight.config["decoder_tail"] == "patches" and build_on_meta(tight.config).config.decoder_activation == "relu"


@pytest.mark.parametrize("name", ["ltx", "ltx-causal"])
def test_a_causal_design_costs_the_same_and_is_causal(name):
    plain = design_student(MODELS["ltx"], Budget(params=8_000_000))
    causal = design_student(find_model(name), Budget(params=8_000_000), causal=True)
    assert causal.config == {**plain.config, "decoder_causal": True}
    assert causal.chosen.gflops == plain.chosen.gflops


def test_no_student_is_designed_from_a_designed_one():
    with pytest.raises(SettingsError, match="ltx-lite is a designed student already"):
        design_student(find_model("ltx-lite"), Budget(params=8_000_000))


def test_a_budget_of_milliseconds_gives_a_student_that_was_timed_and_fits(turbovaed):
    code, out, err = turbovaed(
        "models", "design", "tiny", "--ms", "4000", "--causal", "--frames", "3", "--size", "32", "--device", "cpu", "--json"
    )
    assert code == 0, err
    document = json.loads(out)
    chosen = document["chosen"]
    assert chosen["is_measured"] and 0 < chosen["ms"] <= 4000 and document["config"]["decoder_causal"]
    assert "timing a student of" in err
    timed = [one for one in document["table"] if one["is_measured"]]
    assert chosen in timed and all(one["ms"] > 0 for one in document["table"])


def test_the_config_of_a_design_is_a_file_for_distill(turbovaed, tmp_path):
    command = ("models", "design", "ltx", "--gflops", "50", "--json", "--out", tmp_path / "student.json")
    document = json.loads(turbovaed(*command)[1])
    config = read_config(tmp_path / "student.json")
    assert config == document["config"] and build_on_meta(config).config.decoder_tail == "patches"
    code, _, err = turbovaed(*command)
    assert code == 2 and is_two_lines(err) and "is there already" in err


def test_a_time_that_no_student_meets_is_refused_with_the_smallest_time(turbovaed):
    code, _, err = turbovaed("models", "design", "tiny", "--ms", "0.01", "--frames", "3", "--size", "32")
    assert code == 2 and "no student of tiny fits 0.01 ms" in err and "raise --ms to" in err


def test_times_are_predicted_from_the_nearest_measured_student_of_the_layout():
    """A student with twice the cost of a measured one takes twice its time; a measured one keeps its own."""
    times = DecodeTimes()
    small, large = StudentCost(1, 1.0, 1000), StudentCost(2, 2.0, 2000)
    configs = [{"decoder_tail": tail, "n": n} for tail, n in (("convs", 1), ("patches", 1), ("convs", 2), ("patches", 2))]
    times.add(configs[0], small, 10.0)
    times.add(configs[1], small, 4.0)
    assert [round(times(one, large), 6) for one in configs[2:]] == [20.0, 8.0]
    times.add(configs[0], small, 12.0)  # under other load
    assert times(configs[0], small) == 10.0 and times.is_measured(configs[0]) and not times.is_measured(configs[2])


def test_the_drawing_has_its_least_and_greatest_values_at_the_corners():
    lines = scatter([Point(1, 10, "a"), Point(100, 1000, "b"), Point(10, 100, "c")], "ms", "M", width=21, height=5).splitlines()
    assert lines[0].strip() == "M" and lines[1].startswith("1,000 |") and lines[1].endswith("b")
    assert lines[5].split("|")[1].startswith("a") and lines[3].split("|")[1].strip() == "c"
    assert lines[-1].split() == ["1", "ms", "100"]


def test_models_design_draws_the_trade(turbovaed, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    out = turbovaed("models", "design", "ltx", "--gflops", "50")[1]
    assert "# chosen, F full, L lite, N nano, o others" in out
    canvas = [line.partition("|")[2] for line in out.splitlines() if "|" in line]
    assert {mark for line in canvas for mark in line} >= set("#FLN")
    assert canvas[0].rstrip().endswith("F") and all(len(line) <= 80 for line in out.splitlines())


def test_without_frames_a_design_is_for_17_or_the_next_that_the_teacher_takes(turbovaed):
    code, out, err = turbovaed("models", "design", "video-dc-ae", "--params", "12M", "--json")
    assert code == 0, err
    assert json.loads(out)["budget"]["frames"] == 20


@pytest.mark.parametrize(("text", "number"), [("8M", 8e6), ("0.8M", 8e5), ("800k", 8e5), ("8000000", 8e6), ("1.5m", 1.5e6)])
def test_counts_are_read_as_people_write_them(text, number):
    from turbovaed_cli.units import parse_count

    assert parse_count(text) == number


def test_a_resume_does_not_show_the_design_again(turbovaed, videos, tmp_path):
    words = ("distill", "--data", videos, "--params", "800k", "--run", tmp_path, "--lr", "-1")
    assert "Students of tiny for 800,000 parameters" in turbovaed(*words)[2]
    (tmp_path / "config.json").write_text('{"schema_version": 1, "settings": {"steps": 1}}')
    assert "Students of tiny" not in turbovaed(*words)[2] and "Students of tiny" in turbovaed(*words, "-v")[2]
