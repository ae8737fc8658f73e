"""Which ids were certainly never added: a Bloom filter that grows.

An id is a digest, so its own bytes are the hashes. Who grinds ids to hit it gains that
the database is asked, as it would be without.
"""

from __future__ import annotations

import struct
import threading

FIRST = 1 << 16  # ids in the first layer; each later one holds twice as many
BITS = 16  # for each id: with four probes, 1 of 400 absent ids is taken for present
_PROBES = struct.Struct("<4Q")


class Sieve:
    """Ids of 32 bytes. Safe to add to from several threads; 2 bytes an id, or a little more."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._layers = [bytearray(FIRST * BITS // 8)]
        self._room = FIRST  # of the last layer

    def add(self, id: bytes) -> None:
        """Let an id be possibly here."""
        probes = _PROBES.unpack(id)
        with self._lock:
            if any(_holds(layer, probes) for layer in self._layers):
                return
            if not self._room:
                size = 2 * len(self._layers[-1])
                self._layers.append(bytearray(size))
                self._room = size * 8 // BITS
            self._room -= 1
            layer = self._layers[-1]
            for probe in probes:
                place = probe % (8 * len(layer))
                layer[place >> 3] |= 1 << (place & 7)

    def __contains__(self, id: bytes) -> bool:
        """False: the id was never added. True: it was, or seldom it was not."""
        probes = _PROBES.unpack(id)
        return any(_holds(layer, probes) for layer in tuple(self._layers))


def _holds(layer: bytearray, probes: tuple[int, ...]) -> bool:
    size = 8 * len(layer)
    for probe in probes:
        place = probe % size
        if not layer[place >> 3] >> (place & 7) & 1:
            return False
    return True
