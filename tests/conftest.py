"""Shared by all tests: threads, and the small networks that many of them use."""

import json
import os
import shutil
import sys
from contextlib import ExitStack, closing
from itertools import chain
from pathlib import Path

import pytest

os.environ.pop("COLUMNS", None)  # which pytest-xdist sets for its workers, and tables in a pipe obey
if "PYTEST_XDIST_WORKER" in os.environ:  # files of tests run beside each other: one thread also for what they start
    os.environ.setdefault("OMP_NUM_THREADS", "1")
from golden import load_golden, write_teacher

LONGEST_OF_FAULTS = ("test_kills.py",)
LONGEST = (
    "test_export.py", "test_commands.py", "test_reconstruct.py", "test_ranks.py", "test_bench.py", "test_fake_cuda_training.py",
    "test_ends.py", "test_distill.py", "test_kills.py", "test_resume.py", "test_download.py", "test_memory.py", "test_attach.py",
    "test_against.py", "test_comparison.py", "test_browser_decode.py", "test_fake_cuda_decoding.py", "test_pack.py", "test_vae.py",
    "test_push.py",
)  # fmt: skip


# Seconds of tests that each folder may take in `make test` on two quiet cores, with three workers: 1,800 in all, ten minutes. What is
# over its budget is said after the tests, and goes to `make test-all` (`thorough`) if others cover its kind. Nothing fails: a machine
# may be busy.
BUDGETS_S = {
    "": 190, "benchmarking": 130, "cli": 80, "comfyui": 12, "evaluation": 65, "export": 180, "faults": 110, "files": 35, "latents": 40,
    "machine": 150, "metrics": 25, "models": 215, "pipelines": 80, "reconstruction": 75, "registry": 65, "report": 35, "runs": 15,
    "training": 235, "video": 63,
}  # fmt: skip


class Notes:
    """A reporter that keeps its notes and warnings."""

    def __init__(self):
        self.notes, self.warnings = [], []

    def track(self, items, label, total=None, start=0):
        yield from items

    def note(self, text="", *, warning=False, **values):
        (self.warnings if warning else self.notes).append(text)


def pytest_addoption(parser):
    parser.addoption("--all-faults", action="store_true", help="every fault test in full (make faults), not a selection")
    parser.addoption(
        "--thorough", action="store_true", help="also what is marked thorough (make test-all, make faults): more of the same kind"
    )
    parser.addoption("--fault-seed", type=int, default=1, help="of what is random in fault tests")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers():
    """One more than there are cores, as tests also wait: for processes that end, for pipes, for a server."""
    return (os.cpu_count() or 1) + 1


def pytest_collection_modifyitems(config, items):
    """The longest files first, so that no core ends long before the other; what is marked thorough only if it is asked for."""
    if not config.getoption("--thorough") and not config.getoption("--all-faults"):
        left_out = [item for item in items if item.get_closest_marker("thorough")]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if not item.get_closest_marker("thorough")]
    first = LONGEST_OF_FAULTS if config.getoption("--all-faults") else LONGEST
    items.sort(key=lambda item: first.index(item.path.name) if item.path.name in first else len(first))


_COUNTS = pytest.StashKey[dict[str, dict[str, int]]]()


@pytest.fixture
def tally(request):
    """Add to a line of the table that `make faults` ends in (and the same as one line of JSON): how many of something were tried, and how many were survived."""
    counts = request.config.stash.setdefault(_COUNTS, {})

    def add(what: str, tried: int, survived: int) -> None:
        line = counts.setdefault(what, {"tried": 0, "survived": 0, "lost": 0})
        line["tried"] += tried
        line["survived"] += survived
        line["lost"] += tried - survived

    return add


def pytest_sessionfinish(session):
    """A worker of pytest -n hands its counts to the process that prints them."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["counts"] = session.config.stash.get(_COUNTS, {})


def seconds_by_folder(terminalreporter) -> dict[str, float]:
    """The seconds that the tests of each folder took, "" for those in none, by what pytest reported."""
    spent: dict[str, float] = {}
    for report in chain(*terminalreporter.stats.values()):
        if hasattr(report, "duration"):
            _, *folders = Path(report.nodeid.partition("::")[0]).parts
            folder = folders[0] if len(folders) > 1 else ""
            spent[folder] = spent.get(folder, 0) + report.duration
    return spent


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node, error):
    counts = node.config.stash.setdefault(_COUNTS, {})
    for what, line in getattr(node, "workeroutput", {}).get("counts", {}).items():
        together = counts.setdefault(what, dict.fromkeys(line, 0))
        for name, number in line.items():
            together[name] += number


def pytest_terminal_summary(terminalreporter, config):
    spent = seconds_by_folder(terminalreporter)
    if len(spent) == len(BUDGETS_S) and not config.getoption("--all-faults"):
        parts = [f"{name or 'tests'} {spent[name]:.0f} of {budget}" for name, budget in BUDGETS_S.items()]
        terminalreporter.write_line(f"\nseconds by folder, and budgets on two quiet cores: {', '.join(parts)}")
    counts = config.stash.get(_COUNTS, {})
    if not counts or not config.getoption("--all-faults"):
        return
    write = terminalreporter.write_line
    write("")
    write(f"{'what':48} {'tried':>8} {'survived':>9} {'lost':>6}")
    for what, line in counts.items():
        write(f"{what:48} {line['tried']:8} {line['survived']:9} {line['lost']:6}")
    write(json.dumps({"seed": config.getoption("--fault-seed"), **counts}))


@pytest.fixture(scope="session", autouse=True)
def _threads():
    """Two, or one where a file of tests runs beside others (pytest -n)."""
    import torch

    torch.set_num_threads(1 if "PYTEST_XDIST_WORKER" in os.environ else 2)


@pytest.fixture
def set_threads():
    """Set the number of torch's threads, of this test alone."""
    import torch

    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture
def one_thread(set_threads):
    """The order of sums, and with it the last bits, may depend on the number of threads."""
    set_threads(1)


@pytest.fixture(scope="session")
def ltx_teacher(tmp_path_factory) -> Path:
    """A local folder holding the small-channel AutoencoderKLLTXVideo."""
    return write_teacher(load_golden("ltx"), tmp_path_factory.mktemp("ltx") / "vae")


@pytest.fixture(scope="session")
def ltx_student(tmp_path_factory) -> Path:
    """A saved folder with a small student for that teacher; unlike the golden one, its last norm is over 4 channels, not 1."""
    import torch

    from turbovaed_cli.models.loading import build_student

    config = load_golden("ltx").meta["student_config"]
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("ltx-student")
    build_student(config | {"decoder_block_out_channels": [64, *config["decoder_block_out_channels"][1:]]}).save_pretrained(
        folder
    )
    return folder


@pytest.fixture(scope="session")
def one_block():
    """A student with a single block, well behaved: converters take their time by the number of operations, not by sizes."""
    import torch

    from turbovaed_cli.models.loading import build_student

    torch.manual_seed(0)
    config = {
        "latent_channels": 8, "decoder_block_out_channels": (48,), "decoder_layers_per_block": (1, 1), "patch_size": 4,
        "decoder_is_dw_conv": (False, True), "spatio_temporal_scaling": (True,), "teacher": "tiny",
    }  # fmt: skip
    return build_student(config).eval()


@pytest.fixture(scope="session")
def one_block_folder(one_block, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("one-block")
    one_block.save_pretrained(folder)
    return folder


def cpu_seconds() -> float:
    """Seconds on a processor so far, of this process and of its children that have ended: what a busy machine does not change."""
    return sum(os.times()[:4])


def make_video(
    path: Path, source: str = "testsrc2", size: str = "96x80", frames: int = 20, *options: str, rate: int = 25
) -> Path:
    """A short H.264 clip from one of ffmpeg's generators; makes the folder it lies in."""
    path.parent.mkdir(parents=True, exist_ok=True)
    import subprocess

    from turbovaed_cli.video import ffmpeg

    drawn = ["-f", "lavfi", "-i", f"{source}=size={size}:rate={rate}", "-frames:v", str(frames)]
    subprocess.run(
        [ffmpeg.executable(), "-v", "error", "-y", *drawn, "-pix_fmt", "yuv420p", "-bitexact", *options, str(path)], check=True
    )
    return path


@pytest.fixture(scope="session")
def videos(tmp_path_factory) -> Path:
    """A folder of three short videos, two of them with the same base name."""
    folder = tmp_path_factory.mktemp("videos")
    (folder / "more").mkdir()
    make_video(folder / "a.mp4", "testsrc2")
    make_video(folder / "more" / "a.mkv", "mandelbrot")
    make_video(folder / "more" / "b.mp4", "testsrc", "80x112", 30)
    return folder


@pytest.fixture(scope="session")
def small_student() -> dict:
    """Config of a student small enough to train in a test, for the teacher of `ltx_teacher`."""
    config = load_golden("ltx").meta["student_config"]
    return config | {
        "decoder_block_out_channels": [32, 8, 8, 8],
        "decoder_layers_per_block": [1, 1, 1, 1, 1],
        "latent_channels": 6,
    }


@pytest.fixture(scope="session")
def cache(ltx_teacher, videos, tmp_path_factory) -> Path:
    """Latents of those videos from that teacher: clips of 9 frames of 64x64."""
    from turbovaed_cli.latents.caching import cache_latents
    from turbovaed_cli.registry.find import find_model
    from turbovaed_cli.settings import CacheSettings

    out = tmp_path_factory.mktemp("cache") / "latents"
    cache_latents(find_model(ltx_teacher), videos, out, CacheSettings(frames=9, size=(64, 64)))
    return out


def swift_has_errors(text: str) -> bool:
    """By tree-sitter's grammar of Swift: what a compiler would say of types is not known here."""
    tree_sitter, swift = pytest.importorskip("tree_sitter"), pytest.importorskip("tree_sitter_swift")
    return tree_sitter.Parser(tree_sitter.Language(swift.language())).parse(text.encode()).root_node.has_error


def installed(name):
    """Skip, with the reason, where the extra of a format is not here."""
    from turbovaed_cli.errors import UnavailableError
    from turbovaed_cli.export.formats.table import exporters

    try:
        exporters()[name].check_installed()
    except UnavailableError as error:
        pytest.skip(f"{error.what}: {error.hint}")
    return name


CHROMIUM_FLAGS = (
    "--no-sandbox", "--disable-background-networking", "--disable-sync", "--no-first-run",
    "--disable-component-update", "--disable-quic",
)  # fmt: skip


def missing_browser(reason: str):
    """Skip, or fail where a browser was asked for: a test that never runs must not look like one that passes."""
    if os.environ.get("TURBOVAED_REQUIRE_BROWSER") == "1":
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(scope="module")
def chromium():
    """A function that starts a headless Chromium with further flags; tests are skipped if there is none."""
    sync_api = pytest.importorskip("playwright.sync_api") if not os.environ.get("TURBOVAED_REQUIRE_BROWSER") else None
    if sync_api is None:
        from playwright import sync_api
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    executable = next(filter(None, map(shutil.which, names)), None)
    if executable is None:
        missing_browser("no Chromium here: apt-get install chromium")
    with sync_api.sync_playwright() as playwright, ExitStack() as started:
        yield lambda *flags: started.enter_context(
            closing(playwright.chromium.launch(executable_path=executable, args=[*CHROMIUM_FLAGS, *flags]))
        )


@pytest.fixture(scope="module")
def browser(chromium):
    return chromium("--disable-gpu")


def is_two_lines(err: str) -> bool:
    lines = err.strip().splitlines()
    return lines[-2].startswith("error: ") and lines[-1].startswith("hint: ")


@pytest.fixture
def turbovaed(capsys, monkeypatch):
    """Run a command line in this process: (exit code, stdout, stderr)."""

    def run(*arguments: object) -> tuple[int, str, str]:
        from turbovaed_cli.cli.app import main

        monkeypatch.setattr(sys, "argv", ["turbovaed", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            main()
        out, err = capsys.readouterr()
        assert "Traceback" not in err
        return end.value.code, out, err

    return run
