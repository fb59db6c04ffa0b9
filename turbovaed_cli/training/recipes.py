"""Recipes of `distill`: complete schedules by name, and their reading and writing as TOML."""

import json
import tomllib
from collections.abc import Iterable
from dataclasses import MISSING, asdict, fields, replace
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from turbovaed_cli.choices import hint_for
from turbovaed_cli.errors import SettingsError
from turbovaed_cli.files.documents import fits, read_text, shown
from turbovaed_cli.setting import setting_of
from turbovaed_cli.settings import DistillSettings
from turbovaed_cli.stage import Stage

# `--recipe`: complete schedules. What each was measured to be worth stands in benchmarks/recipes.md.
RECIPES: dict[str, DistillSettings] = {
    # As published: one stage of plain reconstruction, then the adversarial one, which its authors launch by hand.
    "paper": DistillSettings(
        recipe="paper",
        dtype="fp32",
        stages=(
            Stage("reconstruct", steps=20000, batch_size=1, accumulation=8, lr=1e-4),
            Stage("adversarial", steps=5000, batch_size=1, accumulation=8, lr=1e-4, adversarial_weight=0.05),
        ),
    ),
    # For full-size teachers: a million clips on one card of 24 GB; most need more than a night (docs/gpu-memory.md). Many small
    # clips first, then the size that students are used at, then sharpness. No full-size teacher was at hand: it has what held on two
    # small ones, so no feature alignment, and is itself not measured.
    "night": DistillSettings(
        recipe="night",
        fit_batch=True,
        optimizer="muon",
        start="fitted",
        size=(512, 512),
        stages=(
            Stage(
                "reconstruct", steps=55000, batch_size=16, accumulation=1, crop_side=256, crop_margin=1, lr=2e-3, lr_schedule="cosine",
                lr_end=0.1, warmup_steps=500, perceptual_weight=0.1, perceptual_frames=4, feature_weight=0.0,
            ),
            Stage(
                "large", steps=10000, batch_size=2, accumulation=4, lr=6e-4, lr_schedule="cosine", lr_end=0.1, warmup_steps=100,
                perceptual_weight=0.1, perceptual_frames=4, feature_weight=0.0, gradient_checkpointing=True,
            ),
            Stage(
                "adversarial", steps=10000, batch_size=4, accumulation=1, crop_side=256, crop_margin=1, lr=2e-4, lr_schedule="cosine",
                warmup_steps=100, perceptual_weight=0.1, perceptual_frames=4, feature_weight=0.0, adversarial_weight=0.05,
            ),
        ),
    ),
    # Of the embedded teacher, on which it was measured; of others a first look of half an hour on a GPU. Small crops first, in
    # many steps; whole clips at the end, which leave nothing out.
    "fast": DistillSettings(
        recipe="fast",
        optimizer="muon",
        start="fitted",
        stages=(
            Stage(
                "reconstruct", steps=6000, batch_size=2, accumulation=1, crop_latents=12, crop_margin=2, lr=3e-3, lr_schedule="cosine",
                lr_end=0.1, warmup_steps=100, perceptual_weight=0.1, feature_weight=0.0,
            ),
            Stage(
                "whole-clips", steps=1200, batch_size=1, accumulation=1, lr=8e-4, lr_schedule="cosine",
                warmup_steps=20, perceptual_weight=0.1, feature_weight=0.0,
            ),
        ),
    ),
    # A tenth of it: to see whether a teacher, a student and the data go together.
    "quick": DistillSettings(
        recipe="quick",
        optimizer="muon",
        start="fitted",
        ema_decay=0.99,
        stages=(
            Stage(
                "reconstruct", steps=450, batch_size=2, accumulation=1, crop_latents=12, crop_margin=2, lr=2e-3, lr_schedule="cosine",
                warmup_steps=20, perceptual_weight=0.1, feature_weight=0.0,
            ),
        ),
    ),
}  # fmt: skip
# The same for teachers that leave too little of 24 GB on clips of 512x512 pixels, such as one whose encoder takes 22 GB alone.
_NIGHT = RECIPES["night"]
_LESS_LARGE = replace(_NIGHT.stages[1], crop_side=480, crop_margin=1)
RECIPES["night-480"] = replace(_NIGHT, recipe="night-480", stages=(_NIGHT.stages[0], _LESS_LARGE, _NIGHT.stages[2]))
# For image VAEs: the same on single frames, with eight times the clips in a pass and in a step.
RECIPES["night-images"] = replace(
    _NIGHT,
    recipe="night-images",
    frames=1,
    stages=tuple(replace(stage, batch_size=8 * stage.batch_size, perceptual_frames=0) for stage in _NIGHT.stages),
)
DEFAULT_RECIPE = "default"  # a name for the recipe that a teacher's row in the registry names


def read_recipe(name: str) -> DistillSettings:
    """The preset of that name, or the schedule in a TOML file: fields of DistillSettings, and one [[stages]] table per stage.

    Raises SettingsError for a name that is neither, a field that does not exist, or one of another type.
    """
    if name in RECIPES:
        return RECIPES[name]
    path = Path(name)
    if path.suffix == ".toml" and not path.is_file():
        raise SettingsError(f"{path} is not there", f"a TOML file with [[stages]], or one of: {', '.join(RECIPES)}")
    if path.suffix != ".toml":
        every = f"one of: {', '.join(RECIPES)}, or a .toml file with [[stages]]"
        raise SettingsError(f"no recipe is called {name!r}", hint_for(name, RECIPES, every))
    try:
        table = tomllib.loads(read_text(path))
    except (ValueError, RecursionError) as error:  # also of numbers and nests that are too large
        raise SettingsError(
            f"{path} is not TOML: {error}", "fields of DistillSettings, and one [[stages]] table per stage"
        ) from error
    stages = table.pop("stages", [])
    if not isinstance(stages, list) or not all(isinstance(stage, dict) for stage in stages):
        raise SettingsError(f"{path}: stages is not a list of tables", "write one [[stages]] table per stage")
    made = tuple(Stage(**_typed(Stage, stage, f"{path} stage {index + 1}")) for index, stage in enumerate(stages))
    return DistillSettings(**_typed(DistillSettings, {"recipe": path.stem, **table, "stages": made}, str(path)))


def _typed(settings_class: type, table: dict[str, Any], where: str) -> dict[str, Any]:
    """The values of a TOML table as the fields of a settings class want them; SettingsError names what does not fit."""
    known = {field.name: field for field in fields(settings_class)}
    typed = {}
    for name, value in table.items():
        if name not in known:
            raise SettingsError(f"{where} has an unknown field {name!r}", hint_for(name, known, f"known: {', '.join(known)}"))
        wanted = get_type_hints(settings_class)[name]
        if wanted in (bool, int, float, str):
            if not fits(value, wanted) and not (wanted is float and isinstance(value, float)):  # inf and NaN: of the checks
                raise SettingsError(
                    f"{where}: {name} is {shown(value)}, not {wanted.__name__}", f"such as {name} = {known[name].default!r}"
                )
            typed[name] = wanted(value)
        elif name == "stages":
            typed[name] = value
        elif name == "log":
            if not (isinstance(value, list) and all(isinstance(one, str) for one in value)):
                raise SettingsError(f"{where}: {name} is {shown(value)}, not a list of names")
            typed[name] = tuple(value)
        else:  # the pairs: sizes and betas
            kind = float if name == "betas" else int
            if not fits(value, tuple[kind, kind]):  # type: ignore[valid-type]
                raise SettingsError(
                    f"{where}: {name} is {shown(value)}, not a list of two numbers",
                    f"such as {name} = [128, 128] (of sizes: height, width)",
                )
            typed[name] = tuple(kind(one) for one in value)
    required = [name for name, field in known.items() if field.default is MISSING and name not in typed]
    if required:
        raise SettingsError(f"{where} has no {required[0]}", "every stage has a name, and a schedule has stages")
    return typed


# What may differ between a run and its resume without changing what was computed so far; of steps, those of finished stages may not.
RESUMABLE_CHANGES = frozenset(
    {
        "recipe", "steps", "save_every", "sample_every", "keep_checkpoints", "workers", "stall_seconds", "log", "device", "ranks", "where",
        "gradient_checkpointing", "command_line", "hdr", "model", "teacher.licence", "student_config.teacher",
    }
)  # fmt: skip


def as_toml(settings: DistillSettings) -> str:
    """Return a schedule as a TOML document that read_recipe reads back to the same settings; a comment has each field's sentence."""
    lines = [line for name, value in asdict(settings).items() if name != "stages" for line in _line(DistillSettings, name, value)]
    for stage in settings.stages:
        lines += ["", "[[stages]]"]
        lines += [line for name, value in asdict(stage).items() for line in _line(Stage, name, value)]
    return "\n".join(lines) + "\n"


def _line(settings_class: type, name: str, value: object) -> list[str]:
    if value is None:  # which TOML has not, and is the default
        return []
    text = json.dumps(value, ensure_ascii=False)
    option = setting_of(settings_class, name)
    sentence = option.sentence.replace("{choices}", ", ".join(option.choices))
    pair = " (height, width)" if name in ("size", "crop") else ""
    return [f"{name} = {text}".ljust(34) + f"  # {sentence}{pair}"]


def changeable() -> dict[str, type]:
    """Return the fields that may be changed, and the class of each: not those that make a recipe."""
    homes: dict[str, type] = {field.name: kind for kind in (Stage, DistillSettings) for field in fields(kind)}
    return {name: home for name, home in homes.items() if name not in ("name", "stages", "recipe")}


def read_changes(given: Iterable[str]) -> dict[str, Any]:
    """Return the changes that `--set NAME=VALUE` asks for, as DistillSettings.with_changes takes them.

    A field of a stage changes in every stage. Raises SettingsError for an unknown name, and a value of another type.
    """
    homes = changeable()
    changes: dict[str, Any] = {}
    for item in given:
        name, equals, text = item.partition("=")
        name = name.strip().replace("-", "_")
        if not equals:
            raise SettingsError(f"`set={item}` is not NAME=VALUE", "such as `set=weight_decay=0.01`")
        if name not in homes:
            raise SettingsError(
                f"`set={item}`: no setting is called {name}", hint_for(name, homes, "`show_recipe=True` lists them")
            )
        if name in changes:
            raise SettingsError(f"`set={item}`: {name} is set twice", "give it once")
        changes[name] = _value_of(homes[name], name, text.strip())
    return changes


_KINDS = {int: "a whole number", float: "a number", bool: "true or false"}


def _value_of(settings_class: type, name: str, text: str) -> Any:
    """The value of a field from text."""
    option, hint = setting_of(settings_class, name), get_type_hints(settings_class)[name]
    try:
        if get_origin(hint) is tuple and option.many:
            return tuple(filter(None, (part.strip() for part in text.split(","))))
        if get_origin(hint) is tuple and not option.parse:  # the betas
            first, second = (float(part) for part in text.split(","))
            return first, second
        if hint is bool:
            return {"true": True, "on": True, "1": True, "false": False, "off": False, "0": False}[text.lower()]
        if hint in (int, float):
            return hint(text)
    except (ValueError, KeyError):
        wanted = _KINDS.get(hint, f"{len(get_args(hint))} numbers by a comma")
        raise SettingsError(
            f"`set={name}={text}` is not {wanted}", f"such as `set={name}={_example(settings_class, name)}`"
        ) from None
    if option.parse:
        try:
            return option.parse(text)
        except SettingsError as error:
            raise SettingsError(f"`set={name}={text}`: {error.what}", error.hint) from None
    if text not in option.choices:
        raise SettingsError(f"`set={name}={text}` is unknown", hint_for(text, option.choices))
    return text


def _example(settings_class: type, name: str) -> str:
    value = next(field.default for field in fields(settings_class) if field.name == name)
    return json.dumps(value).strip("[]").replace(" ", "")
