"""All that a resume needs, named once: every piece is a table of tensors and one safetensors file of a checkpoint.

Batches, crops and noise are functions of (seed, step), so there is no random state here; checkpoints fall between
optimizer steps, so there is no half-summed gradient either.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from turbovaed_cli.errors import CorruptFileError
from turbovaed_cli.models.student import StudentDecoder
from turbovaed_cli.settings import DistillSettings
from turbovaed_cli.training.alignment import AlignmentHeads

PIECES = ("student", "heads", "ema", "optimizer", "scaler", "step")


class TrainingState:
    """The student, its heads, EMA, optimizer, gradient scaler and the number of optimizer steps done."""

    def __init__(self, student: StudentDecoder, heads: AlignmentHeads, settings: DistillSettings, device: torch.device) -> None:
        self.student = student.to(device).train()
        self.heads = heads.to(device).train()
        self.ema = {name: value.detach().clone() for name, value in student.state_dict().items()}
        self.named_parameters = dict(student.named_parameters()) | dict(heads.named_parameters())
        self.optimizer = torch.optim.AdamW(
            self.named_parameters.values(),
            lr=settings.lr,
            betas=settings.betas,
            eps=settings.eps,
            weight_decay=settings.weight_decay,
        )
        self.scaler = torch.amp.GradScaler(device.type, enabled=settings.dtype == "fp16")
        self.step = 0

    @torch.no_grad()
    def update_ema(self, decay: float) -> None:
        """Ema <- decay * ema + (1 - decay) * weights; the decay rises with the steps, so the first ones are soon forgotten."""
        decay = min(decay, (1 + self.step) / (10 + self.step))
        for name, value in self.student.state_dict().items():
            self.ema[name].lerp_(value, 1 - decay)

    def save(self, folder: Path) -> None:
        """Write every piece to `folder`."""
        for piece in PIECES:
            tensors = {
                name: value.detach().cpu().contiguous().clone() for name, value in getattr(self, f"_{piece}_out")().items()
            }
            save_file(tensors, folder / f"{piece}.safetensors")

    def load(self, folder: Path) -> None:
        """Take every piece from `folder`; CorruptFileError where one does not belong to this student."""
        for piece in PIECES:
            try:
                getattr(self, f"_{piece}_in")(load_file(folder / f"{piece}.safetensors"))
            except (OSError, RuntimeError, KeyError) as error:
                raise CorruptFileError(f"{folder / piece}.safetensors does not fit this run: {error}") from error

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
            value.copy_(tensors[name])

    def _optimizer_out(self) -> Mapping[str, Tensor]:
        return {
            f"{name}|{field}": torch.as_tensor(value)
            for name, parameter in self.named_parameters.items()
            for field, value in self.optimizer.state.get(parameter, {}).items()
        }

    def _optimizer_in(self, tensors: dict[str, Tensor]) -> None:
        for key, value in tensors.items():
            name, _, field = key.partition("|")
            parameter = self.named_parameters[name]
            # AdamW counts its steps on the CPU.
            self.optimizer.state[parameter][field] = value if field == "step" else value.to(parameter.device)

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
