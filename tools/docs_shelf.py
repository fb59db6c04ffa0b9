"""What the commands of README and docs/ read and reach, small: `docs_check.py` takes it from here.

Clips are drawn by ffmpeg, weights are random. The hub is a loopback server that serves small teachers under the real names, with as many
latent channels as the real ones. S3 is moto, on this machine. `srun` and `scontrol` are stand-ins that start tasks here.
"""

# ruff: noqa: E402
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "support"), str(ROOT / "tests" / "metrics")]

import torch
from hub import TOKEN, USER, Hub
from imageio_ffmpeg import get_ffmpeg_exe
from outputs import CommandError, execute, write_program, write_turbovaed
from safetensors.torch import save_file
from small_teachers import SMALL, write_small_teacher
from test_metrics import random_trunk, scripted_detector

from turbovaed_cli.files.whole import sha256_of
from turbovaed_cli.models.others.taehv import TAEHV, Layout
from turbovaed_cli.models.student import StudentDecoder
from turbovaed_cli.registry.download import I3D_FILE
from turbovaed_cli.registry.find import find_model

ON_HUB = ("ltx", "ltx2", "wan2.1", "sdxl")  # the teachers that the pages name
OF_LATENTS = ("latent_channels", "z_dim", "latents_mean", "latents_std")  # keys of the configs of small teachers
SRUN = """while [[ "$1" == --* ]]; do shift; done
for task in $(seq 0 $((${SLURM_NTASKS:-1} - 1))); do SLURM_PROCID=$task SLURM_LOCALID=$task "$@" & done
code=0; for job in $(jobs -p); do wait "$job" || code=$?; done; exit $code"""
SLURM = {"SLURM_JOB_ID": "1", "SLURM_NNODES": "1", "SLURM_JOB_NODELIST": "localhost", "first": "localhost"}
# Sources of ffmpeg that move; five clips are enough for the intervals of `eval`, and gradients for its banding.
SOURCES = (
    "testsrc2=alpha=255",
    "mandelbrot=end_pts=60",
    "gradients=seed=7",
    "gradients=seed=3:type=spiral",
    "testsrc=decimals=1",
)
UP_S = 60.0  # for the S3 server to come up


class Shelf:
    """Makes what the pages name in `folder`, each thing when it is first asked for; its paths are those that the pages use."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self.folder, self.environment = folder, environment
        self.made: set[str] = set()
        self.lock = threading.RLock()  # several pages are checked at once
        self.is_closed = threading.Event()
        self.makers: dict[str, Callable[[Path], object]] = {
            "in.mp4": lambda path: draw(path, 20),
            "in.mov": lambda path: draw(path, 12),
            "long.mp4": lambda path: draw(path, 60),
            "clips": lambda path: draw_folder(path, 5),
            **dict.fromkeys(("videos", "vids", "val", "shared/vidgen"), draw_folder),
            "myvae": lambda path: write_teacher("ltx", path, latent_channels=8),
            "runs/mine": lambda path: self.distil(path, "tiny", "--init tiny"),  # whose fp16 keeps to the bound of `export`
            "runs/wan": lambda path: self.distil(path, "wan2.1", "--student nano"),
            "runs/ltx": lambda path: self.distil(path, "ltx", "--student nano"),
            "runs/ltx-2": lambda path: self.distil(path, "ltx", "--student nano --seed 1"),
            "latents-ltx": lambda path: self.encode(path, "ltx"),
            "latents-ltx2": lambda path: self.encode(path, "ltx2"),
            "collected/latents-0": lambda path: self.encode(path, "ltx", "--shard 0/2"),
            "collected/latents-1": lambda path: self.encode(path, "ltx", "--shard 1/2"),
            "latents.safetensors": lambda path: save_file({"latents": torch.randn(1, 128, 2, 2, 2)}, path),
            "latents.pt": lambda path: torch.save(torch.randn(1, 8, 128), path),
            "taew2_1.pth": lambda path: write_taehv(path, Layout("base", 16, 1, (1, 2, 2))),
            "taeltx.pth": lambda path: write_taehv(path, Layout("base", 128, 4, (2, 2, 2))),
            "Turbo-VAED-LTX.pth": write_published,
            "alexnet.pth": lambda path: torch.save(random_trunk("alex"), path),
            "detector.pt": scripted_detector,
            "detector.pt.sha256": lambda path: path.write_text(sha256_of(self.take("detector.pt")), encoding="utf-8"),
        }

    def take(self, name: str) -> Path:
        """Return the path of `name`, made now if it is not there."""
        path = self.folder / name
        with self.lock:
            if name not in self.made:
                path.parent.mkdir(parents=True, exist_ok=True)
                self.makers[name](path)
                self.made.add(name)
        return path

    def distil(self, run: Path, teacher: str, more: str) -> None:
        """Train a student for two steps."""
        self.take("videos")
        small = "--recipe quick --steps 2 --batch-size 1 --frames 9 --size 64 --dtype fp32 --yes -q"
        self.run(f"turbovaed distill --teacher {teacher} --data videos --run {run} {small} {more}")

    def encode(self, cache: Path, teacher: str, more: str = "") -> None:
        """Make a cache of small clips."""
        self.take("shared/vidgen")
        small = "--frames 9 --size 64 --clips-per-video 1 --yes -q"
        self.run(f"turbovaed cache-latents --teacher {teacher} --data shared/vidgen --out {cache} {small} {more}")

    def run(self, command: str) -> None:
        """Run a command in the shelf's folder; raises CommandError unless it ends with 0."""
        done = execute(command, self.folder, self.environment)
        if done.code:
            raise CommandError("\n".join([f"$ {command}", *done.lines[-10:]]))


def draw(path: Path, frames: int, source: str = SOURCES[0]) -> None:
    """Draw a clip of 160x96."""
    path.parent.mkdir(parents=True, exist_ok=True)
    drawn = ["-f", "lavfi", "-i", f"{source}:size=160x96:rate=10", "-frames:v", str(frames), "-pix_fmt", "yuv420p"]
    subprocess.run([get_ffmpeg_exe(), "-v", "error", *drawn, str(path)], check=True)


def draw_folder(folder: Path, count: int = 2) -> None:
    """Draw clips of 34 frames."""
    for number, source in enumerate(SOURCES[:count]):
        draw(folder / f"{number}.mp4", 34, source)


def write_teacher(name: str, folder: Path, **config: object) -> None:
    """Write a small instance of a teacher, with the latents of the real one or of `config`."""
    before = SMALL[name]
    SMALL[name] = {key: value for key, value in before.items() if key not in OF_LATENTS} | config
    try:
        write_small_teacher(name, folder)
    finally:
        SMALL[name] = before


def write_taehv(path: Path, layout: Layout) -> None:
    """Write random weights in TAEHV's format."""
    torch.save(TAEHV(layout).state_dict(), path)


def write_published(path: Path) -> None:
    """Write random weights in the format of the published student of LTX-Video."""
    torch.manual_seed(0)
    torch.save(StudentDecoder(**find_model("ltx").student.config).state_dict(), path)


def hub_files(shelf: Shelf) -> dict[str, bytes]:
    """Return what the loopback hub serves: small teachers, the published student, the detector of rFVD."""
    files = {f"{I3D_FILE.repo}/{I3D_FILE.filename}": shelf.take("detector.pt").read_bytes()}
    for name in ON_HUB:
        teacher = find_model(name).teacher
        folder = shelf.folder / "hub" / name
        write_teacher(name, folder)
        files |= {f"{teacher.repo}/{teacher.folder}/{path.name}": path.read_bytes() for path in folder.iterdir()}
    published = find_model("ltx").student.published
    assert published is not None
    return files | {f"{published.repo}/{published.filename}": shelf.take("Turbo-VAED-LTX.pth").read_bytes()}


@contextmanager
def s3_server(shelf: Shelf) -> Iterator[None]:
    """Serve a bucket with the videos of shared/vidgen; s3fs finds it by variables of the shelf's environment."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    names = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    command = [sys.executable, "-c", f"from moto.server import main; main(['-H', '127.0.0.1', '-p', '{port}'])"]
    with (shelf.folder / "s3.log").open("wb") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + UP_S
        while not answers(port):
            if server.poll() is not None or time.monotonic() > deadline:
                raise CommandError((shelf.folder / "s3.log").read_text(encoding="utf-8"))
            time.sleep(0.1)
        shelf.environment |= names
        source = shelf.take("shared/vidgen")
        script = f"import s3fs; s3 = s3fs.S3FileSystem(); s3.mkdir('bucket'); s3.put('{source}', 'bucket/vidgen', recursive=True)"
        shelf.run(f'"{sys.executable}" -c "{script}"')
        yield
    finally:
        server.kill()
        server.wait()


def answers(port: int) -> bool:
    """Return whether something on this machine listens on a port."""
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


@contextmanager
def opened(folder: Path) -> Iterator[Shelf]:
    """Yield a shelf in `folder`, with its hub, its S3 server and its programs running."""
    torch.manual_seed(0)
    programs = folder / "programs"
    programs.mkdir(parents=True)
    write_turbovaed(programs)
    write_program(programs, "srun", SRUN)
    write_program(programs, "scontrol", "echo localhost")
    environment = SLURM | {
        "PATH": f"{programs}:{Path(sys.executable).parent}:{os.environ['PATH']}",
        "HF_HOME": str(folder / "hf"), "HF_TOKEN": TOKEN, "HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0",
        "TORCH_HOME": str(folder / "torch"), "TURBOVAED_CACHE": str(folder / "cache"), "WANDB_MODE": "offline",
        "NO_PROXY": "127.0.0.1,localhost", "no_proxy": "127.0.0.1,localhost", "CUDA_VISIBLE_DEVICES": "",
    }  # fmt: skip
    shelf = Shelf(folder / "shelf", environment)
    hub = Hub(hub_files(shelf))
    hub.private[f"{USER}/name"] = True
    environment["HF_ENDPOINT"] = hub.url
    try:
        with s3_server(shelf):
            yield shelf
    finally:
        hub.close()
