"""The upkeep of a node's disk: retention, built from the parts whose data it prunes."""

from __future__ import annotations

from dataclasses import dataclass

from blyan_proto.types import Role
from blyand.compute import Threads
from blyand.foundation import Base
from blyand.parts import Models, wanting
from blyand.protocols.fetch import Fetcher
from blyand.replica import Replica
from blyand.retention.duty import Duty
from blyand.retention.pruner import Disk, Pruner
from blyand.retention.service import Retention
from blyand.rules.records import MODELS


@dataclass(frozen=True)
class Upkeep:
    """What prunes, and what it is told through."""

    pruner: Pruner
    retention: Retention


def build_upkeep(
    base: Base, replica: Replica, models: Models, fetcher: Fetcher, roles: int
) -> Upkeep:
    """Return the retention of one node; the disk budget learns what it may remove."""
    stores, span_ms = base.stores, base.genesis.parameters.retention_span_ms

    def groups() -> dict[bytes, frozenset[int]]:
        if stores.budget.limit_bytes is None:
            return {}  # nobody asks
        return {
            record.id: models.holder.desired(record) | models.holder.held(record.id)
            for record in MODELS.scan(replica.view)
            if record.weights == record.groups
        }

    duty = Duty(
        stores.blocks,
        stores.retained,
        groups,
        learns=bool(roles & Role.LEARN),
        everything=bool(roles & (Role.VALIDATE | Role.ARCHIVE)),
    )
    pruner = Pruner(
        Disk(
            stores.blocks,
            stores.checkpoints,
            stores.blobs,
            stores.retained,
            stores.pins,
        ),
        lambda: replica.view,
        span_ms,
        models.holder.uses,
    )
    retention = Retention(
        pruner,
        duty,
        stores.blobs,
        lambda: replica.view,
        base.events,
        Threads("retention", 1),
        span_ms,
        wanting(replica, fetcher) if roles & Role.ARCHIVE else None,
    )
    stores.budget.make_room = retention.make_room
    stores.budget.is_ours = duty.is_ours
    return Upkeep(pruner, retention)
