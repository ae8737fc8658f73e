"""Nodes take part: registration and heartbeat (DEC-A8)."""

from __future__ import annotations

from dataclasses import replace

from blyan_proto.block.block import Block
from blyan_proto.block.economy import Heartbeat, Registration
from blyan_proto.types import members
from blyand.rules.chain.validators import signers, successors
from blyand.rules.economy.bond import lock
from blyand.rules.economy.rotation import current_key, is_first_key, owner_of
from blyand.rules.records import MODELS, NODES, Node
from blyand.rules.trust.slashing import at_stake, lift
from blyand.rules.verdict import Reject
from blyand.rules.view import Overlay

MAX_NODES = 1024
ABSENT_SPANS = 360  # of liveness without a heartbeat: by default an hour


def register(
    view: Overlay,
    block: Block,
    payload: Registration,
    height: int,
    time_ms: int,
    liveness_ms: int,
) -> None:
    """Execute a registration block of a new node, or of one that changes its claims.

    It ends a ban whose time is over.
    """
    account = block.header.account
    if payload.key != block.header.author and not is_first_key(payload.key, account):
        raise Reject(
            "a registration carries its own account's first key, or the present"
        )
    known = NODES.get(view, account)
    if known is None:
        _make_room(view, time_ms - ABSENT_SPANS * liveness_ms)
    if owner_of(view, payload.key) != account:
        raise Reject("this key signs for another account")
    lock(view, account, payload.bond_micro)
    enroll(view, account, payload, height, time_ms, known)
    lift(view, account, time_ms)


def _make_room(view: Overlay, since_ms: int) -> None:
    """Forget a node that is gone and has nothing to lose, where there is no other place.

    Of those not heard since `since_ms` the one that was heard longest ago.
    """
    nodes = list(NODES.scan(view))
    if len(nodes) < MAX_NODES:
        return
    voting = (*signers(view), *successors(view))
    seated = {owner_of(view, member.key) for member in voting}
    gone = [
        node
        for node in nodes
        if node.heartbeat_ms < since_ms and node.account not in seated
    ]
    gone.sort(key=lambda node: node.heartbeat_ms)
    for node in gone:
        if not at_stake(view, node.account):
            NODES.remove(view, node.account)
            return
    raise Reject(f"the network has its {MAX_NODES} nodes")


def enroll(
    view: Overlay,
    account: bytes,
    payload: Registration,
    height: int,
    time_ms: int,
    known: Node | None = None,
) -> None:
    """Write a node's record; used by registration and by the genesis."""
    tail = payload.beacon_tail
    node = Node(
        account=account,
        key=current_key(view, account) or payload.key,
        roles=payload.roles,
        region=payload.region,
        hardware=payload.hardware,
        registered_height=height,
        heartbeat_ms=time_ms,
        model=None,
        held=b"",
        beacon_tail=tail,
        tail_height=height,
    )
    if known is not None:
        is_new = tail is not None and tail != known.beacon_tail
        node = replace(
            node,
            registered_height=known.registered_height,
            model=known.model,
            held=known.held,
            tail_height=height if is_new else known.tail_height,
            tails=known.tails + is_new,
            reported_ms=known.reported_ms,
            passed=known.passed,
        )
    NODES.put(view, node, account)


def beat(view: Overlay, block: Block, payload: Heartbeat, time_ms: int) -> None:
    """Execute a heartbeat: alive at this checkpoint's time, holding these groups."""
    node = NODES.get(view, block.header.account)
    if node is None:
        raise Reject("a heartbeat of a node that is not registered")
    if payload.model is not None:
        record = MODELS.get(view, payload.model)
        if record is None:
            raise Reject("a heartbeat for an unknown model")
        if len(payload.held) != (record.groups + 7) // 8:
            raise Reject("the heartbeat's bitmap is not as long as the layout")
        if max(members(payload.held), default=0) >= record.groups:
            raise Reject("the heartbeat's bitmap has bits of no group")
    NODES.put(
        view,
        replace(node, heartbeat_ms=time_ms, model=payload.model, held=payload.held),
        node.account,
    )
