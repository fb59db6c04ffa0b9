"""README and docs/ for the tests: their blocks, commands, links, sentences and tables."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
README = ROOT / "README.md"
GENERATED = [ROOT / "docs" / "reference" / name for name in ("cli.md", "recipes.md")]
PAGES = [README, *sorted((ROOT / "docs").rglob("*.md"))]
WRITTEN = [path for path in PAGES if path not in GENERATED]
ENDS = ("|", ">", "&", "&&", ";")  # of a command within a line of shell


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def blocks(path: Path, *kinds: str) -> list[str]:
    """The fenced blocks of these kinds."""
    found = re.findall(r"^```(\w*)\n(.*?)^```", path.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    return [block for kind, block in found if kind in kinds]


def commands(path: Path) -> Iterator[list[str]]:
    """The words after `turbovaed` of every command in a block of shell or console, also after torchrun, srun and accelerate."""
    lines = [line for block in blocks(path, "sh") for line in block.replace("\\\n", " ").splitlines()]
    lines += [line[2:] for block in blocks(path, "console") for line in block.splitlines() if line.startswith("$ ")]
    for line in lines:
        words = shlex.split(line.replace("bash -c '", "").rstrip("'"), comments=True)
        at = next((index for index, word in enumerate(words) if word in ("turbovaed", "turbovaed_cli")), None)
        if at is not None:
            words = words[at + 1 :]
            yield words[: next((index for index, word in enumerate(words) if word in ENDS), len(words))]


def prose(path: Path) -> str:
    """The page without code blocks and comments."""
    text = re.sub(r"^```.*?^```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    return re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL)


def words(text: str) -> list[str]:
    """Words as a reader counts them: a link is its text, and signs alone are none."""
    text = re.sub(r"<[^>]*>", " ", re.sub(r"!?\[([^]]*)\]\([^)]*\)", r"\1", text))
    return [word for word in text.split() if re.search(r"\w", word)]


def cells(path: Path) -> list[str]:
    """The cells of every table."""
    rows = [line for line in prose(path).splitlines() if line.startswith("|") and not set(line) <= set("|-: ")]
    return [cell for row in rows for cell in row.strip("|").split("|")]


def sentences(path: Path) -> list[str]:
    """Every sentence outside code blocks, tables and headings; an item of a list begins a new one."""
    lines = [line for line in prose(path).splitlines() if not line.startswith(("|", "#"))]
    paragraphs = re.split(r"\n\s*\n|\n(?=\s*(?:[-*]|\d+\.) )", "\n".join(lines))
    return [sentence for paragraph in paragraphs for sentence in re.split(r"(?<=[.!?])\s+", paragraph.strip()) if sentence]


def links(path: Path) -> list[str]:
    """What the page links to, except for other sites."""
    text = prose(path)
    found = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'(?:src|srcset|href)="([^"]+)"', text)
    return [target for target in found if not target.startswith(("https:", "http:"))]


def anchors(path: Path) -> set[str]:
    """The names of the page's headings, as GitHub and the site make them."""
    heads = re.findall(r"^#+ (.*)$", prose(path), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).strip().replace(" ", "-") for head in heads}
