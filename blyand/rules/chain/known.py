"""Which blocks executed state says were ordered, for a node that never saw them.

A node that began with a state lacks the blocks below it. What new blocks stand on, or
name, is in state: the tips of each chain, models, runs, datasets, heads and snapshots.
"""

from __future__ import annotations

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


def is_known(view: View, id: bytes) -> bool:
    """True when state shows that a block was ordered."""
    if tip_place(view, id) is not None:
        return True
    if any(table.get(view, id) is not None for table in (MODELS, RUNS, DATASETS)):
        return True
    for group in GROUPS.scan(view):
        heads = (group.head, group.adopted_head, group.snapshot, group.earlier_snapshot)
        if id in heads:
            return True
    return any(version.update == id for version in VERSIONS.scan(view))
