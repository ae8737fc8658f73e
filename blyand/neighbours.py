"""What this node knows of the peers that are connected: what they hold, how near they are."""

from __future__ import annotations

from collections.abc import Iterable

from blyan_proto.protocols.providers import expert_key
from blyan_proto.types import Role, members
from blyand.foundation import Base
from blyand.net.identity import peer_id_of
from blyand.replica import Replica
from blyand.rules.model import placement
from blyand.rules.records import MODELS, NODES

MODELS_KEPT = 16  # whose placement is remembered

Beat = tuple[str, bytes | None, frozenset[int]]  # peer, the model it follows, groups
MadeOf = tuple[int, tuple[tuple[str, bool], ...]]  # replication; who tells of the model
Placed = tuple[MadeOf | None, dict[str, frozenset[int]]]  # groups by peer


class Neighbours:
    """Connected peers, by their last heartbeats (DEC-A8)."""

    def __init__(self, base: Base, replica: Replica) -> None:
        self._base = base
        self._replica = replica
        self._beats: list[Beat] = []
        self._beats_of = b""  # the checkpoint at which they were read
        self._placed: dict[bytes, Placed] = {}  # by model

    def holders(self, model: bytes, group: int) -> Iterable[str]:
        """Return the peers that say they hold the group, or else those that ought to.

        A heartbeat names one model; of another model a peer holds what placement gives
        it. Where there is nobody, the directory is asked; a caller tries again.
        """
        connected = self._base.meeting.peers
        found = [
            peer
            for peer, follows, held in self._heartbeats()
            if peer in connected and follows == model and group in held
        ]
        if not found:
            supposed = self._supposed(model).items()
            found = [p for p, held in supposed if p in connected and group in held]
        if not found:
            self._base.directory.seek(expert_key(model, group))
        return found

    def hosts(self, model: bytes) -> dict[str, frozenset[int]]:
        """Return the peers that serve, with the groups of the model that each holds."""
        met = self._base.meeting.peers
        return {
            peer: held
            for peer, follows, held in self._heartbeats()
            if follows == model
            and peer in met
            and met[peer].greeting.roles & Role.SERVE
        }

    def rtt_ms(self, peer: str) -> float | None:
        """Return the round trip of a peer's best connection; None where unknown."""
        found = [
            wire.rtt_ms
            for wire in self._base.host.wires()
            if wire.peer_id == peer and wire.rtt_ms is not None
        ]
        return min(found, default=None)

    def is_connected(self, peer: str) -> bool:
        """True while hello holds with the peer."""
        return peer in self._base.meeting.peers

    def _supposed(self, model: bytes) -> dict[str, frozenset[int]]:
        """Return what placement gives to the peers that tell of another model."""
        view = self._replica.view
        record = MODELS.get(view, model)
        if record is None:
            return {}
        peers = tuple(
            (peer, follows == model) for peer, follows, _ in self._heartbeats()
        )
        made_of = record.model.replication, peers
        known, found = self._placed.get(model, (None, {}))
        if known != made_of:  # placing thousands of groups takes long
            placed = placement.placed(view, record)
            keys = {node.account: node.key for node in NODES.scan(view)}
            by_peer = {peer_id_of(keys[a]): held for a, held in placed.items()}
            silent = (peer for peer, tells in peers if not tells)
            found = {peer: by_peer[peer] for peer in silent if peer in by_peer}
            self._placed[model] = made_of, found
            while len(self._placed) > MODELS_KEPT:
                self._placed.pop(next(iter(self._placed)))
        return found

    def _heartbeats(self) -> list[Beat]:
        """Return every node's, decoded once per checkpoint."""
        newest = self._replica.machine.last_id
        if self._beats_of != newest:
            self._beats_of = newest
            self._beats = [
                (peer_id_of(node.key), node.model, members(node.held))
                for node in NODES.scan(self._replica.view)
            ]
        return self._beats
