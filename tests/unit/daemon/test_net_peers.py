"""The peer book: bounded by source and neighbourhood, kept over restarts, not poisoned."""

from __future__ import annotations

import functools
from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from blyan_proto.codec import encode
from blyan_proto.signing import SigningKey
from blyand.net.identity import peer_id_of
from blyand.net.peers import (
    MAX_ADDRESSES,
    PeerBook,
    StoredPeer,
    StoredPeers,
)
from blyand.rules.net.book import Limits, choose, spread


@functools.cache
def peer(number: int) -> str:
    return peer_id_of(SigningKey(number.to_bytes(32, "big")).public)


OWN, A, B = peer(1), peer(2), peer(3)
TELLER = "/ip4/9.9.9.9/tcp/1"


class Clock:
    now = 1e9

    def __call__(self) -> float:
        return self.now


def test_the_book_is_bounded_and_survives():
    clock = Clock()
    book = PeerBook(OWN, clock)
    many = [f"/ip4/8.8.8.{n}/tcp/1" for n in range(20)]
    assert book.learn(A, many, B, TELLER) == MAX_ADDRESSES
    assert book.learn(A, many[9:], B, TELLER) == 0  # full
    assert book.learn(OWN, many, B, TELLER) == 0
    assert book.learn("nobody", many, B, TELLER) == 0
    assert book.learn(B, ["/ip4/127.0.0.1/tcp/1", "junk"], B, TELLER) == 0
    assert book.learn(B, [f"/ip4/8.8.8.8/tcp/1/p2p/{A}"], B, TELLER) == 0
    book.confirm(B, f"/ip4/127.0.0.1/tcp/7/p2p/{B}")
    book.failed(A)
    book.set_anchors([B, peer(9)])
    assert book.peers() == (B, A) and book.anchors == (B,)
    clock.now += 100
    again = PeerBook(OWN, clock, book.to_bytes())
    assert again.peers() == (B, A) and not again.changed and again.anchors == (B,)
    assert again.addresses(B) == (f"/ip4/127.0.0.1/tcp/7/p2p/{B}",)
    assert again.addresses(A) == book.addresses(A)
    b, a = again.entries()
    assert (b.reached_s, b.failures, b.heard_s) == (1e9, 0, 1e9)
    assert (a.reached_s, a.failures, a.source) == (0, 1, B)
    assert again.to_bytes() == PeerBook(OWN, clock, again.to_bytes()).to_bytes()


def test_a_book_of_version_0_1_loads_and_a_damaged_one_is_empty():
    old = StoredPeers(
        (
            StoredPeer(A, ("/ip4/8.8.8.8/tcp/1",), False),
            StoredPeer(B, ("/ip4/8.8.4.4/tcp/1", "/dns4/x.org/tcp/1"), True),
            StoredPeer("nobody", ("/ip4/8.8.4.4/tcp/1",), True),
        )
    )
    book = PeerBook(OWN, Clock(), encode(old))
    assert book.peers() == (B, A)
    assert book.addresses(B) == (f"/ip4/8.8.4.4/tcp/1/p2p/{B}",)
    for damaged in (b"", b"damaged", encode(old)[:-3]):
        assert PeerBook(OWN, Clock(), damaged).peers() == ()


def test_times_of_the_future_count_as_now():
    clock = Clock()
    clock.now = 2e9
    book = PeerBook(OWN, clock)
    book.confirm(A, "/ip4/8.8.8.8/tcp/1")
    clock.now = 1e9
    (entry,) = PeerBook(OWN, clock, book.to_bytes()).entries()
    assert entry.reached_s == entry.heard_s == 1e9


def test_own_words_beat_hearsay_and_what_worked_beats_both():
    book = PeerBook(OWN, Clock())
    hearsay = [f"/ip4/8.8.8.{n}/tcp/1" for n in range(MAX_ADDRESSES)]
    book.learn(A, hearsay, B, TELLER)
    book.learn(A, ["/ip4/8.8.9.1/tcp/1", "/ip4/8.8.9.2/tcp/1"], A, TELLER)
    assert book.addresses(A)[0] == f"/ip4/8.8.9.1/tcp/1/p2p/{A}"
    assert len(book.addresses(A)) == MAX_ADDRESSES
    book.confirm(A, f"{hearsay[0]}/p2p/{A}")
    book.learn(A, ["/ip4/8.8.9.3/tcp/1"], A, TELLER)  # replaces its words of before
    texts = [one.split("/p2p/")[0] for one in book.addresses(A)]
    assert texts[:2] == [hearsay[0], "/ip4/8.8.9.3/tcp/1"]
    assert "/ip4/8.8.9.1/tcp/1" not in texts
    book.confirm(A, "/ip4/8.8.7.7/tcp/1")
    again = PeerBook(OWN, Clock(), book.to_bytes())
    assert again.addresses(A)[0] == f"/ip4/8.8.7.7/tcp/1/p2p/{A}"


SMALL = Limits(peers=40, of_source=8, of_source_place=12, of_place=16)


def test_a_peer_that_tells_a_thousand_addresses_displaces_nothing_confirmed():
    book = PeerBook(OWN, Clock(), limits=SMALL)
    good = [peer(number) for number in range(10, 40)]
    for place, name in enumerate(good):
        book.confirm(name, f"/ip4/{place + 20}.1.1.1/tcp/1")
    before = {name: book.addresses(name) for name in good}
    for number in range(100, 1100):
        name = peer(number % 300 + 100)
        book.learn(name, [f"/ip4/60.{number % 200}.1.1/tcp/1"], B, TELLER)
        book.learn(good[number % 30], [f"/ip4/61.{number % 200}.1.1/tcp/1"], B, TELLER)
    assert len(book.entries()) == len(good) + SMALL.of_source
    for name in good:
        assert book.addresses(name)[0] == before[name][0]
        assert len(book.addresses(name)) <= MAX_ADDRESSES


def test_many_tellers_of_one_neighbourhood_are_one_teller():
    book = PeerBook(OWN, Clock(), limits=SMALL)
    for number in range(100, 200):
        name = peer(number)  # speaks for itself: no share of a source is used up
        place = f"/ip4/60.{number % 8 + 1}.1.{number % 250}/tcp/1"
        book.learn(name, [place], name, f"/ip4/9.9.{number}.1/tcp/5")
    assert len(book.entries()) == SMALL.of_source_place
    for number in range(200, 300):  # many tellers about one neighbourhood
        teller = f"/ip4/{number - 180}.9.1.1/tcp/5"
        book.learn(peer(number), ["/ip4/70.1.1.1/tcp/1"], peer(number), teller)
    about = [entry for entry in book.entries() if entry.place == "4601"]
    assert len(about) == SMALL.of_place


def test_claims_that_failed_make_room_and_confirmed_peers_only_after_a_week():
    clock = Clock()
    book = PeerBook(OWN, clock, limits=Limits(3, 2, 9, 9))
    for number in (10, 11):
        book.learn(peer(number), ["/ip4/8.8.8.8/tcp/1"], B, TELLER)
    assert not book.learn(peer(12), ["/ip4/8.8.8.8/tcp/1"], B, TELLER)
    for _ in range(3):
        book.failed(peer(11))
    assert book.learn(peer(12), ["/ip4/8.8.8.8/tcp/1"], B, TELLER)
    assert book.peers() == (peer(10), peer(12))
    for number in (10, 12, 13):
        book.confirm(peer(number), "/ip4/8.8.8.8/tcp/1")
    for _ in range(50):
        book.failed(peer(12))
    assert not book.learn(A, ["/ip4/7.7.7.7/tcp/1"], A, TELLER)
    clock.now += 8 * 86_400
    assert book.learn(A, ["/ip4/7.7.7.7/tcp/1"], A, TELLER)
    assert set(book.peers()) == {peer(10), peer(13), A}


acts = st.lists(
    st.tuples(
        st.sampled_from(["learn", "learn", "learn", "confirm", "failed", "wait"]),
        st.integers(10, 60),
        st.integers(0, 250),
        st.integers(0, 5),
    ),
    max_size=150,
)


@settings(max_examples=50, deadline=None)
@given(acts)
def test_whatever_happens_the_book_holds_its_bounds_and_what_it_confirmed(done):
    clock = Clock()
    book = PeerBook(OWN, clock, limits=SMALL)
    confirmed: dict[str, None] = {}
    for what, number, here, source in done:
        name, text = peer(number), f"/ip4/{20 + here % 4}.{here % 7}.1.{here}/tcp/1"
        if what == "learn":
            teller = name if not source else peer(source)
            book.learn(name, [text], teller, f"/ip4/9.{source % 3}.1.1/tcp/1")
        elif what == "confirm" and len(confirmed) < SMALL.peers:
            book.confirm(name, text)
            confirmed[name] = None
        elif what == "failed":
            book.failed(name)
        else:
            clock.now += 3600  # 150 hours at most: nobody is lost for good
        entries = book.entries()
        claims = [entry for entry in entries if not entry.reached_s]
        assert len(entries) <= SMALL.peers
        for bound, of in (
            (SMALL.of_source, "source"),
            (SMALL.of_source_place, "source_place"),
        ):
            tellers = [getattr(entry, of) for entry in claims]
            assert all(tellers.count(one) <= bound for one in tellers)
        assert {e.peer for e in entries if e.reached_s} == set(confirmed)
        assert all(1 <= len(e.addresses) <= MAX_ADDRESSES for e in entries)
    again = PeerBook(OWN, clock, book.to_bytes(), SMALL)
    assert set(again.peers()) == set(book.peers())
    assert all(again.addresses(p) == book.addresses(p) for p in book.peers())


def test_a_crowded_neighbourhood_is_chosen_no_more_often_than_another():
    book = PeerBook(OWN, Clock())
    for number in range(10, 110):
        here = f"/ip4/60.1.1.{number}/tcp/1"
        book.learn(peer(number), [here], B, TELLER)
    for number in range(110, 113):
        book.learn(peer(number), [f"/ip4/{number}.1.1.1/tcp/1"], B, TELLER)
    random = Random(1)
    picks = [choose(book.entries(), (), random.randrange).place for _ in range(400)]
    assert 60 < picks.count("3c01") < 140
    assert choose(book.entries(), {"3c01"}, random.randrange).place != "3c01"
    assert choose((), (), random.randrange) is None
    book.confirm(peer(110), "/ip4/110.1.1.1/tcp/1")
    picks = [choose(book.entries(), (), random.randrange).peer for _ in range(400)]
    assert picks.count(peer(110)) > 250


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 6), st.integers()), unique=True),
    st.integers(0, 30),
    st.integers(),
)
def test_a_sample_is_spread_over_the_neighbourhoods(items, count, seed):
    chosen = spread(items, lambda one: str(one[0]), count, Random(seed).randrange)
    assert len(chosen) == min(count, len(items)) == len(set(chosen))
    here = [place for place, _ in chosen]
    for place in {place for place, _ in items}:
        left = sum(one[0] == place for one in items) - here.count(place)
        if left:  # nobody had a second turn more than a place that still waits
            assert max(map(here.count, here), default=0) <= here.count(place) + 1


def test_only_lately_reached_peers_are_recent():
    clock = Clock()
    book = PeerBook(OWN, clock)
    book.confirm(A, "/ip4/8.8.8.8/tcp/1")
    book.learn(B, ["/ip4/8.8.8.9/tcp/1"], B, TELLER)
    assert [entry.peer for entry in book.recent(60)] == [A]
    book.failed(A)
    assert book.recent(60) == ()
    book.confirm(A, "/ip4/8.8.8.8/tcp/1")
    clock.now += 61
    assert book.recent(60) == ()
