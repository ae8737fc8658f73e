"""/blyan/span/1: what a server may answer, over a stream in memory."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from blyan_proto.errors import ProtocolError
from blyan_proto.protocols import span as wire
from blyan_proto.protocols.calls import Kind, head
from blyan_proto.protocols.expert import Numerics
from blyan_proto.protocols.result import ResultCode
from blyan_proto.protocols.span import End, Ended, Open, Opened, Step, Stepped
from blyand.errors import TooSlow, WrongAnswer
from blyand.net.calls import open_calls
from blyand.protocols import span
from tests.unit.daemon.stream_world import Peers

NAME, ROW_BYTES = b"i" * 16, 8
OPEN = Open(NAME, bytes(32), Numerics.REFERENCE, 0, 2, bytes(32), 9)
STEP = Step(NAME, 0, 2, bytes(2 * ROW_BYTES))


def ask(client, request, deadline_s=5.0):
    if isinstance(request, Step):
        return client.step("p", request, ROW_BYTES, deadline_s)
    if isinstance(request, Open):
        return client.open("p", request, deadline_s)
    return client.end("p", NAME, deadline_s)


@pytest.mark.parametrize(
    "request_, lie",
    [
        (STEP, Stepped(b"")),
        (STEP, Stepped(bytes(ROW_BYTES))),
        (STEP, Stepped(bytes(2 * ROW_BYTES + 1))),
        (STEP, Stepped(bytes(3 * ROW_BYTES))),
        (STEP, Opened(2)),
        (STEP, b"\xff"),
        (OPEN, Stepped(bytes(2 * ROW_BYTES))),
        (OPEN, Ended(0)),
        (End(NAME), Opened(0)),
    ],
)
def test_an_answer_of_another_size_or_kind_is_blamed(request_, lie):
    raw = lie if isinstance(lie, bytes) else wire.ANSWER.encode(lie)

    async def lies(stream):
        await stream.send_result(ResultCode.OK)
        await stream.receive(wire.MAX_MESSAGE_BYTES, 5)
        await stream.send(raw, head=head(Kind.ANSWER, 0))
        await trio.sleep_forever()

    async def main():
        async with trio.open_nursery() as nursery:
            host = Peers(lies, nursery)
            async with open_calls(host) as calls:
                with pytest.raises(WrongAnswer):
                    await ask(span.Client(calls), request_)
                assert isinstance(host.blamed.pop(), ProtocolError)
            nursery.cancel_scope.cancel()

    trio.run(main)


def test_no_answer_is_too_slow_and_the_server_is_told():
    ended = []

    async def never(peer, request):
        try:
            await trio.sleep_forever()
        finally:
            ended.append(type(request))

    async def main():
        async with trio.open_nursery() as nursery:
            host = Peers(span.serve(never), nursery)
            async with open_calls(host) as calls:
                with pytest.raises(TooSlow):
                    await ask(span.Client(calls), STEP)
                await trio.testing.wait_all_tasks_blocked()
                assert ended == [Step] and not host.blamed
            nursery.cancel_scope.cancel()

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
