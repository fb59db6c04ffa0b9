"""The folder of a student that is published: weights, config, card, evaluations and a sample, without local paths."""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PureWindowsPath
from typing import Any

from huggingface_hub import ModelCard
from PIL import Image
from safetensors import safe_open

from turbovaed_cli.errors import SettingsError, TurboVaedError, UnknownModelError
from turbovaed_cli.evaluation.published import DATASETS
from turbovaed_cli.files.documents import fits, names_only
from turbovaed_cli.files.sealed import write_manifest
from turbovaed_cli.files.whole import whole_files, write_json
from turbovaed_cli.models.decoding import lookahead_frames
from turbovaed_cli.models.loading import folder_in, load_student
from turbovaed_cli.models.network import num_params
from turbovaed_cli.models.self_contained import MODELING_FILE
from turbovaed_cli.models.student import StudentDecoder
from turbovaed_cli.models.teacher import decoder_params_of
from turbovaed_cli.pipelines.private import private_texts
from turbovaed_cli.registry.find import find_model, is_model_name
from turbovaed_cli.registry.hub import parse_hub_id
from turbovaed_cli.registry.members import member_in
from turbovaed_cli.registry.specs import ModelSpec
from turbovaed_cli.registry.weight_files import WEIGHTS_FILE
from turbovaed_cli.report.card import (
    NO_PLACE,
    WRITTEN_BY,
    CardFacts,
    Evaluation,
    TeacherFacts,
    TrainedStage,
    Training,
    card,
    data_in_words,
    facts_of_teacher,
    loads_alone,
    losses_in_words,
)
from turbovaed_cli.report.tables import read_evaluation
from turbovaed_cli.reporting import Reporter, quiet
from turbovaed_cli.runs.rundir import RunDir
from turbovaed_cli.stage import Stage

SAMPLE = "sample.png"
NAMES = ("README.md", "config.json", WEIGHTS_FILE, "manifest.json", MODELING_FILE, "eval", SAMPLE)  # in the folder
_MOST_FINDINGS = 3  # that an error names


@dataclass(frozen=True)
class Source:
    """The student to publish: its model folder, and its run folder if there is one."""

    model: Path
    run: RunDir | None

    @classmethod
    def at(cls, where: str | Path) -> "Source":
        """Return the source at a run folder, the model/ of one, a saved model folder or a pipeline's; raises UnknownModelError."""
        path = folder_in(Path(where))
        if RunDir.is_run(path):
            return cls(RunDir(path).model, RunDir(path))
        if not path.is_dir():
            raise UnknownModelError(f"{path} is no folder", "give a run folder, or a folder written by save_pretrained")
        inside = RunDir(path.resolve().parent)
        return cls(path, inside if RunDir.is_run(inside.root) and path.resolve() == inside.model.resolve() else None)


def write_package(
    where: str | Path,
    repo: str,
    folder: Path,
    *,
    with_sample: bool = True,
    allowed: tuple[str, ...] = (),
    report: Reporter = quiet,
) -> None:
    """Fill the empty `folder` with the files to publish as `repo` ("user/name").

    Raises SettingsError that names a local path, the user's name or a token in a file, unless it is in `allowed`. Raises the
    errors of `load_student`, and CorruptFileError for an evaluation that was changed.
    """
    source = Source.at(where)
    student = load_student(source.model)
    _write_model(student, source.model, folder)
    evaluations = _write_evaluations(source, repo, folder, report) if source.run else []
    sample = _write_sample(source.run, folder) if source.run and with_sample else None
    text = _own_card(source.model)
    if text is None:
        facts = _facts(source, student, report)
        text = card(
            replace(
                facts,
                name=repo.partition("/")[2],
                place=repo,
                evaluations=evaluations,
                loads_alone=loads_alone(folder),
                sample=sample,
            )
        )
    else:
        report.note("README.md was changed by hand and is kept: the figures of eval are not added to it")
    (folder / "README.md").write_text(text, encoding="utf-8")
    check_private(folder, repo, allowed)


def check_private(folder: Path, repo: str, allowed: tuple[str, ...] = ()) -> None:
    """Raise SettingsError if a file below `folder` holds a local path, the user's name or a token."""
    if found := private_texts(folder, repo, allowed):
        shown = "; ".join(f"{one.file} holds {one.what}: {one.text}" for one in found[:_MOST_FINDINGS])
        more = f"; and {len(found) - _MOST_FINDINGS} more" if len(found) > _MOST_FINDINGS else ""
        raise SettingsError(f"{shown}{more}", "remove it from the source, or add `allow` TEXT for a text that may be public")


def _write_model(student: StudentDecoder, model: Path, folder: Path) -> None:
    """Write config, weights and manifest. The config is written anew, so that it holds known keys only."""
    stated = student.config.teacher
    if stated and not is_model_name(stated) and parse_hub_id(stated) is None:
        student.register_to_config(teacher=PureWindowsPath(stated).name)
    weights = model / WEIGHTS_FILE
    with safe_open(weights, framework="pt") as file:
        same = set(file.keys()) == set(student.state_dict()) and set(file.metadata() or {}) <= {"format"}
    if same:
        student.save_config(folder)
        shutil.copyfile(weights, folder / WEIGHTS_FILE)
    else:  # heads of the training, or other additions
        student.save_pretrained(folder)
    write_manifest(folder)


def _write_evaluations(source: Source, repo: str, folder: Path, report: Reporter) -> list[Evaluation]:
    """Write eval/*.json without folders, and return them. Those older than the weights are left out, with a warning."""
    assert source.run is not None
    found = []
    for path in whole_files(source.run.eval, "*.json"):
        if path.stat().st_mtime < (source.model / WEIGHTS_FILE).stat().st_mtime:
            report.note(f"left out: {path.name} is older than the weights; turbovaed eval measures them", warning=True)
            continue
        document = names_only(read_evaluation(path)) | {"model": repo}
        (folder / "eval").mkdir(exist_ok=True)
        write_json(folder / "eval" / path.name, document)
        known = DATASETS.get(document.get("dataset") or "")
        evaluation = Evaluation("", document)
        data = known.title if known else path.stem.removesuffix(f"-{evaluation.setup}")
        found.append(replace(evaluation, data=data))
    return found


def _write_sample(run: RunDir, folder: Path) -> str | None:
    """Write the newest sample strip, without any notes that are in the file; return its name, None if there is none."""
    if not (strips := whole_files(run.samples, "step_*.png")):
        return None
    with Image.open(strips[-1]) as picture:
        picture.convert("RGB").save(folder / SAMPLE)
    return SAMPLE


def _own_card(model: Path) -> str | None:
    """Return a card that a person wrote or changed; None without one, or for one that turbovaed wrote."""
    path = model / "README.md"
    if not path.is_file():
        return None
    text = path.read_text(encoding="utf-8")
    of_earlier = "# Student decoder of " in text and f'load_student("{NO_PLACE}")' in text and "<!--" not in text
    if WRITTEN_BY in text or of_earlier:
        return None
    try:
        ModelCard(text, ignore_metadata_errors=False)
    except Exception as error:  # of a YAML library, and ValueError
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise SettingsError(f"{path} has a header that the hub cannot read: {reason}", "mend it, or remove the file") from error
    return text


# --- what the card states -----------------------------------------------------------------------------------------


def _facts(source: Source, student: StudentDecoder, report: Reporter) -> CardFacts:
    config = source.run.read_config() if source.run else {}
    return CardFacts(
        teacher=_teacher(config, student, report),
        student_params=num_params(student),
        latent_channels=student.latent_channels,
        time_ratio=int(student.temporal_compression_ratio),
        space_ratio=int(student.spatial_compression_ratio),
        lookahead_frames=lookahead_frames(student),
        training=_training(source.run, config) if source.run else None,
        member=_member(config),
    )


def _member(config: Mapping[str, Any]) -> str:
    """Return the member of the teacher's family of students that a run's config names; "full" without a run."""
    recorded = config.get("teacher")
    where = recorded.get("where") if isinstance(recorded, dict) else None
    return member_in(str(config.get("model") or ""), str(where or ""))


def _teacher(config: Mapping[str, Any], student: StudentDecoder, report: Reporter) -> TeacherFacts:
    """Return what is known of the teacher: from its row or folder if it is still there, and from what the run recorded."""
    recorded: Mapping[str, Any] = config["teacher"] if fits(config.get("teacher"), dict[str, Any]) else {}
    where = recorded.get("where") or student.config.teacher
    spec = _spec_of(str(where)) if where else None
    digest = recorded.get("weights_sha256")
    inputs = recorded["decoder_inputs"] if fits(recorded.get("decoder_inputs"), dict[str, float]) else {}
    licence = recorded.get("licence") or (spec.teacher.licence if spec else "unknown: that of the teacher")
    if spec is not None:
        return replace(facts_of_teacher(spec, digest, _params_of(spec), inputs), licence=str(licence))
    name = PureWindowsPath(str(where)).name if where else "an unknown teacher"
    report.note(f"the teacher {name} is not on this machine: the card states what the run recorded", warning=True)
    return TeacherFacts(
        name, str(recorded.get("class", "a video VAE")), f"local folder {name}", str(licence), "", digest, inputs=inputs
    )


def _spec_of(where: str) -> ModelSpec | None:
    try:
        return find_model(where)
    except TurboVaedError:
        return None


def _params_of(spec: ModelSpec) -> int | None:
    try:
        return decoder_params_of(spec)
    except TurboVaedError:
        return None


def _training(run: RunDir, config: Mapping[str, Any]) -> Training:
    """Return the training of a run, from its settings, and its data as metrics.jsonl has them."""
    settings, rows = config["settings"], run.read_metrics()
    data = {row["stage"]: data_in_words(row["data"]) for row in rows if row.get("data")}
    stages = []
    for one in settings.get("stages") or ():
        stage = Stage(**{name: value for name, value in one.items() if name in Stage.__dataclass_fields__})
        stages.append(
            TrainedStage(
                stage.name,
                stage.steps,
                data.get(stage.name, "not recorded"),
                losses_in_words(stage),
                f"{stage.lr} {stage.lr_schedule}",
            )
        )
    known = [str(settings[name]) for name in ("optimizer", "dtype") if settings.get(name)]
    how = ", ".join([*known, f"EMA {settings['ema_decay']}"] if settings.get("ema_decay") else known)
    return Training(
        str(settings.get("recipe", "unknown")), max(run.steps(), default=rows[-1]["step"] if rows else 0), how, stages
    )


def package_files(folder: Path) -> dict[str, Path]:
    """Return the files below a folder by their names in the repository."""
    return {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}


def licence_of_package(folder: Path) -> str:
    """Return the licence that the card in a folder states, for a question."""
    data: Any = ModelCard((folder / "README.md").read_text(encoding="utf-8")).data
    return str(data.get("license_name") or data.get("license") or "not stated")
