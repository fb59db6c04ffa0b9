"""Of several processes that train together any may be killed: the others end, nothing committed is lost, the bits stay the same."""

import random
import signal

import pytest
from faulty import count_of
from test_ranks import ask, words  # noqa: F401 - fixtures
from test_resume import differing, everything

from turbovaed_cli.files.sealed import verify_manifest
from turbovaed_cli.runs.rundir import RunDir

pytestmark = pytest.mark.faults
MEETING = """
import sys, turbovaed_cli.training.distill
verb = sys.modules["turbovaed_cli.training.distill"]
join = verb.join_ranks
def join_and_say(*given):
    ranks = join(*given)
    if ranks.gather(0) and ranks.is_first:
        open({met!r}, "w").close()
    return ranks
verb.join_ranks = join_and_say
"""


@pytest.mark.thorough
def test_a_random_rank_killed_again_and_again_costs_no_bit(ask, words, request, tally, tmp_path):  # noqa: F811
    """With an adversarial stage, accumulation, both optimizers and the average of weights."""
    once = tmp_path / "once"
    whole = ask(words(once, 1))
    assert whole["codes"] == [0, 0], whole
    seed, count = request.config.getoption("--fault-seed"), count_of(request, quick=1, full=20)
    print(f"seed {seed}")
    rng, kills, hung, lost, differing_runs, number = random.Random(seed), 0, 0, 0, 0, 0
    run, met, committed = tmp_path / "run-0", tmp_path / "met", []
    while kills < count or not number or run.exists():
        # From when the ranks have met (before that a launcher has to end the other) until behind the last step.
        after = rng.uniform(0, 0.9 * whole["seconds"]) if kills < count else 10_000
        rank = rng.randrange(2)
        met.unlink(missing_ok=True)
        done = ask(
            words(run, 1), patch=MEETING.format(met=str(met)), signal=signal.SIGKILL, to=[rank], once=str(met), after=after
        )
        hung += done["hung"]
        kills += -signal.SIGKILL in done["codes"]
        found = RunDir(run).steps()
        lost += bool(committed) and (not found or found[-1] < committed[-1])
        for step in found:
            verify_manifest(RunDir(run).checkpoint_path(step))
        committed = found
        if done["codes"] == [0, 0]:
            differing_runs += bool(differing(everything(run), everything(once)))
            number, committed = number + 1, []
            run = tmp_path / f"run-{number}"
        elif -signal.SIGKILL in done["codes"]:
            assert done["codes"][1 - rank] in (0, 1), done  # 0: it had nothing left to say to the other
            assert done["said"][1 - rank].count("error:") == (rank == 1 and done["codes"][0] == 1), done
    tally("random kills of one of two ranks", kills, kills - hung - lost)
    tally("killed two-rank runs that ended in the same bits", number, number - differing_runs)
    assert number and not hung and not lost and not differing_runs
