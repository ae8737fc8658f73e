"""Building what looks at learners' logs, and the answers about it."""

from __future__ import annotations

import functools

from blyan_proto.block.block import Block
from blyand.compute import Worker
from blyand.errors import Pruned
from blyand.foundation import Base
from blyand.parts import Models
from blyand.protocols import audit as audit_ends
from blyand.protocols.fetch import Fetcher
from blyand.replica import Replica
from blyand.training.audit import Audit, Logs
from blyand.training.inspector import Inspector


def build_inspector(
    base: Base, replica: Replica, models: Models, fetcher: Fetcher, worker: Worker
) -> Inspector:
    """Return what audits other learners from this node."""

    def whole(id: bytes) -> Block | None:
        try:
            return base.stores.blocks.get(id)
        except Pruned:
            return None

    audit = Audit(
        base.key.account,
        base.genesis.id,
        lambda: replica.view,
        whole,
        base.stores.blobs,
        base.disk_lane,
        worker,
        Logs(
            audit_ends.Client(base.host).ask,
            models.learner.logbook.show,
            replica.peer_of,
        ),
        fetcher.get,
        functools.partial(fetcher.get, durable=False),
        models.holder.uses,
    )
    return Inspector(
        base.key, base.genesis.id, lambda: replica.view, audit, base.events
    )
