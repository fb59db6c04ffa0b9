"""`--val`: measure the finished student of a run on videos that it was not trained on."""

from contextlib import nullcontext
from pathlib import Path
from typing import Any, cast

from torch import nn

from turbovaed_cli.evaluation.evaluate import evaluate
from turbovaed_cli.evaluation.scores import EvalResult
from turbovaed_cli.latents.cache import LatentCache
from turbovaed_cli.machine.ranks import Ranks, join_ranks
from turbovaed_cli.models.decoding import module_of
from turbovaed_cli.models.pair import Pair, load_pair
from turbovaed_cli.models.teacher import load_teacher
from turbovaed_cli.models.trainable import Trainable, build_trainable
from turbovaed_cli.registry.specs import ModelSpec
from turbovaed_cli.report.run_page import keep_evaluation
from turbovaed_cli.reporting import Reporter, quiet
from turbovaed_cli.runs.rundir import RunDir, open_run
from turbovaed_cli.settings import EvalSettings


def measure_run(
    spec: ModelSpec, run: str | Path, val: Path, latents: str | Path | None = None, device: str = "auto", report: Reporter = quiet
) -> EvalResult:
    """Evaluate the finished student of `run` on clips of its training shape; keep the result and its page in the run folder.

    `run` is a folder or an fsspec URL. The shape is that of its config.json, or of the cache `latents`. If several processes
    call it, each measures its share.
    """
    ranks = join_ranks(device)
    nowhere = nullcontext((Path(str(run)), lambda: None))
    with ranks.together(), open_run(run, checkpoints=False) if ranks.is_first else nowhere as (folder, _):
        began: dict[str, Any] = ranks.share(lambda: RunDir(folder).read_config()["settings"])
        frames, size = began["frames"], began["size"]
        if latents is not None:
            cache = LatentCache(latents)
            frames, size = cache.frames, cache.size
        settings = EvalSettings(frames=frames, size=(size[0], size[1]), device=device, hdr=began.get("hdr", EvalSettings.hdr))
        pair = trained_pair(folder, spec, ranks)
        result = evaluate(pair, val, settings, ranks=ranks, report=report)
        if ranks.is_first:
            keep_evaluation(result, pair, settings, val, report=report)
    return result


def trained_pair(run: Path, spec: ModelSpec, ranks: Ranks) -> Pair:
    """Return the student of a finished run and its teacher, on every rank; only the first needs the run folder."""
    pair = load_pair(str(run), device=ranks.device) if ranks.is_first else None
    config: dict[str, Any] = ranks.share(lambda: dict(cast(Trainable, pair.student).config) if pair else {})
    if pair is None:
        student = build_trainable(config)
        nn.Module.to(module_of(student), ranks.device).eval()
        pair = Pair(student, load_teacher(spec, device=ranks.device), spec, str(run), None)
    if ranks.count > 1:
        weights = module_of(pair.student)
        weights.load_state_dict(ranks.broadcast({"student": weights.state_dict()})["student"])
    return pair
