"""TCP as we use it: a peer that vanished without a word is noticed by the kernel.

Small frames leave at once. A connection on which nothing is heard is probed; one whose
bytes are not acknowledged is given up. A peer that acknowledges and answers nothing is
the muxer's and the calls' matter.
"""

from __future__ import annotations

import logging
import socket
from typing import Any

from libp2p.abc import IRawConnection
from libp2p.transport.tcp.tcp import TCP, TCPListener
from multiaddr import Multiaddr

log = logging.getLogger(__name__)

IDLE_S = 20  # without a byte before the first probe
PROBE_S = 5  # between probes
PROBES = 3
UNACKNOWLEDGED_MS = 30_000  # that sent bytes may be

# Not every system has every option.
_OPTIONS: tuple[tuple[str, int, int], ...] = (
    ("TCP_NODELAY", socket.IPPROTO_TCP, 1),
    ("SO_KEEPALIVE", socket.SOL_SOCKET, 1),
    ("TCP_KEEPIDLE", socket.IPPROTO_TCP, IDLE_S),
    ("TCP_KEEPINTVL", socket.IPPROTO_TCP, PROBE_S),
    ("TCP_KEEPCNT", socket.IPPROTO_TCP, PROBES),
    ("TCP_USER_TIMEOUT", socket.IPPROTO_TCP, UNACKNOWLEDGED_MS),
)


def watch_socket(sock: Any) -> None:
    """Set the options of a connected socket, as far as this system has them."""
    for name, level, value in _OPTIONS:
        option = getattr(socket, name, None)
        if option is not None:
            try:
                sock.setsockopt(level, option, value)
            except OSError as error:  # the connection is gone already
                log.debug("%s: %s", name, error)
                return


class WatchedTcp(TCP):  # type: ignore[misc]
    """libp2p's TCP transport; every connection gets the options above.

    While `refusing`, whoever connects is hung up on. (Closing the listener would close
    the connections that came through it.)
    """

    refusing = False

    async def dial(self, maddr: Multiaddr) -> IRawConnection:
        raw: Any = await super().dial(maddr)
        watch_socket(raw.stream.stream.socket)
        return raw

    def create_listener(self, handler_function: Any) -> TCPListener:
        async def enter(stream: Any) -> None:
            if self.refusing:
                await stream.close()
                return
            watch_socket(stream.stream.socket)
            await handler_function(stream)

        return super().create_listener(enter)
