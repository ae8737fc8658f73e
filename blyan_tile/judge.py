"""The held-out loss of a whole model, a job of a worker process (DEC-B17)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

from blyan_proto.block.model import Model
from blyan_proto.codec import U8, U16, U32, U64, Size, message
from blyan_proto.constants import MAX_GROUPS, PPM
from blyan_tile.batches import JUDGED_TOKENS, held_out_windows
from blyan_tile.corpus import Archive
from blyan_tile.jobs import Progress
from blyan_tile.layout import join, layout_of
from blyan_tile.learner import FilePath, GroupFiles, mapped, tiles_of


@message
class JudgeJob:
    """Judge one version of every group on the datasets' held-out sides."""

    model: Model
    archives: Annotated[tuple[FilePath, ...], Size(1, 16)]
    weights: Annotated[tuple[GroupFiles, ...], Size(1, MAX_GROUPS)]  # all groups
    sequence: U16
    device: Annotated[str, Size(1, 32)]
    threads: U8


@message
class JudgeResult:
    """Mean cross-entropy on the fixed windows of the held-out side."""

    loss_micro: U64  # micro-nats per token
    tokens: U32


def judge(job: JudgeJob, report: Callable[[Progress], None]) -> JudgeResult:
    """Run the job. OSError and ProtocolError for files that cannot be used."""
    import torch

    from blyan_tile.model.training import held_out_loss

    torch.set_num_threads(max(1, job.threads))
    views = [view for path in job.archives for view in Archive(mapped(path)).held_out]
    windows = held_out_windows(views, job.sequence, JUDGED_TOKENS)  # (N, T + 1)
    layout = layout_of(job.model)
    parameters = {
        name: torch.tensor(array, device=job.device)
        for files in job.weights
        for name, array in join(
            layout, layout.groups[files.group], tiles_of(files)
        ).items()
    }
    loss = held_out_loss(
        job.model.architecture,
        parameters,
        torch.from_numpy(windows).to(job.device),
    )
    return JudgeResult(round(loss * PPM), windows.shape[0] * job.sequence)
