"""The plan of the house, measured: imports that run upward, circles, and what makes a file hard to enter.

    python tools/house.py           the figures
    python tools/house.py --list    and what they count

A room is a folder or a file on the package's top level. ROOMS has them from the ground up: a file imports from rooms below its
own, and from its own. `__init__.py` re-exports the public names and stands above all. tests/test_imports.py holds it.
"""

import argparse
import ast
import io
import re
import tokenize
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1] / "turbovaed_cli"
ROOMS = (
    "version", "errors", "reporting", "choices", "units", "files", "setting", "stage", "settings", "machine", "runs", "registry", "video",
    "models", "metrics", "latents", "reconstruction", "export", "benchmarking", "evaluation", "report", "training", "pipelines", "cli",
    "__main__",
    "__init__",
)  # fmt: skip
MOST_LINES, MOST_FUNCTION_LINES, FEWEST_WORDS = 400, 50, 4


def modules() -> dict[str, Path]:
    """Every module of the package by its dotted name inside it; "" is the package itself."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = list(path.relative_to(PACKAGE).with_suffix("").parts)
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def room_of(module: str) -> str:
    """The room that a module is in."""
    return module.partition(".")[0] or "__init__"


def imports_of(path: Path, known: dict[str, Path]) -> set[str]:
    """The modules of the package that a file imports, anywhere in it; imports for type checkers count too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            within = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [name if name.removeprefix("turbovaed_cli.") in known else node.module for name in within]
        else:
            continue
        found |= {
            name.removeprefix("turbovaed_cli").removeprefix(".")
            for name in names
            if name == "turbovaed_cli" or name.startswith("turbovaed_cli.")
        }
    return found


def arrows() -> dict[str, set[str]]:
    """Which modules each module imports."""
    known = modules()
    return {name: imports_of(path, known) - {name} for name, path in known.items()}


def upward(graph: dict[str, set[str]]) -> list[tuple[str, str]]:
    """Imports of a room that is not below the importing file's own."""
    return [
        (name, target)
        for name, targets in graph.items()
        for target in sorted(targets)
        if room_of(target) != room_of(name) and ROOMS.index(room_of(target)) >= ROOMS.index(room_of(name))
    ]


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Groups of modules that import each other, by whatever way: the strongly connected components of more than one."""
    order: list[str] = []
    seen: set[str] = set()

    def visit(start: str, edges: dict[str, set[str]], out: list[str]) -> None:
        stack = [(start, iter(sorted(edges[start])))]
        seen.add(start)
        while stack:
            targets = stack[-1][1]
            following = next((target for target in targets if target not in seen), None)
            if following is None:
                out.append(stack.pop()[0])
            else:
                seen.add(following)
                stack.append((following, iter(sorted(edges[following]))))

    for name in graph:
        if name not in seen:
            visit(name, graph, order)
    back: dict[str, set[str]] = {name: set() for name in graph}
    for name, targets in graph.items():
        for target in targets:
            back[target].add(name)
    seen.clear()
    found = []
    for name in reversed(order):
        if name not in seen:
            group: list[str] = []
            visit(name, back, group)
            found += [sorted(group)] if len(group) > 1 else []
    return found


def entries() -> list[str]:
    """What stands on the package's top level."""
    return sorted(path.name for path in PACKAGE.iterdir() if path.name != "__pycache__")


def long_files() -> list[str]:
    """Files of more than MOST_LINES lines."""
    lengths = {name: len(path.read_text(encoding="utf-8").splitlines()) for name, path in modules().items()}
    return [f"{lines} {name}" for name, lines in sorted(lengths.items(), key=lambda item: -item[1]) if lines > MOST_LINES]


def long_functions() -> list[str]:
    """Functions of more than MOST_FUNCTION_LINES lines, from `def` to their end."""
    found = [
        (node.end_lineno - node.lineno + 1, f"{name}:{node.name}")
        for name, path in modules().items()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno is not None
    ]
    return [f"{lines} {name}" for lines, name in sorted(found, reverse=True) if lines > MOST_FUNCTION_LINES]


def noqas() -> list[str]:
    """Comments that switch a rule off."""
    found = []
    for name, path in modules().items():
        for token in tokenize.generate_tokens(io.StringIO(path.read_text(encoding="utf-8")).readline):
            if token.type == tokenize.COMMENT and re.search(r"#\s*noqa", token.string):
                found.append(f"{name}:{token.start[0]} {token.string}")
    return found


def helps() -> Iterator[str]:
    """The sentence of every option and argument, where it is typed: help= of typer, and the second argument of `setting`."""
    for path in modules().values():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            called = ast.unparse(node.func)
            texts = [word.value for word in node.keywords if word.arg == "help"]
            texts += node.args[1:2] if called == "setting" else []
            if called in ("typer.Option", "typer.Argument", "setting"):
                yield from (
                    text.value for text in texts if isinstance(text, ast.Constant) and isinstance(text.value, str) and text.value
                )


def typed_twice() -> list[str]:
    """Sentences of options that are typed more than once."""
    return [text for text, count in Counter(helps()).items() if count > 1 and len(text.split()) >= FEWEST_WORDS]


def figures() -> dict[str, list[str]]:
    """What is counted, by its name."""
    graph = arrows()
    return {
        "upward imports": [f"{name} -> {target}" for name, target in upward(graph)],
        "circles": [", ".join(group) for group in circles(graph)],
        "top-level entries": entries(),
        f"files over {MOST_LINES} lines": long_files(),
        f"functions over {MOST_FUNCTION_LINES} lines": long_functions(),
        "noqa": noqas(),
        "sentences of options typed twice": typed_twice(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--list", action="store_true", help="print what is counted too")
    options = parser.parse_args()
    for name, items in figures().items():
        print(f"{len(items):4} {name}")
        for item in items if options.list else ():
            print(f"       {item}")


if __name__ == "__main__":
    main()
