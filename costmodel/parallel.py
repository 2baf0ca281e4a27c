"""A training run that several processes share, started by `torchrun` or `accelerate launch`.

    torchrun --nproc-per-node 2 --no-python costmodel train --shards runs/shards --out runs/model

All of them draw the same step, and each computes whole groups of it, since a ranking term is of a group. The gradients
of a sum are the sum of the gradients, so what is learned is what one process learns, to rounding, and a run may go on
with another number of processes. NCCL joins GPUs, one a process; gloo the rest.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol, TypeVar, cast

import torch
from torch import distributed, nn

from costmodel.records import UserError

T = TypeVar("T")


class Sized(Protocol):
    """What can be shared out: `rows` is what it weighs."""

    @property
    def rows(self) -> int: ...


S = TypeVar("S", bound=Sized)


@dataclass(frozen=True, slots=True)
class Processes:
    """Those of a run, seen from one of them: number `rank` of `count`."""

    rank: int = 0
    count: int = 1

    def place(self) -> torch.device:
        """This process's GPU where there are any, else the CPU."""
        if not torch.cuda.is_available():
            return torch.device("cpu")
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0))) if self.count > 1 else torch.device("cuda")

    def share(self, parts: Sequence[S]) -> list[S]:
        """This process's parts of a step, perhaps none: neighbours, which have most in common, of about equal rows."""
        total, before, mine = sum(part.rows for part in parts), 0, []
        for part in parts:
            if (2 * before + part.rows) * self.count // (2 * total) == self.rank:
                mine.append(part)
            before += part.rows
        return mine

    def gathered(self, value: T) -> list[T]:
        """The value of every process, by rank."""
        if self.count == 1:
            return [value]
        values: list[T] = [value] * self.count
        with _all_there():
            distributed.all_gather_object(values, value)
        return values

    def from_first(self, make: Callable[[], T]) -> T:
        """What `make` returns, or the UserError it raises, in the first process; the others do not call it."""
        if self.count == 1:
            return make()
        told: list[T | UserError | None] = [None]
        if self.rank == 0:
            try:
                told = [make()]
            except UserError as error:
                told = [error]
        with _all_there():
            distributed.broadcast_object_list(told, src=0)
        if isinstance(told[0], UserError):
            raise told[0]
        return cast("T", told[0])

    def sum_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Every gradient becomes the sum of all processes'. One that none of them has stays absent: optimizers pass
        over it, while a gradient of zeros would let a weight decay."""
        if self.count == 1:
            return
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        present = torch.tensor([p.grad is not None for p in parameters]).to(grads[0])
        flat = torch.cat([present, *(grad.flatten() for grad in grads)])
        with _all_there():
            distributed.all_reduce(flat)
        having, *sums = flat.split([len(parameters), *(p.numel() for p in parameters)])
        for parameter, some, total in zip(parameters, having.tolist(), sums, strict=True):
            parameter.grad = total.view_as(parameter).to(parameter.dtype) if some else None


ALONE = Processes()


@contextmanager
def joined() -> Iterator[Processes]:
    """The processes that this one was started with; itself where it was started alone."""
    count = int(os.environ.get("WORLD_SIZE", 1))
    if count == 1:
        yield ALONE
        return
    gpus, local = torch.cuda.device_count(), int(os.environ.get("LOCAL_RANK", 0))
    if gpus and local >= gpus:
        raise UserError(f"got process {local + 1} on a machine of {gpus} GPUs, expected one a GPU; start fewer")
    if gpus:
        torch.cuda.set_device(local)
    try:
        distributed.init_process_group("cpu:gloo,cuda:nccl" if gpus else "gloo")
    except (RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0][:200]
        raise UserError(
            f"got WORLD_SIZE={count} and no way to the other processes ({reason}); start with torchrun"
        ) from error
    yield Processes(distributed.get_rank(), count)
    distributed.destroy_process_group()  # not after an error: with one of the others gone it might wait for it


@contextmanager
def _all_there() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        reason = str(error).splitlines()[0][:200]
        raise UserError(
            f"another process of this run has ended ({reason}); run the same again, it goes on from its checkpoint"
        ) from error
