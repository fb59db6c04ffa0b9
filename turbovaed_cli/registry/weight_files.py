"""The files of a local teacher: those with its weights, their size, and their licence."""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from turbovaed_cli.errors import MissingError, SettingsError, WeightFileError
from turbovaed_cli.files.documents import fits, parse_json, plain_name, read_text

WEIGHTS_FILE = "diffusion_pytorch_model.safetensors"
_STEM = WEIGHTS_FILE.removesuffix(".safetensors")
_SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt")
_MOST_SHARDS = 1000
_MOST_HEADER_BYTES = 100_000_000  # the limit of safetensors itself
_LICENCE_FILE = re.compile(r"(licen[sc]e|copying)([-_.].*)?", re.IGNORECASE)
_MOST_LETTERS = 100  # of a licence's name


@dataclass(frozen=True)
class WeightFiles:
    """The file, or the shards, that hold a teacher's weights."""

    files: tuple[Path, ...]
    keys: dict[str, str] | None = None  # of shards: the file of each tensor, as their index has it
    index: Path | None = None

    @property
    def name(self) -> Path:
        """The file that errors name: the index of shards, else the weight file."""
        return self.index or self.files[0]

    @property
    def num_bytes(self) -> int:
        """The size of all files together."""
        return sum(path.stat().st_size for path in self.files)


def weight_files(folder: Path, name: str = WEIGHTS_FILE) -> WeightFiles:
    """Return the weights of a VAE folder: `name`, diffusers' own file, its shards, one variant (fp16), or the only weight file.

    Raises MissingError for a folder without weights or with missing shards. Raises SettingsError for several files of which
    none is the obvious one, and for an index that names files outside of the folder.
    """
    for path in (folder / name, folder / WEIGHTS_FILE):
        if path.is_file():
            return _shards(path) if path.suffix == ".json" else WeightFiles((path,))
    indexes = sorted(folder.glob(f"{_STEM}.safetensors.index*.json"))
    plain = folder / f"{_STEM}.safetensors.index.json"
    if plain in indexes or len(indexes) == 1:
        return _shards(plain if plain in indexes else indexes[0])
    shards = re.compile(r".*-\d{5}-of-\d{5}\..*")
    whole = sorted(
        path for path in folder.iterdir() if path.suffix in _SUFFIXES and path.is_file() and not shards.fullmatch(path.name)
    )
    variants = [path for path in whole if path.name.startswith(f"{_STEM}.") and path.suffix == ".safetensors"]
    for found in (variants, whole):
        if len(found) == 1 and not indexes:
            return WeightFiles((found[0],))
    names = ", ".join(path.name for path in (*indexes, *(variants or whole)))
    if names:
        raise SettingsError(
            f"{folder} holds several weight files and no {name}: {names}",
            f"`teacher` {folder / (variants or whole or indexes)[0].name}",
        )
    if lone := sorted(path.name for path in folder.iterdir() if shards.fullmatch(path.name)):
        raise MissingError(
            f"{folder} holds {lone[0]} and no {plain.name}", "copy the index from the source of the shards into this folder"
        )
    raise MissingError(f"{folder} holds no {name}", "a teacher folder has config.json and the weights next to it")


def _shards(index: Path) -> WeightFiles:
    """Return the shards that an index names; all have to be files of its folder."""
    hint = "get the index and its shards from the source of the weights"
    try:
        document = parse_json(read_text(index))
    except (ValueError, OSError) as error:
        raise SettingsError(f"{index} is not an index of shards: {error}", hint) from error
    keys = document.get("weight_map") if isinstance(document, dict) else None
    if not fits(keys, dict[str, str]) or not keys:
        raise SettingsError(f"{index} is not an index of shards: it has no weight_map", hint)
    names = sorted(set(keys.values()))
    for name in names:
        if not plain_name(name) or not name.endswith(".safetensors"):
            raise SettingsError(f"{index} names {name!r}, which is no safetensors file of its folder", hint)
    if len(names) > _MOST_SHARDS:
        raise SettingsError(f"{index} names {len(names)} shards", f"at most {_MOST_SHARDS} are possible")
    missing = [name for name in names if not (index.parent / name).is_file()]
    if missing:
        more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
        raise MissingError(f"{index.parent} holds no {missing[0]}{more}, which {index.name} names", hint)
    return WeightFiles(tuple(index.parent / name for name in names), keys, index)


def tensor_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Return the names and shapes of the tensors in a .safetensors file, from its header; raises WeightFileError."""
    try:
        with path.open("rb") as file:
            length = min(int.from_bytes(file.read(8), "little"), _MOST_HEADER_BYTES)
            header = parse_json(file.read(length).decode())
        shapes = {name: item["shape"] for name, item in header.items() if name != "__metadata__"}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise WeightFileError(f"{path} is not a readable safetensors file: {error}", "give the folder of a whole VAE") from error
    if not all(fits(shape, list[int]) for shape in shapes.values()):
        raise WeightFileError(f"{path} is not a readable safetensors file: a shape is none", "give the folder of a whole VAE")
    return {name: tuple(shape) for name, shape in shapes.items()}


def decoder_size(weights: WeightFiles) -> int | None:
    """Return the number of parameters of the decoder, from the headers of .safetensors files; None for other files.

    Raises WeightFileError for weights without a decoder.
    """
    if any(path.suffix != ".safetensors" for path in weights.files):
        return None
    shapes = {name: shape for path in weights.files for name, shape in tensor_shapes(path).items()}
    prefix = key_prefix(shapes)
    sizes = [math.prod(shape) for name, shape in shapes.items() if name.startswith(f"{prefix}decoder.")]
    if not sizes:
        raise WeightFileError(f"{weights.name.name} holds no decoder", "give the folder of a whole VAE")
    return sum(sizes)


def key_prefix(names: Any) -> str:
    """Return the prefix that every tensor of a VAE has in the checkpoint of a larger model, or ''."""
    return next((prefix for prefix in ("vae.", "first_stage_model.", "module.") if _all_begin(names, prefix)), "")


def _all_begin(names: Any, prefix: str) -> bool:
    return bool(names) and all(name.startswith(prefix) for name in names)


# --- licence ------------------------------------------------------------------------------------------------------


def licence_of(folder: Path) -> str:
    """Return the licence that a VAE folder states in its card or LICENSE file, or that of the pipeline it is a part of.

    Without one it is "unknown: that of the VAE in NAME"; nothing is concluded from the class of the VAE.
    """
    places = [folder] + ([folder.parent] if (folder.parent / "model_index.json").is_file() else [])
    for place in places:
        for found in (_licence_of_card(place / "README.md"), *_licences_of_files(place)):
            if found:
                return found
    return f"unknown: that of the VAE in {folder.resolve().name}"


def is_known(licence: str) -> bool:
    """Whether a licence was read or given: its text does not begin with "unknown"."""
    return not licence.startswith("unknown")


def _licence_of_card(path: Path) -> str | None:
    """Return `license_name`, else `license`, from the block at the head of a model card; None without one."""
    text = _text_of(path)
    if text is None or not text.startswith("---\n"):
        return None
    block = text[4:].partition("\n---")[0]
    named = dict(re.findall(r"^(license|license_name):[ \t]*(\S.*?)[ \t]*$", block, re.MULTILINE))
    value = named.get("license_name") or named.get("license") or ""
    return _short(value.strip("\"'")) if value.strip("\"'") not in ("", "other", "unknown") else None


def _licences_of_files(folder: Path) -> Iterator[str | None]:
    """Yield the first line of each file with a name such as LICENSE, with the version that may be in the second line."""
    for path in sorted(folder.iterdir()):
        if _LICENCE_FILE.fullmatch(path.name) and path.is_file():
            lines = [line.strip(" #*\t") for line in (_text_of(path) or "").splitlines()]
            lines = [line for line in lines if line]
            if lines:
                version = f", {lines[1]}" if len(lines) > 1 and lines[1].lower().startswith("version") else ""
                yield _short(lines[0] + version)


def _text_of(path: Path) -> str | None:
    try:
        return read_text(path) if path.is_file() else None
    except (ValueError, OSError):
        return None


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= _MOST_LETTERS else f"{text[: _MOST_LETTERS - 3]}..."
