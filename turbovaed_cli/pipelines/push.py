"""`push`: upload a student to the Hugging Face hub, after consent.

The files go up by the hub's LFS protocol, and Xet is switched off. A student has some ten to hundred megabytes, of which nothing
is worth deduplicating by chunks. With LFS all files appear in one commit, and what a cut leaves is known: an object that was sent
whole is not sent again, one that was cut starts again, and the repository is unchanged until the commit.
"""

import logging
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, constants, get_token
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled, RepositoryNotFoundError
from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

from turbovaed_cli.errors import MissingError, OutputExistsError, SettingsError, TurboVaedError
from turbovaed_cli.files.whole import sha256_of, whole_folder
from turbovaed_cli.pipelines.package import NAMES, SAMPLE, Source, licence_of_package, package_files, write_package
from turbovaed_cli.registry.download import Consent, RemoteFile, agrees, check_reachable, no_consent, reason_of, without_retry_log
from turbovaed_cli.registry.hub import parse_hub_id
from turbovaed_cli.reporting import Reporter, quiet
from turbovaed_cli.version import __version__

_AGAIN = "objects that were sent whole are not sent again: repeat the command"
_REFUSED = {
    401: ("the hub refuses the token", "set HF_TOKEN to a valid token with write access: https://huggingface.co/settings/tokens"),
    403: ("the token may not write there", "take a token with write access to it: https://huggingface.co/settings/tokens"),
}


@dataclass(frozen=True)
class PushedFile:
    """A file of the repository."""

    name: str
    num_bytes: int
    sha256: str


@dataclass(frozen=True)
class PushResult:
    """The result of `push`."""

    repo: str
    private: bool
    files: list[PushedFile]
    url: str | None = None  # of the repository; None for a dry run
    commit: str | None = None  # the newest commit of the repository
    changed: bool = False  # whether this push made that commit
    folder: Path | None = None  # the written folder, if one was asked for


def push(
    where: str | Path,
    repo: str,
    *,
    out: str | Path | None = None,
    dry_run: bool = False,
    public: bool = False,
    sample: bool = True,
    allow: tuple[str, ...] = (),
    overwrite: bool = False,
    consent: Consent = no_consent,
    report: Reporter = quiet,
) -> PushResult:
    """Upload the student in `where` (a run folder or a saved model folder) to `repo` ("user/name") on the hub, in one commit.

    The files are weights, config, card, evaluations of the run and, with `sample`, its newest sample strip. `out` keeps the
    folder; with `dry_run` nothing else is done. A new repository is private unless `public`. `consent` is asked with the files
    and their size. Files that `push` did not write stay in the repository, except older evaluations.

    Raises SettingsError for local paths, the user's name or a token in a file (`allow` lists texts that may be public),
    OutputExistsError for `out`, MissingError without token, network or consent, and TurboVaedError if the upload fails.
    """
    place = parse_hub_id(repo)
    if place is None or place.file or place.revision:
        raise SettingsError(f"{repo!r} is no repository of the hub", "user/name, or organisation/name")
    if dry_run and out is None:
        raise SettingsError("`dry_run` writes a folder and uploads nothing", "name the folder: `out` DIR")
    if out is not None:
        _check_out(Path(out), Source.at(where))
    if not dry_run:
        _check_ready(repo)
    with _folder(out, overwrite=overwrite) as folder:
        write_package(where, repo, folder, with_sample=sample, allowed=allow, report=report)
        files = [PushedFile(name, path.stat().st_size, sha256_of(path)) for name, path in package_files(folder).items()]
        if dry_run:
            return PushResult(repo, not public, files, folder=Path(str(out)))
        _ask(where, repo, folder, files, consent)
        return _upload(repo, folder, files, public=public, out=out, report=report)


def _check_out(out: Path, source: Source) -> None:
    """Raise an error if writing the folder `out` would replace the student itself, or files that `push` did not write."""
    if source.model.resolve().is_relative_to(out.resolve()):
        raise SettingsError(f"{out} holds the student that is published", "another folder: `out` DIR")
    others = sorted(one.name for one in out.iterdir() if one.name not in NAMES) if out.is_dir() else []
    if others:
        raise OutputExistsError(f"{out} holds {others[0]}, which `push` did not write", "give a new folder: `out` DIR")


@contextmanager
def _folder(out: str | Path | None, *, overwrite: bool) -> Iterator[Path]:
    """Yield an empty folder: the one that becomes `out`, or a temporary one."""
    if out is not None:
        with whole_folder(Path(out), overwrite=overwrite) as folder:
            yield folder
        return
    with tempfile.TemporaryDirectory(prefix="turbovaed-push-") as temporary:
        yield Path(temporary)


def _check_ready(repo: str) -> None:
    """Raise MissingError if there is no token or no way to the hub, before anything is read."""
    if constants.HF_HUB_OFFLINE:
        raise MissingError(
            "HF_HUB_OFFLINE is set: nothing can be uploaded", f"unset it, or write the folder for {repo}: `dry_run`, `out` DIR"
        )
    if get_token() is None:
        hint = "set HF_TOKEN to a token with write access (https://huggingface.co/settings/tokens), or run: hf auth login"
        raise MissingError("there is no token for the hub", hint)
    try:
        check_reachable(constants.ENDPOINT)
    except OSError as error:
        reason = error.strerror or reason_of(error)
        raise MissingError(
            f"the hub cannot be reached ({reason})", "check the network; `dry_run` with `out` DIR needs none"
        ) from error


def _ask(where: str | Path, repo: str, folder: Path, files: list[PushedFile], consent: Consent) -> None:
    """Ask for consent with the files; raises MissingError without it."""
    licence = licence_of_package(folder)
    asked = [RemoteFile("upload", repo, file.name, file.num_bytes, licence) for file in files]
    total = sum(file.num_bytes for file in files)
    if not agrees(consent, asked, total):
        raise MissingError(
            f"nothing was uploaded to {repo} without consent ({len(files)} files, {total / 1e6:,.1f} MB)",
            f"turbovaed push {where} {repo} --yes uploads them; --dry-run --out DIR writes them to look at",
        )


def _upload(
    repo: str, folder: Path, files: list[PushedFile], *, public: bool, out: str | Path | None, report: Reporter
) -> PushResult:
    """Create the repository if need be, and commit the files."""
    api = HfApi(library_name="turbovaed", library_version=__version__)
    with _errors_of_uploads(repo), _over_lfs():
        private, before, names = _repository(api, repo, public=public, report=report)
        old = [
            name
            for name in names
            if name.startswith("eval/") and name.endswith(".json") and name not in {one.name for one in files}
        ]
        adds = [CommitOperationAdd(name, str(path)) for name, path in package_files(folder).items()]
        deletes = [CommitOperationDelete(name) for name in old]
        message = f"Upload a student with turbovaed {__version__}"
        commit = api.create_commit(repo, [*adds, *deletes], commit_message=message)
    kept = Path(str(out)) if out is not None else None
    return PushResult(repo, private, files, f"{constants.ENDPOINT}/{repo}", commit.oid, commit.oid != before, kept)


def _repository(api: HfApi, repo: str, *, public: bool, report: Reporter) -> tuple[bool, str | None, list[str]]:
    """Return whether the repository is private, its newest commit and its files; a missing one is created.

    Raises SettingsError for a public repository if `public` is not set.
    """
    try:
        info: Any = api.model_info(repo)
    except RepositoryNotFoundError:
        api.create_repo(repo, private=not public)
        return not public, None, []
    if not info.private and not public:
        raise SettingsError(f"{repo} is public: everybody can read what is uploaded", "add `public=True` if that is meant")
    if info.private and public:
        report.note(f"{repo} stays private: its page on the hub has the setting", warning=True)
    return bool(info.private), info.sha, [one.rfilename for one in info.siblings or ()]


@contextmanager
def _over_lfs() -> Iterator[None]:
    """Switch Xet off for the uploads within, and the client's own messages and bars."""
    shows_bars = not are_progress_bars_disabled()
    log, before = logging.getLogger("huggingface_hub"), constants.HF_HUB_DISABLE_XET
    level = log.level
    constants.HF_HUB_DISABLE_XET = True
    log.setLevel(logging.ERROR)
    try:
        if shows_bars:
            disable_progress_bars()
        with without_retry_log():
            yield
    finally:
        constants.HF_HUB_DISABLE_XET = before
        if shows_bars:
            enable_progress_bars()
        log.setLevel(level)


@contextmanager
def _errors_of_uploads(repo: str) -> Iterator[None]:
    """Turn the errors of an upload into ours, each with a hint."""
    try:
        yield
    except TurboVaedError:
        raise
    except OfflineModeIsEnabled as error:
        raise MissingError("HF_HUB_OFFLINE is set: nothing can be uploaded", "unset it") from error
    except ValueError as error:  # of the hub's check of the card; a refused request may be one too
        if isinstance(error, HfHubHTTPError):
            raise _failed(repo, error) from error
        reason = " ".join(str(error).split())
        raise TurboVaedError(
            f"the hub refuses the card: {reason}", f"mend README.md; {SAMPLE} and the others are fine"
        ) from error
    except Exception as error:  # the hub's client and its HTTP client have many kinds
        raise _failed(repo, error) from error


def _failed(repo: str, error: Exception) -> TurboVaedError:
    """Return our error for one of the client's, which may be the cause of another."""
    found: BaseException | None = error
    while found is not None and not isinstance(found, HfHubHTTPError):
        found = found.__cause__
    status = found.response.status_code if isinstance(found, HfHubHTTPError) else None
    if status in _REFUSED:
        what, hint = _REFUSED[status]
        return MissingError(f"{repo}: {what}", hint)
    return TurboVaedError(f"uploading to {repo} failed: {reason_of(error)}", _AGAIN)
