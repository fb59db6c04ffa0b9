"""The README next to exported artefacts: what each one is, how it was checked, and the code that loads it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from string import Template
from typing import Any

ORT_WEB = "1.30.0"  # onnxruntime-web; the Makefile installs the same for the tests
MARK = "<!-- written by turbovaed export -->"
LATENTS_FILE = "latents.safetensors"  # in a folder of artefacts

# Blocks of code by format and kind of graph: (language, lines). $file is the artefact's name, $latents that of the latents file.
_CODE: dict[tuple[str, str], list[tuple[str, str]]] = {
    ("onnx", "clip"): [
        (
            "python",
            """\
import onnxruntime
from safetensors.numpy import load_file

session = onnxruntime.InferenceSession("$file")
latents = load_file("$latents")["latents"]  # (1, C, t, h, w), float32: $sizes
(video,) = session.run(None, {"latents": latents})  # (1, 3, T, H, W) in [-1, 1]$clamped
""",
        ),
        (
            "javascript",
            """\
// <script src="https://cdn.jsdelivr.net/npm/onnxruntime-web@$version/dist/ort.all.min.js"></script>
async function decode(data, shape) {  // a Float32Array and [1, C, t, h, w]
  const session = await ort.InferenceSession.create("$file", {
    executionProviders: navigator.gpu ? ["webgpu", "wasm"] : ["wasm"],
  });
  const { video } = await session.run({ latents: new ort.Tensor("float32", data, shape) });
  return video;  // video.dims is [1, 3, T, H, W], video.data in [-1, 1]
}
""",
        ),
        (
            "kotlin",
            """\
// implementation("com.microsoft.onnxruntime:onnxruntime-android:latest.release")
import ai.onnxruntime.OnnxTensor
import ai.onnxruntime.OrtEnvironment
import java.io.File
import java.nio.FloatBuffer

fun decode(filesDir: File, data: FloatArray): FloatBuffer {  // ($shape)
    val environment = OrtEnvironment.getEnvironment()
    environment.createSession(File(filesDir, "$file").path).use { session ->
        OnnxTensor.createTensor(environment, FloatBuffer.wrap(data), longArrayOf($shape)).use { latents ->
            session.run(mapOf("latents" to latents)).use { outputs ->
                return (outputs[0] as OnnxTensor).floatBuffer  // (1, 3, T, H, W) in [-1, 1]
            }
        }
    }
}
""",
        ),
    ],
    ("onnx", "chunk"): [
        (
            "python",
            """\
import numpy as np
import onnxruntime
from safetensors.numpy import load_file

session = onnxruntime.InferenceSession("$file")
latents = load_file("$latents")["latents"]  # (1, C, t, h, w): any t, of this h and w
total, chunk = latents.shape[2], $chunk
kept = {i.name: np.zeros(i.shape, np.float32) for i in session.get_inputs() if i.name.startswith("kept_")}
frames, start = [], 0
while len(frames) < $delay + total * $rate - $dropped:  # past the clip's end, until its last frame is out
    piece = latents[:, :, start : start + chunk]
    piece = np.pad(piece, ((0, 0), (0, 0), (0, chunk - piece.shape[2]), (0, 0), (0, 0)))
    window = np.array([start, total], np.int32)  # the clip's length may be 2**20 until its last latents are here
    video, *keeps = session.run(None, {"latents": piece, "window": window, **kept})
    kept = dict(zip(kept, keeps))
    frames += list(video[0].transpose(1, 0, 2, 3))
    start += chunk
video = np.stack(frames[$delay : $delay + total * $rate - $dropped], axis=1)  # (3, T, H, W) in [-1, 1]
""",
        )
    ],
    ("coreml", "clip"): [
        (
            "swift",
            """\
import CoreML

let configuration = MLModelConfiguration()
configuration.computeUnits = .all  // .cpuAndNeuralEngine keeps the GPU free
${function}let compiled = try await MLModel.compileModel(at: URL(fileURLWithPath: "$file"))
let model = try MLModel(contentsOf: compiled, configuration: configuration)
let latents = try MLMultiArray(shape: [$shape], dataType: .float32)  // fill it with the clip's latents
let inputs = try MLDictionaryFeatureProvider(dictionary: ["latents": latents])
let video = try await model.prediction(from: inputs).featureValue(for: "video")!.multiArrayValue!  // (1, 3, T, H, W)
""",
        ),
        (
            "text",
            """\
# on a Mac, in Python
import coremltools
from safetensors.numpy import load_file

model = coremltools.models.MLModel("$file")
video = model.predict({"latents": load_file("$latents")["latents"]})["video"]
""",
        ),
    ],
    ("coreml", "chunk"): [
        (
            "swift",
            """\
import CoreML

let compiled = try await MLModel.compileModel(at: URL(fileURLWithPath: "$file"))
let model = try MLModel(contentsOf: compiled, configuration: MLModelConfiguration())
var kept: [String: MLMultiArray] = [:]  // zeros before the first chunk
for (name, about) in model.modelDescription.inputDescriptionsByName where name.hasPrefix("kept_") {
    let zeros = try MLMultiArray(shape: about.multiArrayConstraint!.shape, dataType: .float32)
    for index in 0..<zeros.count { zeros[index] = 0 }
    kept[name] = zeros
}
/// Takes $chunk latent frames (start: latent frames before them; total: of the clip, or 1 << 20 until the last are here).
/// Returns $chunk * $rate pixel frames. The first $delay of all are not part of the video, which has total * $rate - $dropped.
func push(_ latents: MLMultiArray, start: Int32, total: Int32) throws -> MLMultiArray {
    let window = try MLMultiArray([NSNumber(value: start), NSNumber(value: total)])
    var inputs: [String: MLMultiArray] = kept
    inputs["latents"] = latents
    inputs["window"] = window
    let outputs = try model.prediction(from: MLDictionaryFeatureProvider(dictionary: inputs))
    for name in kept.keys {
        kept[name] = outputs.featureValue(for: name.replacingOccurrences(of: "kept_", with: "keeps_"))!.multiArrayValue!
    }
    return outputs.featureValue(for: "video")!.multiArrayValue!
}
""",
        )
    ],
    ("executorch", "clip"): [
        (
            "python",
            """\
import torch
from executorch.runtime import Runtime
from safetensors.torch import load_file

method = Runtime.get().load_program("$file").load_method("forward")
latents = load_file("$latents")["latents"]  # exactly ($shape), float32
(video,) = method.execute([latents])  # (1, 3, T, H, W) in [-1, 1]
""",
        ),
        (
            "kotlin",
            """\
// implementation("org.pytorch:executorch-android:latest.release")
import java.io.File
import org.pytorch.executorch.EValue
import org.pytorch.executorch.Module
import org.pytorch.executorch.Tensor

fun decode(filesDir: File, data: FloatArray): FloatArray {
    val module = Module.load(File(filesDir, "$file").path)
    val latents = Tensor.fromBlob(data, longArrayOf($shape))
    return module.forward(EValue.from(latents))[0].toTensor().dataAsFloatArray  // (1, 3, T, H, W) in [-1, 1]
}
""",
        ),
        (
            "swift",
            """\
import ExecuTorch

let module = Module(filePath: "$file")
try module.load("forward")
let latents = Tensor<Float>(data, shape: [$shape])
let video: Tensor<Float> = try module.forward(latents)[0].tensor()!  // (1, 3, T, H, W) in [-1, 1]
""",
        ),
    ],
    ("litert", "clip"): [
        (
            "python",
            """\
from ai_edge_litert.interpreter import Interpreter
from safetensors.numpy import load_file

interpreter = Interpreter(model_path="$file")
interpreter.allocate_tensors()
latents = load_file("$latents")["latents"]  # exactly ($shape), float32
interpreter.set_tensor(interpreter.get_input_details()[0]["index"], latents)
interpreter.invoke()
video = interpreter.get_tensor(interpreter.get_output_details()[0]["index"])  # (1, 3, T, H, W) in [-1, 1]
""",
        ),
        (
            "kotlin",
            """\
// implementation("com.google.ai.edge.litert:litert:latest.release")
import com.google.ai.edge.litert.Accelerator
import com.google.ai.edge.litert.CompiledModel
import java.io.File

fun decode(filesDir: File, data: FloatArray): FloatArray {  // ($shape)
    val model = CompiledModel.create(File(filesDir, "$file").path, CompiledModel.Options(Accelerator.GPU))
    val inputs = model.createInputBuffers()
    val outputs = model.createOutputBuffers()
    inputs[0].writeFloat(data)
    model.run(inputs, outputs)
    return outputs[0].readFloat()  // (1, 3, T, H, W) in [-1, 1]
}
""",
        ),
    ],
    ("coreml", "chunk with states"): [
        (
            "swift",
            """\
import CoreML

let compiled = try await MLModel.compileModel(at: URL(fileURLWithPath: "$file"))
let model = try MLModel(contentsOf: compiled, configuration: MLModelConfiguration())
let state = model.makeState()  // one per clip being decoded; iOS 18
/// Takes $chunk latent frames (start: latent frames before them; total: of the clip, or 1 << 20 until the last are here).
/// Returns $chunk * $rate pixel frames. The first $delay of all are not part of the video, which has total * $rate - $dropped.
func push(_ latents: MLMultiArray, start: Int32, total: Int32) throws -> MLMultiArray {
    let window = try MLMultiArray([NSNumber(value: start), NSNumber(value: total)])
    let inputs = try MLDictionaryFeatureProvider(dictionary: ["latents": latents, "window": window])
    return try model.prediction(from: inputs, using: state).featureValue(for: "video")!.multiArrayValue!
}
""",
        )
    ],
    ("torch-export", "clip"): [
        (
            "python",
            """\
import torch
from safetensors.torch import load_file

decode = torch.export.load("$file").module()
with torch.no_grad():
    video = decode(load_file("$latents")["latents"])  # (1, 3, T, H, W) in [-1, 1]; $sizes
""",
        )
    ],
    ("safetensors", "clip"): [
        (
            "python",
            """\
import torch
from safetensors.torch import load_file
from turbovaed_cli import load_student

student = load_student("$file")  # config and latent statistics are in its header; a drop-in for pipe.vae's decode
with torch.no_grad():
    video = student.decode(load_file("$latents")["latents"]).sample  # (B, 3, T, H, W) in [-1, 1]
""",
        )
    ],
    ("comfyui", "clip"): [
        (
            "text",
            """\
Copy $file to ComfyUI/models/vae and choose it in the node "Load Turbo-VAED student".
The node pack is the folder comfyui/ of turbovaed: copy it to ComfyUI/custom_nodes/turbovaed.
""",
        )
    ],
}


def loading_instructions(
    records: Sequence[Mapping[str, Any]],
    latents: str = LATENTS_FILE,
    *,
    of_student: bool = True,
    facts: Mapping[str, str] | None = None,
) -> str:
    """Return the README for these records of export.json; `latents` is the name of the latents file next to them.

    `facts` are the conventions of the decoder, which a README of a decoder that is no student (`of_student`) shows.
    """
    facts = facts or {}
    licence = _LICENCE_OF_STUDENT if of_student else _LICENCE.format(**facts)
    takes_raw = of_student or "raw" in facts.get("latents", "")
    about = Template(_ABOUT if takes_raw else _ABOUT_NORMALISED).substitute(latents=latents, licence=licence)
    lines = [MARK, "# Exported decoders", "", about if of_student else about.replace("to the student's", "to the decoder's"), ""]
    for record in records:
        lines += _section(record, latents)
    return "\n".join(lines) + "\n"


_LICENCE_OF_STUDENT = "Every file is under the **teacher's** licence."
_LICENCE = "This is a decoder of the family **{family}**; its licence: {licence}."

_ABOUT_NORMALISED = """\
`export.json` records how each file was checked, and how close its video is to the decoder's. `$latents` holds the latents of the
check. $licence The tests of turbovaed run the Python and JavaScript code below, and compile the Kotlin code against stubs of
the runtimes. The Swift code is parsed, not compiled.

The decoders take **normalised** latents, as diffusion pipelines compute with them."""

_ABOUT = """\
`export.json` records how each file was checked, and how close its video is to the student's. `$latents` holds the latents of the
check and the statistics of the latent space. $licence The tests of turbovaed run the Python
and JavaScript code below, and compile the Kotlin code against stubs of the runtimes. The Swift code is parsed, not compiled.

## Latents of a pipeline
The decoders take **raw** latents, as the teacher's `encode` returns them. Diffusion pipelines compute with **normalised** ones:
convert the result of `output_type="latent"` to raw first. LTX's pipeline also packs it, as `(1, t * h * w, C)`:
```python
from safetensors.numpy import load_file


def raw_latents(latents, shape=None):
    # Latents of a pipeline, float32; for packed ones, `shape` is (t, h, w): latent frames, rows and columns.
    about = load_file("$latents")
    mean, std = (about[name].reshape(1, -1, 1, 1, 1) for name in ("latents_mean", "latents_std"))
    if latents.ndim == 3:  # packed by LTX's pipeline
        latents = latents.reshape(1, *shape, -1).transpose(0, 4, 1, 2, 3)
    return latents * std / about["scaling_factor"] + mean
```
CogVideoX's pipeline returns frames before channels: apply `latents.transpose(0, 2, 1, 3, 4)` first. `turbovaed reconstruct FILE --latents-are normalised` does all of this."""


def _section(record: Mapping[str, Any], latents: str) -> list[str]:
    verdict, is_fixed = record["status"], record.get("fixed_size")
    of = "decoder" if is_fixed else "student"
    if record["psnr_db"] is not None:
        figures = f"{record['psnr_db']:.1f} dB and at most {record['max_abs']:.1e} from the fp32 {of} on {record['checked_on']}"
        verdict = f"{'verified' if record['verified'] else '**not verified: it differs too much**'} ({verdict}; {figures})"
    lines = [
        f"## {record['path']}",
        f"{record['format']}, {record['precision']}, {record['size_mb']:.1f} MB; {verdict}.",
        "",
    ]
    chunk = record.get("chunk") or {}
    shape = record["shapes"][0]
    functions = record.get("functions") or []
    function = f'configuration.functionName = "{functions[0]}"  // one of {", ".join(functions)}\n' if functions else ""
    known = {
        "file": record["path"],
        "latents": latents,
        "version": ORT_WEB,
        "sizes": f"exactly ({', '.join(map(str, shape))})" if is_fixed else "any t, h and w",
        "clamped": "" if is_fixed else ", not clamped",
        "shape": ", ".join(map(str, shape)),
        "function": function,
        "chunk": chunk.get("latents", (0, 0, 0))[2],
        "delay": chunk.get("delay"),
        "rate": chunk.get("frames_per_latent"),
        "dropped": chunk.get("dropped"),
    }
    graph = f"{record['graph']}{' with states' if chunk.get('stateful') else ''}"
    blocks = _CODE.get((record["format"], graph), [])
    if record["format"] == "executorch-coreml":  # the same code loads it in Swift; the Python runtime does not run it
        blocks = [item for item in _CODE.get(("executorch", record["graph"]), []) if item[0] == "swift"]
    for language, code in blocks:
        lines += [f"```{language}", Template(code).substitute(known).rstrip(), "```", ""]
    if not blocks and record["graph"] == "chunk":
        lines += [_CHUNK_IN_WORDS.format(**known), *([_NAMES_OF_LITERT] if record["format"] == "litert" else []), ""]
    return lines


_CHUNK_IN_WORDS = """\
The inputs are `latents` ({chunk} latent frames), `window` (int32: the latent frames before these, and of the whole clip, or 2^20
until its last ones are here) and `kept_0`... (zeros at first, then the `keeps_0`... of the chunk before). The first {delay} output
frames are not part of the video. The video has {rate} frames for each latent frame, less {dropped}."""

_NAMES_OF_LITERT = """\
LiteRT names the inputs `args_0`, `args_1`, ... in this order, the outputs `output_0` (the video), `output_1`, ... (`keeps_0`...)."""


def decoding_page(records: Sequence[Mapping[str, Any]]) -> str | None:
    """Return a page that decodes the latents file next to it with the README's code; None without a verified fp32 ONNX file."""
    rows = [item for item in records if (item["format"], item["graph"], item["precision"]) == ("onnx", "clip", "fp32")]
    if not rows or rows[0]["verified"] is not True:
        return None
    (code,) = (code for language, code in _CODE["onnx", "clip"] if language == "javascript")
    lines = Template(code).substitute(file=rows[0]["path"], version=ORT_WEB).partition("\n")[2]
    template = Path(__file__).with_name("page.html").read_text(encoding="utf-8")
    return Template(template).substitute(file=rows[0]["path"], code=lines, version=ORT_WEB)
