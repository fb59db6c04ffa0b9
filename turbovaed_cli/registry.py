"""The model registry: one row per teacher and its student. A new model is one row, and no `if` anywhere else."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from turbovaed_cli.choices import hint_for
from turbovaed_cli.errors import FrameCountError, MissingError, SettingsError, ShapeError, UnknownModelError
from turbovaed_cli.files.documents import fits, parse_json, read_text, shown
from turbovaed_cli.teacher_files import WEIGHTS_FILE, licence_of, weight_files

ASSETS = Path(__file__).parent / "assets"
_MOST_CHANNELS, _MOST_LAYERS = 65_536, 64  # that a local teacher's config may name


@dataclass(frozen=True)
class FrameRule:
    """Which frame counts T survive encode and decode: step * k + first, at least `minimum`, and single images."""

    step: int
    first: int
    minimum: int = 1
    maximum: int | None = None

    def is_valid(self, frames: int) -> bool:
        """Whether `frames` pixel frames come back as that many."""
        if self.maximum is not None and frames > self.maximum:
            return False
        return frames == 1 or (frames >= self.minimum and frames % self.step == self.first % self.step)

    def at_least(self, frames: int) -> int:
        """The smallest valid count >= frames; the maximum where there is none."""
        if frames <= 1:
            return 1
        if self.maximum is not None and frames > self.maximum:
            return self.maximum
        return max(self.minimum, math.ceil((frames - self.first) / self.step) * self.step + self.first)

    def at_most(self, frames: int) -> int:
        """The largest valid count <= frames; 1 where there is none."""
        frames = frames if self.maximum is None else min(frames, self.maximum)
        valid = (frames - self.first) // self.step * self.step + self.first
        return valid if valid >= self.minimum else 1

    def __str__(self) -> str:
        """'8k+1' or '4k, at least 8', as users read it."""
        text = f"{self.step}k+{self.first}" if self.first else f"{self.step}k"
        text = f"{text}, at least {self.minimum} (or 1)" if self.minimum > 1 else text
        return f"{text}, at most {self.maximum}" if self.maximum else text


@dataclass(frozen=True)
class AlignmentPair:
    """One student block learning from one teacher tap.

    `head` puts two 1x1x1 convolutions on the student's side; `transform` is what happens behind the head:
    "shuffle2d" a per-frame pixel shuffle by 2, "shuffle3d" a (c, t, h, w) shuffle by 2 that drops the first frame.
    `unit` is the size of the teacher's feature that counts as 1: a teacher whose residual stream grows large would drown
    every other loss. The published pairs are compared as they are.
    """

    student_block: str
    teacher_tap: str
    head: bool = False
    transform: Literal["none", "shuffle2d", "shuffle3d"] = "none"
    unit: float = 1.0


@dataclass(frozen=True)
class RequiredSetting:
    """An attribute of the teacher that must be set, or it silently computes something else."""

    name: str
    value: object
    why: str


@dataclass(frozen=True)
class Published:
    """A file on the hub: where, how large in bytes (as last seen), under which licence."""

    repo: str
    filename: str
    num_bytes: int
    licence: str


@dataclass(frozen=True)
class TeacherSpec:
    """A teacher: the VAE whose encoder is kept and whose decoder is distilled."""

    class_name: str
    repo: str | None
    folder: str
    num_bytes: int | None  # of the weights; None for a local folder that holds none
    latent_channels: int
    time_ratio: int
    space_ratio: int
    frames: FrameRule
    decoder_params_m: float | None  # None for a local folder: models/teacher.py counts them
    licence: str
    licence_note: str = ""
    required: tuple[RequiredSetting, ...] = ()
    weights_file: str = WEIGHTS_FILE
    ratios: Callable[[Mapping[str, Any]], tuple[int, int]] | None = None  # (time, space) of a local folder's config
    path: Path | None = None  # a local folder, when the weights do not come from the hub
    file: str | None = None  # the weight file of that folder that was named

    @property
    def where(self) -> str | None:
        """What names this teacher again from anywhere: its absolute path; None for a registry row."""
        if self.path is None or self.path.is_relative_to(ASSETS):
            return None
        return str(self.path.resolve() / self.file if self.file else self.path.resolve())

    @property
    def origin(self) -> str:
        """Where it comes from, without a path: this is for cards and pages, which are published."""
        if self.path is None:
            return f"{self.repo} {self.folder}".rstrip()
        return "embedded in turbovaed" if self.path.is_relative_to(ASSETS) else f"local folder {self.path.resolve().name}"

    def latent_frames(self, frames: int) -> int:
        """T for T pixel frames; raises FrameCountError with the nearest valid counts."""
        self.check_frames(frames)
        return 1 if frames == 1 else (frames - self.frames.first) // self.time_ratio + self.frames.first

    def pixel_frames(self, latent_frames: int) -> int:
        """T for t latent frames."""
        return 1 if latent_frames == 1 else (latent_frames - self.frames.first) * self.time_ratio + self.frames.first

    def check_frames(self, frames: int) -> None:
        """Raise FrameCountError unless the teacher gives back as many frames as it was given."""
        if not self.frames.is_valid(frames):
            below, above = self.frames.at_most(frames), self.frames.at_least(frames)
            nearest = " or ".join(str(count) for count in dict.fromkeys((below, above)))
            raise FrameCountError(
                f"{frames} frames do not survive this teacher, which takes {self.frames}", f"nearest: --frames {nearest}"
            )

    def check_size(self, height: int, width: int) -> None:
        """Raise ShapeError unless both are multiples of the spatial ratio."""
        ratio = self.space_ratio
        if height % ratio or width % ratio or min(height, width) < ratio:
            below = (max(height // ratio, 1) * ratio, max(width // ratio, 1) * ratio)
            above = (math.ceil(height / ratio) * ratio, math.ceil(width / ratio) * ratio)
            raise ShapeError(
                f"{width}x{height} is not a multiple of {ratio} in both directions, which this teacher needs",
                f"nearest: --size {below[1]}x{below[0]} or {above[1]}x{above[0]}",
            )


@dataclass(frozen=True)
class StudentSpec:
    """The student of a teacher: architecture in published key names, alignment, published weights."""

    config: dict[str, Any]
    pairs: tuple[AlignmentPair, ...]
    params_m: float | None  # None for a local folder: models/design.py counts them
    published: Published | None = None


@dataclass(frozen=True)
class ModelSpec:
    """One row of the registry."""

    name: str
    title: str
    teacher: TeacherSpec
    student: StudentSpec
    aliases: tuple[str, ...] = ()
    recipe: str = "night"  # of settings.RECIPES, that `distill` takes unless another is named
    published_results: Mapping[str, tuple[float, float]] = field(
        default_factory=dict
    )  # metric: (teacher, student), on PUBLISHED_ON

    @property
    def embedded(self) -> bool:
        """Whether its weights come with the package."""
        return self.teacher.path is not None and self.teacher.path.is_relative_to(ASSETS)


PUBLISHED_ON = "arXiv:2508.09136, UCF-101, 17 frames of 256x256"
_MIT = "MIT"
# What pipelines divide latents by before they decode. LTX has statistics per channel instead, in its weight files; no
# pipeline of diffusers has Video DC-AE (Open-Sora's own divides its latents by 0.493, which is no property of the VAE).
_HUNYUAN_SCALING, _COGVIDEOX_SCALING = 0.476986, 0.7
_STUDENT_REPO = "hustvl/Turbo-VAED"


def _student_config(
    latent_channels: int,
    channels: tuple[int, ...],
    layers: tuple[int, ...],
    *,
    patch_size: int,
    spatio_only: bool,
    dc: bool = False,
    scaling_factor: float = 1.0,
) -> dict[str, Any]:
    return {
        "latent_channels": latent_channels,
        "decoder_block_out_channels": channels,
        "decoder_layers_per_block": layers,
        "decoder_is_dw_conv": (False,) * (len(layers) - 2) + (True, True),
        "decoder_dw_kernel_size": 5,
        "spatio_temporal_scaling": (True,) * (len(channels) - 1) + (False,),
        "decoder_spatio_only": (spatio_only,) + (False,) * (len(channels) - 1),
        "patch_size": patch_size,
        "is_video_dc_ae": dc,
        "scaling_factor": scaling_factor,
    }


def _ltx_ratios(config: Mapping[str, Any]) -> tuple[int, int]:
    num_scaled = sum(config.get("decoder_spatio_temporal_scaling", (True, True, True, False)))  # the 0.9.0 config leaves it out
    return config.get("patch_size_t", 1) * 2**num_scaled, config.get("patch_size", 4) * 2**num_scaled


def _hunyuan_ratios(config: Mapping[str, Any]) -> tuple[int, int]:
    return config.get("temporal_compression_ratio", 4), config.get("spatial_compression_ratio", 8)


def _cogvideox_ratios(config: Mapping[str, Any]) -> tuple[int, int]:
    # int() because some published configs say 4.0
    return int(config.get("temporal_compression_ratio", 4)), 2 ** (len(config["block_out_channels"]) - 1)


_LTX = ModelSpec(
    name="ltx",
    title="LTX-Video 0.9.0",
    teacher=TeacherSpec(
        class_name="AutoencoderKLLTXVideo",
        repo="Lightricks/LTX-Video",
        folder="vae",
        num_bytes=1_680_000_000,
        latent_channels=128,
        time_ratio=8,
        space_ratio=32,
        frames=FrameRule(step=8, first=1),
        decoder_params_m=238.789,
        licence="LTX-Video Open Weights License 0.X",
        licence_note="from LTX 0.9.7 on, models made from outputs or activations count as derivatives",
        ratios=_ltx_ratios,
    ),
    student=StudentSpec(
        config=_student_config(128, (64, 128, 256, 512), (3, 2, 3, 1, 1), patch_size=4, spatio_only=False),
        pairs=(
            AlignmentPair("mid_block", "decoder.mid_block"),
            AlignmentPair("up_blocks.0", "decoder.up_blocks.0"),
            AlignmentPair("up_blocks.1", "decoder.up_blocks.1", head=True),
        ),
        params_m=41.896,
        published=Published(_STUDENT_REPO, "Turbo-VAED-LTX.pth", 169_000_000, _MIT),
    ),
    published_results={"psnr": (32.40, 31.68), "ssim": (0.9192, 0.9209), "lpips": (0.0394, 0.0419), "rfvd": (25.86, 25.01)},
)

_HUNYUAN = ModelSpec(
    name="hunyuan",
    title="HunyuanVideo",
    teacher=TeacherSpec(
        class_name="AutoencoderKLHunyuanVideo",
        repo="hunyuanvideo-community/HunyuanVideo",
        folder="vae",
        num_bytes=986_000_000,
        latent_channels=16,
        time_ratio=4,
        space_ratio=8,
        frames=FrameRule(step=4, first=1),
        decoder_params_m=146.136,
        licence="Tencent Hunyuan Community License",
        licence_note="excludes the EU, the UK and South Korea, and calls distilled models derivatives",
        required=(
            RequiredSetting("use_framewise_encoding", False, "split in time, frames 14-16 change from 17 frames on"),
            RequiredSetting("use_framewise_decoding", False, "split in time, a tap fires twice and sees only a part"),
        ),
        ratios=_hunyuan_ratios,
    ),
    student=StudentSpec(
        config=_student_config(
            16, (16, 32, 256, 512), (5, 4, 4, 4, 5), patch_size=1, spatio_only=True, scaling_factor=_HUNYUAN_SCALING
        ),
        pairs=(
            AlignmentPair("mid_block", "decoder.mid_block"),
            AlignmentPair("up_blocks.0", "decoder.up_blocks.0", head=True, transform="shuffle2d"),
        ),
        params_m=40.688,
        published=Published(_STUDENT_REPO, "Turbo-VAED-Hunyuan.pth", 184_000_000, _MIT),
    ),
    published_results={"psnr": (36.48, 36.62), "ssim": (0.9663, 0.9674), "lpips": (0.0126, 0.0154), "rfvd": (1.52, 2.43)},
)

_COGVIDEOX = ModelSpec(
    name="cogvideox",
    title="CogVideoX 1.5",
    aliases=("cog",),
    teacher=TeacherSpec(
        class_name="AutoencoderKLCogVideoX",
        repo="zai-org/CogVideoX1.5-5B",
        folder="vae",
        num_bytes=862_000_000,
        latent_channels=16,
        time_ratio=4,
        space_ratio=8,
        # 13 frames encode to 4 latents, which decode to 16 frames: only 8k+1 round-trips. From 16 latents on the class
        # decodes in chunks, which changes pixels and shows a tap one chunk only.
        frames=FrameRule(step=8, first=1, maximum=57),
        decoder_params_m=123.368,
        licence="CogVideoX License",
        required=(
            RequiredSetting(
                "num_latent_frames_batch_size", 8, "GroupNorm per chunk of 2 changes the output, and a tap sees one chunk"
            ),
            RequiredSetting("num_sample_frames_batch_size", 8, "the chunk the encoder was trained with"),
        ),
        ratios=_cogvideox_ratios,
    ),
    student=StudentSpec(
        config=_student_config(
            16, (16, 32, 256, 512), (5, 4, 4, 4, 5), patch_size=1, spatio_only=True, scaling_factor=_COGVIDEOX_SCALING
        ),
        pairs=(
            AlignmentPair("mid_block", "decoder.mid_block"),
            AlignmentPair("up_blocks.0", "decoder.up_blocks.0", head=True, transform="shuffle3d"),
        ),
        params_m=40.688,
        published=Published(_STUDENT_REPO, "Turbo-VAED-Cog.pth", 238_000_000, _MIT),
    ),
    published_results={"psnr": (36.23, 35.58), "ssim": (0.9591, 0.9606), "lpips": (0.0197, 0.0181), "rfvd": (4.73, 3.09)},
)

_VIDEO_DC_AE = ModelSpec(
    name="video-dc-ae",
    title="Open-Sora 2.0 Video DC-AE",
    recipe="night-480",
    aliases=("dc",),
    teacher=TeacherSpec(
        class_name="VideoDCAE",
        repo="hpcai-tech/Open-Sora-v2-Video-DC-AE",
        folder="",
        num_bytes=1_840_000_000,
        latent_channels=128,
        time_ratio=4,
        space_ratio=32,
        # With 2 or 4 frames the time stages collapse to one frame.
        frames=FrameRule(step=4, first=0, minimum=8),
        decoder_params_m=239.022,
        licence="Apache-2.0",
        weights_file="F32T4C128_AE.safetensors",
        ratios=lambda _config: (4, 32),
    ),
    student=StudentSpec(
        config=_student_config(128, (64, 128, 256, 512), (4, 3, 3, 3, 4), patch_size=4, spatio_only=True, dc=True),
        pairs=(
            AlignmentPair("mid_block", "decoder.project_in", head=True),
            AlignmentPair("up_blocks.0", "decoder.stages.5", head=True),
            AlignmentPair("up_blocks.1", "decoder.stages.4", head=True),
        ),
        params_m=45.831,
        published=Published(_STUDENT_REPO, "Turbo-VAED-DC.pth", 201_000_000, _MIT),
    ),
    published_results={"psnr": (34.94, 34.05), "ssim": (0.9594, 0.9475), "lpips": (0.0196, 0.0266), "rfvd": (4.74, 6.44)},
)

_TINY = ModelSpec(
    name="tiny",
    title="the embedded pair",
    recipe="fast",
    teacher=TeacherSpec(
        class_name="AutoencoderKLLTXVideo",
        repo=None,
        folder="",
        num_bytes=11_905_000,
        latent_channels=32,
        time_ratio=2,
        space_ratio=8,
        frames=FrameRule(step=2, first=1),
        decoder_params_m=4.619,
        licence="Apache-2.0",
        ratios=_ltx_ratios,
        path=ASSETS / "tiny" / "teacher",
    ),
    student=StudentSpec(
        config=_student_config(32, (64, 48), (0, 0, 1), patch_size=4, spatio_only=False)
        | {"spatio_temporal_scaling": (False, True)},
        pairs=(
            AlignmentPair("mid_block", "decoder.mid_block", head=True, unit=2.0),
            AlignmentPair("up_blocks.1", "decoder.up_blocks.0", head=True, unit=10.0),
        ),
        params_m=0.793,
    ),
)

MODELS: dict[str, ModelSpec] = {spec.name: spec for spec in (_LTX, _HUNYUAN, _COGVIDEOX, _VIDEO_DC_AE, _TINY)}
DEFAULT_MODEL = _TINY.name
_BY_ANY_NAME = {name: spec for spec in MODELS.values() for name in (spec.name, *spec.aliases)}


def is_model_name(name: str) -> bool:
    """Whether `name` is a registry name or an alias."""
    return name in _BY_ANY_NAME


def names_of_models() -> list[str]:
    """Every registry name and alias."""
    return list(_BY_ANY_NAME)


def find_model(name: str | Path) -> ModelSpec:
    """The row of a registry name or alias, or one made for a local teacher folder (its config.json says which class).

    The name of a local teacher is its folder's. One weight file of a folder names the folder and the file to take.
    Raises UnknownModelError with the nearest names, SettingsError where the folder cannot be a teacher.
    """
    if str(name) in _BY_ANY_NAME:
        return _BY_ANY_NAME[str(name)]
    where = Path(name)
    if where.is_dir():
        return _spec_of_folder(where)
    if where.is_file():
        return _spec_of_folder(where.parent, where.name)
    raise UnknownModelError(
        f"no model is called {str(name)!r}, and it is not a folder",
        hint_for(str(name), _BY_ANY_NAME, f"known: {', '.join(MODELS)}"),
    )


def _spec_of_folder(folder: Path, file: str | None = None) -> ModelSpec:
    """A row for the folder's class, with the folder's own name, channels, ratios, size and licence."""
    given, config_path = folder, folder / "config.json"
    if not config_path.is_file() and (folder / "vae" / "config.json").is_file():
        folder, config_path = folder / "vae", folder / "vae" / "config.json"
    lone = [spec for spec in MODELS.values() if not spec.teacher.folder and (folder / spec.teacher.weights_file).is_file()]
    if not config_path.is_file() and lone and not lone[0].embedded:
        return _local(lone[0], given, folder, file, {})  # published without a config
    if not config_path.is_file():
        _refuse_without_config(folder, file)
    config = read_diffusers_config(config_path)
    class_name = config["_class_name"]
    rows = [spec for spec in (_LTX, _HUNYUAN, _COGVIDEOX, _VIDEO_DC_AE) if spec.teacher.class_name == class_name]
    if not rows:
        known = ", ".join(sorted({spec.teacher.class_name for spec in MODELS.values()}))
        raise SettingsError(f"{folder} holds a {shown(class_name)}, which is no known teacher", f"known classes: {known}")
    for name in ("timestep_conditioning", "decoder_inject_noise"):
        if _any(config.get(name)):
            raise SettingsError(
                f"{folder} has {name}: its decoder needs more than latents, which a student cannot learn to do without",
                "LTX-Video 0.9.0 has a plain decoder; 0.9.1 and later do not",
            )
    row = rows[0]
    assert row.teacher.ratios is not None
    try:
        time_ratio, space_ratio = row.teacher.ratios(config)
        latent_channels = int(config["latent_channels"])
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise SettingsError(
            f"{config_path} is not the config of a {class_name}: {error}", "take it from where the weights come from"
        ) from error
    numbers = (time_ratio, space_ratio, latent_channels)
    if not all(fits(number, int) and 1 <= number <= _MOST_CHANNELS for number in numbers):
        raise SettingsError(
            f"{config_path}: its ratios and channels are {', '.join(map(shown, numbers))}",
            "take it from where the weights come from",
        )
    same_ratios = (time_ratio, space_ratio) == (row.teacher.time_ratio, row.teacher.space_ratio)
    frames = row.teacher.frames if same_ratios else FrameRule(step=time_ratio, first=row.teacher.frames.first)
    own = {"latent_channels": latent_channels, "time_ratio": time_ratio, "space_ratio": space_ratio, "frames": frames}
    spec = _local(row, given, folder, file, own)
    config_of_student = dict(row.student.config, latent_channels=latent_channels)
    if not same_ratios:
        config_of_student |= _upsampling_for(time_ratio, space_ratio, config_of_student)
    return replace(spec, student=replace(spec.student, config=config_of_student | _scaling_of(config)))


def _local(row: ModelSpec, given: Path, folder: Path, file: str | None, own: Mapping[str, Any]) -> ModelSpec:
    """`row` for the VAE in `folder`: of the row it keeps what its class says, and nothing that is true of the published weights only."""
    name = given.resolve().name or "teacher"
    if is_model_name(name):  # a student of ./ltx must not pass for one of the registry's ltx
        name = f"{name}-folder"
    try:
        num_bytes = weight_files(folder, file or row.teacher.weights_file).num_bytes
    except MissingError:  # said by those who need the weights
        num_bytes = None
    teacher = replace(
        row.teacher, path=folder, file=file, repo=None, num_bytes=num_bytes, decoder_params_m=None, licence=licence_of(folder),
        licence_note="", **own,
    )  # fmt: skip
    student = replace(row.student, published=None, params_m=None)
    return ModelSpec(name, f"{name} ({row.teacher.class_name})", teacher, student)


def _scaling_of(config: Mapping[str, Any]) -> dict[str, float]:
    """The scaling factor that a VAE's own config states; 1 for a VAE that states none."""
    value = config.get("scaling_factor")
    return {"scaling_factor": float(value) if fits(value, float) and value else 1.0}


def _refuse_without_config(folder: Path, file: str | None) -> None:
    """SettingsError for weights that lie alone: nothing says of which class they are."""
    try:
        found = folder / file if file else weight_files(folder).name
    except (MissingError, SettingsError):
        return  # there are none: config.json is what is missing first
    raise SettingsError(
        f"{folder} holds {found.name} and no config.json, which says which VAE it is",
        "put the config.json of the same VAE beside it (in a pipeline's repository: vae/config.json)",
    )


def with_licence(spec: ModelSpec, licence: str | None) -> ModelSpec:
    """`spec` of a local folder with a licence that its user states, if any.

    Raises SettingsError for a registry row, whose licence is known.
    """
    if licence is None:
        return spec
    if spec.name in MODELS:
        raise SettingsError(
            f"the licence of {spec.name} is known: {spec.teacher.licence}", "leave out --licence, which is for local folders"
        )
    if not licence.strip() or "\n" in licence:
        raise SettingsError("--licence is the name of a licence, on one line", 'such as --licence "Apache-2.0"')
    return replace(spec, teacher=replace(spec.teacher, licence=licence.strip()))


def read_diffusers_config(path: Path) -> dict[str, Any]:
    """The config.json of a diffusers model; SettingsError where it is none, or asks for what no teacher has."""
    hint = "--teacher takes a registry name or a diffusers VAE folder"
    try:
        config = parse_json(read_text(path))
    except FileNotFoundError:
        raise SettingsError(f"{path.parent} holds no config.json", hint) from None
    except (ValueError, OSError) as error:
        raise SettingsError(f"{path} is not a diffusers config: {error}", hint) from error
    if not isinstance(config, dict) or not isinstance(config.get("_class_name"), str):
        raise SettingsError(f"{path} is not a diffusers config: it has no _class_name", hint)
    for name, value in config.items():
        most = _MOST_LAYERS if "layers_per_block" in name else _MOST_CHANNELS
        if not _is_modest(value, most):
            raise SettingsError(f"{path}: {name} is more than any teacher has", "take it from where the weights come from")
    return config


def _is_modest(value: object, most: int) -> bool:
    """Whether numbers and lists in a config stay below `most`: classes build what they are told to, layer by layer."""
    if isinstance(value, list):
        return len(value) <= _MOST_CHANNELS and all(_is_modest(item, most) for item in value)
    return not isinstance(value, int) or abs(value) <= most


def _any(value: object) -> bool:
    return any(value) if isinstance(value, list | tuple) else bool(value)


def _upsampling_for(time_ratio: int, space_ratio: int, config: Mapping[str, Any]) -> dict[str, Any]:
    """The published channels with as many upsamplings as another compression ratio needs; SettingsError if none fits."""
    num_space, num_time = math.log2(space_ratio / config["patch_size"]), math.log2(time_ratio)
    channels, layers = config["decoder_block_out_channels"], config["decoder_layers_per_block"]
    most = len(channels) - 1
    if num_space not in range(1, most + 1) or num_time not in range(int(num_space) + 1):
        raise SettingsError(
            f"no published student upsamples {time_ratio}x in time and {space_ratio}x in space", "pass --student-config FILE"
        )
    num_blocks = int(num_space) + 1
    return {
        "decoder_block_out_channels": channels[-num_blocks:] if config["patch_size"] == 1 else channels[:num_blocks],
        "decoder_layers_per_block": layers[-num_blocks - 1 :],
        "decoder_is_dw_conv": config["decoder_is_dw_conv"][-num_blocks - 1 :],
        "spatio_temporal_scaling": (True,) * int(num_space) + (False,),
        "decoder_spatio_only": tuple(i < num_space - num_time for i in range(num_blocks)),
    }
