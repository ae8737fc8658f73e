"""The node's one key as the transport sees it, and peer ids as public keys.

A secp256k1 peer id embeds the compressed key (identity multihash), so the two can be
converted into each other without asking anybody.
"""

from __future__ import annotations

from libp2p.crypto.keys import KeyPair
from libp2p.crypto.secp256k1 import Secp256k1PublicKey, create_new_key_pair
from libp2p.peer.id import ID

from blyan_proto.errors import DecodeError
from blyan_proto.signing import SigningKey

# identity multihash | its length | protobuf: key type secp256k1 | 33 bytes of key
_PREFIX = bytes([0x00, 0x25, 0x08, 0x02, 0x12, 0x21])
_KEY_BYTES = 33


def key_pair_of(key: SigningKey) -> KeyPair:
    """Return the transport's key pair for the node's signing key."""
    return create_new_key_pair(key.secret)


def peer_id_of(public_key: bytes) -> str:
    """Return the base58 peer id of a compressed secp256k1 key (33 bytes).

    Raises DecodeError if the bytes are no point of the curve.
    """
    try:
        key = Secp256k1PublicKey.from_bytes(public_key)
        return str(ID.from_pubkey(key))
    except ValueError as error:
        raise DecodeError("not a compressed secp256k1 key") from error


def public_key_of(peer_id: str) -> bytes:
    """Return the 33 bytes of the key that a peer id embeds.

    Raises DecodeError for anything but a secp256k1 peer id in base58.
    """
    return embedded_key(bytes(parse_peer_id(peer_id).to_bytes()))


def embedded_key(raw: bytes) -> bytes:
    """Return the 33 bytes of the key in the bytes of a peer id. DecodeError if none."""
    if not raw.startswith(_PREFIX) or len(raw) != len(_PREFIX) + _KEY_BYTES:
        raise DecodeError("not a secp256k1 peer id")
    return raw[len(_PREFIX) :]


def parse_peer_id(peer_id: str) -> ID:
    """Return the transport's form of a base58 peer id. DecodeError otherwise."""
    if len(peer_id) > 96:
        raise DecodeError("a peer id is at most 96 characters")
    try:
        return ID.from_base58(peer_id)
    except ValueError as error:
        raise DecodeError("a peer id is base58 text") from error
