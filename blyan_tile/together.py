"""The inner steps of one learner in several processes of one machine, by torch.distributed.

Strategy. Every process knows the whole batch and takes its rows of it;
DistributedDataParallel averages the gradients, so that all make the same step. The
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


Run = Callable[[Tensor], tuple[Tensor, ...]]  # a pass over a batch's rows


class Together:
    """One process's place among those that share a batch."""

    def __init__(self, rank: int, processes: int, kind: str, is_sharded: bool) -> None:
        self.rank = rank
        self.processes = processes
        self.kind = kind  # of device: cpu or cuda
        self.is_sharded = is_sharded  # each process keeps a part of every parameter

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


class _Holding(nn.Module):
    """Parameters, and a pass over them: what torch wants to wrap."""

    def forward(self, run: Run, tokens: Tensor) -> tuple[Tensor, ...]:
        return run(tokens)


class Shared(Mapping[str, Tensor]):
    """A learner's parameters by name, whose gradients are averaged over the processes.

    Sharded ones are whole inside a pass only.
    """

    def __init__(
        self, parameters: Mapping[str, Tensor], together: Together, *, is_whole: bool
    ) -> None:
        """`is_whole`: every parameter takes part in every pass."""
        self._names = {name: name.replace(".", "/") for name in parameters}
        self._holding = _Holding()
        for name, parameter in parameters.items():
            leaf = nn.Parameter(parameter.detach())  # the same storage
            self._holding.register_parameter(self._names[name], leaf)
        self._is_sharded = together.is_sharded
        self._module: nn.Module
        if together.is_sharded:
            self._module = _sharded(self._holding, together)
        else:
            self._module = DistributedDataParallel(
                self._holding, find_unused_parameters=not is_whole
            )

    def __getitem__(self, name: str) -> Tensor:
        held: Tensor = getattr(self._holding, self._names[name])
        return held

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def leaves(self) -> dict[str, Tensor]:
        """Return what an optimizer changes, and where it finds the gradients."""
        return dict(self)

    def passed(self, run: Run, tokens: Tensor) -> tuple[Tensor, ...]:
        """Return `run(tokens)`, a pass that may use the parameters."""
        found: tuple[Tensor, ...] = self._module(run, tokens)
        return found

    @torch.no_grad()
    def copy_to(self, parameters: Mapping[str, Tensor]) -> None:
        """Put the values where they came from; all processes at once."""
        if self._is_sharded:
            for name, parameter in parameters.items():
                parameter.copy_(whole(self[name]))


def whole(tensor: Tensor) -> Tensor:
    """Return all of a parameter or gradient of which each process keeps a part.

    All processes at once; what is not parted is returned as it is.
    """
    gather: Callable[[], Tensor] | None = getattr(tensor, "full_tensor", None)
    return tensor if gather is None else gather()


def part(tensor: Tensor, parameter: Tensor) -> Tensor:
    """Return of `tensor`, which all processes have, the part that is kept here of
    `parameter`."""
    mesh = getattr(parameter, "device_mesh", None)
    if mesh is None:
        return tensor
    from torch.distributed.tensor import distribute_tensor

    placements = parameter.placements  # type: ignore[attr-defined]
    return distribute_tensor(tensor, mesh, placements, src_data_rank=None)


def _sharded(module: nn.Module, together: Together) -> nn.Module:
    """Leave this process a part of each parameter. Imported when used: it takes long."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(together.kind, (together.processes,))
    fully_shard(module, mesh=mesh)  # changes its class
    return module


@contextmanager
def joined(
    rank: int, processes: int, meeting: str, device: str, is_sharded: bool = False
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
        kind = "cuda" if on_cuda else "cpu"
        yield Together(rank, processes, kind, is_sharded)
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
