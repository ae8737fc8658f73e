"""What this node has to hold, and so may fill its disk budget with to the last byte."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from blyan_proto.block.data import Dataset
from blyan_proto.block.model import Model
from blyand.errors import Pruned
from blyand.rules.chain.retention import VERSIONED
from blyand.store.blocks import BlockStore
from blyand.store.retained import Retained

Groups = Mapping[bytes, frozenset[int]]  # by model


class Duty:
    """Answers from any thread; what it answers from is taken on the loop."""

    def __init__(
        self,
        blocks: BlockStore,
        retained: Retained,
        groups: Callable[[], Groups],
        *,
        learns: bool,
        everything: bool,
    ) -> None:
        """`groups` returns those that are or ought to be here. `everything`: a node that
        orders blocks or archives them."""
        self._blocks = blocks
        self._retained = retained
        self._read_groups = groups
        self._learns = learns
        self._everything = everything
        self._groups: Groups = {}

    def refresh(self) -> None:
        """Take the groups as they are now. On the loop."""
        if not self._everything:
            self._groups = self._read_groups()

    def is_ours(self, root: bytes) -> bool:
        """True when a payload makes the blob this node's to hold.

        Tiles between snapshots are named by no payload; only holders ask for them.
        """
        if self._everything:
            return True
        namers = self._retained.namers(root)
        return not namers or any(self._covers(block) for block in namers)

    def _covers(self, id: bytes) -> bool:
        try:
            block = self._blocks.get(id)
        except Pruned:
            return False
        content = None if block is None else block.content
        if isinstance(content, VERSIONED):
            return content.group in self._groups.get(content.model, frozenset())
        if isinstance(content, Model):  # its companions: for everyone with a part of it
            return bool(self._groups.get(id))
        return self._learns if isinstance(content, Dataset) else False
