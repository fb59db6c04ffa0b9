"""Whatever is written into the files that we read ends in an error of ours, or is taken; never in another exception."""

import copy
import os
import random
import subprocess
import sys
from pathlib import Path

import parsers
import pytest
from faulty import count_of
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from limits import HANG_S

pytestmark = [
    pytest.mark.faults,
    pytest.mark.filterwarnings("ignore:Initializing zero-element", "ignore:Detected pickle protocol"),
]

NUMBERS = st.one_of(
    st.sampled_from([0, -1, 1, 2, 10**9, 2**31, 2**53, 2**64, 10**400, -(10**20), 1e308, -1e308, 5e-324, 1e-300, -0.0, float("nan"), float("inf")]),
    st.integers(),
    st.floats(),
)  # fmt: skip
TEXT = st.one_of(
    st.sampled_from(
        ["", "..", "../../etc/passwd", "/", "\0", "\ud800", "tiny", "psnr", "none", "a" * 3000, "0" * 64, "__class__"]
    ),
    st.text(max_size=20),
)
LEAVES = st.one_of(st.none(), st.booleans(), NUMBERS, TEXT)
VALUES = st.recursive(LEAVES, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4), max_leaves=8)


def places(value: object, path: tuple[object, ...] = ()) -> list[tuple[object, ...]]:
    """Where something lies in a document: every value of every object and list."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, item in inner for place in places(item, (*path, key)))]


def put(document: object, place: tuple[object, ...], value: object, how: str) -> object:
    if not place:
        return value
    document = copy.deepcopy(document)
    at = document
    for key in place[:-1]:
        at = at[key]
    if how == "leave out":
        del at[place[-1]]
    elif how == "twice" and isinstance(at, list):
        at.append(value)
    elif how == "beside" and isinstance(at, dict):
        at[f"{place[-1]}_"] = value
    else:
        at[place[-1]] = value
    return document


@st.composite
def changed(draw, name: str) -> bytes:
    """A good document with a few values changed, or bytes of it."""
    document = parsers.DOCUMENTS.get(name)
    if document is not None and draw(st.integers(0, 9)):
        for _ in range(draw(st.integers(1, 3))):
            place = draw(st.sampled_from(places(document)))
            document = put(
                document, place, draw(VALUES), draw(st.sampled_from(["replace"] * 4 + ["leave out", "twice", "beside"]))
            )
            if not isinstance(document, dict | list):
                break
        return parsers.as_bytes(name, document)
    content = bytearray(draw(st.sampled_from(parsers.seeds(name))))
    for _ in range(draw(st.integers(1, 6))):
        at = draw(st.integers(0, max(len(content) - 1, 0)))
        length = draw(st.integers(0, 8))
        content[at : at + length] = draw(st.one_of(st.binary(max_size=8), TOKENS))
    return bytes(content)


TOKENS = st.sampled_from(
    [b"0x" + b"f" * 5000, b"9" * 5000, b"[" * 3000, b'{"a":' * 3000, b"1e999", b"-1", b"NaN", b"Infinity", b"null", b"true", b"\n", b"[[stages]]\n",
     b'"', b"'''", b"=", b"{", b"}", b"18446744073709551616", b"inf", b"nan", "²".encode(), "٣".encode(), b"\xff", b"1979-05-27", b"x", b",", b"steps = 1"]
)  # fmt: skip


@pytest.mark.parametrize("name", parsers.PARSERS)
def test_documents_changed_at_random_end_in_errors_of_ours(name, tmp_path, request, tally, monkeypatch):
    monkeypatch.setattr(parsers, "FOLDER", tmp_path)
    taken = [parsers.verdict(name, content) for content in parsers.seeds(name)]
    # The controls: what the changes begin with gets as far as it can; of manifests, the files are not there.
    assert all(taken) or name in (*parsers.SEALED, "run_config"), name
    count, seen = count_of(request, quick=20, full=500), [0]

    @seed(request.config.getoption("--fault-seed"))
    @settings(max_examples=count, deadline=None, database=None, suppress_health_check=list(HealthCheck), print_blob=True)
    @given(changed(name))
    def run(content: bytes) -> None:
        seen[0] += 1
        parsers.verdict(name, content)

    try:
        run()
        tally("fuzzed documents", seen[0], seen[0])
    except BaseException:
        tally("fuzzed documents", seen[0], seen[0] - 1)
        raise


def test_structured_recipes_end_in_errors_of_ours(tmp_path, request, tally, monkeypatch):
    """Every field of a recipe with values of every kind, as TOML."""
    from dataclasses import fields

    from turbovaed_cli.settings import DistillSettings, Stage

    monkeypatch.setattr(parsers, "FOLDER", tmp_path)
    values = ["-1", "0", "1", "3", "1e400", "nan", "inf", "-inf", "9223372036854775807", "0x" + "f" * 4000, "true", '""', '"adamw"', '"cosine"', "[]",
              "[1]", "[1, 2]", "[0.5, 0.5]", "[-1, -1]", '["a", "b"]', "{}", "{a = 1}", "1979-05-27", "[[1], [2]]", "1_000", "0b1", "'''\n'''"]  # fmt: skip
    rng, tried = random.Random(request.config.getoption("--fault-seed")), 0
    of_run, of_stage = ([item.name for item in fields(kind)] for kind in (DistillSettings, Stage))
    for name, where in [*((name, "run") for name in of_run), *((name, "stage") for name in of_stage)]:
        for value in values if count_of(request, quick=0, full=1) else rng.sample(values, 4):
            line = f"{name} = {value}\n"
            text = (
                (line if where == "run" else "")
                + '[[stages]]\nname = "a"\n'
                + (line if where == "stage" and name != "name" else "")
            )
            parsers.verdict("recipe", text.encode())
            tried += 1
    assert parsers.verdict("recipe", parsers.seeds("recipe")[0])
    tally("fuzzed documents", tried, tried)


@pytest.mark.thorough
def test_guided_by_coverage(tmp_path, request, tally):
    """atheris over all parsers in turn; an input that breaks one is printed, and replays alone."""
    pytest.importorskip("atheris", reason="no atheris here (Linux on x86-64: pip install atheris)")
    attempts = count_of(request, quick=400, full=20_000)
    child = Path(__file__).with_name("guided.py")
    command = [sys.executable, str(child), str(tmp_path), str(request.config.getoption("--fault-seed")), str(attempts)]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=HANG_S, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    runs = [int(line.split()[1]) for line in done.stderr.splitlines() if line.startswith("Done ")]
    covered = max([int(line.split("cov: ")[1].split()[0]) for line in done.stderr.splitlines() if "cov: " in line], default=0)
    tally("documents fuzzed by coverage", max(sum(runs), 1), sum(runs))
    assert done.returncode == 0 and runs and runs[0] > 50 and covered > 300, f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"


@pytest.mark.parametrize("name", ["recipe", "metrics"])
def test_a_parser_that_breaks_is_found(name, tmp_path, monkeypatch):
    """The control: one rule left out, and the same changes find it."""
    from turbovaed_cli.runs import rundir
    from turbovaed_cli.training import recipes

    monkeypatch.setattr(parsers, "FOLDER", tmp_path)
    for module in (recipes, rundir):
        monkeypatch.setattr(module, "fits", lambda *_: True)

    @seed(1)
    @settings(max_examples=400, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(changed(name))
    def run(content: bytes) -> None:
        parsers.verdict(name, content)

    with pytest.raises(BaseException):  # noqa: B017 - whatever a parser without rules says
        run() if name == "metrics" else parsers.verdict(name, b'seed = "text"\n[[stages]]\nname = "a"\n')
