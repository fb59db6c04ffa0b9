"""The tensors of any weight file: a plain table, or one of the tables of a training checkpoint."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from turbovaed_cli.errors import WeightFileError
from turbovaed_cli.files.tensors import is_plain_tensor, load_safely

# Where checkpoints keep a decoder's weights, the best first: the averaged ones, then the trained ones.
_TABLES = (("ema_state_dict",), ("state_dict", "gen_model"), ("gen_model",), ("state_dict",), ())
_IN_WORDS = {"ema_state_dict": "the averaged weights", "state_dict.gen_model": "the weights of the last step"}


@dataclass(frozen=True)
class ForeignWeights:
    """The tensors of a weight file by their keys, without `module.` before them.

    `taken` is the table of a checkpoint that they are from, and `left` another table of weights in it.
    """

    path: Path
    state: dict[str, Tensor]
    taken: str = ""
    left: str = ""

    @property
    def note(self) -> str:
        """A sentence on what was taken from a checkpoint; empty for a plain table."""
        if not self.taken:
            return ""
        left = f"; it also holds {self.left}, which is not used" if self.left else ""
        meaning = f", {_IN_WORDS[self.taken]}" if self.taken in _IN_WORDS else ""
        return f"{self.path.name}: {self.taken} is used{meaning}{left}"


def read_foreign(path: Path) -> ForeignWeights:
    """Return the weights in a .safetensors, or in a file of torch.save, which is read without running code.

    Of a training checkpoint's tables the averaged weights are taken, else the trained ones; statistics that only the other
    table has come along. Raises WeightFileError if there is no table of tensors.
    """
    loaded = load_safely(path)
    found = {".".join(place): table for place in _TABLES if (table := _table(loaded, place))}
    if not found:
        raise WeightFileError(
            f"{path} does not hold a plain table of tensors", "give a .safetensors, or a .pth that holds a state dict"
        )
    (taken, state), *others = found.items()
    for _, other in others:
        state |= {key: value for key, value in other.items() if key in ("latents_mean", "latents_std") and key not in state}
    return ForeignWeights(path, state, taken, others[0][0] if others else "")


def _table(loaded: object, place: tuple[str, ...]) -> dict[str, Tensor] | None:
    """Return the table of tensors at a place in a checkpoint; None if there is none, or an empty one."""
    for name in place:
        loaded = loaded.get(name) if isinstance(loaded, Mapping) else None
    if not isinstance(loaded, Mapping) or not loaded:
        return None
    if not all(isinstance(key, str) and is_plain_tensor(value) for key, value in loaded.items()):
        return None
    return {key.removeprefix("module."): value for key, value in loaded.items()}
