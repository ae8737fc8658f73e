"""The inner steps of a round from its base, with their log: what a learner does, and
what an auditor does again. Apart from `learner`, since it loads torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice

import numpy as np
import torch
from torch import Tensor

from blyan_proto.constants import PPM
from blyan_proto.digest import Domain, digest
from blyan_proto.protocols.audit import LoggedStep, is_mark
from blyan_proto.types import members
from blyan_tile import inner
from blyan_tile.batches import assign, batch_digest, gather
from blyan_tile.corpus import Archive
from blyan_tile.jobs import Progress
from blyan_tile.layout import Group, Layout, join, layout_of
from blyan_tile.learner import LearnJob, Steps, digest_of, first_tiles, mapped
from blyan_tile.together import joined


def run_steps(job: LearnJob, count: int, report: Callable[[Progress], None]) -> Steps:
    """Run the first `count` steps of a job's round. OSError, ProtocolError."""
    torch.set_num_threads(max(1, job.threads))
    torch.manual_seed(_seed(job))
    layout = layout_of(job.model)
    trained = _trained(layout, job)
    first = first_tiles(job, trained)
    parameters = {
        name: torch.tensor(
            array, device="cpu" if job.sharded else job.device, requires_grad=True
        )
        for group in trained
        for name, array in join(layout, group, first[group.index]).items()
    }
    held: list[list[int]] = [[] for _ in range(job.model.architecture.layers)]
    for group in trained:
        if group.layer is not None and group.expert is not None:
            held[group.layer].append(group.expert)
    total, log, batches = (
        job.steps or job.run.inner_steps,
        list[LoggedStep](),
        list[bytes](),
    )

    def noted() -> Iterator[Tensor]:
        for tokens in islice(_batches(job), count):  # (B, T + 1)
            batches.append(batch_digest(tokens))
            yield torch.from_numpy(tokens).to(job.device)

    def after(done: int, loss: float) -> None:
        state = None
        if job.processes == 1 and is_mark(done - 1, total):
            arrays = (p.detach().cpu().numpy() for p in parameters.values())
            state = digest_of(list(arrays))
        log.append(LoggedStep(batches[done - 1], max(0, round(loss * PPM)), state))
        report(Progress(done, count, f"loss {loss:.3f}"))

    with joined(
        job.rank, job.processes, job.meeting, job.device, job.sharded
    ) as together:
        outcome = inner.train(
            job.model.architecture,
            job.run,
            job.round,
            parameters,
            held,
            noted(),
            after,
            together,
        )
    local = {name: p.detach().cpu().numpy() for name, p in parameters.items()}
    return Steps(layout, trained, first, local, outcome, tuple(log))


def device_class(device: str, processes: int = 1) -> str:
    """Return the class of a torch device: within one, equal steps give equal bits."""
    version = torch.__version__.split("+")[0]
    kind = torch.device(device).type
    if kind == "cuda":
        name = torch.cuda.get_device_name(torch.device(device))
    else:
        name = torch.backends.cpu.get_cpu_capability() if kind == "cpu" else ""
    count = f" x{processes}" if processes > 1 else ""
    return f"{kind} {name} torch {version}{count}"[:64]


def _seed(job: LearnJob) -> int:
    parts = job.run_id, job.round.to_bytes(4, "little"), job.learner
    return int.from_bytes(digest(Domain.SEED, *parts)[:8], "little")


def _trained(layout: Layout, job: LearnJob) -> list[Group]:
    held = members(job.held)
    return [
        group for group in layout.groups if group.expert is None or group.index in held
    ]


def _batches(job: LearnJob) -> Iterator[np.ndarray]:
    """Yield the round's H batches, each (B, T + 1) int64."""
    views = [view for path in job.archives for view in Archive(mapped(path)).train]
    total = sum(len(view) for view in views)
    starts = assign(job.beacon, job.round, job.learner, job.run, total)  # (H, B)
    for row in starts:
        yield gather(views, row, job.run.sequence + 1)
