"""Results of `eval`: scores per clip, and the means, ratios, intervals, worst clips and thresholds computed from them."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any, cast

from turbovaed_cli.errors import SettingsError
from turbovaed_cli.evaluation.intervals import CONFIDENCE, MIN_GROUPS, ratio_interval
from turbovaed_cli.metrics import METRICS, metric_name
from turbovaed_cli.units import counted
from turbovaed_cli.video.usable import Skipped

Scores = dict[str, float]
Interval = tuple[float, float] | None  # low and high; None if there is too little to compute it from
NUM_WORST = 3
EVAL_VERSION = 1
SIDES = ("teacher", "student")
PROTOCOLS = {
    "standard": "fixed range, per clip, then the mean over clips",
    "paper": "the published script: min-max normalised per batch of 4, LPIPS and I3D fed [0, 1]; hides contrast errors",
}
INTERVAL_METHOD = "Student's t over videos; the ratio paired, linearised"


REFERENCES = {
    "source": "the source videos",
    "teacher": "the teacher's own decode of the same latents, as latents have no source",
}


@dataclass(frozen=True)
class ClipScores:
    """One clip (its video, and the frame it starts at) with the scores of teacher and student.

    On latents the teacher's decode is what the student is compared with, and the teacher has no scores.
    """

    path: str
    start: int
    teacher: Scores
    student: Scores
    batch: int = 0  # number of the batch of clips that --protocol paper normalised together


@dataclass(frozen=True)
class DecodeTimes:
    """Seconds of one decode of the same latents, turn by turn: teacher, then student, in one process."""

    teacher_s: list[float]
    student_s: list[float]
    device: str

    @property
    def ratio(self) -> float:
        """The speed-up of the student over the teacher: the ratio of the medians."""
        return median(self.teacher_s) / median(self.student_s)

    @property
    def range(self) -> tuple[float, float]:
        """The smallest and the largest ratio of a single turn; they are far apart if the machine was busy."""
        ratios = [teacher / student for teacher, student in zip(self.teacher_s, self.student_s, strict=True)]
        return min(ratios), max(ratios)


@dataclass(frozen=True)
class PublishedScores:
    """Published figures of the same model on the same data set: (teacher, student) by metric."""

    means: dict[str, tuple[float, float]]
    label: str  # "published", or "published, other protocol"
    source: str


@dataclass(frozen=True)
class Summary:
    """The summary of all clips' scores. `ratio` is student / teacher; `kept` is its inverse if lower is better."""

    means: dict[str, Scores]  # "teacher", "student", "ratio": metric -> value
    intervals: dict[str, dict[str, Interval]]  # the same keys: 95 % intervals over videos
    kept: Scores  # share of the teacher's quality: 1 is as good, more is better; scores below Metric.negligible count as that
    worst: dict[str, list[ClipScores]]  # metric -> the clips with the student's worst scores, worst first
    num_videos: int


@dataclass(frozen=True)
class EvalResult:
    """The complete result of `eval` for one model. `means`, `intervals`, `kept` and `worst` are those of Summary."""

    model: str
    protocol: str
    frames: int
    size: tuple[int, int]  # (height, width)
    stride: int
    clips: list[ClipScores]
    means: dict[str, Scores]
    intervals: dict[str, dict[str, Interval]]
    kept: Scores
    worst: dict[str, list[ClipScores]]
    num_videos: int
    not_measured: dict[str, str]
    decoder_params: dict[str, int]  # of "teacher" and "student"
    weights: dict[str, list[dict[str, str]]] = field(default_factory=dict)  # metric -> the files it was measured with
    dataset: str | None = None
    published: PublishedScores | None = None
    published_missing: str = ""  # why there are none, if the data set has published figures
    decode_times: DecodeTimes | None = None
    skipped: list[Skipped] = field(default_factory=list)
    reference: str = "source"  # what the clips are compared with: a key of REFERENCES
    family: str = ""  # of the decoder
    licence: str = ""
    peak_mb: dict[str, float | None] = field(default_factory=dict)  # that a decode adds: "teacher", "student"; empty: not asked


def summarise(clips: Sequence[ClipScores], of_the_set: Mapping[str, Scores] | None = None) -> Summary:
    """Return means over clips, their ratios, intervals and worst clips; `of_the_set` holds metrics of all clips together (rFVD).

    Without scores of the teacher there are no ratios. Clips that were normalised together share the weight of one batch: a batch of one counts as much as one of four, as in
    the published script's mean of batch means. Outside that protocol every clip is a separate batch.
    """
    names = list(clips[0].student)
    weights = _weights(clips)
    groups = [clip.path for clip in clips]
    sides = SIDES if clips[0].teacher or not names else ("student",)
    scores = {side: {name: [getattr(clip, side)[name] for clip in clips] for name in names} for side in sides}
    means: dict[str, Scores] = {side: {} for side in (*SIDES, "ratio")}
    intervals: dict[str, dict[str, Interval]] = {side: {} for side in (*SIDES, "ratio")}
    for name in names:
        weighted = {side: [w * x for w, x in zip(weights, scores[side][name], strict=True)] for side in sides}
        for side in sides:
            means[side][name] = math.fsum(weighted[side]) / math.fsum(weights)
            intervals[side][name] = ratio_interval(weighted[side], weights, groups)
        if "teacher" not in sides:
            continue
        means["ratio"][name] = _ratio(means["student"][name], means["teacher"][name])
        intervals["ratio"][name] = ratio_interval(weighted["student"], weighted["teacher"], groups)
    for name, values in (of_the_set or {}).items():
        means["teacher"][name], means["student"][name] = values["teacher"], values["student"]
        means["ratio"][name] = _ratio(values["student"], values["teacher"])
        for by_name in intervals.values():
            by_name[name] = None
    kept = {name: _kept(name, means) for name in means["ratio"]}
    worst = {name: worst_clips(clips, name) for name in names}
    return Summary(means, intervals, kept, worst, len(set(groups)))


def own_side(family: str) -> str:
    """Return the word for the side of the model: a decoder of another family is no student."""
    return "student" if family in ("", "turbo-vaed") else "decoder"


def interval_note(num_videos: int) -> str:
    """Return why there is no interval; "" if there is one."""
    videos = counted(num_videos, "video")
    return f"{videos}: too few for an interval" if num_videos < MIN_GROUPS else ""


def _weights(clips: Sequence[ClipScores]) -> list[float]:
    sizes: dict[int, int] = {}
    for clip in clips:
        sizes[clip.batch] = sizes.get(clip.batch, 0) + 1
    return [1 / sizes[clip.batch] for clip in clips]


def _ratio(student: float, teacher: float) -> float:
    if student == teacher:
        return 1.0
    return student / teacher if teacher else math.nan


def _kept(name: str, means: Mapping[str, Scores]) -> float:
    student, teacher = means["student"][name], means["teacher"][name]
    if METRICS[name].better == "up":
        return _ratio(student, teacher)
    student, teacher = (_seen(name, score) for score in (student, teacher))
    if student == teacher:
        return 1.0
    return teacher / student if student else math.inf


def _seen(name: str, score: float) -> float:
    """Return a score whose lower values are better, at least what is negligible: differences below that are not visible."""
    return max(score, METRICS[name].negligible)


def worst_clips(clips: Sequence[ClipScores], name: str, num: int = NUM_WORST) -> list[ClipScores]:
    """Return the `num` clips on which the student scores worst, worst first."""
    return sorted(clips, key=lambda clip: clip.student[name], reverse=METRICS[name].better == "down")[:num]


def furthest_behind(clips: Sequence[ClipScores], name: str, num: int = NUM_WORST) -> list[ClipScores]:
    """Return the `num` clips on which the student is worse than its teacher by the most, in units of the metric; worst first."""
    if clips and name not in clips[0].teacher:
        return []
    sign = 1 if METRICS[name].better == "up" else -1
    return sorted(clips, key=lambda clip: sign * (clip.student[name] - clip.teacher[name]))[:num]


# --- thresholds ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Miss:
    """A threshold that was not reached: the student has `kept` of the teacher's quality, but `wanted` was asked for."""

    model: str
    name: str
    wanted: float
    kept: float
    short_by: float  # in units of the metric: the distance of the student's mean from the wanted one

    def __str__(self) -> str:
        metric = METRICS[self.name]
        unit = f" {metric.unit}" if metric.unit else ""
        if not math.isfinite(self.kept):
            return f"{self.model} {metric.label}: no ratio to the teacher's could be computed, {self.wanted:g} asked"
        return (
            f"{self.model} {metric.label}: {self.kept:.4f} of the teacher's, {self.wanted:g} asked: "
            f"short by {self.wanted - self.kept:.4f} ({self.short_by:.{metric.digits}f}{unit})"
        )


def parse_thresholds(texts: Sequence[str]) -> dict[str, float]:
    """Parse ["psnr=0.969,ssim=0.98", "lpips=0.9"] to {"psnr": 0.969, ...}: shares of the teacher's quality, as in `kept`.

    Raises SettingsError for anything that is not NAME=RATIO with a metric's name and a ratio above 0 and at most 2.
    """
    thresholds = {}
    for text in ",".join(texts).split(",") if texts else ():
        name, equals, value = text.partition("=")
        if not equals or not name.strip():
            raise SettingsError(f"`fail_under` {text!r} is not NAME=RATIO", "such as `fail_under` psnr=0.969")
        name = metric_name(name)
        try:
            ratio = float(value)
        except ValueError:
            ratio = math.nan
        if not 0 < ratio <= 2:
            raise SettingsError(
                f"`fail_under` {text.strip()}: {value.strip() or 'nothing'} is not a ratio to the teacher's score",
                f"1 is as good as the teacher, so for example `fail_under` {name}=0.969",
            )
        if name in thresholds:
            raise SettingsError(f"`fail_under` {name} is given twice", "give each metric once")
        thresholds[name] = ratio
    return thresholds


def find_misses(result: EvalResult, thresholds: Mapping[str, float]) -> list[Miss]:
    """Return the thresholds that the student's means do not reach; a metric that was not measured reaches none."""
    misses = []
    for name, wanted in thresholds.items():
        kept, teacher, student = (
            scores.get(name, math.nan) for scores in (result.kept, result.means["teacher"], result.means["student"])
        )
        if not kept >= wanted:  # NaN reaches nothing
            needed = teacher * wanted if METRICS[name].better == "up" else _seen(name, teacher) / wanted
            misses.append(Miss(result.model, name, wanted, kept, abs(student - needed)))
    return misses


def met_thresholds(results: Sequence[EvalResult], thresholds: Mapping[str, float]) -> list[str]:
    """Return a line such as "psnr 1.117 >= 0.969: met" for every threshold that a model's means reach."""
    return [
        f"{f'{result.model} ' if len(results) > 1 else ''}{name} {result.kept[name]:.3f} >= {wanted:g}: met"
        for result in results
        for name, wanted in thresholds.items()
        if result.kept.get(name, math.nan) >= wanted
    ]


# --- the document -------------------------------------------------------------------------------------------------


def eval_document(result: EvalResult) -> dict[str, Any]:
    """Return the JSON document of `eval --json` and of eval/*.json in a run folder. NaN and infinity become null."""
    document = {
        "schema_version": EVAL_VERSION,
        "model": result.model,
        "protocol": result.protocol,
        "protocol_label": PROTOCOLS[result.protocol],
        "reference": result.reference,
        "reference_label": REFERENCES[result.reference],
        "family": result.family or None,
        "licence": result.licence or None,
        "frames": result.frames,
        "size": list(result.size),
        "stride": result.stride,
        "dataset": result.dataset,
        "num_clips": len(result.clips),
        "num_videos": result.num_videos,
        "means": result.means,
        "intervals": {
            "confidence": CONFIDENCE,
            "method": INTERVAL_METHOD,
            "reason": interval_note(result.num_videos) or None,
            **result.intervals,
        },
        "kept": result.kept,
        "decoder_params": {
            **result.decoder_params,
            "ratio": result.decoder_params["student"] / result.decoder_params["teacher"],
        },
        "decode_times": {**asdict(result.decode_times), "ratio": result.decode_times.ratio, "range": result.decode_times.range}
        if result.decode_times
        else None,
        "peak_mb": result.peak_mb or None,
        "published": asdict(result.published) if result.published else None,
        "published_missing": result.published_missing or None,
        "worst": {name: _named(clips, name) for name, clips in result.worst.items()},
        "furthest_behind": {name: _named(furthest_behind(result.clips, name), name) for name in result.worst},
        "clips": [{"path": c.path, "start": c.start, "teacher": c.teacher, "student": c.student} for c in result.clips],
        "not_measured": result.not_measured,
        "weights": result.weights,
        "skipped": [{"path": s.path, "reason": s.reason} for s in result.skipped],
    }
    return cast(dict[str, Any], _finite(document))


def _named(clips: Sequence[ClipScores], name: str) -> list[dict[str, Any]]:
    return [{"path": c.path, "start": c.start, "teacher": c.teacher.get(name), "student": c.student[name]} for c in clips]


def _finite(value: Any) -> Any:
    """Replace NaN and infinity, which JSON does not have, by None."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
