"""The page beside an exported ONNX file decodes in a browser, with the README's JavaScript as it stands."""

import functools
import http.server
import json
import os
import threading
from pathlib import Path

import pytest
import torch
from conftest import missing_browser
from limits import HANG_S
from pages import blocks
from safetensors.torch import load_file

from turbovaed_cli.export.export import export_student
from turbovaed_cli.export.readme import ORT_WEB
from turbovaed_cli.models.loading import load_student
from turbovaed_cli.settings import ExportSettings

WEB = Path(__file__).parents[2] / ".venv" / "web" / "node_modules" / "onnxruntime-web"


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    out = tmp_path_factory.mktemp("exported") / "out"
    settings = ExportSettings(frames=5, sizes=((64, 64),), precisions=("fp32",))
    export_student(load_student("tiny"), ("onnx", "torch-export"), out, settings)
    return out


@pytest.fixture
def address(exported):
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=exported))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()


def test_the_embedded_student_decodes_in_a_browser(browser, exported, address):
    """On WASM here. What jsdelivr would serve is the same package, from npm."""
    if not (WEB / "package.json").is_file():
        missing_browser("no onnxruntime-web: npm install --prefix .venv/web onnxruntime-web")
    assert json.loads((WEB / "package.json").read_text())["version"] == ORT_WEB
    (code,) = blocks(exported / "README.md", "javascript")
    assert code.partition("\n")[2] in (exported / "index.html").read_text()
    page = browser.new_page(viewport={"width": 900, "height": 800})
    page.set_default_timeout(1000 * HANG_S)
    page.route(
        f"https://cdn.jsdelivr.net/npm/onnxruntime-web@{ORT_WEB}/**",
        lambda route: route.fulfill(path=WEB / route.request.url.partition(f"@{ORT_WEB}/")[2]),
    )
    page.goto(address)
    page.wait_for_function("window.video || window.failure")
    assert page.evaluate("window.failure") is None
    shape, numbers = page.evaluate("[window.video.dims, Array.from(window.video.data)]")
    found = torch.tensor(numbers).reshape(shape)
    with torch.no_grad():
        wanted = load_student("tiny")(load_file(exported / "latents.safetensors")["latents"])
    assert (found - wanted).abs().max() < 1e-3
    assert page.evaluate("document.getElementById('frame').width") == 64
    assert "5 frames of 64x64" in page.inner_text("#status")
    if os.environ.get("TURBOVAED_SCREENSHOT"):
        page.screenshot(path=os.environ["TURBOVAED_SCREENSHOT"])
