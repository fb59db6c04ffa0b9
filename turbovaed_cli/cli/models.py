"""The commands `turbovaed models ...`: the registry."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from turbovaed_cli.cli import console
from turbovaed_cli.cli.completion import complete_weights
from turbovaed_cli.cli.design_tables import show_design
from turbovaed_cli.cli.exits import command
from turbovaed_cli.cli.options import (
    DesignBudget,
    Downloads,
    Json,
    Name,
    Overwrite,
    Show,
    check_file,
    field_option,
    option,
    read_field,
)
from turbovaed_cli.cli.table import print_table
from turbovaed_cli.files.whole import write_json
from turbovaed_cli.registry.cost import cost_of
from turbovaed_cli.registry.download import embedded_student, how_to_distil
from turbovaed_cli.registry.find import find_model
from turbovaed_cli.registry.members import CAUSAL, FULL, RULES, member_of, members_of
from turbovaed_cli.registry.rows import MODELS, PROBLEMS
from turbovaed_cli.registry.specs import PUBLISHED_ON, ModelSpec
from turbovaed_cli.settings import ClipSettings, DistillSettings
from turbovaed_cli.training.recipes import RECIPES
from turbovaed_cli.units import format_size, human_bytes

EXAMPLES = """\
turbovaed models
turbovaed models show ltx
turbovaed models pull ltx --yes"""


@command
def models_root(*, context: typer.Context, json: Json = False) -> None:
    """List the registry."""
    if context.invoked_subcommand is None:
        _list_models(json)


@command
def models_list(*, json: Json = False) -> None:
    """List every teacher and its student."""
    _list_models(json)


def _list_models(json: bool) -> None:
    for problem in PROBLEMS:
        console.warn(problem)
    if json:
        console.print_json({"models": [_describe(spec) for spec in MODELS.values()]})
        return
    rows = []
    for spec in MODELS.values():
        teacher = spec.teacher
        rows.append(
            (
                ", ".join((spec.name, *spec.aliases)),
                spec.title,
                f"{teacher.time_ratio}x{teacher.space_ratio}x{teacher.space_ratio}",
                str(teacher.frames),
                f"{teacher.decoder_params_m:.1f}",
            )
        )
    print_table("Teachers", ["name", "teacher", "ratio", "frames", "decoder M"], rows)
    _list_students()


def _list_students() -> None:
    """Print a row with the costs of each teacher's family of students."""
    shown = (FULL, *RULES)
    rows = []
    for spec in MODELS.values():
        students = {student.member: student for student in _students(spec)}
        costs = [students.get(member) for member in shown]
        cells = [cell for one in costs for cell in ((f"{one.params / 1e6:.1f}", f"{one.gflops:.0f}") if one else ("", ""))]
        rows.append((spec.name, *cells, "as full" if CAUSAL in students else ""))
    columns = [
        f"{'' if member == FULL else f'-{member} '}{unit}".replace(" ", "\n") for member in shown for unit in ("M", "GFLOPs")
    ]
    print_table(f"Students: NAME, {', '.join(f'NAME-{one}' for one in (*RULES, CAUSAL))}", ["name", *columns, "-causal"], rows)
    console.note(f"M: millions of parameters; GFLOPs: of {_DECODE}; models show NAME-{next(iter(RULES))}: the whole config")


@dataclass(frozen=True)
class _Student:
    """One student of a teacher, with its cost."""

    name: str
    member: str
    params: int
    gflops: float
    published: bool  # whether its weights are in the package or on the hub


# What GFLOPs in lists are of. A teacher may need other frames: the next that it takes.
_FRAMES, _SIZE = ClipSettings.frames, ClipSettings.size
_DECODE = f"a decode of {_FRAMES} frames of {_SIZE[1]}x{_SIZE[0]}"


def _students(spec: ModelSpec) -> list[_Student]:
    """Every member of the family of a full row's students; costs need no torch."""
    teacher = spec.teacher
    side = teacher.space_ratio
    latents = (teacher.latent_frames(teacher.frames.at_least(_FRAMES)), max(_SIZE[0] // side, 1), max(_SIZE[1] // side, 1))
    found = []
    for member in members_of(spec):
        one = member_of(spec, member)
        cost = cost_of({**one.student.config, "latent_channels": teacher.latent_channels}, latents)
        embedded = one.embedded and embedded_student(one).is_dir()
        found.append(_Student(one.name, member, cost.params, cost.gflops, embedded or one.student.published is not None))
    return found


def _families(spec: ModelSpec) -> dict[str, str]:
    """The students of a teacher in words, by their names."""
    students = _students(spec)
    return {
        one.name: f"{one.params / 1e6:.3f} M, {one.gflops:.1f} GFLOPs ({one.gflops / students[0].gflops:.0%})"
        + ("" if one.published else ", to be distilled")
        for one in students
    }


@command
def models_show(*, name: Name, json: Json = False) -> None:
    """Show one row: what the teacher needs, what the student is, where weights come from."""
    spec = find_model(name)
    description = _describe(spec)
    if json:
        console.print_json(description)
        return
    flat = [(f"{group} {key}", value) for group in ("teacher", "student") for key, value in description[group].items()]
    if spec.member == FULL:
        flat += [(f"its students, for {_DECODE}", _families(spec))]
    title = f"{spec.name}: {spec.title}" + ("" if spec.member == FULL else f", {spec.member} student")
    print_table(title, ["", ""], [(key, _in_words(value)) for key, value in flat])


def _in_words(value: object) -> str:
    if isinstance(value, Mapping):
        return "\n".join(f"{key}: {_in_words(item)}" for key, item in value.items()) or "none"
    if isinstance(value, list | tuple):
        separator = "\n" if value and isinstance(value[0], Mapping | str) else ", "
        return separator.join(_in_words(item).replace("\n", "; ") for item in value) or "none"
    return "none" if value is None else str(value)


def _describe(spec: ModelSpec) -> dict[str, Any]:
    teacher, student = spec.teacher, spec.student
    decoder, params = teacher.decoder_params_m, student.params_m
    if params is None:  # of a local folder, whose own networks are counted
        decoder, params = _counted(spec)
    return {
        "name": spec.name,
        "aliases": list(spec.aliases),
        "title": spec.title,
        "member": spec.member,
        "students": [asdict(student) for student in _students(spec)] if spec.member == FULL else None,
        "teacher": {
            "name": spec.teacher_name,
            "class": teacher.class_name,
            "weights": str(teacher.path)
            if teacher.path
            else ", ".join(
                f"{teacher.repo} {one}/{teacher.weights_file}".replace(" /", " ") for one in (teacher.folder, *teacher.beside)
            ),
            "size": human_bytes(teacher.num_bytes) if teacher.num_bytes is not None else "no weights in it",
            "latent channels": teacher.latent_channels,
            "ratio": f"{teacher.time_ratio}x{teacher.space_ratio}x{teacher.space_ratio} (time, height, width)",
            "frames": str(teacher.frames),
            "height and width": f"multiples of {teacher.space_ratio}",
            "decoder": f"{decoder} M parameters" if decoder is not None else "not known without its weights",
            "required settings": {setting.name: f"{setting.value} ({setting.why})" for setting in teacher.family.required},
            "decoder's fixed inputs": teacher.family.decoder_inputs(),
            "licence": teacher.licence + (f"; {teacher.licence_note}" if teacher.licence_note else ""),
        },
        "student": {
            "parameters": f"{params} M",
            "recipe": f"{spec.recipe}: {RECIPES[spec.recipe].steps:,} steps, {RECIPES[spec.recipe].clips:,} clips",
            "aligned": [f"{p.student_block} -> {p.teacher_tap}" + (" (head)" if p.head else "") for p in student.pairs],
            "published results": {
                **{name: f"{ours:g} (teacher {theirs:g})" for name, (theirs, ours) in spec.published_results.items()},
                "measured on": PUBLISHED_ON,
            }
            if spec.published_results and teacher.repo
            else None,
            "published weights": f"{student.published.repo} {student.published.filename}, {student.published.licence}"
            if student.published
            else None
            if spec.member == FULL or (spec.embedded and embedded_student(spec).is_dir())
            else how_to_distil(spec).replace("distil one", "none; distil it"),
            "config": {key: list(value) if isinstance(value, tuple) else value for key, value in student.config.items()},
        },
    }


def _counted(spec: ModelSpec) -> tuple[float | None, float]:
    """Millions of parameters: of a local teacher's decoder (None without its weights), and of its student."""
    from turbovaed_cli.models.teacher import decoder_params_of

    found = decoder_params_of(spec)
    return None if found is None else round(found / 1e6, 3), round(cost_of(spec.student.config, (1, 1, 1)).params / 1e6, 3)


@command
def models_design(
    *,
    name: Name,
    budget: DesignBudget,
    ms: Annotated[
        float | None,
        option(
            "--ms", "Design the student: milliseconds at most for one decode on --device, timed here.", "Student", metavar="X"
        ),
    ] = None,
    causal: Annotated[bool, option("--causal", "No frame depends on a later one.", "Student")] = False,
    frames: Annotated[
        int | None, option("--frames", "Pixel frames of a decode.", "Clips", metavar="N", shown="17, or the next that fits")
    ] = None,
    size: Annotated[str, field_option(ClipSettings, "size")] = format_size(DistillSettings.size),
    device: Annotated[str, field_option(ClipSettings, "device")] = ClipSettings.device,
    out: Annotated[
        Path | None,
        option("--out", "Write the config of the chosen student, for --student-config.", "Input and output", metavar="FILE"),
    ] = None,
    overwrite: Overwrite = False,
    json: Json = False,
) -> None:
    """Show which student fits a budget best, and what it was chosen from."""
    from turbovaed_cli.models.design import Budget, design_student

    check_file(out, "`out`", overwrite=overwrite)
    spec = find_model(name)
    frames = frames or spec.teacher.frames.at_least(DistillSettings.frames)
    limits = Budget(budget.params, budget.gflops, frames, read_field(ClipSettings, "size", size), ms)
    causal = causal or spec.member == CAUSAL
    if ms is None:
        design = design_student(spec, limits, causal=causal)
    else:
        from turbovaed_cli.benchmarking.timed_design import design_in_time
        from turbovaed_cli.machine.devices import resolve_device

        report = console.ConsoleReporter()
        design = design_in_time(spec, limits, resolve_device(device, report), causal=causal, report=report)
    if out is not None:
        write_json(out, design.config)
    if json:
        console.print_json(design)
    else:
        show_design(design)


@command
def models_pull(
    *,
    name: Annotated[
        str,
        typer.Argument(help="Registry name, hub id, or lpips-vgg, lpips-alex, st-lpips, i3d.", autocompletion=complete_weights),
    ],
    downloads: Downloads,
    show: Show,
) -> None:
    """Download weights into the cache: prints the size and asks first."""
    from turbovaed_cli.registry.pull import pull

    result = pull(name, downloads.consent, show.report)
    if show.json:
        console.print_json(result)
        return
    rows = [(Path(file.path).name, human_bytes(file.num_bytes), file.sha256[:16]) for file in result.files]
    print_table(f"{name} is on this machine", ["file", "size", "sha256"], rows)
    if name == "i3d":
        console.note(
            f"it is code: compare its sha256 with a source you trust, then turbovaed eval --i3d-sha256 {result.files[0].sha256}"
        )


COMMANDS: tuple[tuple[str, Callable[..., None], str], ...] = (
    ("list", models_list, "turbovaed models list\nturbovaed models list --json\nturbovaed models"),
    ("show", models_show, "turbovaed models show ltx\nturbovaed models show ./my-vae\nturbovaed models show ltx --json"),
    (
        "design",
        models_design,
        "turbovaed models design ltx --params 8M\nturbovaed models design ltx --gflops 2000 --size 720p\n"
        "turbovaed models design ltx --ms 500 --causal --out student.json",
    ),
    ("pull", models_pull, "turbovaed models pull ltx\nturbovaed models pull user/name\nturbovaed models pull lpips-alex"),
)
