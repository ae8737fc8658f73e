"""What an epoch's end reads from state, and the set it appoints (DEC-A11).

`membership.choose` is the rule; here candidates and weights come from registrations,
bonds, bans and signatures. A chosen set signs two checkpoints later.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import NamedTuple

from blyan_proto.block.economy import Registration
from blyan_proto.genesis import Genesis
from blyan_proto.signing import account_of
from blyan_proto.types import Role
from blyan_proto.validators import Validator, Validators
from blyand.rules.chain.membership import Member, choose
from blyand.rules.chain.validators import appoint, signers, successors
from blyand.rules.economy import duty
from blyand.rules.economy.book import Purse, amount
from blyand.rules.economy.epoch import Epoch
from blyand.rules.economy.rotation import owner_of, retire
from blyand.rules.economy.statement import Duty
from blyand.rules.records import NODES, Node
from blyand.rules.trust.silence import silent_ms
from blyand.rules.trust.slashing import BANS
from blyand.rules.view import Overlay, View

MAX_WEIGHT = 16  # that a bond gives


def renew(view: Overlay, genesis: Genesis, ended: Epoch, height: int) -> None:
    """Appoint the set after epoch `ended`, whose duties are counted."""
    current = sitting(view)
    proven = frozenset(one.account for one in duty.running(view) if shows_up(one))
    banned = frozenset(
        member.account
        for member in current
        if BANS.get(view, member.account) is not None
    )
    chosen = choose(
        current,
        wanted(view, genesis, ended, current),
        proven,
        banned,
        genesis.setting("max_validators"),
    )
    if list(chosen) == list(current):
        return
    appoint(
        view,
        Validators(tuple(Validator(one.key, one.weight, one.tail) for one in chosen)),
    )
    kept = {member.key for member in chosen}
    for member in current:
        if member.key not in kept:
            retire(view, member.key, height + 1)  # the last one that it signs


def voters(view: View) -> dict[bytes, int]:
    """Return the weights of the accounts that sign the next checkpoint.

    By account: a member whose key was rotated signs its blocks with another than the
    one in the set.
    """
    return {
        owner_of(view, member.key) or b"": member.weight for member in signers(view)
    }


def member_of(view: View, account: bytes) -> bytes | None:
    """Return the key with which an account is in the set that signs next."""
    return next(
        (one.key for one in signers(view) if owner_of(view, one.key) == account), None
    )


def participants_of(genesis: Genesis) -> Iterator[Registration]:
    """Yield the registrations of the genesis; its validators' with role and tail."""
    tails = {one.key: one.beacon_tail for one in genesis.validators}
    for participant in genesis.participants:
        if participant.key in tails:
            yield replace(
                participant,
                roles=participant.roles | int(Role.VALIDATE),
                beacon_tail=tails[participant.key],
            )
        else:
            yield participant


def sitting(view: View) -> tuple[Member, ...]:
    """Return the set appointed last, with accounts."""
    return tuple(
        Member(owner_of(view, one.key) or b"", one.key, one.weight, one.beacon_tail)
        for one in successors(view)
    )


def shows_up(done: Duty) -> bool:
    """True for a validator that signed at least half of what it was to sign."""
    return done.signed > 0 and 2 * done.signed >= done.owed


def wanted(
    view: View,
    genesis: Genesis,
    ended: Epoch,
    current: Sequence[Member],
) -> dict[bytes, Member]:
    """Return who should be in the set: the heaviest, members first among equals."""
    members = {member.account: member for member in current}
    founders = founders_of(genesis)
    found = []
    for node in NODES.scan(view):
        member = members.get(node.account)
        weight = weight_of(view, genesis, node, founders.get(node.account))
        if not weight or BANS.get(view, node.account) is not None:
            continue
        ready = has_new_chain(node, ended)
        if member is not None:
            if silent_ms(view, member.key) >= genesis.setting("absence_span_ms"):
                continue
            key, tail = member.key, member.tail
            if ready and node.beacon_tail is not None:
                key, tail = node.key, node.beacon_tail
        elif ready and node.beacon_tail is not None and is_heard(node, ended):
            key, tail = node.key, node.beacon_tail
        else:
            continue
        found.append(Member(node.account, key, weight, tail))
    found.sort(key=lambda one: (-one.weight, one.account not in members, one.account))
    return {one.account: one for one in found[: genesis.setting("max_validators")]}


class Founding(NamedTuple):
    """What the genesis gave to one of its validators."""

    weight: int
    bond_micro: int


@lru_cache(maxsize=8)
def founders_of(genesis: Genesis) -> dict[bytes, Founding]:
    """Return the validators of the genesis by account."""
    bonds = {one.key: one.bond_micro for one in genesis.participants}
    return {
        account_of(one.key): Founding(one.weight, bonds.get(one.key, 0))
        for one in genesis.validators
    }


def weight_of(
    view: View, genesis: Genesis, node: Node, founding: Founding | None
) -> int:
    """Return the weight that a node's bond gives; 0: it may not validate.

    A validator of the genesis keeps its weight while the bond of the genesis stands.
    """
    if not node.roles & Role.VALIDATE:
        return 0
    bond = amount(view, node.account, Purse.BOND)
    if founding is not None and bond >= founding.bond_micro:
        return founding.weight
    if bond < genesis.setting("validator_bond_micro"):
        return 0
    return min(MAX_WEIGHT, max(1, bond // genesis.setting("bond_unit_micro")))


def has_new_chain(node: Node, ended: Epoch) -> bool:
    """True when the tail was registered before the ended epoch began (DEC-A7)."""
    return node.beacon_tail is not None and node.tail_height < ended.first_height


def is_heard(node: Node, ended: Epoch) -> bool:
    """True for a node that registered or beat in the ended epoch."""
    return node.heartbeat_ms >= ended.began_ms
