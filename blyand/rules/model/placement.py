"""Who is to hold which group: a pure function of (model, registered set, replication)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import lru_cache

from blyan_proto.digest import Domain, digest
from blyan_tile.layout import Layout
from blyand.rules.model.model import layout_for
from blyand.rules.records import NODES, ModelRecord
from blyand.rules.view import View

Layers = tuple[tuple[int, tuple[int, ...]], ...]  # layer, its experts' group indices


def place(
    model: bytes, layout: Layout, nodes: Iterable[bytes], replication: int
) -> dict[bytes, frozenset[int]]:
    """Return the groups that each account is to hold (DEC-A8).

    Everybody holds what is not an expert. Each expert goes to `replication` accounts,
    those with the smallest hash for it that still have room in its layer. Room is the
    even share: in every layer, and over all layers, two nodes differ by at most one
    expert, and a change of the set moves few of them.
    """
    accounts = tuple(sorted(nodes))
    if not replication:
        return {}
    shared = frozenset(group.index for group in layout.shared_groups)
    layers: dict[int, list[int]] = {}
    for group in layout.expert_groups:
        assert group.layer is not None
        layers.setdefault(group.layer, []).append(group.index)
    experts = tuple((layer, tuple(indices)) for layer, indices in layers.items())
    placed = _placed(model, experts, accounts, min(replication, len(accounts)))
    return {account: shared | placed[account] for account in accounts}


def placed_on(account: bytes, view: View, record: ModelRecord) -> frozenset[int] | None:
    """Return the groups that a registered account is to hold; None for another."""
    return placed(view, record).get(account)


def placed(view: View, record: ModelRecord) -> dict[bytes, frozenset[int]]:
    """Return the groups of a model that each registered account is to hold."""
    nodes = [node.account for node in NODES.scan(view)]
    return place(record.id, layout_for(record.model), nodes, record.model.replication)


@lru_cache(maxsize=16)  # asked at every checkpoint, and changes only with the set
def _placed(
    model: bytes, layers: Layers, accounts: tuple[bytes, ...], copies: int
) -> Mapping[bytes, frozenset[int]]:
    held: dict[bytes, set[int]] = {account: set() for account in accounts}
    for layer, experts in layers if accounts else ():
        share, extra = divmod(len(experts) * copies, len(accounts))
        room = dict.fromkeys(accounts, share)
        by_load = sorted(accounts, key=lambda a: (len(held[a]), _room(model, layer, a)))
        for account in by_load[:extra]:
            room[account] += 1
        for at, expert in enumerate(experts):
            left = len(experts) - at
            # First who must take every expert that is left, or it would end up short.
            ranked = sorted(
                (account for account in accounts if room[account]),
                key=lambda a: (room[a] < left, _draw(model, expert, a)),
            )
            for account in ranked[:copies]:
                room[account] -= 1
                held[account].add(expert)
    return {account: frozenset(groups) for account, groups in held.items()}


def _room(model: bytes, layer: int, account: bytes) -> bytes:
    return digest(
        Domain.PLACEMENT, model, b"room", layer.to_bytes(2, "little"), account
    )


def _draw(model: bytes, expert: int, account: bytes) -> bytes:
    return digest(Domain.PLACEMENT, model, expert.to_bytes(2, "little"), account)
