"""What callers call an account: me, hexadecimal digits, or the name of a pool."""

from __future__ import annotations

from blyan_proto.rpc.errors import ACCOUNT_INVALID, RpcError
from blyan_proto.rpc.records import nearest
from blyand.rules.economy.pools import POOLS, RESERVED


def account_called(name: str, own: bytes) -> bytes:
    """Return the account that a caller means. RpcError ACCOUNT_INVALID."""
    if name == "me":
        return own
    if name in POOLS:
        return POOLS[name]
    digits = name.removeprefix("0x")
    try:
        account = bytes.fromhex(digits)
    except ValueError:
        account = b""
    if len(account) != 20 or len(digits) != 40:
        raise RpcError(
            ACCOUNT_INVALID,
            f"{name[:80]!r} is not an account: give its 40 hex digits, me, or a pool"
            f"{nearest(name, ['me', *POOLS])}",
        )
    return account


def name_of(account: bytes) -> str:
    """Return the name of a pool, or nothing."""
    return RESERVED.get(account, "")
