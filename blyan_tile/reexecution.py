"""An auditor repeats the first steps of somebody else's round, in a worker process.

Nothing is written and nothing is sent: what comes out is the log as this device has it,
and, of a whole round, the digests of what it changed (DEC-B12).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

from blyan_proto.codec import U16, Size, message
from blyan_proto.constants import MAX_GROUPS
from blyan_proto.protocols.audit import MAX_STEPS, LoggedStep
from blyan_proto.types import Hash
from blyan_tile.jobs import Progress
from blyan_tile.learner import LearnJob, change_of, digest_of


@message
class RepeatJob:
    """Repeat the first `steps` steps of a round; its residuals are not touched."""

    learn: LearnJob
    steps: U16


@message
class Change:
    """What the round changed in one group."""

    group: U16
    change: Hash  # plain blake3 of base - local


@message
class Repeated:
    """The same steps, as they come out here."""

    log: Annotated[tuple[LoggedStep, ...], Size(0, MAX_STEPS)]
    changes: Annotated[tuple[Change, ...], Size(0, MAX_GROUPS)]  # of a whole round
    device: Annotated[str, Size(1, 64)]


def repeat(job: RepeatJob, report: Callable[[Progress], None]) -> Repeated:
    """Run the job. OSError and ProtocolError for files that cannot be used."""
    from blyan_tile.steps import device_class, run_steps

    steps = run_steps(job.learn, job.steps, report)
    changes: tuple[Change, ...] = ()
    if len(steps.log) == (job.learn.steps or job.learn.run.inner_steps):
        changes = tuple(
            Change(group.index, digest_of(change_of(steps, group)))
            for group in steps.trained
        )
    return Repeated(steps.log, changes, device_class(job.learn.device))
