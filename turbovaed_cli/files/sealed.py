"""JSON documents and manifests that detect any change of their bytes."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from turbovaed_cli.errors import CorruptFileError
from turbovaed_cli.files.documents import check_fields, parse_json, plain_name, read_text
from turbovaed_cli.files.whole import sha256_of

SEALED_VERSION = 2  # of documents that end in a seal: the sha256 of their own text with zeros in its place
_NO_SEAL = "0" * 64


def sealed(value: Mapping[str, Any]) -> str:
    """Return JSON text whose last field is a seal, so that no bit of it can change unseen."""
    text = json.dumps({"schema_version": SEALED_VERSION, **value, "seal": _NO_SEAL}, indent=2, ensure_ascii=False) + "\n"
    head, _, tail = text.rpartition(_NO_SEAL)
    return head + hashlib.sha256(text.encode()).hexdigest() + tail


def read_sealed(path: Path, hint: str = "restore it, or remove the folder it is in") -> dict[str, Any]:
    """Return a document that `sealed` made. Raises CorruptFileError if it was changed; version 1 had no seal, and passes."""
    text, value = _text_and_object(path)
    if value.get("schema_version") == 1 and "seal" not in value:
        return value
    seal = value.get("seal")
    head, found, tail = text.rpartition(seal if isinstance(seal, str) and len(seal) == len(_NO_SEAL) else _NO_SEAL)
    if not found or hashlib.sha256(f"{head}{_NO_SEAL}{tail}".encode()).hexdigest() != seal:
        raise CorruptFileError(f"{path} is not what was written (its seal does not fit)", hint)
    return value


def read_json(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file; raises CorruptFileError if the file holds anything else."""
    return _text_and_object(path)[1]


def _text_and_object(path: Path) -> tuple[str, dict[str, Any]]:
    try:
        text = read_text(path)
        value = parse_json(text)
    except ValueError as error:
        raise CorruptFileError(
            f"{path} is not JSON: {error}", "it was changed or damaged; restore it or start a new folder"
        ) from error
    if not isinstance(value, dict):
        raise CorruptFileError(
            f"{path} holds a {type(value).__name__}, but an object was written", "restore it or start a new folder"
        )
    return text, value


def write_manifest(folder: Path, **more: Any) -> None:
    """Write manifest.json, sealed: `more`, and the sha256 and size of every file that is in `folder` now."""
    files = {file.name: {"sha256": sha256_of(file), "bytes": file.stat().st_size} for file in sorted(folder.iterdir())}
    (folder / "manifest.json").write_text(sealed({**more, "files": files}), encoding="utf-8")


def verify_manifest(folder: Path) -> dict[str, Any]:
    """Check every file of a folder against its manifest.json and return the manifest.

    Raises CorruptFileError naming the file that differs.
    """
    manifest = read_sealed(folder / "manifest.json")
    check_fields(manifest, {"files": dict[str, Any], "step": int | None}, folder / "manifest.json")
    hint = f"remove {folder} to go on from the checkpoint before" if "step" in manifest else f"restore {folder}"
    for name, wanted in manifest["files"].items():
        if not plain_name(name):
            raise CorruptFileError(f"{folder / 'manifest.json'} names {name!r}, which is no file of its folder", hint)
        check_fields(wanted, {"sha256": str}, folder / "manifest.json", f"files.{name}.")
        file = folder / name
        if not file.is_file():
            raise CorruptFileError(f"{folder} misses {name}", hint)
        if sha256_of(file) != wanted["sha256"]:
            raise CorruptFileError(f"{file} is not what was written (sha256 differs)", hint)
    return manifest
