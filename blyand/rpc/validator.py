"""Answers about validators, and what makes this node one."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from itertools import islice

from blyan_proto.amounts import bly
from blyan_proto.block.block import Block
from blyan_proto.block.economy import Bond, Registration
from blyan_proto.constants import FORMAT_VERSION
from blyan_proto.genesis import Genesis
from blyan_proto.rpc import validator as spec
from blyan_proto.rpc.errors import VALIDATOR_REFUSED, VALIDATOR_UNKNOWN, RpcError
from blyan_proto.types import Role
from blyan_proto.validators import ValidatorSet
from blyand.rpc.accounts import account_called
from blyand.rpc.bind import Answers
from blyand.rpc.ordering import Ordering
from blyand.rules.chain.appointment import (
    founders_of,
    has_new_chain,
    is_heard,
    weight_of,
)
from blyand.rules.chain.validators import signers, successors
from blyand.rules.economy import duty
from blyand.rules.economy.bond import RELEASES
from blyand.rules.economy.book import Purse, amount
from blyand.rules.economy.epoch import running
from blyand.rules.economy.rotation import owner_of
from blyand.rules.records import CLOCK, NODES, Node
from blyand.rules.trust.silence import silent_ms
from blyand.rules.trust.slashing import BANS, penalties
from blyand.rules.view import View

SHOWN = 50  # penalties of one validator; `slash list` has all


@dataclass(frozen=True)
class Hands:
    """What this node does as a validator."""

    account: bytes
    validates: bool  # it votes when it is in the set
    registration: Callable[[Role, int], Awaitable[Registration]]  # roles, bond
    make: Callable[..., Awaitable[Block]]


def bind(
    answers: Answers, *, genesis: Genesis, ordering: Ordering, hands: Hands
) -> None:
    """Bind validator.*."""

    async def ordered(payload: object) -> bytes:
        block = await hands.make(payload)
        refused = await ordering.wait(block.id)
        if refused is not None:
            raise RpcError(VALIDATOR_REFUSED, f"the network refused it: {refused}")
        return block.id

    def registered(block: bytes) -> spec.Registered:
        view = ordering.view
        node = NODES.get(view, hands.account)
        assert node is not None
        bond = amount(view, hands.account, Purse.BOND)
        line = line_of(view, genesis, node)
        return spec.Registered(block=block, bond_micro=bond, status=line.status)

    @answers(spec.list_)
    async def validators(params: spec.ListValidators) -> spec.Validators:
        return list_of(ordering.view, genesis)

    @answers(spec.show)
    async def show(params: spec.GetValidator) -> spec.Validator:
        account = account_called(params.account, hands.account)
        node = NODES.get(ordering.view, account)
        if node is None:
            raise RpcError(
                VALIDATOR_UNKNOWN, f"no node is registered as {account.hex()}"
            )
        return validator_of(ordering.view, genesis, node)

    @answers(spec.register)
    async def register(params: spec.Register) -> spec.Registered:
        if not hands.validates:
            raise RpcError(
                VALIDATOR_REFUSED,
                "this node does not vote: put validate into node.roles and start it again",
            )
        view = ordering.view
        banned, clock = BANS.get(view, hands.account), CLOCK.get(view)
        if banned and clock and banned.until_ms > clock.time_ms:
            raise RpcError(
                VALIDATOR_REFUSED,
                f"{ban_of(view, hands.account)}; register again when that is over",
            )
        node = NODES.get(view, hands.account)
        needed = needed_micro(genesis, hands.account)
        bond = needed if params.bond_micro is None else params.bond_micro
        owned = sum(amount(view, hands.account, p) for p in (Purse.FREE, Purse.BOND))
        if bond > owned:
            raise RpcError(
                VALIDATOR_REFUSED,
                f"a bond of {bly(bond)} is more than the account has, {bly(owned)}",
            )
        roles = Role(node.roles if node else int(Role.SERVE)) | Role.VALIDATE
        block = await ordered(await hands.registration(roles, bond))
        return registered(block)

    @answers(spec.retire)
    async def retire(params: spec.Retire) -> spec.Registered:
        node = NODES.get(ordering.view, hands.account)
        if node is None or not node.roles & Role.VALIDATE:
            raise RpcError(VALIDATOR_REFUSED, "this node is not registered to validate")
        roles = Role(node.roles) & ~Role.VALIDATE
        return registered(await ordered(await hands.registration(roles, 0)))

    @answers(spec.bond)
    async def bond(params: spec.ChangeBond) -> spec.Bonded:
        lock, release = params.lock_micro, params.release_micro
        if bool(lock) == bool(release):
            raise RpcError(VALIDATOR_REFUSED, "give either --lock or --release")
        block = await ordered(Bond(FORMAT_VERSION, lock, release))
        held = {purse: amount(ordering.view, hands.account, purse) for purse in Purse}
        return spec.Bonded(
            block=block,
            bond_micro=held[Purse.BOND],
            unbonding_micro=held[Purse.UNBONDING],
            free_micro=held[Purse.FREE],
        )


def list_of(view: View, genesis: Genesis) -> spec.Validators:
    """Return the set and those around it."""
    now, clock = running(view), CLOCK.get(view)
    assert clock is not None
    voting = signers(view)
    lines = {line.account: line for line in _lines(view, genesis)}
    ordered = [
        lines.pop(account)
        for member in successors(view)
        if (account := owner_of(view, member.key)) in lines and account is not None
    ]
    return spec.Validators(
        height=clock.height,
        epoch=now.number,
        epoch_ends_ms=now.began_ms + genesis.setting("epoch_span_ms"),
        total_weight=voting.total,
        quorum_weight=2 * voting.total // 3 + 1,
        validators=[*ordered, *lines.values()],
    )


def validator_of(view: View, genesis: Genesis, node: Node) -> spec.Validator:
    """Return everything about one registered node."""
    account = node.account
    ban = BANS.get(view, account)
    return spec.Validator(
        line=line_of(view, genesis, node),
        roles=[str(role.name).lower() for role in Role if role & node.roles],
        registered_height=node.registered_height,
        beacon_tail=node.beacon_tail,
        tail_height=node.tail_height,
        unbonding_micro=amount(view, account, Purse.UNBONDING),
        releases=[
            spec.Release(due_ms=release.due_ms, micro=release.micro)
            for release in RELEASES.scan(view)
            if release.account == account
        ],
        needed_micro=needed_micro(genesis, account),
        banned_until_ms=ban.until_ms if ban else None,
        ban=ban_of(view, account) or "",
        slashes=[slash.id for slash in islice(penalties(view, account), SHOWN)],
    )


def ban_of(view: View, account: bytes) -> str | None:
    """Return what an account is banned for and what ends it; None when it is not."""
    ban, clock = BANS.get(view, account), CLOCK.get(view)
    if ban is None or clock is None:
        return None
    what = ban.offence.name.lower().replace("_", " ")
    if ban.until_ms <= clock.time_ms:
        return (
            f"the ban for {what} is over: `blyanctl validator register` ends it, this "
            "node neither validates nor leads before"
        )
    left_h = (ban.until_ms - clock.time_ms) / 3_600_000
    return f"banned for {what}: it neither validates nor leads for {left_h:.1f} h more"


def needed_micro(genesis: Genesis, account: bytes) -> int:
    """Return the bond that an account needs to validate."""
    founding = founders_of(genesis).get(account)
    least = genesis.setting("validator_bond_micro")
    return min(least, founding.bond_micro) if founding else least


def lack_of(view: View, genesis: Genesis, account: bytes) -> str | None:
    """Return what bond a node that wants to validate lacks; None when nothing."""
    node = NODES.get(view, account)
    if node is None or not node.roles & Role.VALIDATE:
        return None
    has, needed = amount(view, account, Purse.BOND), needed_micro(genesis, account)
    if has >= needed:
        return None
    return (
        f"the bond is {bly(has)} and a validator needs {bly(needed)}: `blyanctl validator "
        "register` adds what is missing from free money; without it the next set goes on "
        "without this node"
    )


def line_of(view: View, genesis: Genesis, node: Node) -> spec.Line:
    """Return one node's line."""
    return next(line for line in _lines(view, genesis, (node,)))


def _lines(
    view: View, genesis: Genesis, nodes: tuple[Node, ...] | None = None
) -> Iterator[spec.Line]:
    now, after = signers(view), successors(view)
    keys = {owner_of(view, one.key): one.key for one in (*now, *after)}
    done = {one.account: one for one in duty.running(view)}
    for node in nodes if nodes is not None else tuple(NODES.scan(view)):
        key = keys.get(node.account)
        if nodes is None and key is None and not node.roles & Role.VALIDATE:
            continue
        duties = done.get(node.account)
        yield spec.Line(
            account=node.account,
            key=key or node.key,
            weight=after.weight_of(key) if key else 0,
            status=_status(view, genesis, node, key, now, after),
            bond_micro=amount(view, node.account, Purse.BOND),
            owed=duties.owed if duties else 0,
            signed=duties.signed if duties else 0,
            uptime_ppm=duty.uptime_ppm(duties) if duties else 0,
            silent_ms=silent_ms(view, key) if key else 0,
        )


def _status(
    view: View,
    genesis: Genesis,
    node: Node,
    key: bytes | None,
    now: ValidatorSet,
    after: ValidatorSet,
) -> str:
    if key is not None:
        is_now, is_after = now.weight_of(key) > 0, after.weight_of(key) > 0
        if is_now != is_after:
            return "joining" if is_after else "leaving"
        stays = node.roles & Role.VALIDATE and BANS.get(view, node.account) is None
        return "signing" if stays else "leaving"
    if BANS.get(view, node.account) is not None:
        return "banned"
    if not node.roles & Role.VALIDATE:
        return "none"
    if not weight_of(view, genesis, node, founders_of(genesis).get(node.account)):
        return "bond"
    if node.beacon_tail is None:
        return "chain"
    ended = running(view)
    if has_new_chain(node, ended) and not is_heard(node, ended):
        return "unheard"
    return "candidate"
