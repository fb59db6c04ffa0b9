"""What a resume needs: the average draws on every weight as if it were the only one, and the digest is of values alone."""

import torch

from turbovaed_cli.models.loading import build_student
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


def test_the_digest_of_a_loaded_state_is_that_of_the_saved_one(small_student, tmp_path):
    """Muon has other tensors for weights than for biases; they may come back from a file in another order."""
    torch.manual_seed(0)
    settings = DistillSettings((Stage("only", adversarial_weight=1.0),), dtype="fp32", optimizer="muon")
    states = [
        TrainingState(build_student(small_student), AlignmentHeads((), ()), settings, torch.device("cpu")) for _ in range(2)
    ]
    for parameter in (*states[0].named_parameters.values(), *states[0].discriminator_parameters.values()):
        parameter.grad = torch.randn_like(parameter)
    for optimizer in states[0].optimizers(settings.stages[0]):
        optimizer.step()
    states[0].save(tmp_path)
    states[1].load(tmp_path)
    assert states[1].digest() == states[0].digest()
    with torch.no_grad():
        next(states[1].student.parameters()).add_(1e-6)
    assert states[1].digest() != states[0].digest()
