"""`/blyan/mux/1` without I/O: bytes in -> events; calls in -> bytes out.

Strategy. Nothing is sent that the peer did not grant and nothing is taken that we did
not grant. What arrives too late after a reset is expected, counted and dropped; any
other surprise ends the connection. Output leaves in the order that `take` chooses:
control, then urgent streams, then bulk, each class in turns. docs/protocols/mux.md
"""

from __future__ import annotations

from blyan_proto.errors import DecodeError, LimitExceeded, UnexpectedMessage
from blyand.net.mux.events import (
    Event,
    Finished,
    GoneAway,
    Opened,
    Ponged,
    Received,
    WasReset,
)
from blyand.net.mux.frames import (
    MAX_STREAM,
    Frame,
    FrameReader,
    GoawayCode,
    Kind,
    ResetCode,
    control,
)
from blyand.net.mux.schedule import Outflow, Schedule
from blyand.net.mux.toll import FRAME_COST, OPEN_COST, SMALL_BYTES, STREAM_COST, Toll
from blyand.net.mux.window import FIRST_CREDIT, MAX_CREDIT, Budget, Window

MAX_STREAMS = 256  # open at once, for each side that opened them
MAX_UNCONFIRMED = 1024  # our resets that the peer did not confirm
MAX_CONTROL_BYTES = 256 * 1024  # answers that the peer does not take


class _Stream(Outflow):
    __slots__ = ("window", "due", "finishing", "finished", "ended")

    def __init__(self, identity: int, credit: int, window: Window) -> None:
        super().__init__(identity, credit)
        self.window = window
        self.due = 0  # credit that waits to be sent
        self.finishing = False  # FIN follows what is pending
        self.finished = False  # our FIN is out
        self.ended = False  # the peer's FIN is in


class Machine:
    """One side of a connection. The side that dialled opens odd streams.

    Methods named after frames queue them; `take` returns what to write. An id that is
    not open is ignored by all of them: the peer may have reset it meanwhile.
    """

    def __init__(self, initiator: bool) -> None:
        self.opened = 0  # open streams of ours, those being reset included
        self.gone_away = False  # by the peer or by us: nothing may be opened
        self.rtt_s = 0.0  # a round trip, as far as it was measured
        self._next = 1 if initiator else 2
        self._theirs = 0 if initiator else -1  # the last stream that the peer opened
        self._accepted = 0
        self._streams: dict[int, _Stream] = {}
        self._late: dict[int, Window] = {}  # reset by us, not yet confirmed
        self._budget = Budget()
        self._reader = FrameReader()
        self._toll = Toll()
        self._control = bytearray()
        self._pong: int | None = None
        self._credits: list[_Stream] = []
        self._wanted = False  # one of them holds the peer up
        self._schedule: Schedule[_Stream] = Schedule()
        self._going = False  # we said goodbye

    # What we do

    def open(self) -> int:
        """Open a stream. The caller has looked at `may_open`."""
        identity, self._next = self._next, self._next + 2
        self.opened += 1
        if self._next > MAX_STREAM:
            self.gone_away = True  # another connection has other streams
        window = Window(self._budget)
        granted = FIRST_CREDIT + window.grow_first()
        self._streams[identity] = _Stream(identity, FIRST_CREDIT, window)
        self._control += control(Kind.OPEN, identity, granted)
        return identity

    @property
    def may_open(self) -> bool:
        """False while too many streams are open, or for ever after a goodbye."""
        return self.opened < MAX_STREAMS and not self.gone_away

    def send(self, identity: int, data: memoryview) -> None:
        """Queue bytes; the last ones must have left (`pending` is 0)."""
        stream = self._streams.get(identity)
        if stream is not None and data:
            assert stream.pending is None and not stream.finished
            stream.pending = data
            self._schedule.add(stream)

    def pending(self, identity: int) -> int:
        """Return how many bytes of a stream wait to be taken."""
        stream = self._streams.get(identity)
        return len(stream.pending) if stream and stream.pending is not None else 0

    def withdraw(self, identity: int) -> None:
        """Forget bytes that wait; a stream that was to end after them is reset."""
        stream = self._streams.get(identity)
        if stream is not None:
            stream.pending = None
            if stream.finishing and not stream.finished:
                self.reset(identity)

    def set_bulk(self, identity: int, bulk: bool) -> None:
        """Choose the class in which a stream's bytes are sent."""
        stream = self._streams.get(identity)
        if stream is not None:
            stream.bulk = bulk

    def finish(self, identity: int) -> None:
        """Send FIN after what is pending."""
        stream = self._streams.get(identity)
        if stream is not None and not stream.finished:
            stream.finishing = True
            if stream.pending is None:
                self._fin(stream)

    def reset(self, identity: int, code: ResetCode = ResetCode.ABANDONED) -> None:
        """Give a stream up in both directions."""
        stream = self._streams.get(identity)
        if stream is None:
            return
        self._control += control(Kind.RESET, identity, code)
        if stream.ended:
            self._forget(stream)
            return
        self._drop(stream)
        self._late[identity] = stream.window  # `_on_open` bounds them

    def consumed(self, identity: int, count: int, now: float = 0.0) -> None:
        """Bytes of a stream were read by its user: the peer may send more."""
        stream = self._streams.get(identity)
        if stream is not None and not stream.ended:
            if grant := stream.window.consumed(count, now, self.rtt_s):
                self._grant(stream, grant)
                self._wanted = True

    def ping(self, token: int) -> None:
        self._control += control(Kind.PING, 0, token)

    def go_away(self, code: GoawayCode) -> None:
        """Say that no stream will be opened or taken from now on."""
        if not self._going:
            self._going = self.gone_away = True
            self._control += control(Kind.GOAWAY, 0, code)

    # What arrives

    def receive(self, raw: bytes | memoryview, now: float = 0.0) -> list[Event]:
        """Take bytes of the peer. ProtocolError: the connection is to be closed.

        `now`: seconds of a clock that goes forward, for what is bounded by rate.
        """
        events: list[Event] = []
        self._toll.refill(now)
        for frame in self._reader.feed(raw):
            self._ACTIONS[frame.kind](self, frame, events)
        return events

    def _on_open(self, frame: Frame, events: list[Event]) -> None:
        identity, credit = frame.stream, int(frame.value)
        self._toll.pay(OPEN_COST)
        if identity != self._theirs + 2:
            raise UnexpectedMessage(f"stream {identity} opened out of turn")
        if len(self._late) > MAX_UNCONFIRMED:
            raise LimitExceeded("the peer confirms no resets")
        self._theirs = identity
        self._check_credit(credit)
        window = Window(self._budget)
        if self._accepted >= MAX_STREAMS or self._going:
            self._answer(control(Kind.RESET, identity, ResetCode.REFUSED))
            self._late[identity] = window
            self._toll.pay(STREAM_COST)
            return
        self._accepted += 1
        stream = self._streams[identity] = _Stream(identity, credit, window)
        self._grant(stream, window.grow_first())
        events.append(Opened(identity))

    def _on_data(self, frame: Frame, events: list[Event]) -> None:
        identity, body = frame.stream, frame.value
        if len(body) < SMALL_BYTES:  # type: ignore[arg-type]
            self._toll.pay(FRAME_COST)
        stream = self._streams.get(identity)
        if stream is not None and not stream.ended:
            stream.window.take(len(body))  # type: ignore[arg-type]
            events.append(Received(identity, body))  # type: ignore[arg-type]
        elif identity in self._late:
            self._late[identity].take(len(body))  # type: ignore[arg-type]
        else:
            raise UnexpectedMessage(f"bytes on stream {identity}, which is not open")

    def _on_credit(self, frame: Frame, _: list[Event]) -> None:
        self._toll.pay(FRAME_COST)
        if not frame.value:
            raise DecodeError("a credit of nothing")
        stream = self._streams.get(frame.stream)
        if stream is None:
            self._check_known(frame)
            return
        stream.credit += int(frame.value)
        self._check_credit(stream.credit)
        if stream.pending is not None:
            self._schedule.add(stream)

    def _on_fin(self, frame: Frame, events: list[Event]) -> None:
        self._toll.pay(FRAME_COST)
        identity = frame.stream
        stream = self._streams.get(identity)
        if stream is not None and not stream.ended:
            stream.ended = True
            events.append(Finished(identity))
            if stream.finished:
                self._forget(stream)
        elif identity in self._late:
            self._confirmed(identity)
        else:
            raise UnexpectedMessage(f"end of stream {identity}, which is not open")

    def _on_reset(self, frame: Frame, events: list[Event]) -> None:
        identity = frame.stream
        stream = self._streams.get(identity)
        given_up = stream is not None and not self._is_ours(identity)
        self._toll.pay(STREAM_COST if given_up else FRAME_COST)
        if stream is not None:
            if not stream.finished:
                self._answer(control(Kind.RESET, identity, ResetCode.CONFIRMED))
            self._forget(stream)
            events.append(WasReset(identity, int(frame.value)))
        elif identity in self._late:
            self._confirmed(identity)
        else:
            self._check_known(frame)

    def _on_ping(self, frame: Frame, _: list[Event]) -> None:
        self._toll.pay(FRAME_COST)
        self._pong = int(frame.value)  # of several, the last is answered

    def _on_pong(self, frame: Frame, events: list[Event]) -> None:
        self._toll.pay(FRAME_COST)
        events.append(Ponged(int(frame.value)))

    def _on_goaway(self, frame: Frame, events: list[Event]) -> None:
        self._toll.pay(FRAME_COST)
        self.gone_away = True
        events.append(GoneAway(int(frame.value)))

    _ACTIONS = {
        int(Kind.OPEN): _on_open,
        int(Kind.DATA): _on_data,
        int(Kind.CREDIT): _on_credit,
        int(Kind.FIN): _on_fin,
        int(Kind.RESET): _on_reset,
        int(Kind.PING): _on_ping,
        int(Kind.PONG): _on_pong,
        int(Kind.GOAWAY): _on_goaway,
    }

    # What leaves

    @property
    def has_output(self) -> bool:
        """True if `take` would return something that should not wait."""
        return bool(
            self._control or self._schedule or self._wanted or self._pong is not None
        )

    def take(self, limit: int) -> list[bytes | memoryview]:
        """Return the next pieces to write, `limit` bytes or one frame more."""
        pieces: list[bytes | memoryview] = []
        if self._pong is not None:
            self._control += control(Kind.PONG, 0, self._pong)
            self._pong = None
        for stream in self._credits:
            if stream.due and stream.id in self._streams:
                self._control += control(Kind.CREDIT, stream.id, stream.due)
                stream.due = 0
        self._credits.clear()
        self._wanted = False
        if self._control:
            pieces.append(bytes(self._control))
            self._control.clear()
        for stream in self._schedule.take(limit, pieces):
            if stream.finishing:
                self._fin(stream)
        if self._control:
            pieces.append(bytes(self._control))
            self._control.clear()
        return pieces

    def _grant(self, stream: _Stream, count: int) -> None:
        if count:
            if not stream.due:
                self._credits.append(stream)
            stream.due += count

    def _fin(self, stream: _Stream) -> None:
        self._control += control(Kind.FIN, stream.id)
        stream.finished = True
        if stream.ended:
            self._forget(stream)

    def _answer(self, frame: bytes) -> None:
        self._control += frame
        if len(self._control) > MAX_CONTROL_BYTES:
            raise LimitExceeded("the peer does not take its answers")

    def _drop(self, stream: _Stream) -> None:
        stream.pending = None
        del self._streams[stream.id]
        if not self._is_ours(stream.id):
            self._accepted -= 1

    def _forget(self, stream: _Stream) -> None:
        self._drop(stream)
        self._let_go(stream.id, stream.window)

    def _confirmed(self, identity: int) -> None:
        self._let_go(identity, self._late.pop(identity))

    def _let_go(self, identity: int, window: Window) -> None:
        window.close()
        if self._is_ours(identity):
            self.opened -= 1

    def _is_ours(self, identity: int) -> bool:
        return identity % 2 == self._next % 2

    def _check_known(self, frame: Frame) -> None:
        """CREDIT and RESET may cross the end of a stream; it must have existed."""
        ours = self._is_ours(frame.stream)
        if frame.stream >= self._next if ours else frame.stream > self._theirs:
            raise UnexpectedMessage(f"stream {frame.stream} was never opened")

    @staticmethod
    def _check_credit(credit: int) -> None:
        if credit > MAX_CREDIT:
            raise LimitExceeded(f"a credit of {credit} bytes")
