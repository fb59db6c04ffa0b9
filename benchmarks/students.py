"""Our students beside TAEHV's architecture, trained for equal time by the same recipe: quality against decode time.

    python benchmarks/students.py --teacher tiny --latents build/tiny --mixed build/tiny-mixed --val build/tiny-val --minutes 15
    python benchmarks/students.py --teacher benchmarks/teachers/wan-48 --latents ... --out build/students-wan

The caches are those of benchmarks/recipes.py, which also has what a run is and how it goes on. `full` is the published layout.
Then all decode the same latents in turns, each in the fastest form that it has here, in fp32: our fast form, plain torch, or
ONNX Runtime. Prints a table, and writes students.json into --out. A teacher without `nano` is studied without it.
"""

import json
from pathlib import Path

from recipes import SCORES, Study, parser_of

from turbovaed_cli.benchmarking.bench import bench
from turbovaed_cli.registry.find import find_model
from turbovaed_cli.registry.members import MEMBERS, members_of
from turbovaed_cli.settings import BenchSettings

RECIPE = {"mixed": True, "lattice_weight": 0.5}
ARMS = {
    "full": {**RECIPE, "student": "full"},
    "causal": {**RECIPE, "student": "causal"},
    "lite": {**RECIPE, "student": "lite"},
    "nano": {**RECIPE, "student": "nano"},
    "TAEHV": {**RECIPE, "student": "taehv", "start": "plain"},
}


def main() -> None:
    options = parser_of(__doc__, ARMS, Path("build/students"), minutes=15).parse_args()
    own = members_of(find_model(options.teacher))
    options.arms = [name for name in options.arms if name in own or name not in MEMBERS]
    study = Study(options, ARMS, in_equal_steps=False)
    study.make()
    runs = [run for run in study.done if run["seed"] == options.seeds[0]]
    folders = {run["arm"]: study.folder(run["arm"], run["seed"], run["steps"]) for run in runs}
    times = decode_ms(folders)
    (options.out / "students.json").write_text(
        json.dumps(
            {run["arm"]: {**run["last"], "params": run["params"], "steps": run["steps"], **times[run["arm"]]} for run in runs}
        )
    )
    print(table(Path(options.teacher).name, json.loads((options.out / "students.json").read_text())))


def decode_ms(folders: dict[str, Path]) -> dict[str, dict[str, float | str]]:
    """Return the median milliseconds of a decode of 17x256x256 by each student, and the form that is fastest."""
    (first, model), *others = folders.items()
    settings = BenchSettings(targets=("torch", "onnx"), precisions=("fp32",), teacher=False)
    result = bench(str(model), settings, against=[str(folder) for _, folder in others])
    labels = {folder.name: name for name, folder in others}
    found: dict[str, dict[str, float | str]] = {}
    for row in result.rows:
        name = next((arm for label, arm in labels.items() if label in row.network), first)
        if row.p50_ms and row.p50_ms < found.get(name, {"decode_ms": float("inf")})["decode_ms"]:  # type: ignore[operator]
            found[name] = {"decode_ms": row.p50_ms, "form": row.runtime}
    return found


def table(teacher: str, found: dict[str, dict[str, float | str]]) -> str:
    """Return a Markdown table, which tools/pictures.py draws."""
    lines = [
        f"| students of `{teacher}` | parameters | decode ms | form | steps | {' | '.join(SCORES)} |",
        "|---|---|---|---|---|" + "---|" * len(SCORES),
    ]
    for name, row in sorted(found.items(), key=lambda item: -float(item[1]["decode_ms"])):
        scores = " | ".join(f"{row[score]:.{digits}f}" for score, digits in SCORES.items())
        lines.append(
            f"| {name} | {float(row['params']) / 1e6:.2f} M | {row['decode_ms']:.0f} | {row['form']} | {row['steps']} | {scores} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
