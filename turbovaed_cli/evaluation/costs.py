"""The peak memory of the decoders of a comparison: each decodes once, alone in a process of its own, as `bench` measures it."""

import tempfile
from collections.abc import Sequence
from dataclasses import asdict, replace

from turbovaed_cli.benchmarking.child import decoder_in_job, peak_in_child
from turbovaed_cli.evaluation.scores import EvalResult
from turbovaed_cli.models.pair import Pair, named_decoder
from turbovaed_cli.models.student import StudentDecoder
from turbovaed_cli.reporting import Reporter, quiet
from turbovaed_cli.settings import BenchSettings


def with_peaks(
    results: Sequence[EvalResult], pairs: Sequence[Pair], device: str = "auto", report: Reporter = quiet
) -> list[EvalResult]:
    """Return the results with the megabytes that one decode of a whole clip adds, of each decoder and of its teacher.

    Decodes are in fp32 on `device`. A teacher that several share is measured once. None where it could not be measured.
    """
    known: dict[str, float | None] = {}
    found = []
    for result, pair in report.track(list(zip(results, pairs, strict=True)), "measuring memory"):
        family, place = named_decoder(pair.name)
        teacher = pair.teacher_is
        entry = decoder_in_job(
            place,
            place,
            family=family or _family_of(pair),
            teacher=None if _is_student(pair) else teacher,
            is_student=_is_student(pair),
            config=pair.config,
        )
        if teacher is not None and teacher not in known:
            known[teacher] = _peak({"decoders": [entry], "teacher": teacher, "of": "teacher"}, result, device)
        own = _peak({"decoders": [entry], "teacher": teacher, "of": 0}, result, device)
        found.append(replace(result, peak_mb={"teacher": known.get(teacher or ""), "student": own}))
    return found


def _is_student(pair: Pair) -> bool:
    return isinstance(pair.student, StudentDecoder)


def _family_of(pair: Pair) -> str | None:
    return None if _is_student(pair) else pair.student.family


def _peak(job: dict[str, object], result: EvalResult, device: str) -> float | None:
    settings = BenchSettings(("torch",), frames=result.frames, size=result.size, device=device)
    with tempfile.TemporaryDirectory(prefix="turbovaed-eval-") as folder:
        asked = {
            **job,
            "settings": asdict(settings),
            "folder": folder,
            "target": "torch",
            "memory": ["whole clip", result.frames],
        }
        return peak_in_child(asked, settings)[0]
