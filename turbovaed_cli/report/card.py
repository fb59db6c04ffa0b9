"""The model card of a student: what it is, how it was trained, what was measured, and how it is used.

Its header is what the Hugging Face hub reads. A card never holds a path.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from turbovaed_cli.files.sealed import read_json
from turbovaed_cli.metrics import METRICS
from turbovaed_cli.models.student import StudentDecoder
from turbovaed_cli.registry.licences import hub_licence
from turbovaed_cli.registry.members import FULL
from turbovaed_cli.registry.specs import ModelSpec
from turbovaed_cli.report.tables import score_text
from turbovaed_cli.stage import Stage
from turbovaed_cli.units import format_size
from turbovaed_cli.version import __version__

# A card without this line was written or changed by a person.
WRITTEN_BY = (
    "<!-- Written by turbovaed. `turbovaed push` writes this card anew; without this line it keeps the card as it is. -->"
)
NO_PLACE = "path/to/this/folder"  # in the card of a student that is on no hub
_TAGS = ["turbo-vaed", "video", "vae", "decoder", "distillation"]


@dataclass(frozen=True)
class TeacherFacts:
    """What a card states of the teacher; nothing in it is a path."""

    title: str
    class_name: str
    origin: str
    licence: str
    licence_note: str = ""
    weights_sha256: str | None = None
    base_model: str | None = None  # the id of its repository on the hub
    decoder_params: int | None = None
    inputs: Mapping[str, float] = field(default_factory=dict)  # that its decoder was given besides latents


@dataclass(frozen=True)
class TrainedStage:
    """One stage of the training, in words."""

    name: str
    steps: int
    data: str
    losses: str
    lr: str


@dataclass(frozen=True)
class Training:
    """How a student was trained, in words."""

    recipe: str
    steps: int
    how: str
    stages: Sequence[TrainedStage]


@dataclass(frozen=True)
class Evaluation:
    """A document of `eval`, and the name of its data."""

    data: str
    document: Mapping[str, Any]

    @property
    def setup(self) -> str:
        """The frames, size and protocol, such as "17x256x256-standard"."""
        return f"{self.document['frames']}x{format_size(tuple(self.document['size']))}-{self.document['protocol']}"


@dataclass(frozen=True)
class CardFacts:
    """Everything that a card states."""

    teacher: TeacherFacts
    student_params: int
    latent_channels: int
    time_ratio: int
    space_ratio: int
    name: str = "student"
    place: str = NO_PLACE  # what `load_student` takes
    family: str = StudentDecoder.family
    training: Training | None = None
    evaluations: Sequence[Evaluation] = ()
    lookahead_frames: int | None = None  # by which a stream lags its input; 0: a causal student. None: not stated
    loads_alone: bool = False  # whether a modeling file is beside the weights
    sample: str | None = None  # the file name of a picture
    member: str = FULL  # of the teacher's family of students


def facts_of_teacher(
    spec: ModelSpec, weights_sha256: str | None, decoder_params: int | None, inputs: Mapping[str, float]
) -> TeacherFacts:
    """Return what a card states of the teacher in a row: its names, licence and repository, and the given figures."""
    teacher = spec.teacher
    on_hub = teacher.hub.partition("@")[0] if teacher.hub else teacher.repo
    return TeacherFacts(
        spec.title, teacher.class_name, teacher.origin, teacher.licence, teacher.licence_note, weights_sha256, on_hub, decoder_params,
        inputs,
    )  # fmt: skip


def loads_alone(folder: Path) -> bool:
    """Whether diffusers loads a student's folder without turbovaed: its config.json names the class in a file beside it."""
    return "auto_map" in read_json(folder / "config.json")


def losses_in_words(stage: Stage) -> str:
    """Describe what a stage minimises, such as "L1 + 1.0 ssim + 1.0 features"."""
    weighted = {
        stage.perceptual: stage.perceptual_weight if stage.perceptual != "none" else 0,
        "features": stage.feature_weight,
        "teacher L1": stage.teacher_weight,
        "squared error": stage.squared_weight,
        "lattice": stage.lattice_weight,
        "adversarial": stage.adversarial_weight,
    }
    return " + ".join(["L1", *(f"{weight} {name}" for name, weight in weighted.items() if weight)])


def data_in_words(data: Mapping[str, int]) -> str:
    """Describe the data of an optimizer step, such as "8 clips, 17 frames of 256x256"."""
    return f"{data['clips']} clips, {data['frames']} frames of {data['width']}x{data['height']}"


def card(facts: CardFacts) -> str:
    """Return the card as Markdown with a header in YAML."""
    parts = (
        f"---\n{header(facts).to_yaml()}\n---",
        f"# {'Student' if facts.member == FULL else f'{facts.member.capitalize()} student'} decoder of {facts.teacher.title}",
        _introduction(facts),
        f"![teacher, student and source]({facts.sample})" if facts.sample else "",
        _usage(facts),
        _measured(facts),
        _training(facts.training),
        _licence(facts),
        WRITTEN_BY,
    )
    return "\n\n".join(part for part in parts if part) + "\n"


def header(facts: CardFacts) -> ModelCardData:
    """Return the header of a card, as the hub's own class has it."""
    licence, teacher = hub_licence(facts.teacher.licence), facts.teacher
    results = [result for evaluation in facts.evaluations for result in _results(evaluation, _task(facts))]
    # Of the relations that the hub knows (adapter, merge, quantized, finetune), the last is the nearest to a distilled decoder.
    relation: dict[str, Any] = {"base_model_relation": "finetune"} if teacher.base_model else {}
    return ModelCardData(
        license=licence.id,
        license_name=licence.name,
        license_link=licence.link,
        library_name="diffusers" if facts.loads_alone else "turbovaed",
        pipeline_tag=_task(facts),
        base_model=teacher.base_model,
        tags=_TAGS,
        model_name=facts.name if results else None,
        eval_results=results or None,
        **relation,
    )


def _task(facts: CardFacts) -> str:
    """Return the task of the pipelines that the decoder is a part of, as the hub names it."""
    return "text-to-video" if facts.time_ratio > 1 else "text-to-image"


def _results(evaluation: Evaluation, task: str) -> Iterator[EvalResult]:
    """Yield the student's figures of an evaluation, with the teacher's and the 95 % interval beside each."""
    document = evaluation.document
    means, intervals = document["means"], (document.get("intervals") or {}).get("student") or {}
    setup = {name: document.get(name) for name in ("frames", "size", "stride", "protocol", "num_clips", "num_videos")}
    for name, value in means["student"].items():
        if value is None:
            continue
        beside = {
            "teacher": means["teacher"].get(name),
            "ratio": means["ratio"].get(name),
            "interval_95": list(intervals[name]) if intervals.get(name) else None,
        }
        yield EvalResult(
            task_type=task,
            dataset_type=_slug(evaluation.data),
            dataset_name=evaluation.data,
            dataset_config=evaluation.setup,
            dataset_args={key: one for key, one in setup.items() if one is not None},
            metric_type=name,
            metric_name=METRICS[name].label,
            metric_value=float(value),
            metric_args={key: one for key, one in beside.items() if one is not None},
        )


def _slug(name: str) -> str:
    return "".join(letter if letter.isalnum() and letter.isascii() else "-" for letter in name.lower()).strip("-") or "data"


def _introduction(facts: CardFacts) -> str:
    teacher = facts.teacher
    digest = f", weights sha256 `{teacher.weights_sha256}`" if teacher.weights_sha256 else ""
    beside = f"; the teacher's decoder has {teacher.decoder_params:,}" if teacher.decoder_params else ""
    inputs = ", ".join(f"`{name}` {value:g}" for name, value in teacher.inputs.items())
    stream = "" if facts.lookahead_frames is None else f"\n- {_stream_in_words(facts.lookahead_frames)}"
    fixed = f"\n- Besides latents, the teacher's decoder was given fixed inputs: {inputs}. The student takes latents alone."
    what = (
        "A Turbo-VAED decoder (arXiv:2508.09136)"
        if facts.family == StudentDecoder.family
        else f"A decoder of the family {facts.family}"
    )
    return f"""{what}, distilled with turbovaed {__version__} from the decoder of {teacher.class_name}
({teacher.origin}{digest}).

- Parameters: {facts.student_params:,}{beside}.
- Latents (B, {facts.latent_channels}, t, h, w) in the teacher's raw latent space; pixels in [-1, 1]; {facts.time_ratio}x in time, {facts.space_ratio}x in space.{stream}{fixed if inputs else ""}"""


def _stream_in_words(lookahead_frames: int) -> str:
    if not lookahead_frames:
        return "Causal in time: in a stream, the frames of each latent frame come out at once (look-ahead 0)."
    return f"In a stream, a frame comes out {lookahead_frames} frames after the latents of its own time (look-ahead)."


def _usage(facts: CardFacts) -> str:
    """Return the lines that use the student: in Python, in a diffusers pipeline, without turbovaed, and in ComfyUI."""
    place = facts.place
    alone = f"""
Without turbovaed, diffusers loads it with the code that is beside the weights:

    from diffusers import AutoModel
    vae = AutoModel.from_pretrained("{place}", trust_remote_code=True)
"""
    if facts.family != StudentDecoder.family:
        return f"""## Use
In Python, with turbovaed:

    from turbovaed_cli import load_decoder
    decoder = load_decoder("{place}")
    video = decoder.decode(latents).sample"""
    typed = f"type `{place}` into `path_or_hub_id` of Load Turbo-VAED student and turn on `download`. Or write"
    return f"""## Use
In Python, with turbovaed:

    from turbovaed_cli import load_student
    student = load_student("{place}"{", consent=True" if place != NO_PLACE else ""})
    video = student.decode(latents).sample

In a diffusers pipeline, which keeps its own encoder:

    from turbovaed_cli import attach_student
    attach_student(pipe, student)
{alone if facts.loads_alone else ""}
In ComfyUI, with the node pack of turbovaed, {typed if place != NO_PLACE else "write"} a file for `models/vae`:

    turbovaed export --model {place} --format comfyui --out student.safetensors"""


def _measured(facts: CardFacts) -> str:
    """Return the tables of all evaluations, and what was not measured."""
    command = f"`turbovaed eval --model {facts.place} --data DIR` measures it."
    if not facts.evaluations:
        return f"## Quality\nNothing was measured. {command}"
    return "## Quality\n" + "\n\n".join(map(_table, facts.evaluations)) + f"\n\nNot measured otherwise: {_rest(facts)}. {command}"


def _rest(facts: CardFacts) -> str:
    named = {data for evaluation in facts.evaluations if (data := evaluation.document.get("dataset"))}
    return "other data, other sizes and lengths" + ("" if named else ", public data sets") + ", people's preferences"


def _table(evaluation: Evaluation) -> str:
    document = evaluation.document
    means, intervals = document["means"], (document.get("intervals") or {}).get("student") or {}
    rows = []
    for name, value in means["student"].items():
        metric, span = METRICS[name], intervals.get(name)
        shown = [score_text(name, one) if one is not None else "" for one in (means["teacher"].get(name), value)]
        ratio = means["ratio"].get(name)
        interval = f"{score_text(name, span[0])} to {score_text(name, span[1])}" if span else ""
        label = f"{metric.label} {metric.unit}".strip() + (", higher is better" if metric.better == "up" else ", lower is better")
        rows.append(f"| {label} | {' | '.join(shown)} | {interval} | {'' if ratio is None else f'{ratio:.4f}'} |")
    reason = (document.get("intervals") or {}).get("reason")
    missing = "".join(f"\n- {METRICS[name].label} was not measured: {why}" for name, why in document["not_measured"].items())
    clips, videos = document.get("num_clips", len(document["clips"])), document.get("num_videos")
    return (
        f"On {evaluation.data}: {clips} clips{f' of {videos} videos' if videos else ''}, {document['frames']} frames at "
        f"{format_size(tuple(document['size']))}, protocol {document['protocol']} ({document.get('protocol_label', '')}).\n\n"
        "| | teacher | student | 95 % interval of the student | ratio |\n|---|---|---|---|---|\n"
        + "\n".join(rows)
        + (f"\n\nNo intervals: {reason}." if reason else "")
        + (f"\n{missing}" if missing else "")
    )


def _training(training: Training | None) -> str:
    if training is None:
        return "## Training\nNot recorded: this folder was not pushed from its run."
    rows = [f"| {one.name} | {one.steps:,} | {one.data} | {one.losses} | {one.lr} |" for one in training.stages]
    return f"""## Training
Recipe `{training.recipe}`, {training.steps:,} steps; {training.how}.

| stage | steps | data of a step | losses | learning rate |
|---|---|---|---|---|
""" + "\n".join(rows)


def _licence(facts: CardFacts) -> str:
    teacher = facts.teacher
    note = f" Note: {teacher.licence_note}." if teacher.licence_note else ""
    return f"## Licence\nThe student is under the **teacher's** licence: {teacher.licence}.{note}"
