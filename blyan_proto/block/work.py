"""Anti-spam work: a nonce with which a digest of the header begins with zeros (POL-02).

Strategy. The nonce is the last field, so that the bytes before it are hashed once and each
try hashes eight more. Tried nonces begin where all of them encode in nine bytes.
"""

from __future__ import annotations

from dataclasses import replace

from blyan_proto.block.header import Header
from blyan_proto.codec import encode
from blyan_proto.digest import Domain, begun, digest

FIRST_NONCE = 1 << 63
NONCE_BYTES = 8


def work_digest(header: Header) -> int:
    """Return the number whose leading zero bits are the header's work."""
    return int.from_bytes(digest(Domain.WORK, encode(header)), "big")


def has_work(header: Header, bits: int) -> bool:
    """True when the header's nonce meets a difficulty of `bits` leading zero bits."""
    return work_digest(header) >> (256 - bits) == 0 if bits else True


def find_nonce(header: Header, bits: int, first: int, tries: int) -> int | None:
    """Return the first nonce from `first` on with which the header has the work.

    None when none of `tries` has it. About 1 us a try, without releasing the GIL: ask
    for few at once. 2^bits tries are needed on average. `first` is at least FIRST_NONCE.
    """
    raw = encode(replace(header, nonce=first))
    hasher = begun(Domain.WORK, len(raw), raw[:-NONCE_BYTES])
    bound = 1 << (256 - bits)
    for nonce in range(first, first + tries):
        tried = hasher.copy()
        tried.update(nonce.to_bytes(NONCE_BYTES, "big"))
        if int.from_bytes(tried.digest(), "big") < bound:
            return nonce
    return None
