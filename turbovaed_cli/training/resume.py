"""Whether a run can resume with the current settings, and if not, which options differ."""

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, fields
from itertools import count
from pathlib import Path
from typing import Any

from turbovaed_cli.errors import DifferentRunError, TurboVaedError
from turbovaed_cli.files.changes import Change, arrow, option_of, shortened
from turbovaed_cli.files.remote import is_url
from turbovaed_cli.files.sealed import read_json
from turbovaed_cli.files.whole import write_whole
from turbovaed_cli.machine.devices import environment
from turbovaed_cli.models.decoding import module_of
from turbovaed_cli.models.network import DERIVED_KEYS
from turbovaed_cli.models.teacher import hash_of_state
from turbovaed_cli.models.trainable import Trainable
from turbovaed_cli.registry.members import member_in
from turbovaed_cli.reporting import Reporter
from turbovaed_cli.runs.rundir import RunDir, metrics_row
from turbovaed_cli.settings import DistillSettings
from turbovaed_cli.stage import Stage
from turbovaed_cli.training.checks import check_clips_per_pass, check_finished_stages
from turbovaed_cli.training.estimate import forecast
from turbovaed_cli.training.prepare import Distillation
from turbovaed_cli.training.recipes import RECIPES, RESUMABLE_CHANGES
from turbovaed_cli.training.state import TrainingState
from turbovaed_cli.training.trainer import Trainer
from turbovaed_cli.video import reading_identity
from turbovaed_cli.video.drawn import VERSION

MOST_CHANGES = 5  # that an error lists
# Settings that only a recipe file can set: messages use their names there.
ONLY_IN_RECIPES = frozenset(
    {
        "name", "betas", "eps", "weight_decay", "clip_grad_norm", "discriminator_channels", "discriminator_lr", "crop_latents",
        "crop_side", "crop_margin", "perceptual_frames", "fit_batch", "lr_end", "keep_checkpoints", "stall_seconds", "stages", "recipe",
    }
)  # fmt: skip
_OF_STUDENTS = ("student", "params", "gflops", "student_config", "init")  # arguments that determine the student
_OF_DATA = ("data", "latents")


def check_resume(folder: RunDir, config: Mapping[str, Any], settings: DistillSettings, processes: int, run: str | Path) -> None:
    """Raise RunFolderError if `folder` holds a run with other settings, or something that is no run. Writes nothing.

    `config` is the config.json that the current settings would give.
    """
    changes = folder.changes(config, RESUMABLE_CHANGES)
    way_on = _way_on(folder, run)
    check_finished_stages(folder, settings, way_on)
    check_clips_per_pass(folder, settings, processes)
    if changes:
        items = in_options(changes, folder.read_config(), config)
        error = DifferentRunError(f"{run} was started with other settings: {shortened(items, MOST_CHANGES)}", way_on)
        error.changes = tuple(items)
        raise error


# The fields of env.json for hardware and libraries that the last bits of a step depend on, and their names in messages.
_DECIDES_BITS = {"device": "device", "cuda": "GPU", "cuda_runtime": "CUDA", "cudnn": "cuDNN", "torch": "torch"}


def machine_changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return the differences between a run's env.json and this machine that may change the last bits of further steps.

    Fields that an earlier version did not record are ignored. GPUs and their libraries count only for runs that use one.
    """
    old, new = _deciding(before), _deciding(now)
    if old["device"] and old["device"] != new["device"]:
        names = ["device"]
    elif new["device"] == "cpu" and not old["cuda"]:
        names = ["torch"]
    else:
        names = [name for name in _DECIDES_BITS if name != "device"]
    return [
        arrow(_DECIDES_BITS[name], old[name], new[name]) for name in names if old[name] is not None and old[name] != new[name]
    ]


def _deciding(env: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of an env.json that determine the last bits. The number of the GPU makes no difference."""
    device, packages = env.get("device"), env.get("packages")
    own = {
        "device": device.partition(":")[0] if isinstance(device, str) else None,
        "torch": packages.get("torch") if isinstance(packages, dict) else None,
    }
    facts = {name: env.get(name) for name in _DECIDES_BITS} | own
    return facts | ({"cuda": None} if own["device"] == "cpu" else {})


def _way_on(folder: RunDir, run: str | Path) -> str:
    """Return the hint for a run with other settings: its first command, if known, or a free folder for another run."""
    first = folder.read_config().get("command_line") if folder.config.is_file() else None
    known = f": {first}" if isinstance(first, str) and first else ""
    return f"repeat the first command to resume{known}; or start another with {free_run(run)}"


def free_run(run: str | Path) -> str:
    """Return `--run` with a similar name that is free: runs/ltx-2 after runs/ltx. For a URL, no name is tried."""
    if is_url(run):
        return "another `run`"
    stem, number = re.fullmatch(r"(.*?)(?:-(\d{1,9}))?", str(run), re.DOTALL).groups()  # type: ignore[union-attr]
    names = (f"{stem}-{n}" for n in count(int(number or 1) + 1))
    return f"`run` {shlex.quote(next(name for name in names if not Path(name).exists()))}"


def in_options(changes: Sequence[Change], before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return changes of config.json as options of `distill`, causes first; changes that follow from a listed one are left out."""
    old, new = before["settings"], now["settings"]
    lines = [str(config.get("command_line") or "") for config in (before, now)]
    recipes = [RECIPES.get(str(settings.get("recipe"))) for settings in (old, new)]
    of_recipe = [change for change in changes if _is_of_recipes(change, recipes)]
    follows = [change for change in changes if change.name == "drawing" and None in (change.before, change.now)]  # from shares
    left = [change for change in changes if change not in of_recipe and change not in follows]
    has_other_recipe = old.get("recipe") != new.get("recipe") and any(change.name.startswith("settings.") for change in changes)
    items = [arrow("recipe", old.get("recipe"), new.get("recipe"))] if has_other_recipe else []
    by_group: dict[str, list[Change]] = {}
    for change in left:
        by_group.setdefault(change.name.partition(".")[0], []).append(change)
    if by_group.keys() & {"teacher", "model"}:
        items += _of_teacher(before, now) if "teacher" in by_group else [_of_member(before, now)]
        by_group.pop("student_config", None)  # it follows from the teacher, or from the name of the student
    if "data_fingerprint" in by_group:
        items += _by_options(lines, _OF_DATA) or ["the contents of `data` or `latents` differ"]
    items += _of_settings(by_group.get("settings", []), new)
    if by_group.keys() & {"student_config", "init_sha256", "init"}:
        named = _by_options(lines, _OF_STUDENTS)
        items += named or [arrow(f"student's {c.field}", c.before, c.now) for c in by_group.get("student_config", [])]
        items += [arrow("`init`", c.before, c.now) for c in by_group.get("init", []) if not named]
        items += ["the student of `init` differs"] if "init_sha256" in by_group and not named else []
    known = {"teacher", "model", "data_fingerprint", "settings", "student_config", "init_sha256", "init"}
    return items + [arrow(c.name, c.before, c.now, c.field) for c in left if c.name.partition(".")[0] not in known]


def _is_of_recipes(change: Change, recipes: Sequence[DistillSettings | None]) -> bool:
    """Whether a change only comes from another preset."""
    was, becomes = recipes
    if was is None or becomes is None or was is becomes or not change.name.startswith("settings."):
        return False
    if change.name == "settings.stages":
        return True
    return _value_at(was, change.name) == change.before and _value_at(becomes, change.name) == change.now


def _value_at(recipe: DistillSettings, name: str) -> object:
    """Return a preset's value for the name `name` of config.json; None if it has none, such as for an additional stage."""
    value: Any = json.loads(json.dumps({"settings": asdict(recipe)}))
    for part in name.split("."):
        if isinstance(value, list):
            value = dict(enumerate(value, start=1)).get(int(part))
        else:
            value = value.get(part) if isinstance(value, dict) else None
    return value


def _of_teacher(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    old, new = (config["teacher"] if isinstance(config.get("teacher"), dict) else {} for config in (before, now))
    if old.get("where") != new.get("where"):
        return [arrow("`teacher`", old.get("where"), new.get("where"))]
    timesteps = [(teacher.get("decoder_inputs") or {}).get("decode_timestep") for teacher in (old, new)]
    if timesteps[0] != timesteps[1]:
        return [arrow("`decode_timestep`", timesteps[0], timesteps[1])]
    prints = [str(teacher.get("weights_sha256"))[:12] for teacher in (old, new)]
    return [arrow("weights of the teacher", *prints) if prints[0] != prints[1] else "the config of the teacher differs"]


def _of_member(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    named = [(str(config.get("model")), str((config.get("teacher") or {}).get("where"))) for config in (before, now)]
    return arrow("`student`", *(member_in(*one) for one in named))


def _by_options(lines: Sequence[str], arguments: Sequence[str]) -> list[str]:
    """Return the arguments whose options differ between two command lines; none if one of the lines is not known."""
    if not all(lines):
        return []
    values = {name: [_given(line, f"--{name.replace('_', '-')}") for line in lines] for name in arguments}
    return [arrow(option_of(name), before, now) for name, (before, now) in values.items() if before != now]


def _given(line: str, option: str) -> str | None:
    try:
        words = shlex.split(line)
    except ValueError:  # edited by hand
        return None
    for word, following in zip(words, [*words[1:], None], strict=True):
        name, equals, value = word.partition("=")
        if name == option:
            return value if equals else following
    return None


def _of_settings(changes: Sequence[Change], new: Mapping[str, Any]) -> list[str]:
    """Return changes of settings as options, in the order of their classes; once if all stages changed alike."""
    order = [field.name for field in (*fields(DistillSettings), *fields(Stage))]
    of_stages: dict[str, list[Change]] = {}
    items: list[tuple[str, str]] = []  # field, text
    for change in changes:
        if change.name == "settings.stages":
            items.append(("stages", f"stages: {_schedule(change.before)} -> {_schedule(change.now)}"))
        elif change.name.startswith("settings.stages."):
            of_stages.setdefault(change.field, []).append(change)
        else:
            items.append((change.field, _of_field(change)))
    names = [str(stage.get("name")) for stage in new.get("stages") or []]
    for field, found in of_stages.items():
        values = {json.dumps([change.before, change.now]) for change in found}
        if len(found) == len(names) and len(values) == 1:
            items.append((field, _of_field(found[0])))
        else:
            items += [(field, f"stage {names[_index(change)]}: {_of_field(change)}") for change in found]
    return [text for _, text in sorted(items, key=lambda item: order.index(item[0]) if item[0] in order else len(order))]


def _of_field(change: Change) -> str:
    what = change.field if change.field in ONLY_IN_RECIPES else option_of(change.field)
    return arrow(what, change.before, change.now, change.field)


def _index(change: Change) -> int:
    return int(change.name.split(".")[2]) - 1


def _schedule(stages: object) -> str:
    """Format stages of config.json as "reconstruct 450, adversarial 50"."""
    listed = stages if isinstance(stages, list) else []
    return ", ".join(f"{stage.get('name')} {stage.get('steps')}" for stage in listed if isinstance(stage, dict)) or "none"


def begin(asked: Distillation, folder: RunDir, trainer: Trainer, report: Reporter) -> dict[str, Any]:
    """Record a new run, or check that it is the same run, and remove leftovers of a killed one. Return its config.json."""
    config = run_config(asked, trainer, trainer.settings, trainer.ranks.count, folder)
    check_resume(folder, config, trainer.settings, trainer.ranks.count, asked.run)
    machine = environment(trainer.device)
    before: dict[str, Any] = {}
    with suppress(TurboVaedError):  # damaged: nothing but this warning needs it
        before = read_json(folder.env) if folder.env.is_file() and folder.steps() else {}
    if before and (changes := machine_changes(before, machine)):
        where = f"resumed on another machine or with other libraries ({', '.join(changes)})"
        report.note(f"{where}: the last bits may differ from those of an uninterrupted run", warning=True)
    folder.snapshot(config, machine)
    folder.clean_leftovers()
    return config


def run_config(
    asked: Distillation, trainer: Trainer, settings: DistillSettings, processes: int, folder: RunDir
) -> dict[str, Any]:
    """Return the config.json of a run; `settings` have the clips of a forward pass over all processes."""
    spec = asked.spec
    student, teacher = trainer.state.student, trainer.teacher
    first = folder.read_config().get("command_line") if folder.config.exists() else None
    return {
        "command": "distill",
        "command_line": first or asked.command_line or None,
        "settings": asdict(settings),
        "ranks": processes,
        "model": spec.name,
        "teacher": {
            **teacher.identity(),
            "where": spec.teacher.where or spec.teacher_name,
        },
        "student_config": _published_config(student),
        "init_sha256": hash_of_state(module_of(student)) if asked.init is not None and trainer.begins != "pruned" else None,
        **({"init": asked.init} if trainer.begins == "pruned" else {}),
        "data_fingerprint": trainer.streams[0].fingerprint,
        # For videos only: a cache records its own.
        **({} if trainer.streams[0].is_encoded else {"reading": reading_identity(settings.hdr)}),
        **({"drawing": VERSION} if settings.augment or settings.synthetic else {}),
    }


def resume_or_start(folder: RunDir, trainer: "Trainer", report: Reporter) -> int | None:
    """Resume from the newest checkpoint and return its step; without one, prepare the fresh student and return None."""
    resumed_from = _resume(folder, trainer.state)
    if resumed_from:
        report.note(f"resumed from step {resumed_from}")
    else:
        trainer.set_start(report)
        report.note(forecast(trainer))
    return resumed_from


def _resume(folder: RunDir, state: TrainingState) -> int | None:
    """Load the newest checkpoint and remove the metrics of later steps. Return its step, or None."""
    path = folder.latest_checkpoint()
    if path is not None:
        state.load(path)
    if folder.metrics.exists():
        lines = [line for line in folder.metrics_lines() if (row := metrics_row(line)) is not None and row["step"] <= state.step]
        write_whole(
            folder.metrics, lambda temporary: temporary.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        )
    return state.step if path is not None else None


def _published_config(student: Trainable) -> dict[str, Any]:
    return {name: value for name, value in student.config.items() if not name.startswith("_") and name not in DERIVED_KEYS}
