"""Several processes that train one student: the rank of each, and the values they exchange.

They are started by `accelerate launch`, torchrun, Slurm with torchrun's variables, or `--nproc`, and joined by accelerate.
"""

import os
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed, nn

from turbovaed_cli.errors import CheckFailedError, LostRankError, SettingsError, TurboVaedError, UnavailableError
from turbovaed_cli.machine.devices import is_out_of_memory, resolve_device
from turbovaed_cli.reporting import Reporter, quiet

Value = TypeVar("Value")

_BUCKET = 8_000_000  # numbers that are sent at once, 32 MB
# The first rank may look through a million videos while the rest wait. A rank that has died is noticed at once all the same.
_LONGEST_WAIT = timedelta(hours=12)


class Ranks:
    """One process of `count`. For a single process every method is free and changes no bit.

    Before each collective operation the ranks exchange whether one of them has failed. So an error that one raises inside
    `together` is raised by all, and no rank waits for one that has left.
    """

    def __init__(self, count: int, rank: int, local_rank: int, device: torch.device) -> None:
        self.count, self.rank, self.local_rank, self.device = count, rank, local_rank, device
        self._ended = count == 1

    @property
    def is_first(self) -> bool:
        """Whether this is the rank that writes, prints and decides."""
        return self.rank == 0

    def part(self, batch_size: int) -> slice:
        """Return this rank's share of a batch of `batch_size` clips over all ranks."""
        share = batch_size // self.count
        return slice(None) if self.count == 1 else slice(self.rank * share, (self.rank + 1) * share)

    @contextmanager
    def together(self) -> Iterator[None]:
        """Raise on all ranks the error that one of them raises inside, and leave only when all ranks have reached the end."""
        try:
            yield
            self._agree()
        except LostRankError:
            raise
        except Exception as error:
            if not self._ended:
                self._agree(error if isinstance(error, TurboVaedError) else RuntimeError(str(error) or type(error).__name__))
            raise

    def _agree(self, error: Exception | None = None) -> None:
        if self._ended:
            return
        with _lost():
            failed = torch.tensor(int(error is not None))
            distributed.all_reduce(failed, distributed.ReduceOp.MAX)
            if not failed:
                return
            self._ended = True
            errors: list[Exception | None] = [None] * self.count
            distributed.all_gather_object(errors, error)
        raise next(found for found in errors if found is not None) from error

    def share(self, make: Callable[[], Value]) -> Value:
        """Return on all ranks what `make` returns on the first; it is called only there."""
        values = [make() if self.is_first else None]
        if self.count > 1:
            from accelerate.utils import broadcast_object_list

            self._agree()
            with _lost():
                broadcast_object_list(values)
        return values[0]  # type: ignore[return-value]

    def first_of_each_machine_first(self, make: Callable[[], Value]) -> Value:
        """Return what `make` returns on this rank; the first rank of each machine calls it before the rest: it may download."""
        value = make() if self.local_rank == 0 else None
        self._agree()
        return make() if value is None else value

    def gather(self, value: Value) -> list[Value]:
        """Return the values of all ranks, by rank, on all ranks."""
        values: list[Any] = [value]
        if self.count > 1:
            self._agree()
            values = [None] * self.count
            with _lost():
                distributed.all_gather_object(values, value)
        return values

    def most(self, values: Sequence[float]) -> list[float]:
        """Return the maximum of each value over all ranks."""
        if self.count == 1:
            return list(values)
        self._agree()
        found = torch.tensor(values, dtype=torch.float64)
        with _lost():
            distributed.all_reduce(found, distributed.ReduceOp.MAX)
        return found.tolist()

    def mean(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Return the mean of each tensor (any shape, the same on all ranks) over all ranks, bit-identical on all."""
        if self.count == 1:
            return list(tensors)
        from accelerate.utils import reduce

        self._agree()
        flat = torch.cat([tensor.detach().reshape(-1) for tensor in tensors])
        with _lost():
            flat = torch.cat([reduce(piece, "mean") for piece in flat.split(_BUCKET)])
        pieces = flat.split([tensor.numel() for tensor in tensors])
        return [piece.view_as(tensor) for piece, tensor in zip(pieces, tensors, strict=True)]

    def mean_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Set every gradient to its mean over all ranks; a parameter without a gradient on any rank keeps none."""
        if self.count == 1:
            return
        there = torch.tensor([float(p.grad is not None) for p in parameters], device=self.device)
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        *means, there = self.mean([*gradients, there])
        for parameter, mean, share in zip(parameters, means, there.tolist(), strict=True):
            parameter.grad = mean if share else None

    def broadcast(self, tables: Mapping[str, Mapping[str, Tensor]]) -> dict[str, dict[str, Tensor]]:
        """Return copies of the first rank's tables of tensors (any shape) on all ranks.

        A tensor that is on the CPU on the first rank is on the CPU everywhere; the rest are on each rank's device.
        """
        shapes = self.share(
            lambda: {
                piece: {name: (value.shape, value.dtype, value.device.type) for name, value in table.items()}
                for piece, table in tables.items()
            }
        )
        received: dict[str, dict[str, Tensor]] = {}
        with _lost():
            for piece, table in shapes.items():
                received[piece] = {}
                for name, (shape, dtype, kind) in table.items():
                    place = "cpu" if kind == "cpu" else self.device
                    here = tables[piece][name].detach().to(place).contiguous() if self.is_first else None
                    value = torch.empty(shape, dtype=dtype, device=place) if here is None else here.clone()
                    distributed.broadcast(value, src=0)
                    received[piece][name] = value
        return received

    def check_same(self, what: str, value: str) -> None:
        """Raise CheckFailedError on all ranks if `value` differs between them."""
        values = self.gather(value)
        other = next((rank for rank, found in enumerate(values) if found != values[0]), None)
        if other is not None:
            raise CheckFailedError(
                f"{what} of rank {other} is not that of rank 0", "every machine needs the same files and versions"
            )


def alone(device: torch.device) -> Ranks:
    """Return the Ranks of a process that trains alone."""
    return Ranks(1, 0, 0, device)


def join_ranks(device: str, report: Reporter = quiet) -> Ranks:
    """Return this process's rank among those started together, with its device: for `auto` and `cuda` one device per rank.

    Raises SettingsError for a device that several processes cannot share, and UnavailableError if a machine has fewer devices
    than ranks. Raises LostRankError if the processes do not find each other.
    """
    count = int(os.environ.get("WORLD_SIZE") or 1)
    if count == 1:
        return alone(resolve_device(device, report))
    if device == "auto" and os.environ.get("ACCELERATE_USE_CPU", "").lower() == "true":
        device = "cpu"
    is_first_here = (os.environ.get("LOCAL_RANK") or "0") == "0"  # one warning on each machine
    kind = resolve_device(device, report if is_first_here else quiet).type
    if device not in ("auto", "cpu", "cuda") or kind == "mps":
        raise SettingsError(f"`device` {device} is one, and there are {count} processes", "`device` cuda, or cpu")
    here = int(os.environ.get("LOCAL_WORLD_SIZE") or 1)
    if kind == "cuda" and here > torch.cuda.device_count():
        raise UnavailableError(
            f"{here} processes on a machine with {torch.cuda.device_count()} CUDA devices", "start one process per device"
        )
    os.environ.setdefault("LOCAL_RANK", "0")
    from accelerate import PartialState

    with warnings.catch_warnings(), _could_not_join(count):
        warnings.simplefilter("ignore")  # of threads, which it sets
        if kind == "cpu":
            state = PartialState(cpu=True, timeout=_LONGEST_WAIT)
        else:  # messages go over the CPU, so that no device waits for them
            state = PartialState(backend="cpu:gloo,cuda:nccl", timeout=_LONGEST_WAIT)
    return Ranks(state.num_processes, state.process_index, state.local_process_index, torch.device(state.device))


# gloo raises bare RuntimeErrors if a peer has gone or does not answer. Those of gloo itself begin with a place in its source,
# such as [/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:547].
_GONE = re.compile(r"\[[^\]]*\bgloo\b[^\]]*\]|connection (closed|reset|refused)|broken pipe", re.IGNORECASE)


def _is_of_a_peer(error: RuntimeError) -> bool:
    """Whether an error is about another process that has gone or is silent, not about this one's memory or operators."""
    if is_out_of_memory(error) or isinstance(error, NotImplementedError):
        return False
    return isinstance(error, distributed.DistError) or _GONE.search(str(error)) is not None


@contextmanager
def _lost() -> Iterator[None]:
    """Turn torch's errors about a process that has gone into LostRankError."""
    try:
        yield
    except RuntimeError as error:
        if not _is_of_a_peer(error):
            raise
        raise LostRankError(
            f"a process that trained along has gone ({_first_line(error)})",
            "look for the reason in its output or on its machine; the same command goes on from the last checkpoint",
        ) from error


@contextmanager
def _could_not_join(count: int) -> Iterator[None]:
    """Turn errors of processes that do not find each other into LostRankError or UnavailableError; nothing is trained by then."""
    try:
        yield
    except NotImplementedError as error:  # accelerate's, about cards whose driver lacks what NCCL needs
        raise UnavailableError(
            _first_line(error), "install a newer driver, or set NCCL_P2P_DISABLE=1 and NCCL_IB_DISABLE=1"
        ) from error
    except (RuntimeError, ValueError) as error:
        if is_out_of_memory(error):
            raise
        raise LostRankError(
            f"this process could not join the {count} that train together ({_first_line(error)})",
            "MASTER_ADDR, MASTER_PORT, RANK and WORLD_SIZE have to fit on all machines; nothing was trained yet",
        ) from error


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
