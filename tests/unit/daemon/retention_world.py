"""A world whose blocks, checkpoints and blobs lie on a disk, for retention to prune."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from blyan_proto.block.block import Block
from blyan_proto.block.model import Snapshot, TileRoots
from blyan_proto.checkpoint import (
    Checkpoint,
    FinalCheckpoint,
    Vote,
    VoteStage,
    VoteStatement,
)
from blyan_proto.genesis import DEVNET
from blyan_proto.signing import SigningKey
from blyand.retention.pruner import Disk, Pruner
from blyand.rules.chain.execute import Outcome
from blyand.rules.chain.intake import Place, check, verify
from blyand.rules.chain.order import order
from blyand.rules.model.model import layout_for
from blyand.rules.records import VERSIONS
from blyand.store.blobs import BlobStore
from blyand.store.blocks import BlockStore
from blyand.store.checkpoints import CheckpointStore
from blyand.store.memory import MemoryStore
from blyand.store.pins import Pins
from blyand.store.retained import Retained
from tests.unit.daemon.chain_world import Training, model, replace, some

SPAN_MS = 2_000
GENESIS = {"parameters": replace(DEVNET, retention_span_ms=SPAN_MS, work_bits=0)}


class Kept(Training):
    """A chain that trains, and everything of it on the disk."""

    def __init__(
        self, path: Path, store: MemoryStore | None = None, **changed: Any
    ) -> None:
        self.path = path
        self.store = store or MemoryStore()
        self.used: set[bytes] = set()
        self._places: dict[bytes, Place] = {}
        self.open_disk()
        super().__init__(**GENESIS, **changed)

    def open_disk(self, **changed: Any) -> None:
        """Open what lies there, as a start does."""
        self.blocks = BlockStore(self.store)
        self.checkpoints = CheckpointStore(self.store)
        self.retained = Retained(self.store)
        self.pins = Pins(self.store)
        self.blobs = BlobStore(
            self.path / "blobs", gone_since=self.retained.gone_since, **changed
        )
        self.pruner = Pruner(
            Disk(self.blocks, self.checkpoints, self.blobs, self.retained, self.pins),
            lambda: self.view,
            SPAN_MS,
            self.used.__contains__,
        )
        self.pruner._idle_s = 0.0

    def checkpoint(self, *blocks: Block, **more: int) -> list[Outcome]:
        outcomes = super().checkpoint(*blocks, **more)
        self.keep(*blocks)
        found = {outcome.block: outcome.error for outcome in outcomes}
        ordered = tuple(block.id for block in order(blocks))
        results = [(int(found[id] is not None), found[id] or "") for id in ordered]
        self.checkpoints.commit_checkpoint(self._final(ordered), {}, results)
        return outcomes

    def block(
        self, payload: Any, key: SigningKey | None = None, **changed: Any
    ) -> Block:
        made = super().block(payload, key, **changed)
        self._places[made.id] = Place(made.header.chain, made.header.height)
        return made

    def keep(self, *blocks: Block) -> None:
        """Store blocks as intake does."""
        self.blocks.put_many(
            [
                verify(check(b, self.genesis, b.header.time_ms), self._places.get)
                for b in blocks
            ]
        )

    def _final(self, ordered: tuple[bytes, ...]) -> FinalCheckpoint:
        named = some(("checkpoint", self.height)).randbytes(32)
        made = Checkpoint(
            version=1,
            network=self.genesis.id,
            height=self.height,
            parent=named,
            round=0,
            proposer=self.keys[0].public,
            time_ms=self.time_ms,
            beacon=named,
            preimage=named,
            blocks=ordered,
            receipts=(),
            state_root=named,
            validators_root=named,
            next_validators_root=named,
        )
        statement = VoteStatement(1, VoteStage.PRECOMMIT, self.height, 0, made.id)
        return FinalCheckpoint(made, (Vote(statement, made.proposer, bytes(64)),))

    def train(self, run: bytes, rounds: int, snapshot_every: int = 2) -> list[bytes]:
        """Train some rounds; return the delta blobs of group 2, one per round."""
        deltas = []
        for _ in range(rounds):
            round = self.group(2).rounds
            self.hold()
            for group in range(self.groups):
                deltas += self.step(run, group) if group == 2 else []
                if group != 2:
                    self.step(run, group)
            if (round + 1) % snapshot_every == 0:
                assert self.errors(self.snapshot(run, 2, round)) == [None]
        return deltas

    def step(self, run: bytes, group: int) -> list[bytes]:
        """Order a group's next update, whose blobs are here."""
        head = self.group(group)
        named = f"{run.hex()} {group} {head.rounds}"
        blob = self.blobs.put_bytes(f"deltas of {named}".encode())
        tiles = []
        for index, tile in enumerate(layout_for(model()).groups[group].tiles):
            seed = some(f"{named} {index}").randrange(2**31)
            weights = np.full(tile.shape, seed, np.float32)
            tiles.append(
                TileRoots(
                    self.blobs.put_array(weights, durable=False),
                    self.blobs.put_array(-weights, durable=False),
                )
            )
        update = self.update(run, group, blob=blob, result=tuple(tiles))
        assert self.errors(update) == [None]
        return [blob]

    def snapshot(self, run: bytes, group: int, round: int) -> Block:
        """Return a snapshot block, its tiles durable as holders make them."""
        version = VERSIONS.get(self.view, run, round, group)
        assert version is not None
        for tile in version.tiles:
            for root in (tile.weights, tile.momentum):
                assert root is not None
                self.blobs.put_array(self.blobs.open_array(root))
        return self.block(
            Snapshot(1, self.model, group, version.update, round, version.tiles)
        )

    def pass_time(self) -> None:
        """Let the window of everything so far end."""
        assert self.errors(step_ms=SPAN_MS + 1) == []

    def prune(self) -> None:
        """Do what the service does in one look."""
        pruner = self.pruner
        while pruner.index():
            pass
        while pruner.judge():
            pass
        pruner.look_at_groups()
        while pruner.release():
            pass
        after: bytes | None = b""
        while after is not None:
            after = pruner.sweep(after)

    def check(self) -> None:
        """Nothing is half: whole payloads have their blobs, all headers are here."""
        for height in range(1, self.height + 1):
            final = self.checkpoints.at(height)
            assert final is not None
            for id in final.checkpoint.blocks:
                assert self.blocks.signed_header(id) is not None
                whole = self.blocks.is_whole(id)
                assert whole is (self.blocks.dropped_ms(id) is None)
                if whole:
                    self.check_names(id)

    def check_names(self, id: bytes) -> None:
        block = self.blocks.get(id)
        assert block is not None
        content = block.content
        blob = getattr(content, "blob", None)
        if blob is not None and block.header.kind == 17:
            assert self.blobs.is_durable(blob), "a named blob is gone"
        if isinstance(content, Snapshot):
            for tile in content.tiles:
                assert self.blobs.is_durable(tile.weights)
