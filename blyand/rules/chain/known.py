"""Which blocks executed state says were ordered, for a node that never saw them.

A node that began with a state lacks the blocks below it. What new blocks stand on, or
name, is in state: the tips of each chain, models, runs, datasets, heads and snapshots.
"""

from __future__ import annotations

from collections.abc import Iterator

from blyan_proto.types import Chain
from blyand.rules.chain.intake import Place
from blyand.rules.records import DATASETS, GROUPS, MODELS, RUNS, TIPS, VERSIONS
from blyand.rules.view import View


def tip_place(view: View, id: bytes) -> Place | None:
    """Return the place of an ordered tip, None for any other block."""
    for chain in Chain:
        tips = TIPS.get(view, bytes([chain]))
        for tip in tips.tips if tips else ():
            if tip.block == id:
                return Place(chain, tip.height)
    return None


class Known:
    """Asks state whether a block was ordered; what takes a scan is read once a join.

    Strangers name ids, thousands of them, and each is asked about again and again. What
    was ordered once stays so; what is ordered later, the disk knows.
    """

    def __init__(self) -> None:
        self._joined = -1
        self._shown: frozenset[bytes] = frozenset()

    def has(self, view: View, joined: int, id: bytes) -> bool:
        """True when state shows that a block was ordered; `joined`: where it came from."""
        if joined != self._joined:
            self._joined, self._shown = joined, frozenset(_shown_by(view))
        return id in self._shown or any(
            table.get(view, id) is not None for table in (MODELS, RUNS, DATASETS)
        )


def _shown_by(view: View) -> Iterator[bytes]:
    for chain in Chain:
        tips = TIPS.get(view, bytes([chain]))
        yield from (tip.block for tip in tips.tips) if tips else ()
    for group in GROUPS.scan(view):
        heads = (group.head, group.adopted_head, group.snapshot, group.earlier_snapshot)
        yield from (head for head in heads if head is not None)
    yield from (version.update for version in VERSIONS.scan(view))
