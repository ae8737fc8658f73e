"""Containment of what a remote peer can do to py-libp2p 0.8.1, without a fork.

Mended here: exceptions that leave a stream handler (each ended the host); inbound slots
that were never given back (no peer could connect after 250 connections); addresses of a
peer's choice that were stored or dialled.
`except Exception` stands here only around libp2p's own code. docs/protocols/streams.md
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

import trio
from google.protobuf.message import DecodeError as ProtobufError
from libp2p.abc import INetStream
from libp2p.host.basic_host import BasicHost
from libp2p.identity.identify_push.identify_push import ID_PUSH
from libp2p.network.config import RetryConfig
from libp2p.network.connection.raw_connection import RawConnection
from libp2p.network.exceptions import SwarmException
from libp2p.peer.id import ID

from blyan_proto.errors import DecodeError, ProtocolError

log = logging.getLogger(__name__)

Blame = Callable[[str, ProtocolError], None]

STREAMS_PER_PEER = 256  # inbound, of any protocol
HANDSHAKES_PER_ADDRESS = 32  # inbound connections that did not authenticate yet


def guard_host(
    host: BasicHost, blame: Blame, inbound: int, may_enter: Callable[[str], bool]
) -> None:
    """Contain stream handlers and inbound connections; dial only what we name.

    `inbound` bounds the inbound connections; `may_enter(IP address)` is asked about
    each before its handshake. Must be called before the host runs.
    """
    swarm: Any = host.get_network()
    swarm.retry_config = RetryConfig(max_retries=0)
    swarm.set_resource_manager(None)  # its breakers refuse everybody for one's faults
    swarm.dial_peer = _never_dial
    swarm.auto_connector.maybe_connect = _dial_nobody
    swarm.auto_connector.run_background_task = _dial_nobody
    swarm._inbound_limiter.total_tokens = inbound
    swarm.set_stream_handler(_contained(host._swarm_stream_handler, blame))
    swarm._do_handle_inbound_connection = _slot_for_its_life(swarm, may_enter)
    # Identify is answered, but what peers say of themselves is neither asked nor kept.
    host.remove_stream_handler(ID_PUSH)
    for notifee in list(swarm.notifees):
        if type(notifee).__name__ == "_IdentifyNotifee":
            swarm.remove_notifee(notifee)


async def _never_dial(peer_id: ID) -> Any:
    raise SwarmException(f"{peer_id} is not connected")


async def _dial_nobody(*_: Any) -> None: ...


def _contained(inner: Any, blame: Blame) -> Callable[[INetStream], Awaitable[None]]:
    open_streams: Counter[ID] = Counter()

    async def enter(stream: INetStream) -> None:
        peer = stream.muxed_conn.peer_id
        if open_streams[peer] >= STREAMS_PER_PEER:
            await reset(stream)
            return
        open_streams[peer] += 1
        try:
            await inner(stream)
        except Exception as error:
            log.debug("stream of %s: %r", peer, error)
            if isinstance(error, (UnicodeDecodeError, ProtobufError)):
                blame(str(peer), DecodeError(f"libp2p: {type(error).__name__}"))
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


def _slot_for_its_life(
    swarm: Any, may_enter: Callable[[str], bool]
) -> Callable[..., Awaitable[None]]:
    shaking: Counter[str] = Counter()  # by address: nobody is authenticated yet

    async def handle(connection: Any, listener: Any, _failure: Any) -> None:
        raw = RawConnection(connection, False)
        host = (connection.get_remote_address() or ("", 0))[0]
        if shaking[host] < HANDSHAKES_PER_ADDRESS and may_enter(host):
            shaking[host] += 1
            muxed = None
            try:
                muxed = await swarm.upgrade_inbound_raw_conn(raw, listener)
            except Exception as error:
                log.debug("inbound from %s: %r", host, error)
            finally:
                shaking[host] -= 1
                if not shaking[host]:
                    del shaking[host]
            if muxed is not None:
                await muxed.event_closed.wait()
        with trio.move_on_after(1, shield=True):
            try:
                await raw.close()
            except Exception as error:
                log.debug("closing: %r", error)

    return handle
