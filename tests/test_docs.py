"""What README and docs/ state is so: commands parse, cheap ones and all Python run, links lead somewhere, generated pages are current."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from itertools import chain
from pathlib import Path

import pages
import pytest
import reference
import typer
from pages import PAGES, ROOT, WRITTEN, name_of
from typer.testing import CliRunner

from turbovaed_cli.cli.app import app
from turbovaed_cli.training.recipes import RECIPES, read_recipe

COMMANDS = [(path, words) for path in PAGES for words in pages.commands(path)]
QUICK = {"models", "env", "runs", "help", "version"}  # they load no torch and write nothing
NEED_MORE = {"pull", "./myvae"}  # a network; a folder of the reader's


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_every_command_parses(path):
    """By the parser of the command itself; nothing is run."""
    for words in pages.commands(path):
        command, left = typer.main.get_command(app), list(words)
        while left and left[0] in getattr(command, "commands", {}):
            command = command.commands[left.pop(0)]
        command.make_context("turbovaed", left)


def test_there_are_commands_and_all_of_them_are_shown():
    named = {words[0] for words, _ in reference.commands()}
    assert named == {words[0] for _, words in COMMANDS} | {"help", "version", "env"}
    assert {"reconstruct", "eval", "cache-latents", "distill", "export", "bench"} <= {
        words[0] for words in pages.commands(pages.README)
    }


def test_quick_commands_run(tmp_path, monkeypatch):
    (tmp_path / "runs").mkdir()
    monkeypatch.chdir(tmp_path)
    quick = {tuple(words) for _, words in COMMANDS if words[0] in QUICK and not NEED_MORE & set(words)}
    assert len(quick) > 1
    for words in quick:
        done = CliRunner().invoke(app, list(words))
        assert done.exit_code == 0, (words, done.output)


@pytest.fixture(scope="module")
def a_readers_folder(tmp_path_factory, videos):
    folder = tmp_path_factory.mktemp("reader")
    (folder / "clips").mkdir()
    for copy in ("in.mp4", "clips/in.mp4"):
        shutil.copy(videos / "more" / "b.mp4", folder / copy)
    return folder


def test_python_blocks_run(a_readers_folder):
    """On real clips, with the embedded pair, one after the other in one process; each block stands alone."""
    blocks = list(dict.fromkeys(block for path in PAGES for block in pages.blocks(path, "python")))
    assert len(blocks) > 4
    small = [
        block.replace("frames=17, size=(256, 256)", "frames=9, size=(64, 64)")
        .replace("EvalSettings(", "EvalSettings(frames=9, size=(64, 64), ")
        .replace("fps=24)", "fps=24, overwrite=True)")
        for block in blocks
    ]
    script = "".join(f"exec(compile({block!r}, 'block {number}', 'exec'), {{}})\n" for number, block in enumerate(small))
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", script], check=True, cwd=a_readers_folder, env=environment)
    assert (a_readers_folder / "out.mp4").is_file()


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_every_link_leads_somewhere(path):
    for link in pages.links(path):
        target, _, anchor = link.partition("#")
        found = (path.parent / target).resolve() if target else path
        assert found.exists(), link
        assert not anchor or anchor in pages.anchors(found), link


@pytest.mark.parametrize("path", [*PAGES, ROOT / "CHANGELOG.md", ROOT / "SECURITY.md"], ids=name_of)
def test_lists_and_tables_begin_after_an_empty_line(path):
    """GitHub takes them without, the site's Markdown does not."""
    text = re.sub(r"^```.*?^```$", "```", path.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    assert re.findall(r"^(?![-*|]|\d+\. | |$).*\n(?=[-*] |\d+\. |\|)", text, re.MULTILINE) == []


def test_every_page_is_in_the_site():
    listed = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    for path in PAGES:
        assert path == pages.README or path.relative_to(ROOT / "docs").as_posix() in listed, path


@pytest.mark.parametrize("name", reference.PAGES)
def test_generated_pages_are_current(name):
    """Else: make reference."""
    assert (reference.FOLDER / name).read_text(encoding="utf-8") == reference.PAGES[name]()


@pytest.mark.parametrize("name", RECIPES)
def test_the_recipes_of_the_reference_are_files_for_recipe(name, tmp_path):
    path = tmp_path / f"{name}.toml"
    path.write_text(reference.as_toml(RECIPES[name]), encoding="utf-8")
    assert read_recipe(str(path)) == RECIPES[name]


def test_the_recipe_of_the_guide_is_one(tmp_path):
    (block,) = pages.blocks(ROOT / "docs" / "guides" / "distill.md", "toml")
    (tmp_path / "own.toml").write_text(block, encoding="utf-8")
    assert [stage.name for stage in read_recipe(str(tmp_path / "own.toml")).stages] == ["reconstruct", "adversarial"]


def test_files_named_in_the_pages_are_there():
    """Links are for the site to check; these are paths in backticks."""
    for path in [*WRITTEN, ROOT / "SECURITY.md"]:
        for name in re.findall(r"`((?:tests|tools|benchmarks|turbovaed_cli)/[\w./-]+)`", path.read_text(encoding="utf-8")):
            assert (ROOT / name).exists(), f"{name_of(path)} names {name}"


def test_pictures_are_small():
    pictures = list((ROOT / "docs" / "pictures").iterdir())
    assert 0 < sum(path.stat().st_size for path in pictures) < 400_000
    shown = {Path(link).name for path in PAGES for link in pages.links(path)}
    assert {path.name for path in pictures} <= shown


def test_targets_of_the_makefile_are_in_contributing_and_the_other_way_round():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.search(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)[1].split())
    named = set(re.findall(r"make ([a-z-]+)", (ROOT / "docs" / "contributing.md").read_text(encoding="utf-8"))) - {"targets"}
    assert named <= targets and targets - named <= {"install", "clean"}


def test_the_licence_of_every_direct_dependency_is_stated():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    packages = [
        re.match(r"[\w.-]+", line)[0] for line in chain(project["dependencies"], *project["optional-dependencies"].values())
    ]
    notices = (ROOT / "THIRD_PARTY_NOTICES.md").read_text(encoding="utf-8").partition("**Libraries**")[2]
    stated = set(re.findall(r"[\w-]+", notices))
    assert len(packages) > 40
    assert [name for name in packages if name not in stated] == []
