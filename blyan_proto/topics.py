"""Gossip topics: what is broadcast, and how large it may be. docs/protocols/gossip.md"""

from __future__ import annotations

from dataclasses import dataclass

from blyan_proto.checkpoint import MAX_FINAL_CHECKPOINT_BYTES, MAX_RECEIPTS
from blyan_proto.constants import MAX_BLOCK_BYTES


@dataclass(frozen=True)
class Topic:
    """A kind of broadcast message; `max_bytes` bounds its encoding."""

    name: str
    max_bytes: int
    version: int = 1

    def on(self, network: bytes) -> str:
        """Return the topic's name on the network with this genesis id (DEC-C7)."""
        return f"/blyan/{network.hex()[:16]}/{self.name}/{self.version}"


BLOCK = Topic("block", MAX_BLOCK_BYTES)
CHECKPOINT = Topic("checkpoint", MAX_FINAL_CHECKPOINT_BYTES)
RECEIPT = Topic("receipt", MAX_RECEIPTS * 160)

TOPICS = (BLOCK, CHECKPOINT, RECEIPT)
