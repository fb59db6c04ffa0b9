"""What the self-contained modeling file has in place of the package: its own source, and diffusers' base classes if needed.

The package itself imports nothing from here; `self_contained.py` copies it into the file that it generates.
"""

import functools
import inspect
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

WEIGHTS_NAME = "diffusion_pytorch_model.safetensors"


def modeling_source() -> str:
    """Return the source of this file."""
    return Path(__file__).read_text(encoding="utf-8")


GpuDecoder = None  # the choice of a form on a GPU needs turbovaed


def decode_on_gpu(student: nn.Module, latents: torch.Tensor) -> Any:
    """Decode latents by the modules."""
    return student(latents)


class _Config(dict[str, Any]):
    """A config whose values are attributes too."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


class BaseOutput:
    """The result of `decode`: `.sample`, or `[0]`."""

    def __getitem__(self, index: int) -> Any:
        return list(vars(self).values())[index]


class ConfigMixin:
    """A class whose arguments are its config."""

    config_name = "config.json"
    config: _Config

    @classmethod
    def extract_init_dict(cls, config_dict: Mapping[str, Any], **_options: Any) -> tuple[dict[str, Any], ...]:
        """Return the arguments of the class in a config, and the other keys."""
        known = set(inspect.signature(cls.__init__).parameters) - {"self"}
        given = {key: value for key, value in config_dict.items() if key in known}
        return given, {key: value for key, value in config_dict.items() if key not in known}

    def register_to_config(self, **facts: Any) -> None:
        """Add facts to the config."""
        self.__dict__["config"] = _Config({**self.__dict__.get("config", {}), **facts})

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Any:
        """Return an instance with random weights; keys that are no arguments are ignored."""
        return cls(**cls.extract_init_dict(config)[0])

    def to_json_string(self) -> str:
        """Return config.json."""
        return json.dumps({**self.config, "_class_name": type(self).__name__}, indent=2, sort_keys=True) + "\n"

    def save_config(self, save_directory: str | Path, **_options: Any) -> None:
        """Write config.json."""
        (Path(save_directory) / self.config_name).write_text(self.to_json_string(), encoding="utf-8")


def register_to_config(init: Callable[..., None]) -> Callable[..., None]:
    """Make the arguments of a constructor the config of the instance."""

    @functools.wraps(init)
    def with_config(self: ConfigMixin, *arguments: Any, **options: Any) -> None:
        bound = inspect.signature(init).bind(self, *arguments, **options)
        bound.apply_defaults()
        self.register_to_config(**{name: value for name, value in bound.arguments.items() if name != "self"})
        init(self, *arguments, **options)

    return with_config


class ModelMixin(nn.Module):
    """A module that knows its device and precision, and loads from a folder or a file."""

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """The precision of the weights."""
        return next(self.parameters()).dtype

    @classmethod
    def from_pretrained(cls, where: str | Path, *, use_safetensors: bool = True) -> Any:
        """Load a folder with config.json and safetensors, or a .safetensors file with the config in its header.

        It is on the CPU, in the precision of the file and in eval mode. Raises RuntimeError naming keys that do not fit.
        """
        from safetensors import safe_open  # noqa: PLC0415
        from safetensors.torch import load_file  # noqa: PLC0415

        path = Path(where) / WEIGHTS_NAME if Path(where).is_dir() else Path(where)
        if path.name == WEIGHTS_NAME:
            text = path.with_name("config.json").read_text(encoding="utf-8")
        else:
            with safe_open(path, framework="pt") as file:
                text = (file.metadata() or {}).get("config", "{}")
        return cls.from_weights(json.loads(text), load_file(path))

    @classmethod
    def from_weights(cls, config: Mapping[str, Any], state: Mapping[str, torch.Tensor]) -> Any:
        """Return the model of a config with copies of the weights of a state dict, in their precision and in eval mode.

        Alignment heads are left out. No memory is taken for a network that the weights do not fit. Raises RuntimeError naming the keys that are missing, unexpected or misshapen.
        """
        statistics = {key: state[key].float().tolist() for key in ("latents_mean", "latents_std") if key in state}
        with torch.device("meta"):
            model = cls.from_config({**config, **statistics})  # type: ignore[attr-defined]
        own = model.state_dict()
        # Copies: the tensors of a file are a view of it, which on Windows could not be replaced any more.
        kept = {key: value.clone() for key, value in state.items() if key in own or not _is_beside(key)}
        model.load_state_dict(kept, assign=True)
        return model.eval()

    def save_pretrained(self, save_directory: str | Path, **_options: Any) -> None:
        """Write the folder that `from_pretrained` loads."""
        from safetensors.torch import save_file  # noqa: PLC0415

        self.save_config(save_directory)  # type: ignore[operator]
        state = {name: value.detach().cpu().contiguous() for name, value in self.state_dict().items()}
        save_file(state, Path(save_directory) / WEIGHTS_NAME, metadata={"format": "pt"})


def _is_beside(key: str) -> bool:
    """Whether a key of a weight file belongs to training or to the latents, not to the network."""
    return key.startswith("aligned_feature_projection_heads.") or key in ("latents_mean", "latents_std")
