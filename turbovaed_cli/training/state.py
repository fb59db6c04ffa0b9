"""Everything that a resume needs: every piece is a table of tensors, and one safetensors file of a checkpoint.

Batches, crops and noise are functions of (seed, step), so there is no random state here; checkpoints fall between
optimizer steps, so there is no half-summed gradient either.
"""

import hashlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from turbovaed_cli.errors import CorruptFileError
from turbovaed_cli.models.trainable import Trainable
from turbovaed_cli.settings import DistillSettings
from turbovaed_cli.stage import Stage
from turbovaed_cli.training.alignment import AlignmentHeads
from turbovaed_cli.training.discriminator import PatchDiscriminator3d
from turbovaed_cli.training.muon import Muon


class TrainingState:
    """The student, its heads, EMA, optimizer, gradient scaler and the number of optimizer steps done, over all stages.

    If the schedule has an adversarial stage, there is a discriminator with its optimizer from the first step on.
    """

    def __init__(self, student: Trainable, heads: AlignmentHeads, settings: DistillSettings, device: torch.device) -> None:
        self.student = student.to(device).train()
        self.heads = heads.to(device).train()
        self.ema: dict[str, Tensor] = {}
        self.forget_average()
        self.named_parameters = dict(student.named_parameters()) | dict(heads.named_parameters())
        self.optimizer = _optimizer(self.named_parameters.values(), settings)
        self.discriminator: PatchDiscriminator3d | None = None
        self.discriminator_parameters: dict[str, nn.Parameter] = {}
        self.discriminator_optimizer: torch.optim.Optimizer | None = None
        if any(stage.adversarial_weight for stage in settings.stages):
            self.discriminator = PatchDiscriminator3d(settings.discriminator_channels).to(device).train()
            self.discriminator_parameters = dict(self.discriminator.named_parameters())
            self.discriminator_optimizer = torch.optim.AdamW(
                self.discriminator_parameters.values(), lr=settings.discriminator_lr, betas=(0.5, 0.9), weight_decay=0.0
            )
        self.scaler = torch.amp.GradScaler(device.type, enabled=settings.dtype == "fp16")
        self.step = 0

    def forget_average(self) -> None:
        """Restart the average (EMA) from the current weights."""
        self.ema = {name: value.detach().clone() for name, value in self.student.state_dict().items()}

    @torch.no_grad()
    def update_ema(self, decay: float) -> None:
        """Set ema to decay * ema + (1 - decay) * weights; the decay is smaller at first, so early steps are soon forgotten."""
        decay = min(decay, (1 + self.step) / (10 + self.step))
        weights = dict(self.student.named_parameters()) | dict(self.student.named_buffers())
        torch._foreach_lerp_(list(self.ema.values()), [weights[name] for name in self.ema], 1 - decay)

    def optimizers(self, stage: Stage) -> list[torch.optim.Optimizer]:
        """Return the optimizers that make a step in `stage`."""
        both = [self.optimizer, self.discriminator_optimizer] if stage.adversarial_weight else [self.optimizer]
        return [optimizer for optimizer in both if optimizer is not None]

    def stepping_parameters(self, stage: Stage) -> list[nn.Parameter]:
        """Return the parameters that are updated in `stage`."""
        judging = self.discriminator_parameters.values() if stage.adversarial_weight else ()
        return [*self.named_parameters.values(), *judging]

    def save(self, folder: Path) -> None:
        """Write every piece to `folder`."""
        for piece, table in self.tables().items():
            tensors = {name: value.detach().cpu().contiguous().clone() for name, value in table.items()}
            save_file(tensors, folder / f"{piece}.safetensors")

    def load(self, folder: Path) -> None:
        """Load every piece from `folder`. Raises CorruptFileError if one is damaged or of another student."""
        for piece, (_, take) in self._pieces().items():
            try:
                take(load_file(folder / f"{piece}.safetensors"))
            except (SafetensorError, OSError, RuntimeError, KeyError, ValueError, TypeError) as error:
                raise CorruptFileError(
                    f"{folder / piece}.safetensors does not fit this run: {error}",
                    f"remove {folder} to go on from the checkpoint before",
                ) from error

    def tables(self) -> dict[str, Mapping[str, Tensor]]:
        """Return every piece as a table of tensors by name, not copied."""
        return {piece: give() for piece, (give, _) in self._pieces().items()}

    def take(self, tables: Mapping[str, dict[str, Tensor]]) -> None:
        """Take over `tables` of another state of the same student, as `tables()` returns them."""
        for piece, (_, take) in self._pieces().items():
            take(tables[piece])

    def _pieces(self) -> dict[str, tuple[Callable[[], Mapping[str, Tensor]], Callable[[dict[str, Tensor]], None]]]:
        """Return the functions to read and to restore every piece, by its name, which is also its file's."""
        return {
            "student": (self._student_out, self._student_in),
            "heads": (self._heads_out, self._heads_in),
            "ema": (self._ema_out, self._ema_in),
            "optimizer": (self._optimizer_out, self._optimizer_in),
            "scaler": (self._scaler_out, self._scaler_in),
            "step": (self._step_out, self._step_in),
            "discriminator": (self._discriminator_out, self._discriminator_in),
            "discriminator_optimizer": (self._discriminator_optimizer_out, self._discriminator_optimizer_in),
        }

    def digest(self) -> str:
        """Return the hex sha256 of every bit that a step changes."""
        found = hashlib.sha256()
        for table in self.tables().values():
            for name, value in sorted(table.items()):
                found.update(name.encode())
                found.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        return found.hexdigest()

    def _student_out(self) -> Mapping[str, Tensor]:
        return self.student.state_dict()

    def _student_in(self, tensors: dict[str, Tensor]) -> None:
        self.student.load_state_dict(tensors)

    def _heads_out(self) -> Mapping[str, Tensor]:
        return self.heads.state_dict()

    def _heads_in(self, tensors: dict[str, Tensor]) -> None:
        self.heads.load_state_dict(tensors)

    def _ema_out(self) -> Mapping[str, Tensor]:
        return self.ema

    def _ema_in(self, tensors: dict[str, Tensor]) -> None:
        for name, value in self.ema.items():
            if tensors[name].shape != value.shape:
                raise ValueError(f"{name} is {tuple(tensors[name].shape)}, not {tuple(value.shape)}")
            value.copy_(tensors[name])

    def _optimizer_out(self) -> Mapping[str, Tensor]:
        return _tensors_of(self.optimizer, self.named_parameters)

    def _optimizer_in(self, tensors: dict[str, Tensor]) -> None:
        _give_back(self.optimizer, self.named_parameters, tensors)

    def _discriminator_out(self) -> Mapping[str, Tensor]:
        return self.discriminator.state_dict() if self.discriminator is not None else {}

    def _discriminator_in(self, tensors: dict[str, Tensor]) -> None:
        if self.discriminator is not None:
            self.discriminator.load_state_dict(tensors)

    def _discriminator_optimizer_out(self) -> Mapping[str, Tensor]:
        return _tensors_of(self.discriminator_optimizer, self.discriminator_parameters)

    def _discriminator_optimizer_in(self, tensors: dict[str, Tensor]) -> None:
        _give_back(self.discriminator_optimizer, self.discriminator_parameters, tensors)

    def _scaler_out(self) -> Mapping[str, Tensor]:
        return {name: torch.as_tensor(value, dtype=torch.float64) for name, value in self.scaler.state_dict().items()}

    def _scaler_in(self, tensors: dict[str, Tensor]) -> None:
        whole = ("growth_interval", "_growth_tracker")
        if tensors:
            self.scaler.load_state_dict({name: int(value) if name in whole else float(value) for name, value in tensors.items()})

    def _step_out(self) -> Mapping[str, Tensor]:
        return {"step": torch.tensor(self.step)}

    def _step_in(self, tensors: dict[str, Tensor]) -> None:
        self.step = int(tensors["step"])


def _optimizer(parameters: Iterable[nn.Parameter], settings: DistillSettings) -> torch.optim.Optimizer:
    """Return AdamW or Muon; the learning rate is set before every step."""
    if settings.optimizer == "muon":
        return Muon(parameters, lr=0.0, momentum=settings.betas[1], weight_decay=settings.weight_decay)
    return torch.optim.AdamW(parameters, lr=0.0, betas=settings.betas, eps=settings.eps, weight_decay=settings.weight_decay)


def _tensors_of(optimizer: torch.optim.Optimizer | None, parameters: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    """Return an optimizer's state as "parameter|field" -> tensor."""
    if optimizer is None:
        return {}
    return {
        f"{name}|{field}": torch.as_tensor(value)
        for name, parameter in parameters.items()
        for field, value in optimizer.state.get(parameter, {}).items()
    }


def _give_back(
    optimizer: torch.optim.Optimizer | None, parameters: Mapping[str, nn.Parameter], tensors: Mapping[str, Tensor]
) -> None:
    if optimizer is None:
        return
    for key, value in tensors.items():
        name, _, field = key.partition("|")
        parameter = parameters[name]
        if field != "step" and value.shape != parameter.shape:
            raise ValueError(f"{key} is {tuple(value.shape)}, not {tuple(parameter.shape)}")
        # AdamW counts its steps on the CPU.
        optimizer.state[parameter][field] = value if field == "step" else value.to(parameter.device)
