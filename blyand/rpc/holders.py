"""Who holds the groups of a model: live nodes, by their last heartbeats (DEC-A8)."""

from __future__ import annotations

from dataclasses import dataclass

from blyan_proto.types import members
from blyand.chain.machine import Machine
from blyand.net.identity import peer_id_of
from blyand.rules.records import NODES, Node
from blyand.training.holder import Holder


@dataclass(frozen=True)
class Holders:
    """Answers of executed state and of what is here."""

    machine: Machine
    holder: Holder
    account: bytes  # this node's

    def of(self, model: bytes) -> dict[int, list[Node]]:
        """Return the live nodes that say they hold each group, by group index.

        This node counts by what it holds now, whatever it said last.
        """
        clock = self.machine.clock
        oldest = clock.time_ms - self.machine.genesis.parameters.liveness_span_ms
        here = self.holder.held(model)
        found: dict[int, list[Node]] = {}
        for node in NODES.scan(self.machine.view):
            if node.account == self.account:
                groups = here
            elif node.model == model and node.heartbeat_ms >= oldest:
                groups = members(node.held)
            else:
                continue
            for group in groups:
                found.setdefault(group, []).append(node)
        return found

    def peer_id(self, node: Node) -> str:
        """Return a node's peer id: its first key's, which is its key until it rotates."""
        return peer_id_of(node.key)
