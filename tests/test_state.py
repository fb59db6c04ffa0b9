"""The average of the weights: every weight drawn on as if it were the only one."""

import torch

from turbovaed_cli.models.student import build_student
from turbovaed_cli.settings import DistillSettings, Stage
from turbovaed_cli.training.alignment import AlignmentHeads
from turbovaed_cli.training.state import TrainingState


def test_the_average_follows_each_weight_to_the_bit(small_student):
    torch.manual_seed(0)
    settings = DistillSettings((Stage("only"),), dtype="fp32")
    state = TrainingState(build_student(small_student), AlignmentHeads((), ()), settings, torch.device("cpu"))
    wanted = {name: value.clone() for name, value in state.ema.items()}
    for state.step in (1, 2, 1000):
        decay = min(0.99, (1 + state.step) / (10 + state.step))
        with torch.no_grad():
            for name, value in state.student.state_dict().items():
                value.add_(torch.randn_like(value))
                wanted[name].lerp_(value, 1 - decay)
        state.update_ema(0.99)
    assert wanted.keys() == state.ema.keys() == dict(state.student.named_parameters()).keys()
    assert all(torch.equal(state.ema[name], value) for name, value in wanted.items())
