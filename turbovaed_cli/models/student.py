"""The student: the published Turbo-VAED decoder, and every way of loading one.

Attribute names are the keys of the published weight files (which carry the decoder without a prefix). Training-only parts,
the alignment heads, live in `training/alignment.py`; published files hold them too, and they are set aside here.
"""

import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.utils import BaseOutput
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from turbovaed_cli.choices import hint_for
from turbovaed_cli.errors import FrameCountError, SettingsError, ShapeError, UnknownModelError, WeightFileError
from turbovaed_cli.files.documents import fits, parse_json, read_text, shown
from turbovaed_cli.files.sealed import verify_manifest
from turbovaed_cli.files.tensors import check_fit, load_strictly, read_weights
from turbovaed_cli.models.layers import ChannelRMSNorm, MidBlock, TimeReplicatedConv3d, UpBlock, Upsampler2d
from turbovaed_cli.registry.download import Consent, no_consent, student_weights
from turbovaed_cli.registry.find import find_model, is_model_name, names_of_models
from turbovaed_cli.registry.rows import MODELS
from turbovaed_cli.registry.specs import FrameRule
from turbovaed_cli.runs.rundir import RunDir

if TYPE_CHECKING:
    from turbovaed_cli.models.streaming import FastDecoder

HEAD_PREFIX = "aligned_feature_projection_heads."
_LATENT_STATISTICS = ("latents_mean", "latents_std")
# What a config may ask for, least and most: the published ones are far inside.
_BOUNDS = {
    "latent_channels": (1, 4096),
    "out_channels": (1, 64),
    "decoder_block_out_channels": (1, 8192),
    "decoder_layers_per_block": (0, 64),
    "decoder_dw_kernel_size": (1, 31),
}
_MOST_BLOCKS = 12
# Keys of the published configs that speak of the encoder or repeat what the weights say; a decoder has no use for them.
_ENCODER_KEYS = frozenset(
    [
        "block_out_channels",
        "down_block_types",
        "layers_per_block",
        "encoder_causal",
        "downsample_type",
        "out_layers",
        "up_block_types",
        "act_fn",
        "norm_num_groups",
        "mid_block_add_attention",
        "spatial_compression_ratio",
        "temporal_compression_ratio",
        "force_upcast",
        "use_quant_conv",
        "use_post_quant_conv",
        "timestep_conditioning",
        "decoder_inject_noise",
        "upsample_residual",
        "upsample_factor",
        "sample_height",
        "sample_width",
        "shift_factor",
        "norm_eps",
        "invert_scale_latents",
        "decoder_spatio_temporal_scaling",
    ]
)


@dataclass
class DecoderOutput(BaseOutput):  # type: ignore[misc]  # diffusers passes as Any
    """What pipelines take from a VAE's `decode`. diffusers' own class comes with every autoencoder it has: a second of imports."""

    sample: Tensor


class StudentDecoder(ModelMixin, ConfigMixin):  # type: ignore[misc]
    """Decode latents (B, C, t, h, w), in the teacher's raw latent space, to video (B, 3, T, H, W) in [-1, 1].

    Lists in the config are output-first, as published: the network runs `conv_in`, `mid_block`, `up_blocks.0..n` over
    them reversed. `patch_size` 4 ends in two per-frame 2-D upsamplings; 1 ends in norm, SiLU, convolution.
    Any t >= 1 decodes; T is `pixel_frames(t)`. Source: arXiv:2508.09136 and its published weights.
    """

    @classmethod
    def from_pretrained(cls, *arguments: Any, **options: Any) -> "StudentDecoder":
        """As diffusers', but never from pickles: of a folder without safetensors it makes an OSError."""
        return cast("StudentDecoder", super().from_pretrained(*arguments, **{**options, "use_safetensors": True}))

    _supports_gradient_checkpointing = True
    gradient_checkpointing = False  # as diffusers calls it: enable_gradient_checkpointing() finds it here

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        latent_channels: int = 128,
        out_channels: int = 3,
        decoder_block_out_channels: Sequence[int] = (64, 128, 256, 512),
        decoder_layers_per_block: Sequence[int] = (3, 2, 3, 1, 1),
        decoder_is_dw_conv: Sequence[bool] = (False, False, False, True, True),
        decoder_dw_kernel_size: int = 5,
        spatio_temporal_scaling: Sequence[bool] = (True, True, True, False),
        decoder_spatio_only: Sequence[bool] | None = None,
        patch_size: int = 4,
        patch_size_t: int = 1,
        is_video_dc_ae: bool = False,
        scaling_factor: float = 1.0,
        latents_mean: Sequence[float] | None = None,
        latents_std: Sequence[float] | None = None,
        aligned_feature_projection_mode: str | None = None,
        aligned_feature_projection_dim: Sequence[Sequence[int]] | None = None,
        aligned_blks_indices: Sequence[int] | None = None,
        in_channels: int = 3,
        decoder_causal: bool = False,
        resnet_norm_eps: float = 1e-6,
        teacher: str | None = None,
    ) -> None:
        super().__init__()
        plan = plan_blocks(
            decoder_block_out_channels,
            decoder_layers_per_block,
            decoder_is_dw_conv,
            spatio_temporal_scaling,
            decoder_spatio_only,
        )
        if patch_size not in (1, 4):
            raise SettingsError(f"patch_size is {patch_size}: the published tails are for 1 and 4")
        if decoder_causal or patch_size_t != 1:
            raise SettingsError("decoder_causal and patch_size_t > 1 were never part of the published student")

        kernel = decoder_dw_kernel_size
        self.conv_in = TimeReplicatedConv3d(latent_channels, plan[0].channels)
        self.mid_block = MidBlock(plan[0].channels, plan[0].num_layers, depthwise_kernel=kernel if plan[0].depthwise else None)
        self.up_blocks = nn.ModuleList(
            UpBlock(
                before.channels,
                block.channels,
                block.num_layers,
                depthwise_kernel=kernel if block.depthwise else None,
                upsample_space=block.upsample_space,
                upsample_time=block.upsample_time,
                drop_first_frame=not is_video_dc_ae,
            )
            for before, block in pairwise(plan)
        )
        self.norm_out = ChannelRMSNorm()
        self.act_out = nn.SiLU()
        channels = plan[-1].channels
        if patch_size == 4:
            self.upsampler2d_1 = Upsampler2d(channels)
            self.upsampler2d_2 = Upsampler2d(channels // 4)
            channels //= 16
        self.conv_out = TimeReplicatedConv3d(channels, out_channels)

        num_space = sum(block.upsample_space for block in plan)
        num_time = sum(block.upsample_time for block in plan)
        self.spatial_compression_ratio = patch_size * 2**num_space
        self.temporal_compression_ratio = 2**num_time

    # What diffusers pipelines ask of a VAE besides decode; statistics stay in the config, so state dicts stay published.
    @property
    def latents_mean(self) -> Tensor:
        """Per-channel mean that LTX pipelines add before decode, (C,); zeros where the teacher has none."""
        values = self.config.latents_mean or [0.0] * self.config.latent_channels
        return torch.tensor(values, device=self.device, dtype=self.dtype)

    @property
    def latents_std(self) -> Tensor:
        """Per-channel standard deviation that LTX pipelines multiply by before decode, (C,); ones where there is none."""
        values = self.config.latents_std or [1.0] * self.config.latent_channels
        return torch.tensor(values, device=self.device, dtype=self.dtype)

    def pixel_frames(self, latent_frames: int) -> int:
        """How many pixel frames T the student makes of t latent frames."""
        if self.config.is_video_dc_ae:
            return latent_frames * int(self.temporal_compression_ratio)
        return (latent_frames - 1) * int(self.temporal_compression_ratio) + 1

    def latent_shape(self, frames: int, size: tuple[int, int]) -> tuple[int, int, int, int]:
        """(C, t, h, w) of the latents that decode to `frames` pixel frames of `size` (height, width).

        Raises FrameCountError or ShapeError with the nearest that can be made.
        """
        ratio, first = int(self.temporal_compression_ratio), 0 if self.config.is_video_dc_ae else 1
        rule = FrameRule(ratio, first)
        if frames < 1 or frames % ratio != first % ratio:
            raise FrameCountError(
                f"this student makes {rule} frames, not {frames}",
                f"nearest: --frames {max(rule.at_most(frames), ratio)} or {rule.at_least(frames)}",
            )
        space = int(self.spatial_compression_ratio)
        height, width = size
        if height % space or width % space or min(size) < space:
            nearest = [max(round(pixels / space), 1) * space for pixels in (width, height)]
            raise ShapeError(
                f"this student makes multiples of {space} pixels, not {width}x{height}",
                f"nearest: --size {nearest[0]}x{nearest[1]}",
            )
        return self.config.latent_channels, (frames - first) // ratio + first, height // space, width // space

    def forward(self, latents: Tensor) -> Tensor:
        """Latents (B, C, t, h, w) to video (B, 3, T, H, W); not clamped."""
        x = self.conv_in(latents)
        x = self._run(self.mid_block, x)
        for block in self.up_blocks:
            x = self._run(block, x)
        return self._run(self._tail, x)

    # Whether `decode` without gradients takes the fast form; None: where it is known to win, on a CPU. False also leaves
    # what streams with channels last only.
    fast: bool | None = None
    _ready: tuple[object, "FastDecoder"] | None = None  # the fast form, and the weights it was made of

    def decode(self, z: Tensor, temb: Tensor | None = None, return_dict: bool = True) -> DecoderOutput | tuple[Tensor]:
        """`forward` as diffusers pipelines call it: `.sample` is (B, 3, T, H, W) in [-1, 1]. `temb` is not used.

        Without gradients on a CPU it is computed by `ready`, in the same numbers within rounding (see `fast`), past the
        modules: their hooks are not called. Raises FrameCountError or ShapeError where `z` is not (B, latent_channels, t >= 1, h, w).
        """
        self.check_latents(z)
        if z.shape[2] < 1:
            raise FrameCountError("latents hold no frame")
        sample = self.ready().decode(z) if self.decodes_fast and not torch.is_grad_enabled() else self(z)
        return DecoderOutput(sample=sample) if return_dict else (sample,)

    @property
    def decodes_fast(self) -> bool:
        """What `fast` comes to on this device."""
        return self.device.type == "cpu" if self.fast is None else self.fast

    def ready(self) -> "FastDecoder":
        """The fast form of these weights: made at the first call, and again when they have changed or moved.

        What is written to a parameter's `.data` is not seen. A stream under way goes on with the weights it began with.
        """
        from turbovaed_cli.models.fast import Speedups  # noqa: PLC0415 - made of students
        from turbovaed_cli.models.streaming import FastDecoder  # noqa: PLC0415

        weights = [(p.data_ptr(), 0 if p.is_inference() else p._version, p.dtype, p.device) for p in self.parameters()]
        if self._ready is None or self._ready[0] != (self.fast, weights):
            speedups = Speedups(winograd=False, packed=False) if self.fast is False else None
            fast = FastDecoder(self, speedups=speedups)
            fast.student = cast(StudentDecoder, weakref.proxy(self))  # else neither would be freed with its last user
            self._ready = (self.fast, weights), fast
        return self._ready[1]

    def __getstate__(self) -> dict[str, Any]:
        """What copies and pickles take along: all but the fast form."""
        return {name: value for name, value in self.__dict__.items() if name != "_ready"}

    def check_latents(self, latents: Tensor) -> None:
        """Raise ShapeError unless they are (B, latent_channels, t, h, w), for any t."""
        channels = self.config.latent_channels
        if latents.ndim != 5 or latents.shape[1] != channels:
            raise ShapeError(
                f"latents are {tuple(latents.shape)}: this student decodes (batch, {channels}, frames, height, width)"
            )

    def encode(self, x: Tensor, return_dict: bool = True) -> None:
        """Raise SettingsError: a student is a decoder; its teacher encodes."""
        raise SettingsError("a student has no encoder", "encode with its teacher: turbovaed_cli.load_teacher(...).encode(video)")

    def features(
        self, latents: Tensor, blocks: Sequence[str], *, with_sample: bool = True
    ) -> tuple[Tensor | None, dict[str, Tensor]]:
        """Decode and keep the outputs of `blocks` ("mid_block", "up_blocks.0", ...), in one pass.

        Returns (sample, {block: (B, C, t', h', w')}); without `with_sample` it stops after the last block asked for.
        """
        wanted = dict.fromkeys(blocks)
        found: dict[str, Tensor] = {}
        x = self.conv_in(latents)
        stages = [("mid_block", self.mid_block), *((f"up_blocks.{i}", block) for i, block in enumerate(self.up_blocks))]
        unknown = set(wanted) - {name for name, _ in stages}
        if unknown:
            raise SettingsError(f"this student has no block {sorted(unknown)[0]!r}", f"blocks: {', '.join(n for n, _ in stages)}")
        for name, block in stages:
            x = self._run(block, x)
            if name in wanted:
                found[name] = x
            if not with_sample and len(found) == len(wanted):
                return None, found
        return self._run(self._tail, x), found

    def checkpoint_blocks(self, *, enable: bool) -> None:
        """Whether training keeps only what goes into each block and computes the rest again on the way back; the same gradients."""
        if enable != self.gradient_checkpointing:
            self._set_gradient_checkpointing(enable, partial(checkpoint, use_reentrant=False, preserve_rng_state=False))

    def _run(self, part: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        if self.gradient_checkpointing and torch.is_grad_enabled():
            return cast(Tensor, self._gradient_checkpointing_func(part, x))
        return part(x)

    def before_last(self, x: Tensor) -> Tensor:
        """What `conv_out` is given: the part of the tail that looks at one frame at a time.

        Its end, and `conv_out`, keep the precision of their weights under autocast: rounded to bf16 they shift colours by
        up to 1 in 255, which the student then learns to make up for.
        """
        if self.config.patch_size == 4:
            x = self.upsampler2d_1(self.act_out(self.norm_out(x)))
        x = x.to(self.conv_out.conv.weight.dtype)
        with _no_autocast(x.device):
            if self.config.patch_size == 4:
                x = self.upsampler2d_2(self.act_out(self.norm_out(x)))
            return cast(Tensor, self.act_out(self.norm_out(x)))

    def _tail(self, x: Tensor) -> Tensor:
        x = self.before_last(x)
        with _no_autocast(x.device):
            return cast(Tensor, self.conv_out(x))


def _no_autocast(device: torch.device) -> AbstractContextManager[object]:
    if not torch.amp.is_autocast_available(device.type):  # such as meta, where only shapes are asked for
        return nullcontext()
    return torch.autocast(device.type, enabled=False)


@dataclass(frozen=True)
class BlockPlan:
    """One stage of the decoder in running order: the mid block first, then the up blocks."""

    channels: int
    num_layers: int
    depthwise: bool
    upsample_space: bool
    upsample_time: bool


def plan_blocks(
    channels: Sequence[int],
    layers: Sequence[int],
    depthwise: Sequence[bool],
    scaling: Sequence[bool],
    spatio_only: Sequence[bool] | None,
) -> list[BlockPlan]:
    """Turn the output-first lists of a published config into running order; raise SettingsError where lengths disagree."""
    num_up = len(channels)
    spatio_only = spatio_only or [False] * num_up
    lengths = {
        "decoder_layers_per_block": (len(layers), num_up + 1),
        "decoder_is_dw_conv": (len(depthwise), num_up + 1),
        "spatio_temporal_scaling": (len(scaling), num_up),
        "decoder_spatio_only": (len(spatio_only), num_up),
    }
    for name, (found, wanted) in lengths.items():
        if found != wanted:
            raise SettingsError(f"{name} has {found} entries where {num_up} decoder_block_out_channels want {wanted}")
    mid = BlockPlan(channels[-1], layers[-1], bool(depthwise[-1]), upsample_space=False, upsample_time=False)
    return [mid] + [
        BlockPlan(
            channels[i],
            layers[i],
            bool(depthwise[i]),
            upsample_space=bool(scaling[i]),
            upsample_time=scaling[i] and not spatio_only[i],
        )
        for i in reversed(range(num_up))
    ]


def num_params(module: nn.Module) -> int:
    """Number of parameters, trainable or not."""
    return sum(parameter.numel() for parameter in module.parameters())


def build_student(config: Mapping[str, Any]) -> StudentDecoder:
    """A student with random weights from a config in the published key names.

    Keys of the encoder are ignored; a key that means nothing to either raises SettingsError naming it.
    """
    known = set(StudentDecoder.__init__.__wrapped__.__annotations__) - {"return"}
    given = {key: value for key, value in config.items() if not key.startswith("_") and key not in _ENCODER_KEYS}
    unknown = sorted(set(given) - known)
    if unknown:
        raise SettingsError(f"the student config has an unknown key {unknown[0]!r}", f"known keys: {', '.join(sorted(known))}")
    _check_config(given)
    return StudentDecoder(**given)


def _check_config(given: Mapping[str, Any]) -> None:
    """Raise SettingsError where a value has another type than the network wants, or would make one that no memory holds."""
    hints = StudentDecoder.__init__.__wrapped__.__annotations__
    for name, value in given.items():
        if not fits(value, hints[name]):
            raise SettingsError(
                f"the student config's {name} is {shown(value)}", "the published key names and types: models show"
            )
    for name, (least, most) in _BOUNDS.items():
        value = given.get(name)
        for number in value if isinstance(value, Sequence) else () if value is None else (value,):
            if not least <= number <= most:
                raise SettingsError(f"the student config's {name} has {shown(number)}", f"it may be {least} to {most}")
    channels, num = given.get("decoder_block_out_channels", (1,)), given.get("latent_channels")
    if not channels or len(channels) > _MOST_BLOCKS:
        raise SettingsError(
            f"the student config has {len(channels)} decoder_block_out_channels", f"1 to {_MOST_BLOCKS} are possible"
        )
    for name in _LATENT_STATISTICS:
        if given.get(name) and num is not None and len(given[name]) != num:
            raise SettingsError(f"{name} has {len(given[name])} values for {num} latent_channels", "one for each, or null")


def load_student(
    where: str | Path, config: str | Path | Mapping[str, Any] | None = None, *, consent: Consent = no_consent
) -> StudentDecoder:
    """Load a student, fp32 on the CPU, in eval mode, from

    a registry name ("ltx"), a run folder, a folder written by save_pretrained, or one weight file in the published layout
    (.pth or .safetensors) with its JSON `config` (a path or a dict; without it, `config.json` beside the file; files that
    are called as those of the registry need none).

    Strict: a missing, unexpected or misshapen decoder key raises WeightFileError naming it. A registry name whose weights
    are not on this machine raises MissingWeightsError, unless `consent` agrees to the download.
    """
    if is_model_name(str(where)):  # before paths: a folder called tiny is ./tiny
        spec = find_model(where)
        path = student_weights(spec, consent)
        return _load_folder(path) if path.is_dir() else load_published(path, spec.student.config | {"teacher": spec.name})
    path = Path(where)
    if path.is_dir():
        return _load_folder(RunDir(path).model if RunDir.is_run(path) else path)
    if path.is_file():
        return load_published(path, _read_config(path, config))
    raise UnknownModelError(
        f"no model answers to {str(where)!r}",
        hint_for(
            str(where), names_of_models(), f"a run folder, a saved model folder, a weight file, or one of: {', '.join(MODELS)}"
        ),
    )


def _load_folder(folder: Path) -> StudentDecoder:
    config_path = folder / "config.json"
    if not config_path.is_file():
        raise UnknownModelError(
            f"{folder} holds no config.json", "give a folder written by save_pretrained, or a run folder that has finished"
        )
    if (folder / "manifest.json").is_file():  # of a run: every byte is known
        verify_manifest(folder)
    config = read_config(config_path)
    if config.get("_class_name") not in ("StudentDecoder", "AutoencoderKLTurboVAED"):
        raise UnknownModelError(
            f"{folder} holds a {shown(config.get('_class_name'))}, not a student",
            "give a student folder as --model; this one may be a --teacher",
        )
    weights = folder / "diffusion_pytorch_model.safetensors"
    if not weights.is_file():
        raise UnknownModelError(
            f"{folder} holds no diffusion_pytorch_model.safetensors",
            "one file of that name beside config.json: no pickles, no shards",
        )
    return load_published(weights, config)


def load_published(weights: Path, config: Mapping[str, Any]) -> StudentDecoder:
    """A student from one weight file in the published layout: decoder keys, and extras that are set aside."""
    state = read_weights(weights)
    for key in _LATENT_STATISTICS:
        if key in state and (state[key].ndim != 1 or state[key].numel() > _BOUNDS["latent_channels"][1]):
            raise WeightFileError(f"{weights.name}: {key} is {tuple(state[key].shape)}", "it is one number per latent channel")
    decoder = {key: value for key, value in state.items() if key not in _LATENT_STATISTICS and not key.startswith(HEAD_PREFIX)}
    statistics = {key: state[key].float().tolist() for key in _LATENT_STATISTICS if key in state}
    with torch.device("meta"):  # the config is believed only where the weights are as large as it says
        check_fit(build_student({**config, **statistics}), decoder, weights)
    student = build_student({**config, **statistics})
    load_strictly(student, decoder, weights)
    return student.eval()


def _read_config(weights: Path, config: str | Path | Mapping[str, Any] | None) -> Mapping[str, Any]:
    if isinstance(config, Mapping):
        return config
    if config is None and weights.suffix == ".safetensors":
        inside = _config_inside(weights)
        if inside is not None:
            return inside
    path = Path(config) if config else weights.with_name("config.json")
    known = [spec for spec in MODELS.values() if spec.student.published and spec.student.published.filename == weights.name]
    if config is None and known and not path.is_file():  # shapes are checked all the same
        return {**known[0].student.config, "teacher": known[0].name}
    if not path.is_file():
        raise SettingsError(
            f"{weights.name} needs the JSON config of its architecture, and {path} is not there",
            "pass config=... (--config FILE); `turbovaed models show NAME --json` prints those of the registry, as student.config",
        )
    return read_config(path)


def _config_inside(weights: Path) -> dict[str, Any] | None:
    """The config in the header of a file that `turbovaed export --format safetensors` wrote; None where there is none."""
    try:
        with safe_open(weights, framework="pt") as file:
            text = (file.metadata() or {}).get("config")
    except (SafetensorError, OSError) as error:
        raise WeightFileError(
            f"{weights} is not a weight file that can be read safely: {error}",
            "give a .safetensors of tensors, whole and unchanged",
        ) from error
    try:
        config = parse_json(text) if text else None
    except ValueError:
        return None
    return config if isinstance(config, dict) else None


def read_config(path: Path) -> dict[str, Any]:
    """A JSON config file; SettingsError where it is none."""
    try:
        config = parse_json(read_text(path))
    except OSError as error:
        raise SettingsError(f"{path} cannot be read: {error.strerror}", "give a JSON file") from error
    except ValueError as error:
        raise SettingsError(f"{path} is not JSON: {error}", "give the JSON config of a student") from error
    if not isinstance(config, dict):
        raise SettingsError(f"{path} holds a {type(config).__name__}, not a config", "give the JSON config of a student")
    return config
