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
    settings = ExportSettings(frames=3, sizes=((32, 32),), precisions=("fp32",))
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


def decoded_by(browser, exported, address, *, changes=(), before=None):
    """The page, which shows the video of the exported latents within 1e-3. `changes` are (old, new) texts in index.html."""
    if not (WEB / "package.json").is_file():
        missing_browser("no onnxruntime-web: npm install --prefix .venv/web onnxruntime-web")
    assert json.loads((WEB / "package.json").read_text())["version"] == ORT_WEB
    page = browser.new_page(viewport={"width": 900, "height": 800})
    page.set_default_timeout(1000 * HANG_S)
    page.route(
        f"https://cdn.jsdelivr.net/npm/onnxruntime-web@{ORT_WEB}/**",
        lambda route: route.fulfill(path=WEB / route.request.url.partition(f"@{ORT_WEB}/")[2]),
    )
    html = (exported / "index.html").read_text()
    for old, new in changes:
        assert html.count(old) == 1
        html = html.replace(old, new)
    page.route(address, lambda route: route.fulfill(body=html, content_type="text/html"))
    if before:
        page.add_init_script(before)
    page.goto(address)
    page.wait_for_function("window.video || window.failure")
    assert page.evaluate("window.failure") is None
    shape, numbers = page.evaluate("[window.video.dims, Array.from(window.video.data)]")
    found = torch.tensor(numbers).reshape(shape)
    with torch.no_grad():
        wanted = load_student("tiny")(load_file(exported / "latents.safetensors")["latents"])
    assert (found - wanted).abs().max() < 1e-3
    return page


def test_the_embedded_student_decodes_in_a_browser(browser, exported, address):
    """On WASM here. What jsdelivr would serve is the same package, from npm."""
    (code,) = blocks(exported / "README.md", "javascript")
    assert code.partition("\n")[2] in (exported / "index.html").read_text()
    page = decoded_by(browser, exported, address)
    assert page.evaluate("document.getElementById('frame').width") == 32
    assert "3 frames of 32x32" in page.inner_text("#status")
    if os.environ.get("TURBOVAED_SCREENSHOT"):
        page.screenshot(path=os.environ["TURBOVAED_SCREENSHOT"])


COUNT_SUBMITS = """
window.submits = 0;
const submit = GPUQueue.prototype.submit;
GPUQueue.prototype.submit = function (...commands) { window.submits += 1; return submit.apply(this, commands); };
"""


@pytest.mark.thorough
def test_it_decodes_on_webgpu_alone(chromium, exported, address):
    """On SwiftShader, a GPU in software: correctness, no speed. WebGPU's limit of a buffer is 256 MiB at the least."""
    providers = ('navigator.gpu ? ["webgpu", "wasm"] : ["wasm"]', '["webgpu"]')
    started = chromium("--enable-unsafe-webgpu", "--enable-unsafe-swiftshader", "--use-webgpu-adapter=swiftshader")
    page = decoded_by(started, exported, address, changes=[providers], before=COUNT_SUBMITS)
    assert page.evaluate("window.submits") > 0
