"""`eval`: measure how close a student is to its source videos, next to its teacher on the same clips."""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from turbovaed_cli.choices import check_choice
from turbovaed_cli.errors import MissingError, SettingsError
from turbovaed_cli.evaluation import paper
from turbovaed_cli.evaluation.decoding import (
    AS_RECONSTRUCT,
    ClipBatch,
    clip_frames,
    decode_rounded,
    decode_sampled,
    decode_times_of,
)
from turbovaed_cli.evaluation.measurable import Gauges, nothing_measured, open_gauges
from turbovaed_cli.evaluation.published import published_scores, recognise, why_not_published
from turbovaed_cli.evaluation.scores import (
    PROTOCOLS,
    ClipScores,
    DecodeTimes,
    EvalResult,
    Miss,
    Scores,
    eval_document,
    find_misses,
    met_thresholds,
    parse_thresholds,
    summarise,
)
from turbovaed_cli.latents.cache import ClipSource
from turbovaed_cli.latents.pixels import read_clip_of
from turbovaed_cli.latents.planning import plan_clips
from turbovaed_cli.machine.devices import num_readers, resolve_device
from turbovaed_cli.machine.ranks import Ranks, alone
from turbovaed_cli.machine.threads import beside, read_ahead
from turbovaed_cli.metrics import fvd, metric_name
from turbovaed_cli.models.decoding import num_params_of
from turbovaed_cli.models.memory import fit_encoder
from turbovaed_cli.models.pair import Pair
from turbovaed_cli.models.teacher import Teacher, decoder_params
from turbovaed_cli.reconstruction.windows import window_frames
from turbovaed_cli.reporting import Reporter, quiet
from turbovaed_cli.settings import CacheSettings, EvalSettings
from turbovaed_cli.video import VideoInfo, to_model
from turbovaed_cli.video.usable import Skipped, usable_videos

__all__ = [
    "SPEED_REPEATS",
    "ClipScores",
    "EvalResult",
    "Miss",
    "check_eval_settings",
    "clip_frames",
    "eval_document",
    "evaluate",
    "evaluate_all",
    "find_misses",
    "met_thresholds",
    "parse_thresholds",
]

SPEED_REPEATS = 5  # turns of teacher and student that `eval --speed` times
Clip = tuple[ClipSource, np.ndarray]  # the clip's source, and its frames (T, H, W, 3) uint8


def evaluate(
    pair: Pair,
    data: Path,
    settings: EvalSettings = EvalSettings(),
    *,
    ranks: Ranks | None = None,
    report: Reporter = quiet,
) -> EvalResult:
    """Measure teacher and student against the source on clips of every video under `data`; see evaluate_all for details."""
    return evaluate_all([pair], data, settings, ranks=ranks, report=report)[0]


def evaluate_all(
    pairs: Sequence[Pair],
    data: Path,
    settings: EvalSettings = EvalSettings(),
    *,
    required: Iterable[str] = (),
    ranks: Ranks | None = None,
    report: Reporter = quiet,
) -> list[EvalResult]:
    """Measure several students, each with its own teacher, on the same clips of every video under `data`.

    Under `standard` both decode the posterior mean as `reconstruct` does, rounded to the 8 bits that it hands to the video
    encoder. Every metric has a fixed range and is computed per clip, then averaged over clips. `paper` repeats the published
    script: see paper.py. A metric that cannot be measured here is listed in `not_measured` with the reason.

    `required` names metrics that must be measurable. Several `ranks` share the clips, and each returns the result of all. They
    need `standard`, as a batch of `paper` depends on which clips could be read before it. Raises SettingsError for settings that
    cannot work and data without a usable clip, MissingError if nothing or a required metric cannot be measured, ShapeError or
    FrameCountError for clips that one of the teachers would silently change.
    """
    check_eval_settings(settings)
    for pair in pairs:
        assert pair.teacher is not None
        pair.teacher.spec.check_frames(settings.frames)
        pair.teacher.spec.check_size(*settings.size)
    ranks = ranks or alone(resolve_device(settings.device))
    assert ranks.count == 1 or settings.protocol == "standard"
    videos, skipped = ranks.share(
        lambda: usable_videos(data, (settings.frames - 1) * settings.stride + 1, report, hdr=settings.hdr)
    )
    planned = _plan(videos, settings)
    gauges = open_gauges(settings, ranks.device, len(planned))
    _check_required(required, gauges)
    if not gauges.per_clip and gauges.detector is None:
        raise nothing_measured(gauges)
    tallies = [_Tally(pair) for pair in with_shared_teachers(pairs)]
    for teacher in dict.fromkeys(tally.pair.teacher for tally in tallies):
        assert teacher is not None
        fit_teacher(teacher, settings, report)
    first, unread = _measure_clips(planned, videos, tallies, gauges, settings, ranks, report)
    skipped = skipped + [item for found in ranks.gather(unread) for item in found]
    if ranks.count > 1:
        for tally in tallies:
            tally.take_turns(ranks.gather((tally.clips, tally.features)))
    if not tallies[0].clips:
        raise SettingsError(f"no clip under {data} could be evaluated", "; ".join(item.reason for item in skipped[:3]))
    dataset = recognise(settings.dataset, [info.path for info in videos])
    repeats = settings.speed_repeats if first is not None else 0
    times = decode_times_of([tally.pair for tally in tallies], first, repeats) if repeats and first is not None else None
    return [
        _result(tally, times[number] if times else None, gauges, settings, dataset, skipped)
        for number, tally in enumerate(tallies)
    ]


def _measure_clips(
    planned: Sequence[ClipSource],
    videos: Sequence[VideoInfo],
    tallies: Sequence["_Tally"],
    gauges: Gauges,
    settings: EvalSettings,
    ranks: Ranks,
    report: Reporter,
) -> tuple[np.ndarray | None, list[Skipped]]:
    """Fill the tallies with this rank's clips. Return the frames of the first clip, and the clips that could not be read."""
    unread: list[Skipped] = []
    mine = planned[ranks.rank :: ranks.count]
    read = read_ahead(read_clip_of, _with_infos(mine, videos), num_readers(ranks.device))
    clips = _readable(report.track(read, "evaluating", total=len(mine)), unread)
    first: np.ndarray | None = None
    where = measuring_device(ranks.device, settings.protocol)

    def decoded() -> Iterator[_Decoded]:
        nonlocal first
        for number, batch in enumerate(_in_batches(clips, paper.BATCH_SIZE if settings.protocol == "paper" else 1)):
            first = batch[0][1] if first is None else first
            yield _decode(number, batch, tallies, settings, where)

    # Metrics of one batch are computed while the next is decoded. On a CPU both share its threads: two works on a thread each
    # take less time than one after the other on two, which wait for each other in every layer. MPS is for one thread at a time.
    on, score = ranks.device.type, partial(_score, gauges=gauges)
    for made, scores in beside(score, decoded(), share_threads=on == "cpu", in_turns=on == "mps"):
        _enter(made, scores, tallies)
        if "psnr" in gauges.per_clip:
            report.note(psnr=tallies[0].clips[-1].student["psnr"])
    return first, unread


def check_eval_settings(settings: EvalSettings) -> None:
    """Raise SettingsError for an unknown protocol, metric or data set, and for counts below their minimum."""
    check_choice("`protocol`", settings.protocol, PROTOCOLS)
    if settings.stride < 1 or settings.clips_per_video < 0 or settings.speed_repeats < 0:
        raise SettingsError("`stride` must be at least 1, `clips_per_video` and `speed` at least 0")
    recognise(settings.dataset, [])
    for name in settings.metrics:
        metric_name(name)


def _check_required(required: Iterable[str], gauges: Gauges) -> None:
    for name in required:
        if name in gauges.not_measured:
            raise MissingError(
                f"`fail_under` {name} cannot be checked: {gauges.not_measured[name]}", "give what is missing, or drop it"
            )
        if name not in gauges.per_clip and not (name == "rfvd" and gauges.detector):
            raise SettingsError(f"`fail_under` {name} needs the metric that `metrics` leaves out", f"add {name} to `metrics`")


def _plan(videos: Sequence[VideoInfo], settings: EvalSettings) -> list[ClipSource]:
    cut = CacheSettings(settings.frames, settings.size, settings.stride, settings.clips_per_video)
    return [clip for info in videos for clip in plan_clips(info, cut)]


def fit_teacher(teacher: Teacher, settings: EvalSettings, report: Reporter) -> None:
    """Let the teacher encode clips of these frames and this size within the memory of `settings`; see fit_encoder."""
    window = window_frames(teacher.spec, *settings.size, AS_RECONSTRUCT.window, AS_RECONSTRUCT.overlap)
    fit_encoder(teacher, min(settings.frames, window), settings.size, budget=settings.memory, report=report)


def measuring_device(device: torch.device, protocol: str) -> torch.device:
    """Return the device that computes PSNR, SSIM and flicker in fp64: CUDA or the CPU; for the `paper` protocol the CPU."""
    return device if device.type == "cuda" and protocol == "standard" else torch.device("cpu")


def _with_infos(planned: Iterable[ClipSource], videos: Sequence[VideoInfo]) -> Iterator[tuple[ClipSource, VideoInfo]]:
    infos = {str(info.path): info for info in videos}
    return ((clip, infos[clip.path]) for clip in planned)


def _readable(read: Iterable[tuple[tuple[ClipSource, VideoInfo], np.ndarray | str]], skipped: list[Skipped]) -> Iterator[Clip]:
    """Yield each clip with its frames (T, H, W, 3) uint8; unreadable clips go to `skipped`."""
    for (clip, _), frames in read:
        if isinstance(frames, str):
            skipped.append(Skipped(f"{clip.path} (from frame {clip.start})", frames))
        else:
            yield clip, frames


def _in_batches(clips: Iterator[Clip], size: int) -> Iterator[list[Clip]]:
    while batch := list(islice(clips, size)):
        yield batch


@dataclass
class _Tally:
    """The scores of one pair so far."""

    pair: Pair
    clips: list[ClipScores] = field(default_factory=list)
    features: dict[str, list[np.ndarray]] = field(default_factory=lambda: {"source": [], "teacher": [], "student": []})

    def take_turns(self, found: Sequence[tuple[list[ClipScores], dict[str, list[np.ndarray]]]]) -> None:
        """Replace the scores by those of all ranks, in the order in which one process would have measured them."""
        turns = sorted(
            (turn, rank) for rank, (clips, _) in enumerate(found) for turn in range(len(clips))
        )  # the order of the clips, if all could be read
        self.clips = [replace(found[rank][0][turn], batch=number) for number, (turn, rank) in enumerate(turns)]
        self.features = {
            side: [found[rank][1][side][turn] for turn, rank in turns if found[rank][1][side]] for side in self.features
        }


def with_shared_teachers(pairs: Sequence[Pair]) -> list[Pair]:
    """Return the pairs with one teacher object for all that have the same weights, so that it decodes once for them."""
    if len(pairs) == 1:
        return list(pairs)
    seen: dict[str, Teacher] = {}
    shared = []
    for pair in pairs:
        assert pair.teacher is not None
        identity = json.dumps(pair.teacher.identity(), sort_keys=True, default=str)
        shared.append(replace(pair, teacher=seen.setdefault(identity, pair.teacher)))
    return shared


@dataclass(frozen=True)
class _Decoded:
    """A batch of clips, and its decodes by every teacher and every pair's student, in the range of the protocol."""

    number: int
    clips: list[ClipSource]
    sources: ClipBatch
    teachers: dict[int, ClipBatch]  # by the id of the teacher: one that several pairs share decodes once
    students: list[ClipBatch]


@dataclass(frozen=True)
class _Scored:
    """Scores of the clips, and their features for rFVD, of the teachers and then the students of a _Decoded."""

    scores: list[list[Scores]]
    features: list[list[np.ndarray]]
    source_features: list[np.ndarray]


def _decode(number: int, batch: list[Clip], tallies: Sequence[_Tally], settings: EvalSettings, device: torch.device) -> _Decoded:
    """Decode one batch of clips by every pair. All decodes are held at once, so that metrics look at each source once."""
    frames = [frames for _, frames in batch]
    prepare = paper.min_max if settings.protocol == "paper" else list
    made = _Decoded(number, [clip for clip, _ in batch], prepare([to_model(clip, device) for clip in frames]), {}, [])
    for tally in tallies:
        teacher = id(tally.pair.teacher)
        if settings.protocol == "paper":
            decoded = decode_sampled(number, frames, tally.pair)
        else:
            decoded = decode_rounded(frames, tally.pair, device, with_teacher=teacher not in made.teachers)
        made.students.append(prepare(decoded["student"]))
        if teacher not in made.teachers:
            made.teachers[teacher] = prepare(decoded["teacher"])
    return made


def _score(made: _Decoded, gauges: Gauges) -> _Scored:
    """Measure all decodes of a batch."""
    videos = [*made.teachers.values(), *made.students]
    features = [_features(gauges, video) for video in videos]
    return _Scored(_scores(gauges, videos, made.sources), features, _features(gauges, made.sources))


def _enter(made: _Decoded, scored: _Scored, tallies: Sequence[_Tally]) -> None:
    """Add the scores of one batch to the tally of every pair."""
    places = {teacher: place for place, teacher in enumerate(made.teachers)}
    for student, tally in enumerate(tallies, len(places)):
        teacher = places[id(tally.pair.teacher)]
        tally.clips += [
            ClipScores(clip.path, clip.start, by_teacher, by_student, made.number)
            for clip, by_teacher, by_student in zip(made.clips, scored.scores[teacher], scored.scores[student], strict=True)
        ]
        sides = {"source": scored.source_features, "teacher": scored.features[teacher], "student": scored.features[student]}
        for side, found in sides.items():
            tally.features[side] += found


def _scores(gauges: Gauges, videos: Sequence[ClipBatch], sources: ClipBatch) -> list[list[Scores]]:
    """Return, for each batch of `videos`, the scores of its clips."""
    by_clip = [gauges.scores([batch[i] for batch in videos], source) for i, source in enumerate(sources)]
    return [[found[place] for found in by_clip] for place in range(len(videos))]


def _features(gauges: Gauges, videos: ClipBatch) -> list[np.ndarray]:
    return [gauges.detector.features(video) for video in videos] if gauges.detector else []


# --- the result ---------------------------------------------------------------------------------------------------


def _result(
    tally: _Tally, times: DecodeTimes | None, gauges: Gauges, settings: EvalSettings, dataset: str | None, skipped: list[Skipped]
) -> EvalResult:
    pair = tally.pair
    assert pair.teacher is not None
    not_measured = dict(gauges.not_measured)
    of_the_set: dict[str, Scores] = {}
    if gauges.detector and len(tally.clips) < fvd.MIN_CLIPS:  # some could not be read
        not_measured["rfvd"] = fvd.not_comparable(len(tally.clips))
    elif gauges.detector:
        source = np.stack(tally.features["source"])
        of_the_set["rfvd"] = {
            side: fvd.frechet_distance(np.stack(tally.features[side]), source) for side in ("teacher", "student")
        }
    summary = summarise(tally.clips, of_the_set)
    return EvalResult(
        model=pair.name,
        protocol=settings.protocol,
        frames=settings.frames,
        size=settings.size,
        stride=settings.stride,
        clips=tally.clips,
        means=summary.means,
        intervals=summary.intervals,
        kept=summary.kept,
        worst=summary.worst,
        num_videos=summary.num_videos,
        not_measured=not_measured,
        decoder_params={"teacher": decoder_params(pair.teacher), "student": num_params_of(pair.student)},
        weights=gauges.weights,
        dataset=dataset,
        published=published_scores(pair.spec, pair.name, dataset, settings),
        published_missing=why_not_published(pair.spec, dataset, settings),
        decode_times=times,
        skipped=skipped,
        family=pair.student.family,
        licence=pair.student.licence,
    )
