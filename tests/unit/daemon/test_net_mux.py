"""The mux without I/O: two machines on an arbitrary wire, and peers that break rules."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from blyan_proto.errors import (
    DecodeError,
    LimitExceeded,
    ProtocolError,
    UnexpectedMessage,
)
from blyand.net.mux import events, toll, window
from blyand.net.mux.frames import (
    MAX_DATA_BYTES,
    MAX_STREAM,
    Frame,
    FrameReader,
    GoawayCode,
    Kind,
    ResetCode,
    control,
    data_head,
)
from blyand.net.mux.machine import MAX_STREAMS, MAX_UNCONFIRMED, Machine
from blyand.net.mux.schedule import FRAME_BYTES, URGENT_BYTES
from blyand.net.mux.window import FIRST_CREDIT, WINDOW_BYTES


def taken(side: Machine, limit: int = 1 << 30) -> bytes:
    return b"".join(side.take(limit))


def data(stream: int, body: bytes) -> bytes:
    return data_head(stream, len(body)) + body


def pair() -> tuple[Machine, Machine]:
    return Machine(True), Machine(False)


def opened(side: Machine, other: Machine) -> int:
    identity = side.open()
    assert events.Opened(identity) in other.receive(taken(side))
    return identity


def exchange(one: Machine, other: Machine) -> list[events.Event]:
    """Let both sides take everything the other has; return what came to either."""
    found: list[events.Event] = []
    while True:
        out, back = taken(one), taken(other)
        if not out and not back:
            return found
        found += other.receive(out) + one.receive(back)


# Frames


@given(st.lists(st.integers(1, 40), max_size=20), st.data())
@settings(max_examples=50)
def test_frames_survive_any_chunking(sizes, draw):
    sent, raw = [], b""
    for number, size in enumerate(sizes, 1):
        sent += [Frame(Kind.DATA, number, bytes([number]) * size)]
        sent += [Frame(Kind.PING, 0, number), Frame(Kind.FIN, number, 0)]
        raw += data(number, bytes([number]) * size)
        raw += control(Kind.PING, 0, number) + control(Kind.FIN, number)
    reader, found = FrameReader(), []
    while raw:
        cut = draw.draw(st.integers(1, 30))
        for frame in reader.feed(raw[:cut]):
            if found and frame.kind == found[-1].kind == Kind.DATA:
                body = found.pop().value + frame.value
                frame = Frame(frame.kind, frame.stream, body)
            found.append(frame)
        raw = raw[cut:]
    assert found == sent and not reader.partial


@given(st.binary(max_size=200), st.booleans())
@settings(max_examples=50)
def test_any_bytes_are_a_violation_or_nothing(raw, initiator):
    side = Machine(initiator)
    try:
        side.receive(raw)
        taken(side)
    except ProtocolError:
        pass


@pytest.mark.parametrize(
    "raw, error",
    [
        (data_head(2, 0), DecodeError),
        (data_head(2, MAX_DATA_BYTES + 1), LimitExceeded),
        (data_head(0, 1), DecodeError),
        (data_head(1 << 31, 1), DecodeError),
        (bytes([9, 0, 0, 0, 0, 0, 0, 1]), DecodeError),
        (bytes([4, 0, 0, 1, 0, 0, 0, 1, 0]), DecodeError),  # FIN with a body
        (bytes([6, 0, 0, 8, 0, 0, 0, 1]) + bytes(8), DecodeError),  # PING on a stream
        (bytes([4, 0, 0, 0, 0, 0, 0, 0]), DecodeError),  # FIN of no stream
        (control(Kind.OPEN, 1, 1), UnexpectedMessage),  # our parity
        (control(Kind.OPEN, 4, 1), UnexpectedMessage),  # a gap
        (control(Kind.OPEN, 2, 1 << 30), LimitExceeded),
        (data(2, b"x"), UnexpectedMessage),
        (control(Kind.FIN, 2), UnexpectedMessage),
        (control(Kind.CREDIT, 2, 1), UnexpectedMessage),
        (control(Kind.RESET, 1), UnexpectedMessage),
    ],
)
def test_violations(raw, error):
    with pytest.raises(error):
        Machine(True).receive(raw)


# Streams


def test_a_conversation():
    one, other = pair()
    stream = one.open()
    one.send(stream, memoryview(b"question"))
    one.finish(stream)
    assert other.receive(taken(one)) == [
        events.Opened(stream),
        events.Received(stream, b"question"),
        events.Finished(stream),
    ]
    other.send(stream, memoryview(b"answer"))
    other.finish(stream)
    assert one.receive(taken(other)) == [
        events.Received(stream, b"answer"),
        events.Finished(stream),
    ]
    assert not one.opened and opened(one, other) == stream + 2
    assert opened(other, one) == 2  # the other side's streams are even


def test_nothing_is_sent_without_credit():
    one, other = pair()
    stream = one.open()
    body = bytes(FIRST_CREDIT + 5)
    one.send(stream, memoryview(body))
    first = taken(one)
    assert len(first) == 12 + 8 + FIRST_CREDIT and one.pending(stream) == 5
    assert not one.has_output
    other.receive(first)
    one.receive(taken(other))  # the common window
    assert len(taken(one)) == 8 + 5


def test_a_peer_that_overruns_its_window():
    _, other = pair()
    other.receive(control(Kind.OPEN, 1, 1))
    granted = window.COMMON_BYTES
    for place in range(0, granted, MAX_DATA_BYTES):
        other.receive(data(1, bytes(MAX_DATA_BYTES)))
    with pytest.raises(LimitExceeded):
        other.receive(data(1, b"x"))


def test_windows_grow_only_while_they_hold_the_peer_up():
    one, other = pair()
    stream = opened(one, other)
    for _ in range(2000):  # a long conversation of small messages
        one.send(stream, memoryview(bytes(4096)))
        exchange(one, other)
        other.consumed(stream, 4096)
    assert other._streams[stream].window.size == window.COMMON_BYTES
    for _ in range(40):  # a transfer whose reader is slower than its writer
        if not one.pending(stream):
            one.send(stream, memoryview(bytes(8 << 20)))
        got = sum(
            len(event.body)
            for event in exchange(one, other)
            if isinstance(event, events.Received)
        )
        other.consumed(stream, got)
    grown = other._streams[stream].window
    assert window.COMMON_BYTES < grown.size <= WINDOW_BYTES
    other.reset(stream)
    exchange(one, other)
    assert other._budget.left == one._budget.left == window.BUDGET_BYTES


@pytest.mark.parametrize("seconds, grows", [(0.19, True), (0.21, False)])
def test_windows_grow_when_one_is_read_within_two_round_trips(seconds, grows):
    """On a long road the reader is prompt, and the window is what limits."""
    one, other = pair()
    other.rtt_s = 0.1
    stream = opened(one, other)
    size, now = window.COMMON_BYTES // 8, 0.0
    for _ in range(24):
        one.send(stream, memoryview(bytes(size)))
        exchange(one, other)
        other.consumed(stream, size, now)
        now += seconds / 7  # from the first of eight parts to the last
    assert (other._streams[stream].window.size > window.COMMON_BYTES) is grows


def test_what_a_stranger_can_make_us_hold():
    """Streams that nobody reads: their first credits and the budget, no more."""
    side = Machine(True)
    for number in range(MAX_STREAMS):
        side.receive(control(Kind.OPEN, 2 + 2 * number, 0))
    held = sum(stream.window.open for stream in side._streams.values())
    assert held <= MAX_STREAMS * FIRST_CREDIT + window.BUDGET_BYTES
    assert not side.receive(control(Kind.OPEN, 2 + 2 * MAX_STREAMS, 0))
    refusal = control(Kind.RESET, 2 + 2 * MAX_STREAMS, ResetCode.REFUSED)
    assert refusal in taken(side)
    with pytest.raises(LimitExceeded):
        for number in range(MAX_STREAMS + 1, MAX_STREAMS + MAX_UNCONFIRMED + 2):
            side.receive(control(Kind.OPEN, 2 + 2 * number, 0))
            taken(side)


def test_late_frames_after_a_reset():
    one, other = pair()
    stream = opened(one, other)
    one.send(stream, memoryview(bytes(1000)))
    late = taken(one) + control(Kind.CREDIT, stream, 7)
    other.reset(stream)
    assert other.receive(late) == []
    assert one.receive(taken(other)) == [events.WasReset(stream, ResetCode.ABANDONED)]
    confirmation = taken(one)
    assert confirmation == control(Kind.RESET, stream, ResetCode.CONFIRMED)
    assert other.receive(confirmation) == []
    assert other.receive(control(Kind.CREDIT, stream, 7)) == []  # crosses the end
    with pytest.raises(UnexpectedMessage):
        other.receive(data(stream, b"after the confirmation"))


def test_late_frames_are_bounded():
    one, other = pair()
    stream = opened(one, other)
    other.reset(stream)
    with pytest.raises(LimitExceeded):
        for _ in range(window.COMMON_BYTES // 1000 + 2):
            other.receive(data(stream, bytes(1000)))


def test_both_reset_at_once():
    one, other = pair()
    stream = opened(one, other)
    one.reset(stream)
    other.reset(stream)
    assert exchange(one, other) == []
    assert not one.opened and not one._late and not other._late
    opened(one, other)


def test_resets_meet_ends():
    one, other = pair()
    stream = opened(one, other)
    one.finish(stream)
    other.reset(stream)
    assert exchange(one, other) == [events.WasReset(stream, ResetCode.ABANDONED)]
    assert not one.opened and not other._late and not other._streams


def test_our_own_streams_are_bounded():
    one, other = pair()
    for _ in range(MAX_STREAMS):
        one.open()
    assert not one.may_open
    exchange(one, other)
    other.reset(1)
    exchange(one, other)
    assert one.may_open


def test_goodbye():
    one, other = pair()
    stream = opened(one, other)
    one.go_away(GoawayCode.DONE)
    late = other.open()
    assert events.GoneAway(GoawayCode.DONE) in exchange(one, other)
    assert not other.may_open and not one.may_open and late not in one._streams
    other.send(stream, memoryview(b"what was open goes on"))
    assert events.Received(stream, b"what was open goes on") in exchange(one, other)


def test_of_several_pings_the_last_is_answered():
    side = Machine(True)
    side.receive(b"".join(control(Kind.PING, 0, token) for token in range(9)))
    assert taken(side) == control(Kind.PONG, 0, 8)


def test_answers_that_nobody_takes():
    side = Machine(True)
    side.ping(1)
    with pytest.raises(LimitExceeded):
        for number in range(1 << 20):
            side.receive(control(Kind.OPEN, 2 + 2 * number, 0))
            side.receive(control(Kind.RESET, 2 + 2 * number, 0))


# What frames cost

LITTLE = {
    "ping": (b"", control(Kind.PING, 0, 1), toll.FRAME_COST),
    "pong": (b"", control(Kind.PONG, 0, 1), toll.FRAME_COST),
    "goaway": (b"", control(Kind.GOAWAY, 0, 0), toll.FRAME_COST),
    "credit": (control(Kind.OPEN, 2, 0), control(Kind.CREDIT, 2, 1), toll.FRAME_COST),
    "data": (control(Kind.OPEN, 2, 0), data(2, b"x"), toll.FRAME_COST),
}


@pytest.mark.parametrize("first, frame, cost", LITTLE.values(), ids=LITTLE)
def test_frames_that_carry_little_are_bounded_by_rate(monkeypatch, first, frame, cost):
    monkeypatch.setattr(toll, "PURSE", 2_000)
    monkeypatch.setattr(toll, "PURSE_PER_S", 400)
    side = Machine(True)
    side.receive(first)

    def send(count, now):
        for event in side.receive(frame * count, now):
            if isinstance(event, events.Received):
                side.consumed(2, len(event.body))
        taken(side)

    for second in range(1, 6):
        send(toll.PURSE_PER_S // cost - 100, float(second))
    send(toll.PURSE // cost - toll.PURSE_PER_S // cost - 100, 6.0)  # and a burst
    with pytest.raises(LimitExceeded):
        send(toll.PURSE // cost, 6.0)


@pytest.mark.parametrize("answered", [False, True])
def test_streams_without_sense_are_bounded_by_rate(answered):
    """Given up by the opener, or made so that we give them up (CVE-2025-8671)."""
    side = Machine(True)
    count = 0
    with pytest.raises(LimitExceeded):
        for identity in range(2, 2 * toll.PURSE, 2):
            side.receive(control(Kind.OPEN, identity, 0))
            if answered:
                side.reset(identity)
            side.receive(control(Kind.RESET, identity, 0))
            taken(side)
            count += 1
    cost = toll.OPEN_COST + (toll.FRAME_COST if answered else toll.STREAM_COST)
    assert count == toll.PURSE // cost


def test_a_credit_of_nothing():
    side = Machine(True)
    side.receive(control(Kind.OPEN, 2, 0))
    with pytest.raises(DecodeError):
        side.receive(control(Kind.CREDIT, 2, 0))


def test_the_last_stream_is_the_last():
    side = Machine(True)
    side._next = MAX_STREAM
    assert side.open() == MAX_STREAM
    assert side.gone_away and not side.may_open


# Turns


def test_urgent_bytes_pass_bulk():
    one, other = pair()
    bulk, urgent = opened(one, other), opened(one, other)
    exchange(one, other)
    one.set_bulk(bulk, True)
    one.send(bulk, memoryview(bytes(200_000)))
    first = taken(one, 1)
    assert first[:8] == data_head(bulk, FRAME_BYTES)
    one.send(urgent, memoryview(b"now"))
    assert taken(one, 1) == data(urgent, b"now")


def test_small_messages_among_many_bulk_streams():
    """By order of frames: each small message is next, bulk has every other turn."""
    one, other = pair()
    bulk = [opened(one, other) for _ in range(40)]
    small = opened(one, other)
    exchange(one, other)
    for stream in bulk:
        one.set_bulk(stream, True)
        one.send(stream, memoryview(bytes(3 * FRAME_BYTES)))
    order = []
    for _ in range(len(bulk)):
        order.append(int.from_bytes(taken(one, 1)[4:8], "big"))
        one.send(small, memoryview(b"vote"))
        assert taken(one, 1) == data(small, b"vote")
    assert order == bulk


def test_bulk_does_not_starve():
    one, other = pair()
    bulk, urgent = opened(one, other), opened(one, other)
    for stream in (bulk, urgent):
        one._streams[stream].credit = 8 << 20
        one.send(stream, memoryview(bytes(4 << 20)))
        one.set_bulk(bulk, True)
    order = []
    while one.pending(urgent):
        order.append(int.from_bytes(taken(one, 1)[4:8], "big"))
    assert order.count(bulk) == (4 << 20) // URGENT_BYTES - 1 + (order[0] == bulk)


def test_streams_take_turns():
    one, other = pair()
    streams = [opened(one, other) for _ in range(3)]
    exchange(one, other)
    for stream in streams:
        one.send(stream, memoryview(bytes(2 * FRAME_BYTES)))
    heads = [taken(one, 1)[4:8] for _ in range(6)]
    assert [int.from_bytes(head, "big") for head in heads] == streams * 2


# Everything at once


class Conversation(RuleBasedStateMachine):
    """Two machines, a wire that cuts anywhere, and a record of what must arrive."""

    def __init__(self):
        super().__init__()
        self.sides = pair()
        self.wires = [bytearray(), bytearray()]  # towards each side
        self.sent: dict[tuple[int, int], bytearray] = {}  # by (sender, stream)
        self.got: dict[tuple[int, int], int] = {}  # bytes, by (receiver, stream)
        self.unread: dict[tuple[int, int], int] = {}  # by (receiver, stream)
        self.live: set[tuple[int, int]] = set()
        self.writing: set[tuple[int, int]] = set()  # not finished
        self.broken: set[int] = set()
        self.count = 0

    who = st.integers(0, 1)

    @rule(who=who)
    def open(self, who):
        if self.sides[who].may_open and len(self.live) < 12:
            self._begin(who, self.sides[who].open())

    def _begin(self, who, stream):
        self.live.add((who, stream))
        self.writing.add((who, stream))
        self.sent[who, stream], self.got[who, stream] = bytearray(), 0
        self.unread[who, stream] = 0

    @precondition(lambda self: self.writing)
    @rule(draw=st.data(), size=st.integers(1, 150_000), bulk=st.booleans())
    def send(self, draw, size, bulk):
        who, stream = draw.draw(st.sampled_from(sorted(self.writing)))
        if not self.sides[who].pending(stream):
            self.count += 1
            body = self.count.to_bytes(4, "big") * (size // 4 + 1)
            self.sides[who].set_bulk(stream, bulk)
            self.sides[who].send(stream, memoryview(body))
            self.sent[who, stream] += body

    @rule(who=who, limit=st.integers(0, 100_000))
    def take(self, who, limit):
        self.wires[1 - who] += taken(self.sides[who], limit)

    @rule(who=who, size=st.integers(1, 200_000))
    def deliver(self, who, size):
        raw, self.wires[who] = self.wires[who][:size], self.wires[who][size:]
        for event in self.sides[who].receive(bytes(raw)):
            key = (who, getattr(event, "stream", 0))
            if isinstance(event, events.Opened):
                self._begin(*key)
            elif isinstance(event, events.Received):
                place = self.got[key]
                self.got[key] += len(event.body)
                sent = self.sent[1 - who, event.stream]
                assert sent[place : self.got[key]] == event.body
                self.unread[key] += len(event.body)
            elif isinstance(event, events.WasReset):
                self._lose(*key)

    def _lose(self, who, stream):
        self.live.discard((who, stream))
        self.writing.discard((who, stream))
        self.broken.add(stream)

    @rule(draw=st.data())
    def read(self, draw):
        waiting = sorted(key for key, count in self.unread.items() if count)
        if waiting:
            who, stream = draw.draw(st.sampled_from(waiting))
            count = draw.draw(st.integers(1, self.unread[who, stream]))
            self.unread[who, stream] -= count
            self.sides[who].consumed(stream, count)

    @precondition(lambda self: self.writing)
    @rule(draw=st.data())
    def finish(self, draw):
        key = draw.draw(st.sampled_from(sorted(self.writing)))
        self.writing.discard(key)
        self.sides[key[0]].finish(key[1])

    @precondition(lambda self: self.live)
    @rule(draw=st.data())
    def reset(self, draw):
        who, stream = draw.draw(st.sampled_from(sorted(self.live)))
        self.sides[who].reset(stream)
        self._lose(who, stream)

    @rule(who=who)
    def ping(self, who):
        self.sides[who].ping(7)

    @invariant()
    def windows_hold(self):
        for side in self.sides:
            for stream in side._streams.values():
                assert 0 <= stream.window.open <= stream.window.size <= WINDOW_BYTES
            grown = sum(
                one.size - FIRST_CREDIT
                for one in [s.window for s in side._streams.values()]
                + list(side._late.values())
            )
            assert grown + side._budget.left == window.BUDGET_BYTES

    def teardown(self):
        for _ in range(1000):
            for key in list(self.writing):
                self.writing.discard(key)
                self.sides[key[0]].finish(key[1])
            for who in (0, 1):
                self.take(who, 1 << 30)
                self.deliver(who, 1 << 30)
            for (who, stream), count in self.unread.items():
                self.sides[who].consumed(stream, count)
                self.unread[who, stream] = 0
            quiet = not any(side.has_output for side in self.sides)
            if quiet and not any(self.wires) and not self.writing:
                break
        for (who, stream), sent in self.sent.items():
            if stream not in self.broken:
                assert self.got.get((1 - who, stream), 0) == len(sent)
        for side in self.sides:
            assert not side._late and not side.opened and not side._accepted
            assert not side._streams and side._budget.left == window.BUDGET_BYTES


Conversation.TestCase.settings = settings(
    max_examples=40, stateful_step_count=40, deadline=None
)
TestConversation = Conversation.TestCase
