"""PeerBook: where peers can be reached, as far as we know. In memory; saved as bytes.

Addresses that a peer tells us are claims: filtered, few per key, and bounded by who
made them (rules/net/book). A peer that we reached ourselves is confirmed: claims never
displace it. Two anchors, the outbound peers of longest standing, outlive a restart.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Annotated

from blyan_proto.codec import U16, U64, Size, decode, encode, message
from blyan_proto.errors import DecodeError, ProtocolError
from blyand.net.address import (
    MAX_ADDRESS_CHARACTERS,
    may_dial,
    neighbourhood,
    parse_claim,
)
from blyand.net.identity import public_key_of
from blyand.rules.net.book import MAX_PEERS, PEER_FAILURES, Limits, is_lost, make_room

MAX_ADDRESSES = 8  # per key (DEC-C9)
MAX_BOOK_BYTES = 4 << 20
MAX_ANCHORS = 2
MAX_FAILURES = 1000

# How much an address is worth: told by another peer, told by itself, reached by us.
HEARSAY, OWN_WORD, REACHED = 0, 1, 2

_Peer = Annotated[str, Size(1, 96)]
_Address = Annotated[str, Size(1, MAX_ADDRESS_CHARACTERS)]
_Addresses = Annotated[tuple[_Address, ...], Size(1, MAX_ADDRESSES)]


@message
class StoredEntry:
    """One peer of a saved book; times in seconds since 1970."""

    peer: _Peer
    addresses: _Addresses  # the most trusted first
    source: Annotated[str, Size(0, 96)]
    source_place: Annotated[str, Size(0, 16)]
    heard_s: U64
    reached_s: U64  # 0: never
    failures: U16


@message
class StoredBook:
    """A saved book."""

    entries: Annotated[tuple[StoredEntry, ...], Size(0, MAX_PEERS)]
    anchors: Annotated[tuple[_Peer, ...], Size(0, MAX_ANCHORS)]


@message
class StoredPeer:
    """One entry of a book as version 0.1 saved it."""

    peer: _Peer
    addresses: _Addresses
    confirmed: bool


@message
class StoredPeers:
    """A book as version 0.1 saved it."""

    peers: Annotated[tuple[StoredPeer, ...], Size(0, MAX_PEERS)]


@dataclass
class Entry:
    """A peer in the book. Its addresses are ordered: the most trusted first."""

    peer: str
    place: str
    source: str
    source_place: str
    heard_s: float
    reached_s: float = 0.0
    failures: int = 0
    addresses: dict[str, int] = field(default_factory=dict)  # text -> worth

    def sort(self) -> None:
        ordered = sorted(self.addresses.items(), key=lambda one: -one[1])
        self.addresses = dict(ordered)
        self.place = neighbourhood(ordered[0][0])


class PeerBook:
    """Addresses by peer, bounded. `own` is this node's peer id: never an entry.

    `now_s` tells the time in seconds since 1970; what lies in the future, after a clock
    was set back, counts as now.
    """

    def __init__(
        self,
        own: str,
        now_s: Callable[[], float],
        saved: bytes | None = None,
        limits: Limits = Limits(),
    ) -> None:
        """Start with a saved book; one that does not decode counts as empty."""
        self._own, self._now_s, self._limits = own, now_s, limits
        self._entries: dict[str, Entry] = {}
        self._anchors: tuple[str, ...] = ()
        self.changed = False  # since the last to_bytes()
        self.on_learned: Callable[[], None] = lambda: None  # a new address came in
        if saved is not None:
            self._load(saved)

    def learn(
        self, peer: str, addresses: Iterable[str], source: str, source_address: str
    ) -> int:
        """Take in what `source`, known at `source_address`, says about `peer`.

        What a peer says about itself replaces what it said before. Returns how many
        addresses are dialable and new. Never raises for what a peer said.
        """
        try:
            known = parse_claim(source_address).endpoint
            if peer not in self._entries:
                public_key_of(peer)
        except DecodeError:
            return 0
        if peer == self._own:
            return 0
        texts: dict[str, None] = {}
        for address in list(addresses)[:MAX_ADDRESSES]:
            try:
                claim = parse_claim(address)
            except DecodeError:
                continue
            if claim.peer in (None, peer) and may_dial(claim.endpoint, known):
                texts[claim.text] = None
        if not texts:
            return 0
        entry = self._entries.get(peer)
        if entry is None:
            place = neighbourhood(source_address)
            entry = self._enter(peer, next(iter(texts)), source, place)
            if entry is None:
                return 0
        worth = OWN_WORD if source == peer else HEARSAY
        kept = sum(_keep(entry, text, worth) for text in texts)
        if worth == OWN_WORD:
            for text, value in list(entry.addresses.items()):
                if value == OWN_WORD and text not in texts:
                    del entry.addresses[text]
        entry.sort()
        if kept:
            self.changed = True
            self.on_learned()
        return kept

    def confirm(self, peer: str, address: str) -> None:
        """Note that we reached `peer` at `address` (names are not kept)."""
        entry = self._entries.get(peer)
        try:
            text = parse_claim(address).text
        except DecodeError:
            text = ""
        if entry is None:
            if not text or peer == self._own:
                return
            now = self._now_s()
            entry = self._enter(peer, text, self._own, neighbourhood(text), now)
            if entry is None:
                return
        if text:
            _keep(entry, text, REACHED)
            entry.sort()
        entry.reached_s, entry.failures = self._now_s(), 0
        self.changed = True

    def failed(self, peer: str) -> None:
        """Note that we could not reach `peer`, or that it did not say hello.

        One of which there is no hope is forgotten.
        """
        entry = self._entries.get(peer)
        if entry is not None:
            self.changed = True
            entry.failures = min(entry.failures + 1, MAX_FAILURES)
            if entry.failures >= PEER_FAILURES and is_lost(entry, self._now_s()):
                del self._entries[peer]

    def entries(self) -> tuple[Entry, ...]:
        """Return all entries; read only."""
        return tuple(self._entries.values())

    def recent(self, within_s: float) -> tuple[Entry, ...]:
        """Return the peers that were reached within so many seconds, and still are."""
        oldest = self._now_s() - within_s
        return tuple(
            entry
            for entry in self._entries.values()
            if entry.reached_s and entry.reached_s >= oldest and not entry.failures
        )

    def peers(self) -> tuple[str, ...]:
        """Return the known peers, confirmed ones first."""
        entries = self._entries
        return tuple(sorted(entries, key=lambda peer: not entries[peer].reached_s))

    def addresses(self, peer: str) -> tuple[str, ...]:
        """Return a peer's addresses, the most trusted first, with /p2p/<peer>."""
        entry = self._entries.get(peer)
        return tuple(f"{text}/p2p/{peer}" for text in entry.addresses) if entry else ()

    @property
    def anchors(self) -> tuple[str, ...]:
        """The peers to dial first after a start."""
        return tuple(peer for peer in self._anchors if peer in self._entries)

    def set_anchors(self, peers: Iterable[str]) -> None:
        """Note the outbound peers of longest standing; those not in the book are not."""
        anchors = tuple(p for p in peers if p in self._entries)[:MAX_ANCHORS]
        if anchors != self._anchors:
            self._anchors, self.changed = anchors, True

    def to_bytes(self) -> bytes:
        """Return the book for the disk."""
        self.changed = False
        return encode(
            StoredBook(
                tuple(
                    StoredEntry(
                        entry.peer,
                        tuple(entry.addresses),
                        entry.source,
                        entry.source_place,
                        max(0, int(entry.heard_s)),
                        max(0, -int(-entry.reached_s)),
                        entry.failures,
                    )
                    for entry in self._entries.values()
                ),
                self._anchors,
            )
        )

    def _enter(
        self, peer: str, text: str, source: str, place: str, reached_s: float = 0.0
    ) -> Entry | None:
        now = self._now_s()
        entry = Entry(peer, neighbourhood(text), source, place, now, reached_s)
        gone = make_room(self._entries.values(), entry, self._limits, now)
        if gone is None:
            return None
        for one in gone:
            del self._entries[one]
        self._entries[peer] = entry
        return entry

    def _load(self, saved: bytes) -> None:
        now = int(self._now_s())
        anchors: tuple[str, ...] = ()
        try:
            book = decode(StoredBook, saved, MAX_BOOK_BYTES)
            stored, anchors = book.entries, book.anchors
        except ProtocolError:
            try:
                old = decode(StoredPeers, saved, MAX_BOOK_BYTES).peers
            except ProtocolError:
                return
            stored = tuple(
                StoredEntry(
                    one.peer,
                    one.addresses,
                    self._own,
                    "",
                    now,
                    now if one.confirmed else 0,
                    0,
                )
                for one in old
            )
        for one in sorted(stored, key=lambda one: -one.reached_s):
            self._restore(one, now)
        self._anchors = anchors
        self.changed = False

    def _restore(self, stored: StoredEntry, now: int) -> None:
        texts = []
        for address in stored.addresses:
            try:
                texts.append(parse_claim(address).text)
            except DecodeError:
                continue
        if not texts or stored.peer == self._own or stored.peer in self._entries:
            return
        try:
            public_key_of(stored.peer)
        except DecodeError:
            return
        reached = float(min(stored.reached_s, now))
        entry = self._enter(
            stored.peer, texts[0], stored.source, stored.source_place, reached
        )
        if entry is None:
            return
        entry.heard_s = float(min(stored.heard_s, now))
        entry.failures = min(stored.failures, MAX_FAILURES)
        entry.addresses = dict.fromkeys(texts, HEARSAY)
        entry.addresses[texts[0]] = REACHED if reached else HEARSAY


def _keep(entry: Entry, text: str, worth: int) -> bool:
    """Add an address, or raise its worth; True if it is new and there was room."""
    known = entry.addresses.get(text)
    if known is not None:
        if worth == REACHED:
            # The one that worked last comes first among those that worked.
            entry.addresses = {text: worth, **entry.addresses}
        entry.addresses[text] = max(known, worth)
        return False
    if len(entry.addresses) >= MAX_ADDRESSES:
        least = list(entry.addresses)[-1]  # they are ordered by worth
        if entry.addresses[least] >= worth and worth != REACHED:
            return False
        del entry.addresses[least]
    if worth == REACHED:
        entry.addresses = {text: worth, **entry.addresses}
    else:
        entry.addresses[text] = worth
        entry.sort()
    return True
