"""Containment of what a remote peer can do to py-libp2p 0.8.1, without a fork.

Mended here: exceptions that leave a stream handler or a muxer (each ended the host);
addresses of a peer's choice that were stored or dialled; what was kept of every stranger
for ever; pings and streams as fast as a peer likes. `inbound` guards the handshakes.
`except Exception` stands here only around libp2p's own code. docs/protocols/streams.md
"""

from __future__ import annotations

import functools
import logging
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

import trio
from google.protobuf.message import DecodeError as ProtobufError
from libp2p.abc import INetStream
from libp2p.host.basic_host import BasicHost
from libp2p.host.ping import ID as PING
from libp2p.host.ping import PING_LENGTH
from libp2p.identity.identify_push.identify_push import ID_PUSH
from libp2p.io.utils import read_exactly
from libp2p.network.config import RetryConfig
from libp2p.network.exceptions import SwarmException
from libp2p.network.stream.exceptions import StreamEOF
from libp2p.peer.id import ID

from blyan_proto.errors import DecodeError, LimitExceeded
from blyand.net.guard.inbound import HANDSHAKES, Door, close
from blyand.net.guard.negotiation import BadNegotiation, mend_negotiation
from blyand.net.guard.pace import Rate
from blyand.net.guard.yamux import GuardedYamux
from blyand.rules.net.misbehaviour import Blame

log = logging.getLogger(__name__)

STREAMS_PER_PEER = 256  # inbound, of any protocol
STREAMS_PER_S = 500  # that a peer may open for long; beyond they wait
STREAMS_BURST = 1000  # that it may open at once
START_S = 5.0  # for a muxer that has been agreed on
PING_IDLE_S = 60.0
PINGS_PER_S = 20  # on one stream; a faster peer waits


def guard_host(
    host: BasicHost,
    blame: Blame,
    inbound: int,
    may_enter: Callable[[str], bool],
    blame_address: Blame,
) -> None:
    """Contain stream handlers and inbound connections; dial only what we name.

    `inbound` bounds the inbound connections; `may_enter(IP address)` is asked about
    each before its handshake. `blame_address(IP address, error)` is for what happens
    before a key is known. Must be called before the host runs.
    """
    swarm: Any = host.get_network()
    mend_negotiation()
    # Its lines are what any stranger likes us to write; its own set-up sends them past
    # our log, with line ends. What matters we log ourselves.
    logging.getLogger("libp2p").addHandler(logging.NullHandler())
    logging.getLogger("libp2p").propagate = False
    swarm.retry_config = RetryConfig(max_retries=0)
    swarm.set_resource_manager(None)  # its breakers refuse everybody for one's faults
    swarm.dial_peer = _never_dial
    swarm.auto_connector.maybe_connect = _dial_nobody
    swarm.auto_connector.run_background_task = _dial_nobody
    swarm.auto_connector.record_disconnect = _forget  # one entry a key, for ever
    swarm.add_conn = _started(swarm.add_conn, blame)
    swarm._inbound_limiter.total_tokens = inbound + HANDSHAKES
    swarm.set_stream_handler(_contained(host._swarm_stream_handler, blame))
    door = Door(swarm, inbound, may_enter, blame_address)
    swarm._do_handle_inbound_connection = door.admit
    host.set_stream_handler(PING, _answer_pings)
    # Identify is answered, but what peers say of themselves is neither asked nor kept.
    host.remove_stream_handler(ID_PUSH)
    for notifee in list(swarm.notifees):
        if type(notifee).__name__ == "_IdentifyNotifee":
            swarm.remove_notifee(notifee)


def _forget(_: ID) -> None: ...


def _started(add_conn: Any, blame: Blame) -> Any:
    """A muxer that fails or never starts ends its own connection and nothing else."""

    async def add(muxed: Any, direction: str = "unknown") -> Any:
        start = muxed.start
        if isinstance(muxed, GuardedYamux):
            muxed.blame = functools.partial(blame, str(muxed.peer_id))

        async def contained() -> None:
            try:
                await start()
            except Exception as error:
                log.debug("the muxer of %s: %r", muxed.peer_id, error)
                muxed.event_started.set()
                await close(muxed)

        muxed.start = contained
        with trio.fail_after(START_S):
            return await add_conn(muxed, direction=direction)

    return add


async def _answer_pings(stream: INetStream) -> None:
    """Stock answers as fast as a peer asks."""
    pace = Rate(PINGS_PER_S, PINGS_PER_S)
    while True:
        with trio.move_on_after(PING_IDLE_S):
            await trio.sleep(pace.wait_s())
            try:
                asked = await read_exactly(stream, PING_LENGTH, PING_LENGTH)
            except StreamEOF:
                await stream.close()
                return
            await stream.write(asked)
            continue
        await reset(stream)
        return


async def _never_dial(peer_id: ID) -> Any:
    raise SwarmException(f"{peer_id} is not connected")


async def _dial_nobody(*_: Any) -> None: ...


def _contained(inner: Any, blame: Blame) -> Callable[[INetStream], Awaitable[None]]:
    open_streams: Counter[ID] = Counter()
    paces: dict[ID, Rate] = {}

    async def enter(stream: INetStream) -> None:
        peer = stream.muxed_conn.peer_id
        if open_streams[peer] >= STREAMS_PER_PEER:
            blame(str(peer), LimitExceeded(f"over {STREAMS_PER_PEER} streams at once"))
            await reset(stream)
            return
        open_streams[peer] += 1
        try:
            if peer not in paces:
                for other in [one for one, pace in paces.items() if pace.is_full]:
                    del paces[other]
                paces[peer] = Rate(STREAMS_PER_S, STREAMS_BURST)
            if (wait_s := paces[peer].wait_s()) > 0:
                await trio.sleep(wait_s)
            await inner(stream)
        except Exception as error:
            log.debug("stream of %s: %r", peer, error)
            if isinstance(error, (BadNegotiation, UnicodeDecodeError, ProtobufError)):
                told = f"{type(error).__name__} {error}"
                blame(str(peer), DecodeError(f"libp2p: {told[:80]}"))
            await reset(stream)
        finally:
            open_streams[peer] -= 1
            if not open_streams[peer]:
                del open_streams[peer]

    return enter


async def reset(stream: INetStream) -> None:
    """Reset a stream of libp2p's; never raises, at most a second."""
    with trio.move_on_after(1, shield=True):
        try:
            await stream.reset()
        except Exception as error:
            log.debug("reset: %r", error)
