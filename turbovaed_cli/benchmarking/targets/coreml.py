"""Core ML: on a Mac, every choice of compute units, here or on an attached iPhone or iPad, through coremltools' benchmarker.

On other machines the program is converted, checked in torch and described. For an attached device, coremltools builds and
signs an app, which needs Xcode and a development team.
"""

import asyncio
import atexit
from collections import Counter
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import torch
from torch import Tensor

from turbovaed_cli.benchmarking.target import STUDENT, Exported, Running, Target, Variant, Work, not_here
from turbovaed_cli.errors import SettingsError, UnavailableError
from turbovaed_cli.export.format import quietly
from turbovaed_cli.export.formats.coreml import coremltools, runs_here
from turbovaed_cli.machine.devices import apple_device

UNITS = {
    "ALL": "all units",
    "CPU_AND_NE": "CPU and Neural Engine",
    "CPU_AND_GPU": "CPU and GPU",
    "CPU_ONLY": "CPU",
}
_DEVICES = {"MLNeuralEngineComputeDevice": "Neural Engine", "MLGPUComputeDevice": "GPU", "MLCPUComputeDevice": "CPU"}
_SLOWEST = 5  # operators named with their share of the time


def variants(work: Work) -> list[Variant]:
    """Return a variant for each precision, layout and choice of compute units."""
    device = attached_device(work.settings.device) if runs_here() else None
    of_device = f"{device.name}, {device.os_version}: " if device is not None else ""
    found = []
    for precision, layout, artifact in work.artifacts("coreml"):
        for units, words in UNITS.items() if runs_here() else [("", "not run")]:
            found.append(
                Variant(
                    STUDENT,
                    f"Core ML, coremltools {coremltools().__version__}",
                    f"{of_device}{words}",
                    precision,
                    _loader(work, artifact, units),
                    layout,
                    artifact.size_mb,
                    _described(artifact),
                    in_process=device is None,
                )
            )
    return found


def _described(artifact: Exported) -> list[str]:
    most = ", ".join(f"{count} {name}" for name, count in list(artifact.operators.items())[:6])
    return [
        f"{sum(artifact.operators.values())} operators ({most}, ...), {artifact.gmacs:.1f} GMAC per decode",
        f"numbers: {artifact.psnr_db:.1f} dB against the fp32 student ({artifact.status})",
    ]


def _loader(work: Work, artifact: Exported, units: str) -> Callable[[], Running]:
    if not runs_here():
        return not_here(
            "did not run here: converted only. Core ML runs on a Mac (macOS 14 or later)",
            "there: turbovaed bench --target coreml",
        )
    return lambda: OnDevice(artifact, units, _prepared(work.settings.device, work.settings.apple_team))


def attached_device(asked: str) -> Any:
    """Return the attached device that --device names; None for this Mac itself.

    Raises UnavailableError if no such device is attached and trusted, SettingsError if there are several.
    """
    wanted_device = apple_device(asked)
    if wanted_device is None:
        return None
    kind, name = wanted_device
    remote = quietly("coremltools.models.ml_program.experimental.remote_device")
    wanted = {"iphone": remote.DeviceType.IPHONE, "ipad": remote.DeviceType.IPAD}[kind]
    there = remote.Device.get_connected_devices(wanted)
    chosen = [device for device in there if not name or name in (device.name, device.identifier, device.udid)]
    if not chosen:
        names = ", ".join(device.name for device in there) or "none"
        raise UnavailableError(
            f"`device` {asked}: no such device is attached (attached: {names})",
            "connect it, unlock it, trust this Mac, turn Developer Mode on, and let Xcode see it once",
        )
    if len(chosen) > 1:
        raise SettingsError(
            f"`device` {asked}: {len(chosen)} are attached", f"name one: {', '.join(f'{kind}:{d.name}' for d in chosen)}"
        )
    return chosen[0]


@cache
def _loop() -> asyncio.Runner:
    """Return the event loop that all of coremltools' sessions in this process share."""
    return asyncio.Runner()


def _prepared(asked: str, team: str) -> Any:
    """Return the attached device with coremltools' app running on it; None for this Mac. Building takes minutes, once."""
    if (asked, team) not in _known:
        try:
            _known[asked, team] = _prepare(asked, team)
        except Exception as error:
            _known[asked, team] = error
    known = _known[asked, team]
    if isinstance(known, Exception):
        raise known
    return known


_known: dict[tuple[str, str], Any] = {}


def _prepare(asked: str, team: str) -> Any:
    device = attached_device(asked)
    if device is None:
        return None
    remote = quietly("coremltools.models.ml_program.experimental.remote_device")
    credentials = remote.AppSigningCredentials(development_team=team)
    prepared = _loop().run(device.prepare_for_model_debugging(credentials=credentials))
    atexit.register(prepared.session.stop)
    return prepared


class OnDevice:
    """A package loaded on some compute units of this Mac or an attached device; times are measured by the framework."""

    def __init__(self, artifact: Exported, units: str, device: Any) -> None:
        tools = coremltools()
        experimental = quietly("coremltools.models.ml_program.experimental.perf_utils")
        self._device = device
        self._model = tools.models.MLModel(
            str(artifact.path),
            compute_units=tools.ComputeUnit[units],
            skip_model_load=True,  # so that the benchmarker's load is the first
        )
        self._benchmarker = experimental.MLModelBenchmarker(self._model, device)
        self.load_s = _loop().run(self._benchmarker.benchmark_load(iterations=1)).samples[0] / 1e3

    def once(self, latents: Tensor) -> float:
        measured = _loop().run(self._benchmarker.benchmark_predict(inputs={"latents": latents.numpy()}, iterations=1))
        return float(measured.samples[0])

    def video(self, latents: Tensor) -> Tensor:
        wrapper = quietly("coremltools.models.ml_program.experimental.async_wrapper").MLModelAsyncWrapper.from_spec_or_path(
            spec_or_path=self._model.get_spec(),
            weights_dir=self._model.weights_dir,
            compute_units=self._model.compute_unit,
            device=self._device,
        )

        async def run() -> Any:
            await wrapper.load()
            found = await wrapper.predict({"latents": latents.numpy()}, state=None)
            await wrapper.unload()
            return found

        return torch.as_tensor(_loop().run(run())["video"]).float()

    def told(self, latents: Tensor) -> Mapping[str, Any]:
        """Return how many operators are planned for each unit, and the slowest ones with their share of the estimated time."""
        found = _loop().run(self._benchmarker.benchmark_operation_execution(inputs={"latents": latents.numpy()}, iterations=1))
        counts: Counter[str] = Counter()
        for item in found:
            usage = item.compute_device_usage
            if usage is not None:
                preferred = type(usage.preferred_compute_device).__name__
                counts[_DEVICES.get(preferred, preferred)] += 1
        timed = [item for item in found if item.measurement.statistics is not None]
        total = sum(item.measurement.statistics.median for item in timed) or 1.0
        slowest = [{"operator": item.spec.type, "share": item.measurement.statistics.median / total} for item in timed[:_SLOWEST]]
        return {"operators_by_unit": dict(counts.most_common()), "slowest_operators": slowest}


TARGET = Target("coreml", ("fp16", "fp32", "int8", "6bit"), variants)
