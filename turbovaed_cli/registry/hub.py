"""Repositories on the hub by their id: `user/name`, `user/name@revision`, or one file of them, `user/name/file.pth`.

A path wins over an id: a name whose first folder is on this machine is a path, unless the repository is in the hub's cache and
the path does not exist. Nothing is requested before consent, not even the list of files. Of a repository only .safetensors and
.json files and its card are downloaded: no code, and no pickles but for a file that is named.
"""

import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from turbovaed_cli.errors import MissingError, MissingWeightsError, SettingsError
from turbovaed_cli.files.documents import plain_name
from turbovaed_cli.registry.download import (
    Consent,
    RemoteFile,
    agrees,
    ask_for,
    cached_file,
    download,
    hub_errors,
    no_consent,
)
from turbovaed_cli.registry.rows import MODELS
from turbovaed_cli.registry.weight_files import WEIGHTS_FILE, weight_files

_NAME = r"[A-Za-z0-9](?:[\w.-]*[A-Za-z0-9_])?"
_WEIGHTS = r"\.(?:safetensors|pth|pt|bin|ckpt)"
_HUB_ID = re.compile(
    rf"(?P<repo>{_NAME}/{_NAME})(?:/(?P<file>(?:{_NAME}/)*{_NAME}{_WEIGHTS}))?(?:@(?P<revision>[A-Za-z0-9][\w./-]*))?", re.ASCII
)
_OTHER_FILES = re.compile(rf".*(?:{_WEIGHTS}|\.(?:json|mp4|onnx|latent|toml|yaml))", re.ASCII | re.IGNORECASE)
# The folders of a pipeline that hold a teacher, or parts of one.
_FOLDERS = ("vae", *dict.fromkeys(name for spec in MODELS.values() for name in spec.teacher.beside))
_STEM = WEIGHTS_FILE.removesuffix(".safetensors")
_LISTING = "the list of files"


@dataclass(frozen=True)
class HubId:
    """A repository on the hub, and perhaps a revision (branch, tag or commit) and one file of it."""

    repo: str
    revision: str | None = None
    file: str | None = None

    def __str__(self) -> str:
        """Return the id as it is given to `--model`."""
        return self.repo + (f"/{self.file}" if self.file else "") + (f"@{self.revision}" if self.revision else "")


def parse_hub_id(name: str) -> HubId | None:
    """Return the repository that a name can stand for; None for a name that is no hub id."""
    found = _HUB_ID.fullmatch(name)
    if found is None or _OTHER_FILES.fullmatch(found["repo"]) or ".." in name or "--" in found["repo"]:
        return None
    return HubId(found["repo"], found["revision"], found["file"])


def hub_id(name: str | Path) -> HubId | None:
    """Return the repository that a name stands for; None for a path: one that exists, or whose first folder does.

    A repository in the hub's cache is found although its first folder is on this machine.
    """
    place = parse_hub_id(name) if isinstance(name, str) else None
    if place is None or Path(str(name)).exists():
        return None
    return place if not Path(place.repo.partition("/")[0]).is_dir() or _cached(place) is not None else None


def is_absent(name: str | Path) -> bool:
    """Whether a name stands for a repository on the hub that is not in the cache."""
    place = hub_id(name)
    return place is not None and _cached(place) is None


def hides_cached(name: str) -> bool:
    """Whether a path hides a repository of the same name that is in the hub's cache: the path is used."""
    place = parse_hub_id(name)
    return place is not None and Path(name).exists() and _cached(place) is not None


def also_on_hub(name: str | Path) -> str:
    """Return the end of a hint for a path that does not exist, if it could be a hub id too; "" otherwise."""
    place = parse_hub_id(name) if isinstance(name, str) else None
    return "" if place is None else f"; a model on the hub: turbovaed models pull {place}, then the same command"


def hub_folder(where: str | HubId, consent: Consent = no_consent) -> Path:
    """Return the folder of a repository in the hub's cache, or the path of the file that the id names; downloads it if need be.

    The folder holds a model at its root or in vae/. A repository in the cache is used as it is, without a request: `hub_files`
    brings newer files. `consent` is asked twice: for the list of files (0 bytes), then for the download. Raises
    MissingWeightsError without consent, without network, or for a repository that is not there or gated.
    """
    place = where if isinstance(where, HubId) else parse_hub_id(where)
    if place is None:
        raise SettingsError(f"{where!r} is no id of the hub", "user/name, or user/name@revision")
    if (found := _cached(place)) is not None:
        return found
    hub_files(place, consent)
    found = _cached(place)
    if found is None:
        raise MissingWeightsError(f"{place} changed while it was downloaded", f"turbovaed models pull {place} --yes")
    return found


def hub_files(place: HubId, consent: Consent = no_consent) -> list[Path]:
    """Return the files of a repository in the cache, the newest of its revision; missing ones are downloaded after consent.

    Raises as `hub_folder` does, and SettingsError for a repository without a model in diffusers' layout.
    """
    again, by_hand = (
        f"turbovaed models pull {place} --yes",
        f"on a machine with network: hf download {place.repo} --local-dir DIR",
    )
    offer = f"{again} downloads it"
    if not agrees(consent, [RemoteFile(f"model {place}", place.repo, _LISTING, 0, "unknown", place.revision)], 0):
        raise MissingWeightsError(
            f"{place} is not on this machine, neither as a path nor in the hub's cache",
            f"`consent=True` downloads it from the hub, as does {again}; or {by_hand}",
        )
    listing = _listing(place, again, by_hand)
    files = _wanted(place, listing)
    if missing := [file for file in files if not _has_blob(file, listing)]:
        ask_for(str(place), missing, consent, f"{offer} ({missing[0].licence})", by_hand)
    return [download(file, again, by_hand) for file in files]  # for a file in the cache it is one small request


def _has_blob(file: RemoteFile, listing: Any) -> bool:
    """Whether the cache has the content of a file, in any revision; its name there is the hash that the hub states."""
    from huggingface_hub import constants

    one = next(one for one in listing.siblings if one.rfilename == file.filename)
    digest = one.lfs.sha256 if one.lfs is not None else one.blob_id
    repository = Path(constants.HF_HUB_CACHE) / f"models--{file.repo.replace('/', '--')}"
    return digest is not None and plain_name(digest) and (repository / "blobs" / digest).is_file()


def _cached(place: HubId) -> Path | None:
    """Return the folder, or the file, of a repository that is complete in the hub's cache; None if it is not. No request."""
    if place.file is not None:
        return _cached_path(place, place.file)
    for name in ("config.json", *(f"{folder}/config.json" for folder in _FOLDERS)):
        if (config := _cached_path(place, name)) is None:
            continue
        root = config.parents[name.count("/")]
        parts = [config.parent] if "/" not in name else [one for one in map(root.joinpath, _FOLDERS) if one.is_dir()]
        return root if all(map(_has_weights, parts)) else None
    return None


def _cached_path(place: HubId, name: str) -> Path | None:
    return cached_file(RemoteFile("", place.repo, name, 0, "", place.revision))


def _has_weights(folder: Path) -> bool:
    """Whether the weights of a folder are complete: they are downloaded last, after its config.json."""
    try:
        return weight_files(folder).num_bytes > 0
    except (MissingError, SettingsError, OSError):
        return False


def _listing(place: HubId, again: str, by_hand: str) -> Any:
    """Return what the hub states of a repository: its files with their sizes, and its card's licence."""
    from huggingface_hub import HfApi, constants

    with hub_errors(str(place), place.repo, again, by_hand):
        if constants.HF_HUB_OFFLINE:  # the client's own error has other words
            from huggingface_hub.errors import OfflineModeIsEnabled

            raise OfflineModeIsEnabled
        return HfApi().model_info(place.repo, revision=place.revision, files_metadata=True, timeout=constants.HF_HUB_ETAG_TIMEOUT)


def _wanted(place: HubId, listing: Any) -> list[RemoteFile]:
    """Return the files to download, small ones first: the named one, else those of the model at the root or in the folders."""
    sizes = {str(one.rfilename): int(one.size or 0) for one in listing.siblings or ()}
    card = listing.card_data
    licence = str((card.get("license_name") or card.get("license")) if card is not None else None or "") or "unknown"
    if place.file is not None:
        if place.file not in sizes:
            raise MissingWeightsError(f"{place.repo} holds no {place.file}", _held(sizes))
        names = [place.file, *(name for name in (_beside(place.file, "config.json"),) if name in sizes)][::-1]
    else:
        at_root = "config.json" in sizes
        folders = [""] if at_root else [f"{one}/" for one in _FOLDERS if f"{one}/config.json" in sizes]
        if not folders:
            raise SettingsError(f"{place} holds no config.json at its root or in vae/", _held(sizes))
        weights = [name for folder in folders for name in _weights_in(place, folder, sizes)]
        # No manifest.json: it may name code, which is not downloaded, and every file is checked against the hub's own hash.
        texts = [f"{folder}config.json" for folder in folders]
        names = [name for name in ("README.md", "model_index.json", *texts) if name in sizes] + weights
    return [RemoteFile(f"model {place}", place.repo, name, sizes[name], licence, place.revision) for name in names]


def _beside(file: str, name: str) -> str:
    return str(PurePosixPath(file).with_name(name))


def _held(sizes: dict[str, int]) -> str:
    """Return the hint that lists the weight files of a repository, to be named one by one."""
    files = sorted(name for name in sizes if re.search(rf"{_WEIGHTS}$", name))
    return f"name a file of it, user/name/FILE; it holds {', '.join(files[:5])}" if files else "it holds no weights"


def _weights_in(place: HubId, folder: str, sizes: dict[str, int]) -> list[str]:
    """Return the safetensors of a folder ("" or ending in /): diffusers' file, its shards and their index, or the only one."""
    here = [name.removeprefix(folder) for name in sizes if name.startswith(folder) and plain_name(name.removeprefix(folder))]
    tensors = sorted(name for name in here if name.endswith(".safetensors"))
    if WEIGHTS_FILE in tensors:
        return [f"{folder}{WEIGHTS_FILE}"]
    index = f"{_STEM}.safetensors.index.json"
    if index in here:
        return [f"{folder}{index}", *(f"{folder}{name}" for name in tensors if name.startswith(f"{_STEM}-"))]
    named = [name for name in tensors if name.startswith(f"{_STEM}.")] or tensors
    if len(named) != 1:
        where = f"{place.repo}/{folder}".rstrip("/")
        what = "several safetensors files and none of them" if named else "no safetensors file, and no"
        raise SettingsError(f"{where} holds {what} {WEIGHTS_FILE}", _held(sizes))
    return [f"{folder}{named[0]}"]
