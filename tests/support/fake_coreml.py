"""coremltools as a Mac has it, on any machine: its own Python code over stand-ins for the native library and for an iPhone.

Only what is native is replaced: the proxies of libcoremlpython (signatures as coremltools calls them), `xcrun devicectl`, and
the app on the phone. Programs are run by our interpreter, so numbers are real.
"""

import time
from importlib import import_module
from pathlib import Path

import torch

from turbovaed_cli.export.formats.coreml import saved_program
from turbovaed_cli.export.formats.mil_interpreter import interpret

EXPERIMENTAL = "coremltools.models.ml_program.experimental"


class Proxy:
    """`_MLModelProxy`: a loaded model."""

    def __init__(self, filename, compute_units, function_name, optimization_hints, asset):
        assert compute_units in ("ALL", "CPU_AND_NE", "CPU_AND_GPU", "CPU_ONLY") and function_name == "" and asset is None
        assert optimization_hints == {}
        self.filename, self.program, self.last = filename, saved_program(Path(filename)), None

    @staticmethod
    def maximum_supported_specification_version():
        return 10

    def predict(self, data, state):
        assert state is None
        began = time.perf_counter_ns()
        found = interpret(self.program, {name: torch.as_tensor(value) for name, value in data.items()})
        self.last = time.perf_counter_ns() - began
        return {name: value.numpy() for name, value in found.items()}

    def get_load_duration_in_nano_seconds(self):
        return 120_000_000

    def get_last_predict_duration_in_nano_seconds(self):
        return self.last

    def get_compiled_model_path(self):
        return self.filename

    @staticmethod
    def get_compute_plan(path, compute_units):
        from coremltools.models.compute_plan import MLComputePlan

        return MLComputePlan(proxy=Plan(Proxy.get_model_structure(path), compute_units))

    @staticmethod
    def get_model_structure(path):
        """From the package, which here is its own compiled form."""
        from coremltools.models import compute_plan as plans

        def block(operations):
            named = [
                plans.MLModelStructureProgramOperation(
                    inputs={},
                    operator_name=op.op_type,
                    outputs=[plans.MLModelStructureProgramNamedValueType(name=out.name, type=None) for out in op.outputs],
                    blocks=[],
                    __proxy__=None,
                )
                for op in operations
            ]
            return plans.MLModelStructureProgramBlock(inputs=[], operations=named, output_names=[])

        functions = {
            name: plans.MLModelStructureProgramFunction(inputs=[], block=block(function.operations))
            for name, function in saved_program(Path(path)).functions.items()
        }
        program = plans.MLModelStructureProgram(functions=functions)
        return plans.MLModelStructure(neuralnetwork=None, program=program, pipeline=None)


class Plan:
    """`_MLComputePlanProxy`: convolutions on the Neural Engine, the rest on the CPU, constants nowhere."""

    def __init__(self, model_structure, compute_units):
        self.model_structure, self.compute_units = model_structure, compute_units

    def get_compute_device_usage_for_mlprogram_operation(self, operation):
        from coremltools.models import compute_device, compute_plan

        if operation.operator_name == "const":
            return None
        engine = operation.operator_name == "conv" and self.compute_units in ("ALL", "CPU_AND_NE")
        device = compute_device.MLNeuralEngineComputeDevice(Nothing()) if engine else compute_device.MLCPUComputeDevice(Nothing())
        return compute_plan.MLComputePlanDeviceUsage(preferred_compute_device=device, supported_compute_devices=[device])

    def get_estimated_cost_for_mlprogram_operation(self, operation):
        from coremltools.models.compute_plan import MLComputePlanCost

        weights = {"const": None, "conv": 0.04}
        weight = weights.get(operation.operator_name, 0.001)
        return None if weight is None else MLComputePlanCost(weight=weight)


class RemotePlan(Plan):
    """`_MLComputePlanRemoteProxy`."""

    def __init__(self, device, compute_plan, model_structure):
        super().__init__(model_structure, compute_plan)


class Nothing:
    """Proxies of compute devices, of which nothing is asked."""


class Service:
    """`_RemoteMLModelService`: the model loaded by the app on the phone."""

    load_duration_in_nano_seconds = 340_000_000

    def __init__(self, compiled_model_path, compute_units):
        self.proxy, self.units = Proxy(str(compiled_model_path), compute_units.name, "", {}, None), compute_units.name

    @classmethod
    async def load_on_device(cls, device, compiled_model_path, compute_units, function_name=None, optimization_hints=None):
        assert isinstance(device.session, Session) and not function_name and not optimization_hints
        return cls(compiled_model_path, compute_units)

    async def predict(self, inputs):
        return self.proxy.predict(inputs, None)

    @property
    def last_predict_duration_in_nano_seconds(self):
        return self.proxy.last

    async def retrieve_compute_plan(self):
        return self.units

    async def unload(self):
        pass


class Session:
    """`_AppSession`: coremltools' app on the phone."""

    def stop(self):
        pass


def phone(name, number):
    from coremltools.models.ml_program.experimental.remote_device import Device, DeviceState, DeviceType

    return Device(
        name=name, type=DeviceType.IPHONE, identifier=f"id{number}", udid=f"udid{number}", os_version="18.1",
        os_build_number="22B83", developer_mode_state="enabled", state=DeviceState.CONNECTED, session=None,
    )  # fmt: skip


def install(monkeypatch, phones=()):
    """Make this machine look like a Mac to coremltools and to turbovaed, with these phones attached."""
    import shutil

    from coremltools.models import compute_device, compute_plan
    from coremltools.models import model as models
    from coremltools.models.ml_program.experimental import async_wrapper, compute_plan_utils, remote_device

    for module in ("export.formats.coreml", "benchmarking.targets.coreml", "benchmarking.bench"):
        monkeypatch.setattr(import_module(f"turbovaed_cli.{module}"), "runs_here", lambda: True)
    for module in (models, compute_plan):
        monkeypatch.setattr(module, "_MLModelProxy", Proxy)
    monkeypatch.setattr(compute_plan, "_MLComputePlanProxy", Plan)
    for name in ("_MLCPUComputeDeviceProxy", "_MLGPUComputeDeviceProxy", "_MLNeuralEngineComputeDeviceProxy"):
        monkeypatch.setattr(compute_device, name, Nothing)
    monkeypatch.setattr(remote_device._DeviceCtl, "get_devices", staticmethod(lambda: list(phones)))

    def build(self, working_directory, build_directory, credentials, clean):
        assert credentials.development_team == "TEAM"
        return Session()

    def compiled(model, destination_path):
        shutil.copytree(model, destination_path)

    monkeypatch.setattr(remote_device.Device, "_build_and_launch_model_runner_app", build)
    monkeypatch.setattr(async_wrapper, "_RemoteMLModelService", Service)
    monkeypatch.setattr(async_wrapper, "compile_model", compiled)
    monkeypatch.setattr(compute_plan_utils, "_MLComputePlanRemoteProxy", RemotePlan)
