"""The command `turbovaed distill`."""

import math
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import typer

from turbovaed_cli.cli import console
from turbovaed_cli.cli.completion import complete_model, complete_recipe
from turbovaed_cli.cli.design_tables import show_design
from turbovaed_cli.cli.estimates import download_in_words, free_in_words, time_in_words, warn_of_room
from turbovaed_cli.cli.exits import command, finish
from turbovaed_cli.cli.options import (
    DesignBudget,
    Downloads,
    RecipeChanges,
    Show,
    TeacherChoice,
    check_folder,
    warn_of_old_ffmpeg,
)
from turbovaed_cli.cli.table import print_table, print_tables
from turbovaed_cli.errors import DifferentRunError, SettingsError, TurboVaedError
from turbovaed_cli.files.system import check_system
from turbovaed_cli.machine.launch import command_line, is_beside_another, launch
from turbovaed_cli.registry.find import find_model, with_decode_timestep, with_licence, with_student
from turbovaed_cli.registry.members import CAUSAL, FULL, MEMBERS
from turbovaed_cli.registry.specs import ModelSpec
from turbovaed_cli.runs.rundir import RunDir
from turbovaed_cli.setting import same, setting
from turbovaed_cli.settings import ClipSettings, DistillSettings
from turbovaed_cli.training.recipes import DEFAULT_RECIPE, RECIPES, as_toml, changeable, read_changes, read_recipe
from turbovaed_cli.units import human_bytes

if TYPE_CHECKING:
    from turbovaed_cli.evaluation.scores import EvalResult
    from turbovaed_cli.models.design import Design
    from turbovaed_cli.training.distill import DistillResult
    from turbovaed_cli.training.estimate import DistillEstimate

Result = TypeVar("Result")
TAEHV = "taehv"  # the family of decoders that `--student taehv` asks for


@dataclass(frozen=True)
class Sources(TeacherChoice):
    """What is learnt from, and where the run is."""

    data: str | None = setting(None, "Videos to learn from: a folder or an fsspec URL.", "Input and output", metavar="DIR")
    latents: str | None = setting(
        None, "Cache made by cache-latents, or its URL, instead of --data.", "Input and output", metavar="DIR"
    )
    run: str | None = setting(
        None, "Run folder or its URL; the same command resumes.", "Input and output", metavar="DIR", shown="runs/TEACHER"
    )
    val: Path | None = setting(
        None, "Videos to measure the finished student on; never learnt from.", "Input and output", metavar="DIR"
    )


@dataclass(frozen=True)
class Schedule:
    """Which recipe, how much of it, and on how many processes."""

    recipe: str = setting(
        DEFAULT_RECIPE, "{choices}, or a TOML file with [[stages]].", "Training", choices=tuple(RECIPES), parse=str,
        complete=complete_recipe, shown="the run's or teacher's",
    )  # fmt: skip
    steps: int | None = setting(None, "Optimizer steps in all; stages keep their shares.", "Training", shown="recipe's")
    changed: tuple[str, ...] = setting(
        (), "Set any other field of the recipe, in every stage; repeat. --show-recipe lists them.", "Schedule", flag="--set",
        metavar="NAME=VALUE", many=True, by_commas=False, complete=lambda _: [f"{name}=" for name in changeable()],
    )  # fmt: skip
    show_recipe: bool = setting(False, "Print the schedule as TOML for --recipe FILE, and do nothing.", "Training")
    dry_run: bool = setting(False, "Time some steps, print what all would take, write nothing.", "Training")
    dollars_per_hour: float | None = setting(None, "Price of the machines; --dry-run prints the cost.", "Schedule")
    nproc: int = setting(1, "Processes on this machine, each with its own device and batch.", "Speed and memory")


@dataclass(frozen=True)
class StudentChoice(DesignBudget):
    """Which student learns."""

    gflops: float | None = same(DesignBudget, "gflops", panel="Design of the student")
    student: str | None = setting(
        None, "{choices}: a member of the teacher's family, or TAEHV's decoder.", "Student",
        choices=(*MEMBERS, TAEHV), shown=FULL,
    )  # fmt: skip
    student_config: Path | None = setting(
        None, "JSON with another student, in the published key names.", "Design of the student", metavar="FILE"
    )
    init: str | None = setting(
        None, "Student to start from, as --model takes it; prune:0.5 cuts one with half of the channels from the teacher.",
        "Design of the student",
        complete=complete_model,
    )  # fmt: skip
    licence: str | None = setting(
        None, "Licence of a local teacher whose folder states none; its student carries it.", "Design of the student"
    )

    decode_timestep: float | None = same(ClipSettings, "decode_timestep", panel="Losses", shown="0.05")

    def own_config(self) -> dict[str, Any] | None:
        """The config in --student-config; None for the student of the teacher's row."""
        from turbovaed_cli.models.loading import read_config

        if self.student == TAEHV:
            return {"family": TAEHV}
        return read_config(self.student_config) if self.student_config else None

    def of(self, spec: ModelSpec) -> ModelSpec:
        """Return the row of `spec`'s teacher with the student of --student."""
        if self.student is None:
            self._check_design(spec.member)
            return spec
        if self.student_config is not None:
            raise SettingsError("`student` and `student_config` both bring a student", "leave out one of the two")
        self._check_design(self.student)
        return with_student(spec, FULL if self.student == TAEHV else self.student)

    def _check_design(self, student: str) -> None:
        if student not in (FULL, CAUSAL) and (self.params is not None or self.gflops is not None):
            raise SettingsError(
                f"`params` and `gflops` design a student, and {student} is one already",
                f"leave out one of the two: `params` and `gflops` go with {FULL} and {CAUSAL}",
            )


EXAMPLES = """\
turbovaed distill --teacher ltx --data videos --dry-run
turbovaed distill --teacher ltx --student lite --latents cache --val held-out
turbovaed distill --teacher ./vae --data videos --params 8M --set lr_end=0.1"""


@command
def distill(
    *, sources: Sources, schedule: Schedule, changes: RecipeChanges, student: StudentChoice, downloads: Downloads, show: Show
) -> None:
    """Teach a small decoder to do what a frozen teacher's decoder does; the same command resumes."""
    spec = with_decode_timestep(
        with_licence(student.of(find_model(sources.teacher, downloads.consent)), student.licence), student.decode_timestep
    )
    run = sources.run or f"runs/{spec.name}{f'-{TAEHV}' if student.student == TAEHV else ''}"
    if not schedule.show_recipe:
        check_system("distill")
        if not is_beside_another():
            check_folder(run, "`run`")
    settings = _settings(spec, run, schedule, changes)
    _check_price(schedule)
    if schedule.show_recipe:
        _show_recipe(settings, json=show.json)
        return
    if schedule.nproc != 1 and not schedule.dry_run:
        _launch(schedule.nproc)
    from turbovaed_cli.video import list_videos

    if sources.data is not None:
        warn_of_old_ffmpeg()
    design = _design(spec, run, student, settings, show)
    job: dict[str, Any] = {
        "data": sources.data,
        "latents": sources.latents,
        "settings": settings,
        "student_config": design.config if design else student.own_config(),
        "init": student.init,
        "command_line": command_line(),
        "report": show.report,
    }
    if sources.val is not None:
        list_videos(sources.val)  # before hours of training
    if schedule.dry_run:
        _estimate(spec, run, job, schedule, show)
        return
    from turbovaed_cli.training.distill import distill as teach

    result = _with_changes_listed(show.verbose, teach, spec, run, consent=downloads.consent, **job)
    measured = None
    if sources.val is not None:
        from turbovaed_cli.training.validation import measure_run

        measured = measure_run(spec, run, sources.val, sources.latents, settings.device, show.report)
    _show_result(result, design, measured, run, sources, show)
    finish(result.skipped)


def _settings(spec: ModelSpec, run: str, schedule: Schedule, changes: RecipeChanges) -> DistillSettings:
    """The recipe with what the options change."""
    before = RunDir(Path(run)).read_config()["settings"] if RunDir.is_run(Path(run)) else {}
    settings = read_recipe(_recipe_named(schedule.recipe, spec, run))
    given = read_changes(schedule.changed)
    changes = RecipeChanges(changes | ({} if schedule.steps is None else {"steps": schedule.steps}))
    if twice := given.keys() & changes.keys():
        raise SettingsError(f"`set={min(twice)}` and `{min(twice)}` set the same", "give one of them")
    given |= changes
    if before.get("hours") and not given.keys() & {"hours", "steps"}:
        given["hours"] = before["hours"]
    if "batch_size" in given:
        given["fit_batch"] = given.get("fit_batch", False)
    optimizer = given.get("optimizer", settings.optimizer)
    if optimizer != settings.optimizer and "lr" not in given:
        raise SettingsError(
            f"the learning rates of recipe {settings.recipe} are {settings.optimizer}'s, and {optimizer} needs others",
            "give `lr` too: muon takes about 2e-3, adamw 1e-4",
        )
    return settings.with_changes(**given)


def _show_recipe(settings: DistillSettings, *, json: bool) -> None:
    if json:
        console.print_json({"settings": settings})
    else:
        console.print_text(as_toml(settings))


def _design(spec: ModelSpec, run: str, student: StudentChoice, settings: DistillSettings, show: Show) -> "Design | None":
    """The student that --params and --gflops ask for, shown once."""
    from turbovaed_cli.models.design import Budget, design_student

    if student.params is None and student.gflops is None:
        return None
    if student.student_config is not None or student.init is not None:
        raise SettingsError(
            "`params` and `gflops` design a student, `student_config` and `init` bring one", "leave out one of the two"
        )
    design = design_student(spec, Budget(student.params, student.gflops, settings.frames, settings.size))
    if not show.quiet and (show.verbose or not RunDir.is_run(Path(run))):  # a resume has shown it before
        show_design(design, on_stderr=True)
    return design


def _show_result(
    result: "DistillResult", design: "Design | None", measured: "EvalResult | None", run: str, sources: Sources, show: Show
) -> None:
    """Print the result of a distillation, and its scores with --val."""
    from turbovaed_cli.cli.eval_tables import as_tables
    from turbovaed_cli.evaluation.evaluate import eval_document

    if show.json:
        extras = {"design": design, "evaluation": measured and eval_document(measured)}
        console.print_json(asdict(result) | {name: value for name, value in extras.items() if value is not None})
        return
    _show_distilled(result)
    print_tables(as_tables([measured], sources.val) if measured and sources.val else ())
    console.note(f"next: turbovaed eval --model {run} --data DIR; turbovaed reconstruct IN.mp4 --model {run}")


def _launch(nproc: int) -> NoReturn:
    """The same command in `nproc` processes, which know each other."""
    if nproc < 1:
        raise SettingsError(f"`nproc` is {nproc}; it must be at least 1")
    if int(os.environ.get("WORLD_SIZE") or 1) > 1:
        raise SettingsError("`nproc` starts processes, and a launcher has started several already", "leave out one of the two")
    words = list(sys.argv[1:])
    at = next(index for index, word in enumerate(words) if word.partition("=")[0] == "--nproc")
    del words[at : at + (1 if "=" in words[at] else 2)]
    code, what = launch(words, nproc)
    if what:
        console.print_error(TurboVaedError(what, "the same command goes on from the last checkpoint"))
    raise typer.Exit(code)


def _recipe_named(recipe: str, spec: "ModelSpec", run: str) -> str:
    """The name of a recipe or file: for `default` that of a run that is there, or the teacher's. Older runs have other names."""
    settings = RunDir(Path(run)).read_config()["settings"] if RunDir.is_run(Path(run)) else {}
    renamed = {"default": "fast", "fast": "quick"} if settings and "fit_batch" not in settings else {}
    began = str(settings.get("recipe"))
    now = renamed.get(began, began)
    if recipe == DEFAULT_RECIPE:
        return now if now in RECIPES else spec.recipe
    return now if recipe == began else recipe


def _cost_in_words(found: "DistillEstimate", price: float) -> str:
    return "not measured" if found.dollars is None else f"${found.dollars:,.2f} at ${price:,.2f} per hour"


def _show_distilled(result: "DistillResult") -> None:
    """Print the result of a distillation."""
    share = 100 * result.student_params / result.teacher_decoder_params
    rows = [
        ("steps", str(result.step) + (f" (resumed from {result.resumed_from})" if result.resumed_from else "")),
        *((name, f"{value:.5f}") for name, value in result.losses.items() if name not in ("lr", "grad_norm")),
        ("student", f"{result.student_params / 1e6:.3f} M parameters, {share:.1f} % of the teacher's decoder"),
        ("model", str(result.model)),
    ]
    print_table("Distilled", ["", ""], rows)


def _with_changes_listed(verbose: bool, work: Callable[..., Result], *arguments: Any, **options: Any) -> Result:
    """The same call; with `verbose`, every setting that a run was started with otherwise is listed before the error."""
    try:
        return work(*arguments, **options)
    except DifferentRunError as error:
        for change in error.changes if verbose else ():
            console.note(change)
        raise


def _check_price(schedule: Schedule) -> None:
    """Refuse a price that is none, or that nothing would print."""
    price = schedule.dollars_per_hour
    if price is None:
        return
    if not 0 <= price < math.inf:
        raise SettingsError(f"`dollars_per_hour` is {price:g}; it must be at least 0")
    if not schedule.dry_run:
        raise SettingsError("`dollars_per_hour` is for `dry_run`, which prints the cost", "add `dry_run=True`, or leave it out")


def _estimate(spec: ModelSpec, run: str, job: Mapping[str, Any], schedule: Schedule, show: Show) -> None:
    """Do what `distill --dry-run` asks for."""
    from turbovaed_cli.training.distill import estimate_distill

    more = {"processes": int(os.environ.get("WORLD_SIZE") or schedule.nproc), "dollars_per_hour": schedule.dollars_per_hour}
    found = _with_changes_listed(show.verbose, estimate_distill, spec, run, **more, **job)
    _show_estimate(found, job["settings"], schedule.dollars_per_hour, json=show.json)


def _show_estimate(found: "DistillEstimate", settings: DistillSettings, price: float | None, *, json: bool) -> None:
    """Print what is left to do, stage by stage, and what it takes."""
    if json:
        console.print_json(found)
    else:
        columns = ["stage", "steps left", "clips a step", "s a step", "hours", "waiting", "memory MB"]
        rows = [
            (
                stage.name,
                stage.steps,
                stage.clips_per_step,
                f"{stage.seconds_per_step:.3g}",
                f"{stage.hours:.2f}",
                f"{stage.data_share:.0%}",
                (f"{stage.peak_mb:.0f}" if stage.peak_mb else "-")
                + (f" ({stage.reserved_mb:.0f} reserved)" if stage.reserved_mb else ""),
            )
            for stage in found.stages
        ]
        if rows:
            print_table("Some steps of every stage", columns, rows)
        done = f", {found.steps_done} of them done" if found.steps_done else ""
        asked = f", for --hours {settings.hours:g}" if settings.hours and found.stages else ""
        facts = [
            ("steps", f"{found.steps}{asked}{done}"),
            ("time", time_in_words(found) + (f", {found.hours:.2f} hours" if found.hours else "")),
            *([("cost", _cost_in_words(found, price))] if price is not None else []),
            (
                "disk",
                "not measured" if found.disk_bytes is None else f"at most {human_bytes(found.disk_bytes)}{free_in_words(found)}",
            ),
            ("download", download_in_words(found)),
        ]
        print_table("It would take", ["", ""], facts)
        warn_of_room(found, found.run)
    finish(found.skipped)
