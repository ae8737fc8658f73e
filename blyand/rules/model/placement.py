"""Who is to hold which group: a pure function of (model, registered set, replication)."""

from __future__ import annotations

from collections.abc import Sequence

from blyan_proto.digest import Domain, digest
from blyan_tile.layout import Layout


def place(
    model: bytes, layout: Layout, nodes: Sequence[bytes], replication: int
) -> dict[bytes, frozenset[int]]:
    """Return the groups that each account is to hold (DEC-A8).

    Everybody holds what is not an expert. Each expert goes to the `replication` accounts
    with the highest hash for it that still have room in that layer; room is the even
    share, so that load is level and a change of the set moves few experts.
    """
    shared = {group.index for group in layout.shared_groups}
    held: dict[bytes, set[int]] = {account: set(shared) for account in nodes}
    copies = min(replication, len(nodes))
    if not copies:
        return {}
    by_layer: dict[int | None, list[int]] = {}
    for group in layout.expert_groups:
        by_layer.setdefault(group.layer, []).append(group.index)
    for experts in by_layer.values():
        room = dict.fromkeys(nodes, -(-len(experts) * copies // len(nodes)))
        for expert in experts:
            ranked = sorted(
                nodes,
                key=lambda account: (
                    room[account] <= 0,
                    digest(
                        Domain.PLACEMENT, model, expert.to_bytes(2, "little"), account
                    ),
                ),
            )
            for account in ranked[:copies]:
                room[account] -= 1
                held[account].add(expert)
    return {account: frozenset(groups) for account, groups in held.items()}
