"""Build the documentation site into site/: docs/, with README, changelog, security and notices as pages of it.

    python tools/docs_site.py [--site FOLDER]

The links of the pages at the top of the repository are changed to those of the site, so that one text serves both. Ends with 1 if a link is
broken. Needs the extra `docs`; `make docs` is the same.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGES = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "SECURITY.md": "security.md",
    "THIRD_PARTY_NOTICES.md": "third-party-notices.md",
}
_LINK = re.compile(r'(\]\(|(?:src|srcset)=")(?!https?:|#)([^)"#]+)')


def site_text(text: str, folder: str = "") -> str:
    """Return a page with links to files of the repository turned into links of the site; `folder` is the page's own, within docs/."""

    def moved(found: re.Match[str]) -> str:
        target = found[2].removeprefix("docs/")
        top = target.replace("../", "")
        return found[1] + ("../" * folder.count("/") + PAGES[top] if top in PAGES else target)

    return _LINK.sub(moved, text)


def copy_pages(folder: Path) -> None:
    """Make `folder` the source of the site."""
    shutil.copytree(ROOT / "docs", folder)
    for path in folder.rglob("*.md"):
        inside = path.relative_to(folder).as_posix()
        path.write_text(site_text(path.read_text(encoding="utf-8"), inside), encoding="utf-8")
    for name, page in PAGES.items():
        (folder / page).write_text(site_text((ROOT / name).read_text(encoding="utf-8")), encoding="utf-8")


def build_command(pages: Path, site: Path) -> list[str]:
    """Return the command that builds `site` from the pages that `copy_pages` made."""
    config = pages.with_name("mkdocs.yml")
    config.write_text(f"INHERIT: {ROOT / 'mkdocs.yml'}\ndocs_dir: {pages}\n", encoding="utf-8")
    return [sys.executable, "-m", "mkdocs", "build", "--strict", "-f", str(config), "-d", str(site)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--site", type=Path, default=ROOT / "site", help="the folder to build")
    site = parser.parse_args().site.resolve()
    with tempfile.TemporaryDirectory() as temporary:
        pages = Path(temporary) / "docs"
        copy_pages(pages)
        environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
        return subprocess.run(build_command(pages, site), check=False, env=environment).returncode


if __name__ == "__main__":
    sys.exit(main())
