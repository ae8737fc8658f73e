"""What happens to connections and peers, told to metrics and to the log of events."""

from __future__ import annotations

from blyand.diary import Note
from blyand.metrics import Metrics
from blyand.net.connections import Connections, PeerInfo
from blyand.net.link import link_of
from blyand.rules.net.misbehaviour import Blame


class Witness:
    """Sees and tells; decides nothing."""

    def __init__(self, metrics: Metrics, note: Note) -> None:
        self._metrics, self._note = metrics, note

    def watch(self, connections: Connections) -> None:
        """Tell of every peer that comes and goes."""
        connections.on_connected.append(self._came)
        connections.on_disconnected.append(self._went)

    def blame(self, inner: Blame) -> Blame:
        """Return `inner`, told of as well."""

        def blame(peer: str, error: Exception) -> None:
            kind = type(error).__name__
            self._note("blame", peer=peer, kind=kind, reason=str(error))
            inner(peer, error)

        return blame

    async def _came(self, info: PeerInfo) -> None:
        self._tell("connected", info)
        way, link = "in" if info.inbound else "out", link_of(info.address)
        self._metrics.counter("blyan_net_connections_made", way=way, link=link).add()

    async def _went(self, info: PeerInfo) -> None:
        self._tell("disconnected", info)

    def _tell(self, event: str, info: PeerInfo) -> None:
        way = "in" if info.inbound else "out"
        self._note(event, peer=info.peer_id, address=info.address, way=way)
