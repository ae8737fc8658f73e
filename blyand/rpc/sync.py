"""Answers about joining: how far, by whom, and the checkpoint to hand over."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import trio

from blyan_proto.genesis import Genesis
from blyan_proto.rpc import sync as spec
from blyan_proto.rpc.errors import NO_CHECKPOINT, RpcError
from blyan_proto.types import Role
from blyand.chain.follow import Follower
from blyand.chain.machine import Machine
from blyand.compute import Threads
from blyand.joining.backfill import Backfill
from blyand.joining.joiner import Joiner
from blyand.joining.records import Records
from blyand.protocols.meeting import Met
from blyand.rpc.bind import Answers, Emit
from blyand.rules.chain.trust import Pin

STEP_S = 0.5  # between two signs of progress


@dataclass(frozen=True)
class Progress:
    """What the status is read from."""

    machine: Machine
    follower: Follower
    joiner: Joiner
    backfill: Backfill
    records: Records
    peers: Callable[[], Mapping[str, Met]]
    downloaded_bytes: Callable[[], int]
    blobs: Callable[[], int]

    def status(self) -> spec.SyncStatus:
        """Return how far this node is."""
        told, floor = self.joiner.told, self.records.history.floor
        fill = self.backfill
        return spec.SyncStatus(
            phase=told.phase,
            trouble=told.trouble or None,
            checkpoint=self.machine.clock.height,
            known=self.follower.known,
            joined_at=floor.joined,
            target=told.height,
            chunks=told.chunks,
            state_bytes=told.state_bytes,
            blobs=self.blobs(),
            history_from=floor.checkpoints,
            blocks_from=floor.blocks,
            backfilled_blocks=fill.blocks,
            backfill_left_s=fill.left_s,
            backfill_trouble=fill.trouble or None,
            downloaded_bytes=self.downloaded_bytes(),
            sync_time_s=told.joined_s,
            peers=len(self.peers()),
        )


def bind(
    answers: Answers, *, genesis: Genesis, progress: Progress, lane: Threads
) -> None:
    """Bind sync.*. `lane` reads the database."""
    joiner, records = progress.joiner, progress.records

    @answers(spec.status)
    async def status(params: spec.GetSync) -> spec.SyncStatus:
        return progress.status()

    @answers(spec.watch)
    async def watch(params: spec.WatchSync, emit: Emit) -> spec.SyncStatus:
        while not joiner.joined.is_set() or (
            params.history and not records.history.is_whole
        ):
            await emit(progress.status())
            await trio.sleep(STEP_S)
        return progress.status()

    @answers(spec.checkpoint)
    async def checkpoint(params: spec.GetPin) -> spec.CheckpointPin:
        height = progress.machine.clock.height
        final = await lane.run(records.checkpoints.at, height)
        if final is None:
            raise RpcError(NO_CHECKPOINT, "no checkpoint is final here yet")
        made = final.checkpoint
        signers = await lane.run(records.members, made.validators_root)
        voters = [vote.voter for vote in final.votes]
        return spec.CheckpointPin(
            checkpoint=str(Pin(made.height, made.id)),
            height=made.height,
            id=made.id,
            time_ms=made.time_ms,
            trusted_until_ms=made.time_ms + genesis.parameters.trust_span_ms,
            network=genesis.id,
            validators_root=made.validators_root,
            signers=voters,
            weight=sum(map(signers.weight_of, voters)),
            total_weight=signers.total,
        )

    @answers(spec.providers)
    async def providers(params: spec.ListProviders) -> spec.Providers:
        gave, out = joiner.told.gave, joiner.told.out
        met = progress.peers()
        found = [
            spec.Provider(
                peer=peer,
                finalised=met[peer].greeting.finalised if peer in met else 0,
                archive=peer in met and bool(met[peer].greeting.roles & Role.ARCHIVE),
                chunks=gave.get(peer, 0),
                refused=out.get(peer),
            )
            for peer in {*met, *gave, *out}
        ]
        return spec.Providers(sorted(found, key=lambda one: (-one.chunks, one.peer)))
