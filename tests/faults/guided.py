"""Coverage-guided fuzzing of all parsers: `python guided.py FOLDER SEED RUNS [CRASH]`; with a crash file, that one alone."""

import importlib
import sys
from pathlib import Path

import atheris

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1] / "support")]
OURS = ("benchmarking.results", "export.record", "files.documents", "files.sealed", "files.tensors", "latents.cache", "latents.writer",
        "models.loading", "models.pair", "registry.find", "report.bench_page", "report.curves", "report.tables", "runs.listing",
        "runs.rundir", "settings", "training.distill", "units")  # fmt: skip
with atheris.instrument_imports(include=["turbovaed_cli"]):
    for module in OURS:
        importlib.import_module(f"turbovaed_cli.{module}")
    parsers = importlib.import_module("parsers")

# torch's own unpickler, in Python and slow, has fuzzers of its own.
NAMES = [name for name in parsers.PARSERS if name != "pickled_file"]


def one(data: bytes) -> None:
    """The first byte chooses the parser, the rest is its document; of a manifest, sealed, so that it comes past the seal."""
    if not data:
        return
    name, content = NAMES[data[0] % len(NAMES)], data[1:]
    if name in parsers.SEALED:
        from turbovaed_cli.files.documents import parse_json

        try:
            document = parse_json(content.decode())
        except ValueError:
            return
        content = parsers.as_bytes(name, document)
    try:
        parsers.verdict(name, content)
    except BaseException:
        print(
            f"{name} broke on {content!r}\nreplay: {sys.executable} {__file__} FOLDER SEED RUNS CRASH (the file named below)",
            flush=True,
        )
        raise


def main() -> None:
    folder, seed, runs = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    parsers.FOLDER = folder / "work"
    corpus = folder / "corpus"
    corpus.mkdir(exist_ok=True)
    for index, name in enumerate(NAMES):
        for number, content in enumerate(parsers.seeds(name)):
            (corpus / f"{name}-{number}").write_bytes(bytes([index]) + content)
    options = [f"-seed={seed}", f"-runs={runs}", "-max_len=4096", "-timeout=600", "-rss_limit_mb=4096", "-verbosity=1",
               f"-artifact_prefix={folder}/"]  # fmt: skip
    atheris.Setup([sys.argv[0], *options, *(sys.argv[4:] or [str(corpus)])], one)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
