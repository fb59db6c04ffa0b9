"""The documentation site builds without a broken link, needs no other site, and finds what it is asked for."""

import functools
import http.server
import re
import subprocess
import sys
import threading

import docs_site
import pytest
from limits import HANG_S
from pages import ROOT


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    pytest.importorskip("material", reason="needs the extra docs: pip install 'turbovaed[docs]'")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, str(ROOT / "tools" / "docs_site.py"), "--site", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder


def test_links_of_the_repository_become_links_of_the_site():
    moved = docs_site.site_text
    assert moved("[a](docs/guides/scale.md#one)") == "[a](guides/scale.md#one)"
    assert moved("[a](SECURITY.md), [b](https://a.b/SECURITY.md)") == "[a](security.md), [b](https://a.b/SECURITY.md)"
    assert moved('<img src="docs/pictures/a.png">') == '<img src="pictures/a.png">'
    assert moved("[a](../README.md)", "faults.md") == "[a](index.md)"
    assert moved("[a](../../CHANGELOG.md)", "guides/scale.md") == "[a](../changelog.md)"


def test_a_broken_link_is_seen(tmp_path):
    """The control of the build."""
    pytest.importorskip("material")
    folder = tmp_path / "pages"
    docs_site.copy_pages(folder)
    (folder / "faults.md").write_text("[gone](gone.md)", encoding="utf-8")
    done = subprocess.run(docs_site.build_command(folder, tmp_path / "site"), capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "gone.md" in done.stderr


class Silent(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


def test_the_search_finds_a_page(site, browser):
    """In a Chromium, with the site served from this machine."""
    handler = functools.partial(Silent, directory=str(site))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    home, asked, said = f"http://127.0.0.1:{server.server_port}", [], []
    try:
        page = browser.new_page()
        page.set_default_timeout(1000 * HANG_S)
        page.on("request", lambda request: asked.append(request.url))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.goto(f"{home}/index.html")
        page.locator("input.md-search__input").click()
        page.keyboard.type("winograd")
        found = page.locator("a.md-search-result__link[href*='how-it-is-fast']").first
        found.wait_for()
        found.click()
        page.wait_for_url("**/how-it-is-fast.html*")
        page.close()
    finally:
        server.shutdown()
        server.server_close()
    assert said == [] and {url for url in asked if not url.startswith((home, "data:", "blob:"))} == set()


def test_pictures_of_the_front_page_are_there(site):
    html = (site / "index.html").read_text(encoding="utf-8")
    pictures = re.findall(r'(?:src|srcset)="(pictures/[^"]+)"', html)
    assert len(pictures) >= 4 and all((site / name).is_file() for name in pictures)
