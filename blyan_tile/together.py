"""The inner steps of one learner in several processes of one machine, by torch.distributed.

Strategy. Every process knows the whole batch and takes its rows of it;
DistributedDataParallel averages the gradients, so that all make the same AdamW step. The
one thing that is not linear in the rows, the share of tokens that an expert got in the
balancing loss, is summed first: the curve is that of one process, up to the order in
which floats are added. docs/decisions/0032-partial-learners.md
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta

import torch
from torch import Tensor
from torch import distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

PATIENCE_S = 120  # with another process, from one exchange to the next


class Together:
    """One process's place among those that share a batch."""

    def __init__(self, rank: int, processes: int) -> None:
        self.rank = rank
        self.processes = processes

    def rows(self, batch: Tensor) -> tuple[Tensor, float]:
        """Return this process's rows of a batch (B, T + 1), B >= processes, and the
        weight of their mean: processes times their part of the batch."""
        mine = batch[self.rank :: self.processes]
        return mine, len(mine) * self.processes / len(batch)

    def summed(self, values: Tensor) -> Tensor:
        """Return the sum over the processes, the same in each; without a gradient."""
        total = values.detach().clone()
        dist.all_reduce(total)
        return total

    def wrapped(self, module: nn.Module, is_whole: bool) -> nn.Module:
        """Return `module` such that its gradients are averaged over the processes.

        `is_whole`: every parameter takes part in every pass.
        """
        return DistributedDataParallel(module, find_unused_parameters=not is_whole)


class Stepping(nn.Module):
    """A forward pass over `parameters` as the module that DistributedDataParallel wants."""

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        run: Callable[[Tensor], tuple[Tensor, ...]],
    ) -> None:
        super().__init__()
        for name, parameter in parameters.items():
            self.register_parameter(name.replace(".", "/"), parameter)
        self._run = run

    def forward(self, tokens: Tensor) -> tuple[Tensor, ...]:
        return self._run(tokens)


@contextmanager
def joined(
    rank: int, processes: int, meeting: str, device: str
) -> Iterator[Together | None]:
    """Meet the other processes at the file `meeting`, which is of this job alone.

    None for a process on its own. OSError when another process is gone.
    """
    if processes == 1:
        yield None
        return
    loopback = "lo0" if sys.platform == "darwin" else "lo"
    os.environ.setdefault("GLOO_SOCKET_IFNAME", loopback)
    os.environ.setdefault("NCCL_SOCKET_IFNAME", loopback)
    on_cuda = device.startswith("cuda")
    if on_cuda:
        torch.cuda.set_device(device)
    try:
        dist.init_process_group(
            "nccl" if on_cuda else "gloo",
            init_method=f"file://{meeting}",
            rank=rank,
            world_size=processes,
            timeout=timedelta(seconds=PATIENCE_S),
        )
        yield Together(rank, processes)
    except RuntimeError as error:
        if not _is_of_a_peer(error):
            raise
        raise OSError(
            "another process of the inner steps is gone or stands still"
        ) from error
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def _is_of_a_peer(error: RuntimeError) -> bool:
    return isinstance(error, dist.DistError) or "gloo" in str(error)
