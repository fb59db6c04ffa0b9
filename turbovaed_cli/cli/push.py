"""The command `turbovaed push`."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from turbovaed_cli.cli import console
from turbovaed_cli.cli.completion import complete_model
from turbovaed_cli.cli.exits import command
from turbovaed_cli.cli.options import Overwrite, Show, check_folder
from turbovaed_cli.cli.table import print_table
from turbovaed_cli.errors import MissingError
from turbovaed_cli.registry.download import RemoteFile
from turbovaed_cli.setting import setting
from turbovaed_cli.units import human_bytes

if TYPE_CHECKING:
    from turbovaed_cli.pipelines.push import PushResult


@dataclass(frozen=True)
class Upload:
    """What is uploaded, and whether that is agreed to."""

    out: Path | None = setting(None, "Folder to write the uploaded files to.", "Input and output", metavar="DIR")
    dry_run: bool = setting(False, "Only write the folder --out; upload nothing.", "Input and output")
    public: bool = setting(
        False, "Create the repository as public, or add to a public one. By default it is private.", "Input and output"
    )
    sample: bool = setting(
        True, "Upload the newest sample strip: frames of a training clip.", "Input and output", flag="--sample/--no-sample"
    )
    allow: tuple[str, ...] = setting(
        (), "Text that may be uploaded although it looks like a local path or a user name.", "Input and output", metavar="TEXT", many=True,
        by_commas=False,
    )  # fmt: skip
    yes: bool = setting(False, "Agree to the upload.", "Terminal")

    def consent(self, files: Sequence[RemoteFile], total_bytes: int) -> bool:
        """Agree because of --yes, or by asking on a terminal after the list of files; never otherwise."""
        if not self.yes and not console.is_interactive():
            return False
        for file in files:
            console.note(f"{file.filename}, {human_bytes(file.num_bytes)}")
        first = files[0]
        whole = f"{human_bytes(total_bytes)} to {first.repo}{'' if self.public else ', private'}, licence {first.licence}"
        if self.yes:
            console.note(f"uploading {whole}")
            return True
        if not console.confirm(f"Upload {whole}?"):
            raise MissingError("nothing was uploaded, as you chose", "run it again and answer y, or add `yes=True`")
        return True


EXAMPLES = """\
turbovaed push runs/ltx user/ltx-student --dry-run --out to-publish
turbovaed push runs/ltx user/ltx-student
turbovaed push runs/ltx/model user/ltx-student --public --yes"""


@command
def push(
    *,
    run: Annotated[
        str,
        typer.Argument(
            metavar="RUN", help="Run folder or saved model folder.", autocompletion=complete_model, show_default=False
        ),
    ],
    repo: Annotated[str, typer.Argument(metavar="REPO", help="Repository on the hub: user/name.", show_default=False)],
    upload: Upload,
    overwrite: Overwrite = False,
    show: Show,
) -> None:
    """Upload a student to the Hugging Face hub: weights, config, card, evaluations, sample. It lists the files and asks first."""
    if upload.out is not None:
        check_folder(str(upload.out), "`out`")
    from turbovaed_cli.pipelines.push import push as run_push

    result = run_push(
        run,
        repo,
        out=upload.out,
        dry_run=upload.dry_run,
        public=upload.public,
        sample=upload.sample,
        allow=upload.allow,
        overwrite=overwrite,
        consent=upload.consent,
        report=show.report,
    )
    if show.json:
        console.print_json(result)
    else:
        _show_result(result)
    _show_next(result)


def _show_result(result: "PushResult") -> None:
    title = f"{result.repo} ({'private' if result.private else 'public'})"
    rows = [(file.name, human_bytes(file.num_bytes), file.sha256[:16]) for file in result.files]
    print_table(title, ["file", "size", "sha256"], rows)


def _show_next(result: "PushResult") -> None:
    if result.folder is not None:
        console.note(f"written to {result.folder}")
    if result.url is None:
        console.note("nothing was uploaded")
    elif not result.changed:
        console.note(f"nothing has changed since the last push: {result.url}")
    else:
        console.note(f"uploaded to {result.url}, commit {(result.commit or '')[:10]}")
        console.note(f"next: turbovaed reconstruct in.mp4 --model {result.repo}")
