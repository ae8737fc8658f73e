"""Building what trains on this node."""

from __future__ import annotations

from collections.abc import Callable

from blyan_proto.block.block import Block
from blyand.compute import choose_device
from blyand.foundation import Base
from blyand.protocols import delta as delta_ends
from blyand.protocols.fetch import Fetcher
from blyand.replica import Replica
from blyand.training.compacting import Compactor
from blyand.training.crew import Crew
from blyand.training.delivery import Delivery, Reach
from blyand.training.holder import Holder
from blyand.training.journal import Journal
from blyand.training.keeping import Keeping
from blyand.training.learner import Learner
from blyand.training.logbook import Logbook
from blyand.training.primary import Primary


def build_learner(
    base: Base,
    replica: Replica,
    holder: Holder,
    primary: Primary,
    journal: Journal,
    keeping: Keeping,
    whole: Callable[[bytes], Block | None],
    fetcher: Fetcher,
    trainer: Crew,
) -> Learner:
    """Return the learner; its own node is among those that it hands deltas to."""
    reach = Reach(
        push=keeping.pushing(delta_ends.Client(base.host, base.genesis.id).push),
        take=primary.take,
        peer_of=replica.peer_of,
        is_connected=lambda peer: peer in base.meeting.peers,
    )
    return Learner(
        base.key.account,
        lambda: replica.view,
        whole,
        holder,
        base.stores.blobs,
        trainer,
        Delivery(base.key, base.genesis.id, holder, reach, journal),
        fetcher.get,
        base.events,
        journal,
        base.home.residuals,
        choose_device(base.config.compute.device),
        base.threads,
        Logbook(base.home.podl, base.key, base.genesis.id, base.disk_lane),
    )


def build_compactor(base: Base, replica: Replica, holder: Holder) -> Compactor:
    """Return what makes snapshots of groups whose chains grew long."""
    return Compactor(
        base.key.account,
        lambda: replica.view,
        replica.author.make,
        base.disk_lane,
        base.events,
        holder.is_slow,
    )
