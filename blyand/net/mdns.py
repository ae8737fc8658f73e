"""Service: find nodes of the same network on the local network, by multicast DNS.

Off unless asked for: it tells everybody on the link that this node is here. What is
heard is a claim like any other: into the book, bounded and filtered, never dialled
from here. The service name carries the genesis id, so networks do not mix.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import trio
import zeroconf

from blyan_proto.errors import DecodeError
from blyand.errors import Unavailable
from blyand.net.address import MAX_ADDRESS_CHARACTERS, parse
from blyand.net.peers import MAX_ADDRESSES, PeerBook

log = logging.getLogger(__name__)

SOURCE = "mdns"  # all that is heard here shares the part of one teller in the book
WAITING = 64  # names heard and not looked at yet; more are dropped
LOOK_MS = 3000  # for the addresses behind a name


class LocalNetwork:
    """Announces this node on the link, and takes in who else announces itself."""

    def __init__(
        self,
        own: str,
        network: bytes,
        addresses: Callable[[], Sequence[str]],
        book: PeerBook,
    ) -> None:
        """`network` is the genesis id; `addresses` are those this node listens on."""
        self._own, self._addresses, self._book = own, addresses, book
        self._kind = f"_blyan-{network.hex()[:8]}._tcp.local."

    async def run(
        self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Announce and listen. Unavailable where there is no multicast."""
        task_status.started()
        ips = sorted({str(parse(one).ip) for one in self._plain()})
        if not ips:
            raise Unavailable("no IPv4 address to announce by multicast")
        try:
            daemon = await trio.to_thread.run_sync(
                lambda: zeroconf.Zeroconf(interfaces=ips)
            )
        except OSError as error:
            raise Unavailable(f"no multicast on {', '.join(ips)}: {error}") from error
        try:
            await self._announce(daemon)
            await self._listen(daemon)
        finally:
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(daemon.close)

    def _plain(self) -> list[str]:
        """Our addresses that others on the link can dial."""
        plain = []
        for address in self._addresses():
            try:
                if parse(address).ip.version == 4:
                    plain.append(address)
            except DecodeError:
                continue  # at a relay
        return plain[:MAX_ADDRESSES]

    async def _announce(self, daemon: Any) -> None:
        plain = self._plain()
        info = zeroconf.ServiceInfo(
            self._kind,
            f"{self._own}.{self._kind}",
            port=parse(plain[0]).port,
            addresses=[parse(one).ip.packed for one in plain],
            properties={f"a{i}": parse(one).text for i, one in enumerate(plain)},
            server=f"{self._own}.local.",
        )
        try:
            await trio.to_thread.run_sync(daemon.register_service, info)
        except (zeroconf.Error, OSError) as error:
            raise Unavailable(f"cannot announce this node: {error!r}") from error

    async def _listen(self, daemon: Any) -> None:
        names, heard = trio.open_memory_channel[str](WAITING)
        token = trio.lowlevel.current_trio_token()

        def note(name: str) -> None:
            try:
                names.send_nowait(name)
            except (trio.WouldBlock, trio.BrokenResourceError):
                pass  # it announces itself again; or nobody listens any more

        def changed(zeroconf: Any, service_type: str, name: str, **what: Any) -> None:
            try:
                token.run_sync_soon(note, name)  # the library calls from its thread
            except trio.RunFinishedError:
                pass  # the library's thread outlives the loop for a moment

        browser = await trio.to_thread.run_sync(
            lambda: zeroconf.ServiceBrowser(daemon, self._kind, handlers=[changed])
        )
        try:
            async for name in heard:
                await self._look(daemon, name)
        finally:
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(browser.cancel)

    async def _look(self, daemon: Any, name: str) -> None:
        peer = name.removesuffix(f".{self._kind}")
        if peer == self._own:
            return
        try:
            info = await trio.to_thread.run_sync(
                daemon.get_service_info, self._kind, name, LOOK_MS
            )
        except (zeroconf.Error, OSError) as error:
            log.debug("mdns: %r", error)
            return
        if info is not None:
            self.take(peer, info.properties)

    def take(self, peer: str, properties: dict[bytes, bytes | None]) -> int:
        """Take in what a node announces; return how many addresses are new."""
        told = []
        for place in range(MAX_ADDRESSES):
            raw = properties.get(b"a%d" % place) or b""
            if 0 < len(raw) <= MAX_ADDRESS_CHARACTERS and raw.isascii():
                told.append(raw.decode("ascii"))
        return sum(
            self._book.learn(peer, told, SOURCE, own) for own in self._plain() if told
        )
