"""This node's key: which it is, and changing it."""

from __future__ import annotations

from blyan_proto.rpc.errors import KEY_REFUSED
from blyan_proto.rpc.spec import Address, Id, Key, Method, arg, declare, record


@record
class GetKey:
    """Tell which key signs for this node, and which did."""


@record
class Held:
    """The keys of this home."""

    account: Address = arg("the account; it stays when the key changes")
    key: Key = arg("the current key")
    older: list[Key] = arg(
        "keys before it, newest first; the chain refuses their blocks"
    )
    peer_id: str = arg("libp2p peer id: of the current key")
    rotations: int = arg("how often the account's key was changed")
    rotated_ms: int | None = arg("chain time of the last change; null: never")
    signs_as_validator: Key | None = arg("the key in the validator set; null: in none")


show = declare(Method("key.show", GetKey, Held))


@record
class Rotate:
    """Change this node's key; the account, its money and its bond stay.

    The new key is on disk before the block is made. When it is final the node starts
    again by itself with the new key, and with another peer id.
    """


@record
class Rotated:
    """A rotation that is final."""

    block: Id = arg("the block that made it")
    key: Key = arg("the new key")
    peer_id: str = arg("the peer id from now on; change it where this node is named")
    note: str = arg("what does not follow")


rotate = declare(
    Method("key.rotate", Rotate, Rotated, errors=(KEY_REFUSED,), deadline_s=240.0)
)
