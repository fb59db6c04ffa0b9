"""export.json: the records of all artefacts in a folder."""

import platform
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from turbovaed_cli.errors import CorruptFileError
from turbovaed_cli.export.compare import Artifact
from turbovaed_cli.files.documents import check_fields, plain_name
from turbovaed_cli.files.sealed import read_json
from turbovaed_cli.machine.devices import environment
from turbovaed_cli.models.decoder import Decoder
from turbovaed_cli.models.student import StudentDecoder
from turbovaed_cli.registry.rows import MODELS

_RAW = "(1, C, t, h, w) in the raw latent space of the teacher's VAE, as its encode() returns them"
_NORMALISED = "(1, C, t, h, w), normalised, as diffusion pipelines compute with them"


def conventions(student: Decoder) -> dict[str, str]:
    """Return shapes, ranges, teacher and licence of a decoder, for the records and files of an export."""
    if not isinstance(student, StudentDecoder):
        return {
            "latents": _RAW if student.latents == "raw" else _NORMALISED,
            "video": "(1, 3, T, H, W) in [-1, 1]",
            "teacher": str(student.teacher),
            "licence": student.licence,
            "family": student.family,
        }
    teacher = student.config.teacher
    return {
        "latents": _RAW,
        "video": "(1, 3, T, H, W) in [-1, 1], not clamped",
        "teacher": str(teacher),
        "licence": MODELS[teacher].teacher.licence if teacher in MODELS else "that of the teacher",
    }


def records_beside(document: Path, made: Sequence[Artifact]) -> list[dict[str, Any]]:
    """Return the records of the new artefacts, after those of earlier exports whose files are still there."""
    names = {item.path.name.removesuffix(".unverified") for item in made}
    earlier = read_records(document) if document.is_file() else []
    kept = [
        item
        for item in earlier
        if item["path"].removesuffix(".unverified") not in names and (document.parent / item["path"]).exists()
    ]
    return kept + [{**asdict(item), "path": item.path.name} for item in made]


_TIME = 2  # the dimension of a chunk's latents that is time
# The fields of a record that the README uses.
_RECORD = {
    **dict.fromkeys(("path", "format", "precision", "graph", "status"), str),
    **dict.fromkeys(("psnr_db", "max_abs"), float | None),
    "verified": bool | str,
    "size_mb": float,
    "checked_on": str | None,
    "chunk": dict[str, Any] | None,
    "functions": list[str] | None,
    "shapes": list[list[int]],
}


def read_records(document: Path) -> list[dict[str, Any]]:
    """Return the records in an export.json. Raises CorruptFileError if it is not one."""
    found = read_json(document)
    check_fields(found, {"artifacts": list[dict[str, Any]]}, document)
    for number, item in enumerate(found["artifacts"]):
        check_fields(item, _RECORD, document, f"artifacts.{number}.")
        for name in ("max_abs", "psnr_db", "checked_on"):
            item.setdefault(name, None)
        chunk = item.get("chunk") or {"latents": [0, 0, 0]}
        check_fields(chunk, {"latents": list[int]}, document, f"artifacts.{number}.chunk.")
        whole = (item["psnr_db"] is None) == (item["max_abs"] is None) and item["shapes"] and len(chunk["latents"]) > _TIME
        if not whole:
            raise CorruptFileError(f"{document}: artifacts.{number} is no record of an export", "export to another `out`")
        if not plain_name(item["path"]):
            raise CorruptFileError(
                f"{document} names {item['path']!r}, which is no file of its folder", "export to another `out`"
            )
    return list(found["artifacts"])


def export_document(student: Decoder, records: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the contents of export.json."""
    here = environment()
    return {
        "schema_version": 1,
        "versions": {"turbovaed": here["turbovaed"], "python": here["python"], **here["packages"]},
        "machine": f"{platform.system()} {platform.machine()}",
        **conventions(student),
        "artifacts": records,
    }
