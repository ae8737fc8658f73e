"""A validator's hash chain: committed by its tail, opened one link per checkpoint (DEC-A7)."""

from __future__ import annotations

from functools import lru_cache

from blyan_proto.checkpoint import beacon_link
from blyan_proto.digest import Domain, digest

LINKS = 1 << 18  # a quarter of a second to make; one for each checkpoint proposed
PEBBLE = 512  # links between two that are kept


class BeaconChain:
    """The links from a secret seed to the public tail, kept sparsely.

    A key has a chain for each `generation`: the next one is registered before the last
    link is used.
    """

    def __init__(self, secret: bytes, generation: int = 0) -> None:
        parts = [generation.to_bytes(4, "little")] if generation else []
        link = digest(Domain.SEED, b"beacon", secret, *parts)
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

    def left(self, revealed: bytes) -> int:
        """Return how many links are to be opened after `revealed`; 0 for no link."""
        index, link = 0, revealed
        while link not in self._places:
            link = beacon_link(link)
            index += 1
            if index > PEBBLE:
                return 0
        return max(0, self._places[link] - index)


def chain_of(secret: bytes, generation: int = 0) -> BeaconChain:
    """Return a chain of a key; the last few are remembered."""
    return _made(secret, generation, LINKS)


@lru_cache(maxsize=32)  # a quarter of a second to make, 50 KB to keep
def _made(secret: bytes, generation: int, links: int) -> BeaconChain:
    return BeaconChain(secret, generation)
