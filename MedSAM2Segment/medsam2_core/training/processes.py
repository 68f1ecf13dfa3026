"""Several processes that train one model, started by ``torchrun``.

The gradients are summed with one all-reduce a step. torch's DistributedDataParallel does the same behind a
wrapper of the whole forward pass, which the simulated user does not have: it calls parts of the model many
times a step. Lightning Fabric and Accelerate build on that wrapper.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
from torch import distributed, nn


@dataclass(frozen=True)
class Processes:
    """The processes of a training.

    Attributes
    ----------
    number, count
        Of this process, from 0, and of all of them.
    """

    number: int = 0
    count: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this process validates, writes files and reports."""
        return self.number == 0

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """Return the sum of equally shaped tensors of all processes."""
        if self.count > 1:
            distributed.all_reduce(values)
        return values

    def sum_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Replace gradients by their sum over all processes; none counts as zero."""
        if self.count == 1:
            return
        used = torch.tensor([float(p.grad is not None) for p in parameters], device=parameters[0].device)
        flat = torch.cat(
            [(torch.zeros_like(p) if p.grad is None else p.grad).float().flatten() for p in parameters]
        )
        distributed.all_reduce(used)
        distributed.all_reduce(flat)
        at = 0
        for parameter, count in zip(parameters, used.tolist(), strict=True):
            part = flat[at : at + parameter.numel()].view_as(parameter)
            at += parameter.numel()
            parameter.grad = part.clone() if count else None

    def from_first(self, values: Sequence[float]) -> list[float]:
        """Return the numbers that the first process has."""
        if self.count == 1:
            return list(values)
        tensor = torch.tensor(list(values), dtype=torch.float64)
        if torch.cuda.is_available() and distributed.get_backend() == "nccl":
            tensor = tensor.cuda()
        distributed.broadcast(tensor, 0)
        return tensor.tolist()


ALONE = Processes()


def device_of_process(device: torch.device) -> torch.device:
    """Return the card of this process where there are several on a computer."""
    if device.type == "cuda" and "LOCAL_RANK" in os.environ:
        return torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    return device


@contextmanager
def started_processes(device: torch.device) -> Iterator[Processes]:
    """Join the processes that ``torchrun`` has started; one alone without it.

    Others wait up to a day for the first, which validates.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ and "WORLD_SIZE" not in os.environ:
        yield ALONE
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    backend = "nccl" if device.type == "cuda" else "gloo"
    distributed.init_process_group(backend, timeout=timedelta(days=1))
    try:
        yield Processes(distributed.get_rank(), distributed.get_world_size())
    finally:
        distributed.destroy_process_group()
