"""Weight files and documents as somebody would plant them: pickles that run code, headers that lie, JSON that never ends."""

import io
import json
import os
import pickle
import struct
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch
from safetensors.torch import save


class Touch:
    """Unpickled by anything that trusts pickles, it makes a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


def saved(value: object, **options: object) -> bytes:
    content = io.BytesIO()
    torch.save(value, content, **options)
    return content.getvalue()


def torchscript(marker: Path) -> bytes:
    """An archive whose code runs as soon as it is loaded, and writes a file."""

    class Bites(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.marker = str(marker)
            self.unused = torch.zeros(1)

        @torch.jit.export
        def __getstate__(self) -> str:
            return self.marker

        @torch.jit.export
        def __setstate__(self, state: str) -> None:
            self.marker = state
            self.training = False
            self.unused = torch.zeros(1)
            torch.save(self.unused, state)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x

    content = io.BytesIO()
    torch.jit.save(torch.jit.script(Bites()), content)
    return content.getvalue()


def pickles(marker: Path) -> dict[str, bytes]:
    """Everything with code in it, by name."""
    torn = saved({"conv_in.conv.weight": Touch(marker)})
    return {
        "pickle": pickle.dumps({"a": Touch(marker)}, protocol=2),
        "pickle, protocol 4": pickle.dumps(Touch(marker), protocol=4),
        "zip pickle": saved({"a": Touch(marker)}),
        "legacy torch pickle": saved({"a": Touch(marker)}, _use_new_zipfile_serialization=False),
        "TorchScript": torchscript(marker),
        "torn zip pickle": torn[: len(torn) * 3 // 4],
    }


def _zipped(value: object) -> bytes:
    """The same archive with compressed records."""
    packed = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(saved(value))) as source, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as target:
        for item in source.infolist():
            target.writestr(item.filename, source.read(item))
    return packed.getvalue()


def wrong_tables(some: torch.Tensor) -> dict[str, bytes]:
    """.pth files without code that are no state dict."""
    return {
        "not tensors": saved({"state_dict": {"a": 3, "b": "text"}}),
        "a list": saved([some, some]),
        "numbered": saved({0: some}),
        "one tensor": saved(some),
        "nothing": b"",
        "compressed": _zipped({"a": torch.zeros(4_000_000)}),
        "endless": saved({"latents_mean": torch.zeros(1).expand(10**12), "features.0.weight": torch.zeros(1).expand(10**12)}),
        "without data": saved({"a": torch.zeros(3, device="meta")}),
        "sparse": saved({"a": torch.zeros(3, 3).to_sparse()}),
        "quantized": saved({"a": torch.quantize_per_tensor(torch.zeros(3), 1.0, 0, torch.qint8)}),
    }


def header(text: str | bytes, data: bytes = b"", length: int | None = None) -> bytes:
    text = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def _entry(dtype: object = "F32", shape: object = (1,), offsets: object = (0, 4)) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def lying_headers() -> dict[str, bytes]:
    """.safetensors that say what is not so."""
    four = b"\0" * 4
    nest = "[" * 60_000
    one = json.dumps(_entry())
    documents = {
        "overlapping": {"a": _entry(), "b": _entry()},
        "out of bounds": {"a": _entry(offsets=(0, 4 * 10**9), shape=(10**9,))},
        "backwards": {"a": _entry(offsets=(4, 0))},
        "a hole": {"a": _entry(offsets=(4, 8))},
        "huge shape": {"a": _entry(shape=(2**40, 2**40))},
        "shape that overflows": {"a": _entry(shape=(2**63, 2))},
        "negative": {"a": _entry(shape=(-1,))},
        "no such type": {"a": _entry("F7")},
        "empty and huge": {"a": _entry(shape=(0, 2**40), offsets=(0, 0)), "b": _entry()},
        "offsets that are text": {"a": _entry(offsets="04")},
        "metadata that is a list": {"__metadata__": [1], "a": _entry()},
    }
    return {
        "header of 2^63 bytes": header("{}", length=2**63),
        "header beyond the file": header("{}", length=10**6),
        "header that is no JSON": header(b"\xff\xfe{{{"),
        "header nested deeply": header(nest + "]" * len(nest), four),
        "a key twice": header(f'{{"a":{one},"a":{one}}}', four),
        **{name: header(json.dumps(document), four) for name, document in documents.items()},
    }


def spoilt(good: Mapping[str, torch.Tensor]) -> Iterator[tuple[str, bytes]]:
    """A good file with one thing wrong in it."""
    key = next(name for name, value in good.items() if value.is_floating_point() and value.ndim)

    def with_change(change: Callable[[torch.Tensor], torch.Tensor]) -> bytes:
        return save({**good, key: change(good[key].clone()).contiguous()})

    def put(value: float) -> Callable[[torch.Tensor], torch.Tensor]:
        def change(tensor: torch.Tensor) -> torch.Tensor:
            tensor.view(-1)[-1] = value
            return tensor

        return change

    yield "NaN", with_change(put(float("nan")))
    yield "infinity", with_change(put(float("inf")))
    yield "whole numbers", with_change(lambda tensor: tensor.to(torch.int64))
    yield "truths", with_change(lambda tensor: tensor.bool())
    yield "complex", with_change(lambda tensor: tensor.to(torch.complex64))
    yield "another shape", with_change(lambda tensor: torch.cat([tensor, tensor]))
    yield "no dimension", with_change(lambda tensor: tensor.sum())


def documents() -> dict[str, bytes]:
    """JSON that is none, never ends, or is of another kind."""
    deep = 100_000
    return {
        "nested lists": b"[" * deep + b"]" * deep,
        "nested objects": b'{"a":' * deep + b"1" + b"}" * deep,
        "cut nest": b'{"settings":' + b"[" * deep,
        "a huge number": b'{"latent_channels": ' + b"9" * 5000 + b"}",
        "a list": b"[1, 2]",
        "text": b'"_class_name"',
        "nothing": b"",
        "bytes": bytes(range(256)),
        "null": b"null",
    }


def wrong_configs(good: Mapping[str, object]) -> Iterator[tuple[str, bytes]]:
    """A good config with one value that nobody should build."""
    for name, value in good.items():
        wrong: list[object] = [10**12, "10", [], {}, None, float("nan")] if name[:1] != "_" else []
        if isinstance(value, list):
            wrong += [[10**9] * len(value), ["a"] * len(value), [value[0]] * 10_000 if value else [1] * 10_000]
        for number, other in enumerate(wrong):
            yield f"{name} {number}", json.dumps({**good, name: other}).encode()
