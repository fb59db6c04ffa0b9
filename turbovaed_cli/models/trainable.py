"""What `distill` asks of a student, and the families of students that it can train."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, Self, cast

from torch import Tensor

from turbovaed_cli.choices import check_choice
from turbovaed_cli.models.decoder import Decoder
from turbovaed_cli.models.loading import build_student
from turbovaed_cli.models.others.taehv_student import TaehvStudent, build_taehv, config_of_taehv
from turbovaed_cli.models.student import StudentDecoder
from turbovaed_cli.registry.specs import ModelSpec


class Trainable(Decoder, Protocol):
    """A decoder that `distill` can train: a torch module, with what is needed besides `decode`.

    Called with raw latents (B, C, t, h, w) it returns video (B, 3, T, H, W) in [-1, 1], not clamped.
    """

    @property
    def config(self) -> Mapping[str, Any]:
        """The values that `build_trainable` makes the same network of."""
        ...

    @property
    def last_weight(self) -> Tensor:
        """The weight of the last layer, whose gradients balance the adversarial loss."""
        ...

    def features(
        self, latents: Tensor, blocks: Sequence[str], *, with_sample: bool = True
    ) -> tuple[Tensor | None, dict[str, Tensor]]:
        """Decode latents (B, C, t, h, w) to video, and return the outputs of `blocks` with it.

        Raises SettingsError for a block that it does not have.
        """
        ...

    def checkpoint_blocks(self, *, enable: bool) -> None:
        """Switch gradient checkpointing, which changes no gradient."""
        ...

    def save_pretrained(self, save_directory: str | Path) -> None:
        """Write a folder that `load_decoder` loads."""
        ...

    # Those of torch modules.
    __call__: Callable[..., Any]
    parameters: Callable[..., Any]
    named_parameters: Callable[..., Any]
    named_buffers: Callable[..., Any]
    state_dict: Callable[..., Any]
    load_state_dict: Callable[..., Any]

    def to(self, *args: Any, **kwargs: Any) -> Self: ...
    def cpu(self) -> Self: ...
    def train(self, mode: bool = True) -> Self: ...
    def eval(self) -> Self: ...


_OTHERS: Mapping[str, Callable[[Mapping[str, Any]], Any]] = {TaehvStudent.family: build_taehv}
# The whole config of another family's student for a teacher, from what a user gave.
_CONFIGS: Mapping[str, Callable[[Mapping[str, Any], ModelSpec], dict[str, Any]]] = {TaehvStudent.family: config_of_taehv}


def family_of(config: Mapping[str, Any]) -> str:
    """Return the family of a student's config: its `family`, or that of our students. Raises SettingsError if it is unknown."""
    family = str(config.get("family", StudentDecoder.family))
    check_choice("the student config's family", family, (StudentDecoder.family, *_OTHERS))
    return family


def build_trainable(config: Mapping[str, Any]) -> Trainable:
    """Return a student with random weights; its `config` builds the same one again. Raises SettingsError for a bad config."""
    family = family_of(config)
    if family in _OTHERS:
        return cast(Trainable, _OTHERS[family](config))
    return cast(Trainable, build_student({name: value for name, value in config.items() if name != "family"}))


def config_for(config: Mapping[str, Any], spec: ModelSpec) -> dict[str, Any]:
    """Return the config of a student of this teacher, from what a user gave; the latents' statistics are not in it yet.

    Raises SettingsError if the family has no student of the teacher's ratios.
    """
    family = family_of(config)
    return _CONFIGS[family](config, spec) if family in _CONFIGS else dict(config)


def lacks_statistics(config: Mapping[str, Any]) -> bool:
    """Whether the network of a config computes with normalised latents, and nothing in it normalises the teacher's."""
    if family_of(config) not in _OTHERS:
        return False
    mean, std = config.get("latents_mean") or (), config.get("latents_std") or ()
    return not any(mean) and all(one == 1 for one in std) and config.get("scaling_factor") in (None, 1.0)
