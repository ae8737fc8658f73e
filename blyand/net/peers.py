"""PeerBook: where peers can be reached, as far as we know. In memory; saved as bytes.

Addresses that a peer tells us are claims: filtered (DEC-C9), few per key, and a source
can fill only its share of the book. An address that we dialled ourselves is confirmed;
confirmed entries are the last to be dropped and the first to be dialled after a start.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Annotated

from blyan_proto.codec import Size, decode, encode, message
from blyan_proto.errors import DecodeError, ProtocolError
from blyand.net.address import MAX_ADDRESS_CHARACTERS, Endpoint, may_dial, parse
from blyand.net.identity import public_key_of

MAX_PEERS = 1024
MAX_PEERS_PER_SOURCE = 128
MAX_ADDRESSES = 8  # per key (DEC-C9)
MAX_BOOK_BYTES = 4 << 20

_Address = Annotated[str, Size(1, MAX_ADDRESS_CHARACTERS)]


@message
class StoredPeer:
    """One entry of a saved book."""

    peer: Annotated[str, Size(1, 96)]
    addresses: Annotated[tuple[_Address, ...], Size(1, MAX_ADDRESSES)]
    confirmed: bool


@message
class StoredPeers:
    """A saved book."""

    peers: Annotated[tuple[StoredPeer, ...], Size(0, MAX_PEERS)]


@dataclass
class _Entry:
    source: str  # the peer that told us; our own id for what we found ourselves
    addresses: dict[str, Endpoint] = field(default_factory=dict)
    confirmed: bool = False


class PeerBook:
    """Addresses by peer, bounded. `own` is this node's peer id: never an entry."""

    def __init__(self, own: str, saved: bytes | None = None) -> None:
        """Start with a saved book; one that does not decode counts as empty."""
        self._own = own
        self._entries: dict[str, _Entry] = {}
        self.changed = False  # since the last to_bytes()
        if saved is None:
            return
        try:
            stored = decode(StoredPeers, saved, MAX_BOOK_BYTES).peers
        except ProtocolError:
            return
        for one in stored:
            for address in one.addresses:
                self._add(one.peer, address, self._own)
            if one.peer in self._entries:
                self._entries[one.peer].confirmed = one.confirmed

    def learn(
        self, peer: str, addresses: Iterable[str], source: str, source_address: str
    ) -> int:
        """Take in what `source`, known at `source_address`, says about `peer`.

        Returns how many addresses are dialable and were kept. Never raises for what a
        peer said.
        """
        try:
            known = parse(source_address)
            public_key_of(peer)
        except DecodeError:
            return 0
        kept = 0
        for address in list(addresses)[:MAX_ADDRESSES]:
            try:
                endpoint = parse(address)
            except DecodeError:
                continue
            if endpoint.peer in (None, peer) and may_dial(endpoint, known):
                kept += self._add(peer, endpoint.text, source)
        return kept

    def confirm(self, peer: str, address: str) -> None:
        """Note that we reached `peer` at `address` (names are not kept)."""
        try:
            text = parse(address).text
        except DecodeError:
            return
        if self._add(peer, text, self._own):
            self._entries[peer].confirmed = True

    def peers(self) -> tuple[str, ...]:
        """Return the known peers, confirmed ones first."""
        entries = self._entries
        return tuple(sorted(entries, key=lambda peer: not entries[peer].confirmed))

    def addresses(self, peer: str) -> tuple[str, ...]:
        """Return a peer's addresses, each with /p2p/<peer>."""
        entry = self._entries.get(peer)
        return tuple(f"{text}/p2p/{peer}" for text in entry.addresses) if entry else ()

    def to_bytes(self) -> bytes:
        """Return the book for the disk."""
        self.changed = False
        return encode(
            StoredPeers(
                tuple(
                    StoredPeer(peer, tuple(entry.addresses), entry.confirmed)
                    for peer, entry in self._entries.items()
                )
            )
        )

    def _add(self, peer: str, text: str, source: str) -> bool:
        try:
            endpoint = parse(text)
        except DecodeError:
            return False
        if peer == self._own:
            return False
        entry = self._entries.get(peer)
        if entry is None:
            if not self._has_room(source):
                return False
            entry = self._entries[peer] = _Entry(source)
        if endpoint.text not in entry.addresses:
            if len(entry.addresses) >= MAX_ADDRESSES:
                if source != self._own:
                    return False
                del entry.addresses[next(iter(entry.addresses))]
            entry.addresses[endpoint.text] = endpoint
            self.changed = True
        return True

    def _has_room(self, source: str) -> bool:
        shares = Counter(entry.source for entry in self._entries.values())
        if source != self._own and shares[source] >= MAX_PEERS_PER_SOURCE:
            return False
        if len(self._entries) < MAX_PEERS:
            return True
        for peer, entry in self._entries.items():
            if not entry.confirmed:
                del self._entries[peer]
                return True
        return False
