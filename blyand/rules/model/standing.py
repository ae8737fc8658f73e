"""How much say learners have whom the network does not know yet (DEC-B10).

Whoever took part in the genesis is known. Anybody else is new until enough adopted rounds
list a delta of theirs; all the new ones together weigh at most a share.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from blyan_proto.constants import PPM
from blyand.rules.records import NODES, Node
from blyand.rules.view import Overlay

PASSED_ENOUGH = 3  # adopted rounds that list a delta of a node, until it is known


def is_new(node: Node) -> bool:
    """True while a node's deltas count within the newcomers' share."""
    return node.registered_height > 0 and node.passed < PASSED_ENOUGH


def credit(view: Overlay, learners: Iterable[bytes]) -> None:
    """Count an adopted round for the learners that it lists."""
    for account in learners:
        node = NODES.get(view, account)
        if node is not None and is_new(node):
            NODES.put(view, replace(node, passed=node.passed + 1), account)


def shared(tokens: Sequence[int], new: Sequence[bool], share_ppm: int) -> list[int]:
    """Return numbers in proportion to `tokens`, the new learners' cut to their share.

    They stay as they are where nobody is new, or all are.
    """
    known = sum(count for count, is_one in zip(tokens, new) if not is_one)
    fresh = sum(tokens) - known
    if not known or fresh * PPM <= share_ppm * (known + fresh):
        return list(tokens)
    # fresh' / (known + fresh') = share, everything times (10^6 - share) * fresh
    kept, cut = (PPM - share_ppm) * fresh, share_ppm * known
    return [count * (cut if is_one else kept) for count, is_one in zip(tokens, new)]
