"""A student decodes in place of a pipeline's own decoder, until it is taken out again."""

from pathlib import Path
from types import TracebackType
from typing import Any, Self, cast

import torch
from torch import Tensor, nn

from turbovaed_cli.errors import SettingsError
from turbovaed_cli.machine.devices import empty_cache
from turbovaed_cli.models.decoder import Decoder, DecoderOutput
from turbovaed_cli.models.decoders import load_decoder
from turbovaed_cli.pipelines.space import check_same_space, space_of
from turbovaed_cli.pipelines.within import Plans, decode_collected
from turbovaed_cli.registry.download import Consent, no_consent
from turbovaed_cli.reporting import Reporter, quiet
from turbovaed_cli.units import parse_bytes

_METHOD = "decode"


class Attached:
    """A student in a pipeline; `restore` takes it out, as the end of a `with` block does.

    The pipeline keeps its VAE: its encoder, config, statistics and scaling factor, and its hooks. Only `pipe.vae.decode` is
    another function, so the VAE's own decoder never runs, and offloading does not move it to the device.
    """

    def __init__(self, pipe: Any, student: Decoder, *, memory: int | str, follows: bool, report: Reporter) -> None:
        self.pipe, self.vae, self.student = pipe, _vae_of(pipe), student
        self.memory = memory
        self.latents: Tensor | None = None  # those of a decode that failed, raw, (B, C, t, h, w), on the CPU
        self._space = space_of(self.vae).space()
        self._plans: Plans = {}
        self._exact = cast("nn.Module", student).state_dict() if follows else {}
        self._report = report
        self._before = vars(self.vae).get(_METHOD)  # a function that was there before, if any
        self.vae.decode = self.decode

    @property
    def memory(self) -> int:
        """The limit of a decode in bytes; 0 allows 70 % of free memory. It can be set to bytes or text such as "4GB"."""
        return self._memory

    @memory.setter
    def memory(self, limit: int | str) -> None:
        num_bytes = parse_bytes(limit) if isinstance(limit, str) else limit
        if num_bytes < 0:
            raise SettingsError(f"`memory` is {num_bytes}", "bytes, or text such as 4GB; 0 takes what is free")
        self._memory = num_bytes

    @property
    def is_attached(self) -> bool:
        """Whether the student still decodes for the pipeline."""
        return _attached_to(self.vae) is self

    def decode(
        self, z: Tensor, temb: Tensor | None = None, return_dict: bool = True, **_inputs: Any
    ) -> DecoderOutput | tuple[Tensor]:
        """Decode raw latents `z` (B, C, t, h, w), as the VAE's own `decode` does, to `.sample` (B, 3, T, H, W) in [-1, 1].

        The video has the precision of `z`. Timesteps and other inputs of teachers' decoders are not used. If the decode fails,
        the latents are kept in `latents`. Raises SettingsError if the limit of memory is too low.
        """
        # The plan of the pieces cannot be traced. As a decorator, `disable` would take 3 s to import.
        decoded = torch.compiler.disable(self._decoded) if torch.compiler.is_compiling() else self._decoded
        sample = decoded(z)
        return DecoderOutput(sample=sample) if return_dict else (sample,)

    def _decoded(self, z: Tensor) -> Tensor:
        self._make_room(z.device)
        if self._exact and self.student.dtype != z.dtype:
            module = nn.Module.to(cast("nn.Module", self.student), dtype=z.dtype)
            # From the weights as they were loaded: those that were in bf16 meanwhile have lost digits.
            state = {name: value.to(self.student.device) for name, value in self._exact.items()}
            module.load_state_dict(
                {name: value.to(z.dtype) if value.is_floating_point() else value for name, value in state.items()}, assign=True
            )
        latents = z if self.student.latents == "raw" else self._space.normalised(z)
        try:
            sample = decode_collected(self.student, latents, self.memory, plans=self._plans, report=self._report)
        except Exception:
            self.latents = z.detach().cpu()
            raise
        finally:
            self._go_home()
        self.latents = None
        return sample

    def restore(self) -> None:
        """Give the pipeline its own decoder back. Without effect if that was done before."""
        if not self.is_attached:
            return
        if self._before is None:
            del self.vae.decode
        else:
            self.vae.decode = self._before

    def _make_room(self, device: torch.device) -> None:
        """Move what model CPU offload has on the device off it, as the VAE's own `decode` would: the model before, and the VAE."""
        hook = vars(self.vae).get("_hf_hook")
        has_moved = False
        for one in getattr(hook, "hooks", (hook,)):
            if not hasattr(one, "prev_module_hook"):
                continue
            before = one.prev_module_hook
            if before is not None and _is_away(before.model):
                before.offload()
                has_moved = True
            if _is_away(self.vae):
                one.init_hook(self.vae)
                has_moved = True
        if has_moved:
            empty_cache(device)

    def _go_home(self) -> None:
        """Move the student to where the VAE's weights are between decodes: with offloading, off the device."""
        home = next(self.vae.parameters()).device
        nn.Module.to(cast("nn.Module", self.student), device="cpu" if home.type == "meta" else home)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.restore()


def attach_student(
    pipe: Any,
    student: Decoder | str | Path,
    *,
    memory: int | str = 0,
    consent: Consent = no_consent,
    report: Reporter = quiet,
) -> Attached:
    """Let a student decode for a diffusers pipeline, in place of the pipeline's own decoder, and return what takes it out again.

        attach_student(pipe, "runs/mine")             # for good, or until .restore()
        with attach_student(pipe, student): ...       # within this block

    `pipe` is any pipeline with a `vae`. `student` is a decoder, or what `load_decoder` takes: a loaded one keeps its
    precision, one that is loaded here takes that of the latents. Long clips are decoded in pieces, to the same pixels, so that
    the decode takes at most `memory` (bytes, or text such as "4GB") besides what is in memory already; 0 allows 70 % of what is
    free. Pieces and memory are notes of `report`.

    Raises SettingsError if the student decodes other latents than the pipeline makes, if it is no decoder, or if the pipeline
    has no VAE, or has a student attached; and what `load_decoder` raises.
    """
    vae = _vae_of(pipe)
    if not isinstance(vae, nn.Module):
        raise SettingsError(
            f"`pipe` is of the class {type(pipe).__name__}, which has no `vae`",
            "a loaded pipeline of a video model, such as LTXPipeline.from_pretrained(...)",
        )
    if is_attached_to(vae):
        raise SettingsError("this pipeline has a student attached", "call its .restore() first")
    is_named = isinstance(student, str | Path)
    decoder: Decoder = load_decoder(student, consent=consent) if isinstance(student, str | Path) else student
    if not all(hasattr(decoder, name) for name in ("family", "latent_channels", "pixel_frames", "stream")):
        raise SettingsError(f"`student` is a {type(student).__name__}, not a decoder", "a decoder, or what `load_decoder` takes")
    check_same_space(decoder, space_of(vae))
    return Attached(pipe, decoder, memory=memory, follows=is_named, report=report)


def is_attached_to(vae: nn.Module) -> bool:
    """Whether a student decodes in place of this VAE."""
    return _attached_to(vae) is not None


def _attached_to(vae: nn.Module) -> Attached | None:
    owner = getattr(vars(vae).get(_METHOD), "__self__", None)
    return owner if isinstance(owner, Attached) else None


def _vae_of(pipe: Any) -> Any:
    """Return the VAE of a pipeline, not what `torch.compile` has wrapped around it; None if there is none."""
    vae = getattr(pipe, "vae", None)
    return getattr(vae, "_orig_mod", vae)


def _is_away(model: nn.Module) -> bool:
    return any(weight.device.type not in ("cpu", "meta") for weight in model.parameters())
