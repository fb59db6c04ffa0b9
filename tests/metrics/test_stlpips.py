"""ST-LPIPS equals its authors' own code, hardly counts shifts, and names what is wrong with its weights."""

import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.ndimage import gaussian_filter
from skimage import data
from torch import nn

from turbovaed_cli.errors import CorruptFileError, MissingWeightsError, ShapeError, WeightFileError
from turbovaed_cli.metrics import METRICS, metric_name
from turbovaed_cli.metrics.features import mean_distances
from turbovaed_cli.metrics.stlpips import LAYOUTS, BlurredConvolution, blurred, largest, load_st_lpips, read_st_lpips
from turbovaed_cli.registry import st_lpips
from turbovaed_cli.registry.pull import pull
from turbovaed_cli.registry.st_lpips import PACKAGE, ST_LPIPS_FILES, VERSION, PackagedFile, st_lpips_path


def is_installed() -> bool:
    try:
        return st_lpips_path("alex").is_file() and st_lpips_path("vgg").is_file()
    except MissingWeightsError:
        return False


needs_package = pytest.mark.skipif(not is_installed(), reason=f"the package {PACKAGE} is not installed")


@pytest.fixture(scope="module")
def picture() -> torch.Tensor:
    """A rocket before a plain sky, (1, 3, 256, 257) in [0, 1]; the picture comes with scikit-image."""
    with Image.open(Path(data.__file__).parent / "rocket.jpg") as image:
        pixels = np.asarray(image.convert("RGB"))[:256, :257]
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].float() / 255


@needs_package
def test_errors_of_known_strength_have_the_known_figures(picture):
    """Noise has its sigma in a range of 1, blur in pixels. Figures of another picture differ by up to a factor of two."""
    source = picture[..., :256]
    noise = torch.randn(source.shape, generator=torch.Generator().manual_seed(0))
    others = {
        "none": [source],
        "shift": [picture[..., 1:]],
        "noise": [(source + size * noise).clamp(0, 1) for size in (0.01, 0.03, 0.1, 0.3)],
        "blur": [torch.from_numpy(gaussian_filter(source.numpy(), (0, 0, size, size))) for size in (0.5, 1, 2, 4)],
    }
    clips = [image[0][:, None] * 2 - 1 for images in others.values() for image in images]
    unchanged, shifted, *rest = mean_distances(load_st_lpips("alex"), clips, source[0][:, None] * 2 - 1)
    assert unchanged == 0 and 0.001 < shifted < 0.008
    assert rest[:4] == pytest.approx([0.018, 0.185, 0.67, 0.79], rel=0.05)
    assert rest[4:] == pytest.approx([0.017, 0.13, 0.31, 0.40], rel=0.05)


# Its code wants torchvision, IPython and torchsummary, of which these networks use nothing.
_OF_THE_AUTHORS = """
import json, sys, types
import torch
for name in ("torchvision", "torchvision.models", "IPython", "torchsummary"):
    sys.modules[name] = types.ModuleType(name)
sys.modules["torchvision"].models = sys.modules["torchvision.models"]
sys.modules["IPython"].embed = sys.modules["torchsummary"].summary = None
from stlpips_pytorch.stlpips import LPIPS
torch.set_num_threads(1)
found = {}
for name in ("alex", "vgg"):
    network = LPIPS(net=name, variant="shift_tolerant", verbose=False)
    with torch.no_grad():
        found[name] = [network(*pair).flatten().tolist() for pair in torch.load(sys.argv[1])]
print(json.dumps(found))
"""


@needs_package
def test_both_networks_equal_their_authors_code(tmp_path):
    """Their package runs in a process of its own, on even and odd sides, down to the least one."""
    generator = torch.Generator().manual_seed(0)
    pairs = []
    for height, width in ((64, 48), (33, 70), (21, 22), (47, 53)):
        image = torch.rand(2, 3, height, width, generator=generator) * 2 - 1
        noise = torch.randn(image.shape, generator=generator)
        pairs.append((image, (image + torch.tensor([0.03, 0.3]).view(2, 1, 1, 1) * noise).clamp(-1, 1)))
    torch.save(pairs, tmp_path / "pairs.pt")
    command = [sys.executable, "-c", _OF_THE_AUTHORS, str(tmp_path / "pairs.pt")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    theirs = json.loads(done.stdout.splitlines()[-1])
    for name in LAYOUTS:
        network = load_st_lpips(name)
        with torch.no_grad():
            ours = [network(*pair).tolist() for pair in pairs]
        assert np.allclose(ours, theirs[name], rtol=0, atol=1e-6), name
    assert "stlpips_pytorch" not in sys.modules


@needs_package
@pytest.mark.parametrize("name", LAYOUTS)
def test_the_least_side_is_the_one_that_the_blurs_can_reflect(name):
    network = load_st_lpips(name)
    least = LAYOUTS[name].min_side
    assert torch.isfinite(network(torch.zeros(1, 3, least, least), torch.ones(1, 3, least, least))).all()
    with pytest.raises(ShapeError, match=f"{LAYOUTS[name].label} needs {least}x{least} pixels at least; this is 40x{least - 1}"):
        network(torch.zeros(1, 3, least - 1, 40), torch.ones(1, 3, least - 1, 40))
    network.min_side = 0
    with pytest.raises(RuntimeError):
        network(torch.zeros(1, 3, least - 1, 40), torch.ones(1, 3, least - 1, 40))
    network.min_side = least


@pytest.mark.parametrize("size", [(3, 4), (8, 9), (11, 10)])
def test_a_blur_reflects_by_two_and_takes_every_second_pixel(size):
    x = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(0))
    kernel = torch.tensor([1.0, 2, 1]).outer(torch.tensor([1.0, 2, 1])).div(16).expand(3, 1, 3, 3)
    wanted = nn.functional.conv2d(nn.functional.pad(x, [2] * 4, mode="reflect"), kernel, stride=2, groups=3)
    assert torch.allclose(blurred(x), wanted, atol=1e-6)
    torch.manual_seed(0)
    convolution = nn.Conv2d(3, 4, 5, padding=2)
    assert torch.allclose(BlurredConvolution(convolution)(x), blurred(convolution(x)), atol=1e-5)


@pytest.mark.parametrize("kernel", [1, 2, 3])
def test_the_largest_value_is_that_of_a_max_pool(kernel):
    x = torch.randn(2, 5, 7, 9, generator=torch.Generator().manual_seed(0)).contiguous(memory_format=torch.channels_last)
    assert torch.equal(largest(x, kernel), nn.functional.max_pool2d(x, kernel, 1))


@needs_package
def test_every_frame_counts_and_a_source_is_looked_at_once_for_all_videos(picture):
    network, generator = load_st_lpips("alex"), torch.Generator().manual_seed(0)
    source = nn.functional.interpolate(picture, 32)[0][:, None].expand(3, 3, 32, 32) * 2 - 1
    noise = torch.randn(source.shape, generator=generator) * torch.tensor([0.0, 0.1, 0.3]).view(1, 3, 1, 1)
    videos = [(source + noise * size).clamp(-1, 1) for size in (1, 0.5)]
    seen = []
    hook = network.blocks[0][0].register_forward_hook(lambda *_: seen.append(1))
    found = mean_distances(network, videos, source)
    hook.remove()
    assert len(seen) == 3 * (1 + 2)
    with torch.no_grad():
        assert found == pytest.approx([network(video.movedim(1, 0), source.movedim(1, 0)).mean().item() for video in videos])
    assert found == [mean_distances(network, [video], source)[0] for video in videos]
    assert found[0] > found[1] > 0


def test_it_is_never_called_lpips():
    labels = {name: METRICS[name].label for name in ("st_lpips", "st_lpips_vgg")}
    assert labels == {"st_lpips": "ST-LPIPS", "st_lpips_vgg": "ST-LPIPS-VGG"} == {
        f"st_lpips{suffix}": LAYOUTS[name].label for suffix, name in (("", "alex"), ("_vgg", "vgg"))
    }  # fmt: skip
    assert (metric_name("ST-LPIPS"), metric_name("st-lpips-alex"), metric_name("st-lpips-vgg")) == (
        "st_lpips",
        "st_lpips",
        "st_lpips_vgg",
    )


# --- the weights --------------------------------------------------------------------------------------------------


def random_state(name: str) -> dict[str, torch.Tensor]:
    """A state dict with the shapes of the published ones, and zeros."""
    state = {}
    for number, block in enumerate(LAYOUTS[name].blocks, 1):
        for index, inputs, outputs, kernel, _ in block.convolutions:
            state[f"net.slice{number}.{index}.weight"] = torch.zeros(outputs, inputs, kernel, kernel)
            state[f"net.slice{number}.{index}.bias"] = torch.zeros(outputs)
        state[f"lin{number - 1}.model.1.weight"] = torch.zeros(1, outputs, 1, 1)
    return state


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda state: state.pop("net.slice3.9.bias"), r"does not make ST-LPIPS: it lacks 'net.slice3.9.bias'"),
        (
            lambda state: state.update({"net.slice2.5.weight": torch.zeros(1)}),
            "does not make ST-LPIPS: .*size mismatch for weight",
        ),
        (lambda state: state["lin2.model.1.weight"].fill_(float("nan")), "holds NaN or infinity"),
    ],
)
def test_a_file_that_does_not_make_the_network_is_one_line(change, said, tmp_path):
    state = random_state("alex")
    change(state)
    torch.save(state, tmp_path / "alex.pth")
    with pytest.raises(WeightFileError, match=said) as error:
        read_st_lpips("alex", tmp_path / "alex.pth")
    assert "\n" not in error.value.what and "turbovaed models pull st-lpips" in error.value.hint


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package of that name on sys.path, before the real one if there is one. Its files are small, and their sha256 is expected."""
    folder = tmp_path / "site"
    make_package(folder)
    for name, content in CONTENTS.items():
        known = PackagedFile(ST_LPIPS_FILES[name].path, st_lpips.sha256_of(folder / ST_LPIPS_FILES[name].path))
        monkeypatch.setitem(ST_LPIPS_FILES, name, known)
        assert (folder / known.path).read_bytes() == content
    return folder


CONTENTS = {"alex": b"weights of alex", "vgg": b"weights of vgg"}


def make_package(folder: Path) -> None:
    info = folder / f"stlpips_pytorch-{VERSION}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {PACKAGE}\nVersion: {VERSION}\n")
    (info / "WHEEL").write_text("Wheel-Version: 1.0\nGenerator: a test\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
    for name, content in CONTENTS.items():
        path = folder / ST_LPIPS_FILES[name].path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    listed = [path.relative_to(folder) for path in folder.rglob("*") if path.is_file()]
    (info / "RECORD").write_text("".join(f"{path.as_posix()},,\n" for path in [*listed, info.relative_to(folder) / "RECORD"]))


def test_a_package_without_its_file_and_one_with_another_file_are_named(package, monkeypatch):
    monkeypatch.syspath_prepend(package)
    path = st_lpips_path("alex")
    assert path == package / ST_LPIPS_FILES["alex"].path
    path.write_bytes(b"damaged")
    with pytest.raises(CorruptFileError, match=r"alex_shift_tolerant\.pth is not the file of stlpips-pytorch 0\.0\.2") as error:
        st_lpips_path("alex")
    assert error.value.hint == "turbovaed models pull st-lpips --yes installs it again"
    path.unlink()
    with pytest.raises(MissingWeightsError, match=r"alex_shift_tolerant\.pth, which the package stlpips-pytorch here lacks"):
        st_lpips_path("alex")
    with monkeypatch.context() as here:
        here.setattr(sys, "path", [])
        with pytest.raises(MissingWeightsError, match="needs the package stlpips-pytorch, which is not installed") as missing:
            st_lpips_path("alex")
    assert missing.value.hint == "turbovaed models pull st-lpips"


@pytest.fixture
def index(package, tmp_path, monkeypatch):
    """A folder that pip looks into instead of an index, and a folder on sys.path that it installs into."""
    wheels, target = tmp_path / "wheels", tmp_path / "target"
    wheels.mkdir()
    with zipfile.ZipFile(wheels / f"stlpips_pytorch-{VERSION}-py3-none-any.whl", "w") as wheel:
        for path in sorted(package.rglob("*")):
            if path.is_file():
                wheel.write(path, path.relative_to(package).as_posix())
    shutil.rmtree(package)
    for name, value in {"NO_INDEX": "1", "FIND_LINKS": wheels, "TARGET": target, "CONFIG_FILE": "/dev/null"}.items():
        monkeypatch.setenv(f"PIP_{name}", str(value))
    make_empty(target)  # so that the real one is not found
    monkeypatch.syspath_prepend(target)
    return wheels


def make_empty(target: Path) -> None:
    """A package that was installed, and whose files are gone."""
    make_package(target)
    shutil.rmtree(target / "stlpips_pytorch")


def test_pull_installs_the_package_after_consent_and_mends_it(index, turbovaed):
    with pytest.raises(MissingWeightsError, match=r"stlpips-pytorch 0.0.2 is not installed \(64 MB, BSD-2-Clause\)"):
        pull("st-lpips", lambda *_: False)
    asked = []
    found = pull("st-lpips", lambda files, total: asked.append((files[0].licence, total)) or True).files
    assert asked == [("BSD-2-Clause", 63_807_084)]
    assert [file.path.read_bytes() for file in found] == list(CONTENTS.values())
    assert [file.sha256 for file in found] == [known.sha256 for known in ST_LPIPS_FILES.values()]
    found[0].path.write_bytes(b"damaged")
    with pytest.raises(CorruptFileError, match="sha256 differs"):
        pull("st-lpips", lambda *_: False)
    shutil.rmtree(found[0].path.parents[2])
    assert pull("st-lpips", lambda *_: True).files == found
    assert pull("st-lpips", lambda *_: pytest.fail("nothing is left to ask for")).files == found
    code, out, _ = turbovaed("models", "pull", "st-lpips", "--json")
    assert code == 0 and [file["sha256"] for file in json.loads(out)["files"]] == [file.sha256 for file in found]


def test_a_pull_without_network_or_pip_is_one_line(index, turbovaed, monkeypatch):
    for wheel in index.iterdir():
        wheel.unlink()
    code, _, err = turbovaed("models", "pull", "st-lpips", "--yes")
    assert code == 3 and len(err.strip().splitlines()) == 4  # what is asked for, its size, the error and the hint
    assert "error: installing stlpips-pytorch 0.0.2 failed: Could not find a version that satisfies" in err
    assert "hint: check the network, then: turbovaed models pull st-lpips --yes" in err
    monkeypatch.setattr(st_lpips.importlib.util, "find_spec", lambda name: None)
    code, _, err = turbovaed("models", "pull", "st-lpips", "--yes")
    assert code == 3 and "no pip to install stlpips-pytorch with" in err
    assert "hint: uv pip install --no-deps stlpips-pytorch==0.0.2" in err


def test_make_install_installs_the_version_that_is_pulled():
    root = Path(__file__).resolve().parents[2]
    assert f"{PACKAGE}=={VERSION}" in (root / "constraints.txt").read_text().splitlines()
    assert f"-c constraints.txt --no-deps {PACKAGE}\n" in (root / "Makefile").read_text()
    assert PACKAGE not in (root / "pyproject.toml").read_text()
