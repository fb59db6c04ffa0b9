"""MODELS, the table of every registry row by its name: our own, and those of installed packages.

A package adds teachers with an entry point of the group "turbovaed.teachers" that names a ModelSpec, or several in a tuple.
"""

from collections.abc import Iterable
from importlib.metadata import entry_points

from turbovaed_cli.registry.specs import ModelSpec
from turbovaed_cli.registry.teachers import (
    autoencoder_dc,
    autoencoder_kl,
    cogvideox,
    cosmos,
    flux2,
    hunyuan,
    hunyuan15,
    ltx,
    ltx2,
    svd,
    tiny,
    video_dc_ae,
    wan,
)

GROUP = "turbovaed.teachers"
_IMAGES = (*autoencoder_kl.ROWS, *flux2.ROWS, *autoencoder_dc.ROWS, *svd.ROWS)
_OWN = (
    *ltx.ROWS, *ltx2.ROWS, *wan.ROWS, *hunyuan.ROWS, *hunyuan15.ROWS, *cogvideox.ROWS, *video_dc_ae.ROWS, *cosmos.ROWS,
    *_IMAGES, *tiny.ROWS,
)  # fmt: skip


def _of_packages(taken: Iterable[str]) -> tuple[list[ModelSpec], list[str]]:
    """Return the rows of installed packages, and a sentence for each that cannot be used. A broken package stops nothing."""
    names, rows, problems = set(taken), [], []
    for point in entry_points(group=GROUP):
        source = f"the entry point {point.name} ({point.value})"
        try:
            found = point.load()
        except Exception as error:  # whatever the package raises
            problems.append(f"{source} cannot be loaded: {type(error).__name__}: {error}")
            continue
        for row in (found,) if isinstance(found, ModelSpec) else tuple(found) if isinstance(found, Iterable) else (found,):
            if not isinstance(row, ModelSpec):
                problems.append(f"{source} holds a {type(row).__name__}, not a ModelSpec")
            elif clash := names & {row.name, *row.aliases}:
                problems.append(f"{source} names a teacher {min(clash)}, and there is one of that name")
            else:
                names |= {row.name, *row.aliases}
                rows.append(row)
    return rows, problems


_added, PROBLEMS = _of_packages(name for spec in _OWN for name in (spec.name, *spec.aliases))
MODELS: dict[str, ModelSpec] = {spec.name: spec for spec in (*_OWN, *_added)}
ADDED = frozenset(spec.name for spec in _added)
TEACHER_LICENCES = {name: spec.teacher.licence for name, spec in MODELS.items()}
DEFAULT_MODEL = "tiny"
