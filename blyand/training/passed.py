"""Deltas that passed through this node: its own, and those it carried for its region.

What an update lists of them need not be fetched from afar again.
"""

from __future__ import annotations

from collections import OrderedDict

from blyan_proto.codec import encode
from blyan_proto.constants import MIB
from blyan_proto.protocols.delta import Bundle

MAX_BYTES = 64 * MIB  # in memory; the oldest go


class Passed:
    """Encoded deltas, by digest."""

    def __init__(self, most_bytes: int = MAX_BYTES) -> None:
        self._most = most_bytes
        self._raw: OrderedDict[bytes, bytes] = OrderedDict()
        self._bytes = 0

    def get(self, delta: bytes) -> bytes | None:
        """Return the delta with a digest, as an update's blob holds it."""
        return self._raw.get(delta)

    def note(self, bundle: Bundle) -> None:
        """Keep the deltas of a bundle whose digests were checked."""
        named = [e.delta for e in bundle.manifest.entries if e.delta is not None]
        for digest, delta in zip(named, bundle.deltas):
            if digest in self._raw:
                continue
            raw = self._raw[digest] = encode(delta)
            self._bytes += len(raw)
        while self._bytes > self._most:
            _, raw = self._raw.popitem(last=False)
            self._bytes -= len(raw)
