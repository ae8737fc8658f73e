"""Nodes take part: registration and heartbeat (DEC-A8)."""

from __future__ import annotations

from dataclasses import replace

from blyan_proto.block.block import Block
from blyan_proto.block.economy import Heartbeat, Registration
from blyan_proto.signing import account_of
from blyan_proto.types import members
from blyand.rules.economy.book import Purse, amount, move
from blyand.rules.records import MODELS, NODES, Node
from blyand.rules.verdict import Reject
from blyand.rules.view import Overlay

MAX_NODES = 1024


def register(
    view: Overlay, block: Block, payload: Registration, height: int, time_ms: int
) -> None:
    """Execute a registration block of a new node, or of one that changes its claims."""
    account = block.header.account
    if not _is_first_key(payload.key, account):
        raise Reject("a registration carries its own account's first key")
    known = NODES.get(view, account)
    if known is None and sum(1 for _ in NODES.scan(view)) >= MAX_NODES:
        raise Reject(f"the network has its {MAX_NODES} nodes")
    lock(view, account, payload.bond_micro)
    enroll(view, payload, known.registered_height if known else height, time_ms, known)


def _is_first_key(key: bytes, account: bytes) -> bool:
    try:
        return account_of(key) == account
    except ValueError:  # 33 bytes that are no point of the curve
        return False


def enroll(
    view: Overlay,
    payload: Registration,
    height: int,
    time_ms: int,
    known: Node | None = None,
) -> None:
    """Write a node's record; used by registration and by the genesis."""
    account = account_of(payload.key)
    NODES.put(
        view,
        Node(
            account=account,
            key=payload.key,
            roles=payload.roles,
            region=payload.region,
            hardware=payload.hardware,
            registered_height=height,
            heartbeat_ms=time_ms,
            model=known.model if known else None,
            held=known.held if known else b"",
        ),
        account,
    )


def lock(view: Overlay, account: bytes, bond_micro: int) -> None:
    """Bring an account's bond up to `bond_micro`."""
    more = max(0, bond_micro - amount(view, account, Purse.BOND))
    if more > amount(view, account):
        raise Reject("the bond is more than the account owns")
    move(view, (account, Purse.FREE), (account, Purse.BOND), more, "bond")


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
