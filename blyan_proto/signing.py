"""secp256k1 signatures over typed messages; there is one way to sign (DEC-C7).

A signature covers blake3(purpose | genesis id | canonical bytes), so that it can serve
neither another purpose nor another network. Signatures are compact and low-S.
"""

from __future__ import annotations

import enum
from typing import Any

import coincurve
from coincurve import ecdsa
from Crypto.Hash import keccak

from blyan_proto.codec import encode
from blyan_proto.digest import Domain, digest
from blyan_proto.errors import BadSignature


class Purpose(enum.Enum):
    """What a signature is for. A key never signs the same bytes for two purposes."""

    BLOCK = "block"
    CHECKPOINT_VOTE = "checkpoint vote"
    CHECKPOINT_PROPOSAL = "checkpoint proposal"
    TILE_UPDATE = "tile update"
    DELTA_BUNDLE = "delta bundle"
    DELTA_RECEIPT = "delta receipt"
    TRAINING_LOG = "training log"
    BLOB_RECEIPT = "blob receipt"
    KEY_ROTATION = "key rotation"
    HOSTING = "hosting record"
    QUOTE = "quote"
    DELIVERY = "delivery"
    HELLO = "hello"


# Half the order of the curve's group: the largest s of a low-S signature.
_HALF_ORDER = 0x7FFFFFFFFFFFFFFFFFFFFFFFFFFFFFFF5D576E7357A4501DDFE92F46681B20A0


class SigningKey:
    """A secp256k1 private key. Held by the daemon's keystore and nowhere else.

    `account`: whose key it is, where that is not the account of its own address: a key
    to which an account was rotated (DEC-A10).
    """

    def __init__(self, secret: bytes, account: bytes | None = None) -> None:
        self._key = coincurve.PrivateKey(secret)
        self.public = self._key.public_key.format(compressed=True)
        self.account = account or account_of(self.public)

    def sign(self, purpose: Purpose, network: bytes, statement: Any) -> bytes:
        """Return the 64-byte signature of a typed message."""
        der = self._key.sign(signing_digest(purpose, network, statement), hasher=None)
        compact: bytes = ecdsa.serialize_compact(ecdsa.der_to_cdata(der))
        return compact

    @property
    def secret(self) -> bytes:
        """The 32 secret bytes, for the keystore file and the transport's identity."""
        return self._key.secret


def signing_digest(purpose: Purpose, network: bytes, statement: Any) -> bytes:
    """Return the 32 bytes that a signature for `purpose` on `network` covers."""
    return digest(Domain.SIGNATURE, purpose.value.encode(), network, encode(statement))


def check_signature(
    purpose: Purpose, network: bytes, statement: Any, key: bytes, signature: bytes
) -> None:
    """Raise BadSignature unless `key` signed `statement` (37 us; releases the GIL)."""
    if int.from_bytes(signature[32:], "big") > _HALF_ORDER:
        raise BadSignature(f"high-S {purpose.value} signature")
    try:
        der = ecdsa.cdata_to_der(ecdsa.deserialize_compact(signature))
        good = coincurve.PublicKey(key).verify(
            der, signing_digest(purpose, network, statement), hasher=None
        )
    except ValueError as error:
        raise BadSignature(f"malformed {purpose.value} signature") from error
    if not good:
        raise BadSignature(f"wrong {purpose.value} signature")


def account_of(public_key: bytes) -> bytes:
    """Return the 20-byte account of a first key: its Ethereum address (DEC-A10)."""
    point = coincurve.PublicKey(public_key).format(compressed=False)
    return keccak.new(digest_bits=256, data=point[1:]).digest()[-20:]


def is_public_key(raw: bytes) -> bool:
    """True when `raw` is a compressed point of the curve."""
    try:
        return coincurve.PublicKey(raw).format() == raw
    except ValueError:
        return False
