"""A validator's hash chain: committed by its tail, opened one link per checkpoint (DEC-A7)."""

from __future__ import annotations

from blyan_proto.checkpoint import beacon_link
from blyan_proto.digest import Domain, digest

LINKS = 1 << 18  # a quarter of a second to make; 18 hours of four checkpoints a second
PEBBLE = 512  # links between two that are kept


class BeaconChain:
    """The links from a secret seed to the public tail, kept sparsely."""

    def __init__(self, secret: bytes) -> None:
        link = digest(Domain.SEED, b"beacon", secret)
        self._pebbles = [link]
        self._places: dict[bytes, int] = {}
        for index in range(1, LINKS + 1):
            link = beacon_link(link)
            if index % PEBBLE == 0:
                self._pebbles.append(link)
                self._places[link] = index
        self.tail = link

    def before(self, revealed: bytes) -> bytes:
        """Return the link whose digest is `revealed`: the tail or an earlier opening.

        ValueError when `revealed` is no link of this chain, or its beginning.
        """
        index, link = 0, revealed
        while link not in self._places:
            link = beacon_link(link)
            index += 1
            if index > PEBBLE:
                raise ValueError("not a link of this node's beacon chain")
        place = self._places[link] - index - 1
        if place < 0:
            raise ValueError("this node's beacon chain is used up")
        link = self._pebbles[place // PEBBLE]
        for _ in range(place % PEBBLE):
            link = beacon_link(link)
        return link
