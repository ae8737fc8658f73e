"""How this node begins, joins and fills in its history, built from its other parts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from blyan_proto.checkpoint import FinalCheckpoint
from blyan_proto.protocols.blobs import PROTOCOL_ID as BLOBS
from blyan_proto.protocols.blocks import PROTOCOL_ID as BLOCKS
from blyan_proto.protocols.sync import PROTOCOL_ID as SYNC
from blyan_proto.state import StateManifest
from blyan_proto.types import Role
from blyan_proto.validators import ValidatorSet
from blyand.errors import ConfigFault
from blyand.foundation import Base
from blyand.joining.backfill import Backfill, Disk
from blyand.joining.donor import Donor
from blyand.joining.joiner import Aim, Joiner, Restored
from blyand.joining.prover import Prover
from blyand.joining.records import Records
from blyand.protocols import blocks as blocks_ends
from blyand.protocols import sync as sync_ends
from blyand.protocols.fetch import Fetcher
from blyand.replica import Replica
from blyand.rules.chain import trust
from blyand.rules.chain.trust import OWN, Known, Pin, Refused, Start, parse_pin
from blyand.rules.chain.validators import signers, successors
from blyand.store.restore import Restore


@dataclass(frozen=True)
class Newcomer:
    """What joins, what fills in, and what helps others to join."""

    aim: Aim
    joiner: Joiner
    backfill: Backfill
    donor: Donor
    records: Records


def aim_of(base: Base, replica: Replica) -> Aim:
    """Return how this node begins. ConfigFault when it must not without a checkpoint."""
    chosen, parameters = base.config.sync.checkpoint, base.genesis.parameters
    try:
        pin = parse_pin(chosen) if chosen not in ("", OWN) else None
        known = _known(base, pin)
        start = trust.start(
            known,
            pin,
            base.clock.now_ms(),
            parameters.trust_span_ms,
            vouched=chosen == OWN,
            decides=base.decides(signers(replica.view)),
        )
    except Refused as error:
        raise ConfigFault(str(error)) from error
    return Aim(
        pin=pin,
        must=start is Start.JOIN,
        far=base.config.sync.far,
        span_ms=parameters.trust_span_ms,
        retention_ms=parameters.retention_span_ms,
    )


def _known(base: Base, pin: Pin | None) -> Known:
    """Return the newest checkpoint that this node may go on from, without its votes.

    Where the state was lost and all checkpoints are here, the newest of them. Refused
    when a pin contradicts one that is here.
    """
    stores, genesis = base.stores, base.genesis
    final = stores.checkpoints.at(stores.checkpoints.executed_height)
    if final is None and stores.history.is_whole and stores.checkpoints.at(1):
        final = stores.checkpoints.latest()
    if pin is not None and (here := stores.checkpoints.at(pin.height)) is not None:
        checked = here.checkpoint
        if checked.id != pin.id:
            other = Known(checked.height, checked.id, checked.time_ms)
            trust.start(other, pin, 0, 0, vouched=False, decides=False)
    if final is None:
        return Known(0, genesis.id, genesis.time_ms)
    newest = final.checkpoint
    return Known(newest.height, newest.id, newest.time_ms)


class _Asking(sync_ends.Client):
    """All that joining and filling in ask of peers."""

    def __init__(self, base: Base) -> None:
        super().__init__(base.host, base.disk_lane)
        self._blocks = blocks_ends.Client(base.host)

    async def blocks(self, peer: str, ids: Sequence[bytes]) -> blocks_ends.Fetched:
        return await self._blocks.get(peer, ids)


class _Chain:
    """What the joiner sees and moves of this node's chain."""

    def __init__(self, base: Base, replica: Replica) -> None:
        self._base, self._stores, self._replica = base, base.stores, replica

    @property
    def known(self) -> Known:
        machine = self._replica.machine
        clock = machine.clock
        return Known(clock.height, machine.last_id, clock.time_ms)

    @property
    def signers(self) -> ValidatorSet:
        return signers(self._replica.view)

    @property
    def decides(self) -> bool:
        return self._base.decides(self.signers)

    @property
    def claimed(self) -> int:
        return self._replica.follower.known

    def begin(self, final: FinalCheckpoint, manifest: StateManifest) -> Restored:
        return Restore.begin(self._stores.database, final.checkpoint, manifest)

    def hold(self, held: bool) -> None:
        self._replica.follower.hold(held)

    async def jump(
        self, final: FinalCheckpoint, prover: Prover, restored: Restored
    ) -> None:
        stores, view = self._stores, self._replica.view

        def finish() -> None:
            stores.sets.keep(*prover.sets)
            height = final.checkpoint.height
            steps = [one for one, _ in prover.steps if one.checkpoint.height < height]
            stores.history.begin(final, steps, prover.since)
            stores.retained.go_back_to(height)
            stores.statements.forget()
            restored.finish(final)

        await self._replica.machine.jump(finish)
        stores.sets.keep(signers(view), successors(view))


def build_newcomer(
    base: Base, replica: Replica, fetcher: Fetcher, roles: int
) -> Newcomer:
    """Return the parts. ConfigFault when this node must not begin."""
    stores, asking = base.stores, _Asking(base)
    view = replica.view
    stores.sets.keep(base.genesis.founders, signers(view), successors(view))
    aim = aim_of(base, replica)

    def ordered(ids: Sequence[bytes]) -> None:
        for id in ids:
            replica.pool.remove(id)

    joiner = Joiner(
        base.genesis,
        aim,
        _Chain(base, replica),
        asking,
        base.peers,
        base.blame,
        base.clock,
        base.disk_lane,
    )
    backfill = Backfill(
        base.genesis,
        Disk(stores.history, stores.checkpoints, stores.blocks, stores.sets),
        asking,
        base.peers,
        base.blame,
        base.disk_lane,
        lambda: replica.machine.clock.time_ms,
        base.config.sync.backfill_kib_s << 10,
        archives=bool(roles & Role.ARCHIVE),
        pin=aim.pin,
        ordered=ordered,
        whole=lambda: stores.retained.go_back_to(0),
        is_busy=lambda: bool(fetcher.wanted or fetcher.under_way),
    )
    donor = Donor(
        stores.state.freeze, stores.checkpoints.at, base.events, base.disk_lane
    )
    records = Records(
        stores.database,
        stores.checkpoints,
        stores.history,
        stores.sets,
        stores.blocks,
    )
    return Newcomer(aim, joiner, backfill, donor, records)


def downloaded(base: Base) -> dict[str, int]:
    """Return the bytes received by the protocols of joining, as the transport counts."""
    counts = base.host.traffic()
    return {name: counts.get(name, (0, 0))[1] for name in (SYNC, BLOCKS, BLOBS)}
