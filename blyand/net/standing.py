"""Standing: how peers have behaved, and whom we therefore serve less, or not at all.

The one place that knows bans. Keys are judged by `rules/net/misbehaviour`; an address,
which strangers may share, only has its new connections spaced (DEC-C8). Bans outlive
the process: `run` hands them to `save` whenever they changed.
"""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace

import trio

from blyan_proto.errors import ProtocolError
from blyand.clock import Clock, SystemClock
from blyand.metrics import Metrics
from blyand.net.bans import (
    MAX_BANS,
    MAX_REASONS,
    MAX_SENTENCE_CHARACTERS,
    Reason,
    StoredBan,
    decode_bans,
    encode_bans,
)
from blyand.net.places import Places
from blyand.rules.net import misbehaviour as rules
from blyand.rules.net.misbehaviour import Conduct, Step

log = logging.getLogger(__name__)

MAX_KEYS = MAX_BANS  # the least guilty are forgotten first, banned ones last
THROTTLED_STREAM_S = 1.0  # a throttled peer gets one stream in this time
SAVE_PAUSE_S = 1.0


@dataclass(frozen=True)
class PeerStanding:
    """How a peer stands now."""

    peer: str
    points: float
    state: str  # good, throttled or banned
    reasons: tuple[Reason, ...]  # the last ones, oldest first
    banned_until: int | None  # wall time in milliseconds; None without a ban
    bans: int  # earned and not yet forgotten


@dataclass
class _Key:
    conduct: Conduct = Conduct()
    reasons: deque[Reason] = field(default_factory=lambda: deque(maxlen=MAX_REASONS))
    address: str = ""  # of its last connection
    served_s: float = -math.inf  # its last stream while throttled


class Standing:
    """Judges keys, and addresses whose key is not known. Raises for nobody's bytes."""

    def __init__(
        self,
        own: str = "",
        *,
        saved: bytes | None = None,
        save: Callable[[bytes], Awaitable[None]] | None = None,
        clock: Clock | None = None,
        now_s: Callable[[], float] = trio.current_time,
        metrics: Metrics | None = None,
    ) -> None:
        """`own` is this node's id: never judged. `saved` is what `save` was given last.

        `now_s` never jumps; `clock`, which may, only dates what outlives the process.
        """
        self._own, self._save = own, save
        self._clock: Clock = clock or SystemClock()
        self._now_s = now_s
        self._metrics = metrics or Metrics()
        self._keys: dict[str, _Key] = {}
        self._places = Places(now_s)
        self._sever: Callable[[str], None] = lambda peer: None
        self._address_of: Callable[[str], str] = lambda peer: ""
        self._changed = trio.Event()
        self._saving = trio.Lock()
        if saved is not None:
            self._load(saved)

    def attach(
        self, sever: Callable[[str], None], address_of: Callable[[str], str]
    ) -> None:
        """Judge the peers of a host: `sever(peer)` ends their connections.

        `address_of(peer)` tells where a connected peer is, and "" where none is.
        """
        self._sever, self._address_of = sever, address_of

    # What happened

    def blame(self, peer: str, error: Exception) -> None:
        """Note a fault of an authenticated peer and do what follows from it."""
        points = rules.points_for(error)
        kind = type(error).__name__
        if not peer or peer == self._own or not points:
            return
        now_s = self._now_s()
        key = self._key(peer)
        if key.conduct.is_banned(now_s):
            return  # what was under way when it was banned
        self._count("blyan_net_misbehaviour", reason=kind)
        said = self._note(key, kind, str(error), points)
        key.address = self._address_of(peer) or key.address
        key.conduct, step = rules.blamed(key.conduct, points, now_s)
        log.info("%s misbehaved: %s (%s, %d points)", peer, said, kind, points)
        if step is Step.BAN:
            until_s = key.conduct.banned_until_s
            log.warning("banned %s for %.0f s: %s", peer, until_s - now_s, said)
            self._places.charge(key.address, rules.BANNED_KEY)
            self._change()
        if step in (Step.DISCONNECT, Step.BAN):
            self._count("blyan_net_sanctions", step=step.value)
            self._sever(peer)

    def blame_address(self, address: str, error: Exception) -> None:
        """Note a fault of a stranger; `address` is the text of its IP address."""
        points = rules.points_for(error)
        if points:
            self._count("blyan_net_misbehaviour", reason=type(error).__name__)
            log.debug("a stranger at %s misbehaved: %r", address, error)
            self._places.charge(address, points)

    def ban(self, peer: str, seconds: float, reason: str) -> None:
        """Ban a peer by an operator's word: disconnected, and refused until then."""
        key = self._key(peer)
        until_s = self._now_s() + seconds
        key.conduct = replace(key.conduct, banned_until_s=until_s)
        self._note(key, "operator", reason, 0)
        self._change()
        self._count("blyan_net_sanctions", step="operator")
        self._sever(peer)

    def unban(self, peer: str) -> bool:
        """Let a peer start anew, its points and bans forgotten; False if it had none."""
        known = self._keys.pop(peer, None)
        self._change()
        return known is not None

    # Who may what

    def may_connect(self, peer: str | None, address: str) -> bool:
        """True if a connection may be made; without a peer, by a stranger.

        A stranger who may counts as a new connection of its address. `address` is that
        of an inbound connection, or empty.
        """
        if peer is not None:
            known = self._keys.get(peer)
            if known is None:
                return True
            known.address = address or known.address
            if not known.conduct.is_banned(self._now_s()):
                return True
            self._places.charge(address, rules.BANNED_KNOCK)
            self.refused("banned")
            return False
        if not self._places.may_open(address):
            self.refused("address")
            return False
        return True

    def may_serve(self, peer: str) -> bool:
        """True if a stream of a peer may be served; a throttled one gets few."""
        known, now_s = self._keys.get(peer), self._now_s()
        if known is None or not known.conduct.is_throttled(now_s):
            return True
        if (
            known.conduct.is_banned(now_s)
            or now_s - known.served_s < THROTTLED_STREAM_S
        ):
            self._count("blyan_net_throttled_streams")
            return False
        known.served_s = now_s
        return True

    def is_ignored(self, peer: str) -> bool:
        """True if gossip of a peer is dropped unread: it is throttled or banned."""
        known = self._keys.get(peer)
        return known is not None and known.conduct.is_throttled(self._now_s())

    def of(self, peer: str) -> PeerStanding:
        """Return how a peer stands; one that never misbehaved stands well."""
        known, now_s = self._keys.get(peer, _Key()), self._now_s()
        banned = known.conduct.is_banned(now_s)
        throttled = known.conduct.is_throttled(now_s)
        return PeerStanding(
            peer=peer,
            points=known.conduct.points_at(now_s),
            state="banned" if banned else "throttled" if throttled else "good",
            reasons=tuple(known.reasons),
            banned_until=(
                self._wall_ms(known.conduct.banned_until_s) if banned else None
            ),
            bans=known.conduct.bans_at(now_s),
        )

    def points_at(self, address: str) -> float:
        """Return the points of an IP address or of the one in a multiaddress."""
        return self._places.points(address)

    def banned(self) -> tuple[PeerStanding, ...]:
        """Return who is banned, the ban that ends first first."""
        now_s = self._now_s()
        found = [
            (key.conduct.banned_until_s, peer)
            for peer, key in self._keys.items()
            if key.conduct.is_banned(now_s)
        ]
        return tuple(self.of(peer) for _, peer in sorted(found))

    def refused(self, reason: str) -> None:
        """Count a connection that was refused."""
        self._count("blyan_net_refused", reason=reason)

    # On the disk

    async def run(
        self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Save the bans whenever they changed, and at the end."""
        task_status.started()
        try:
            while True:
                await self._changed.wait()
                await self.flush()
                await trio.sleep(SAVE_PAUSE_S)
        finally:
            with trio.CancelScope(shield=True):
                await self.flush()

    async def flush(self) -> None:
        """Save the bans now if they changed since they were saved."""
        async with self._saving:
            if self._changed.is_set():
                self._changed = trio.Event()
                if self._save is not None:
                    await self._save(self.to_bytes())

    def to_bytes(self) -> bytes:
        """Return the bans, and the memory of earlier ones, for the disk."""
        now_s = self._now_s()
        return encode_bans(
            tuple(
                StoredBan(
                    peer,
                    max(0, self._wall_ms(key.conduct.banned_until_s)),
                    min(key.conduct.bans, 0xFFFF),
                    tuple(key.reasons),
                )
                for peer, key in self._keys.items()
                if key.conduct.is_banned(now_s) or key.conduct.bans_at(now_s)
            )
        )

    def _load(self, saved: bytes) -> None:
        now_s, now_ms = self._now_s(), self._clock.now_ms()
        try:
            stored = decode_bans(saved)
        except ProtocolError as error:
            log.warning("the file of bans is damaged, nobody is banned: %s", error)
            return
        for one in stored:
            until_s = now_s + (one.until_ms - now_ms) / 1000
            points = rules.PROBATION if one.bans else 0
            conduct = Conduct(points, until_s, one.bans, until_s)
            self._keys[one.peer] = _Key(conduct, deque(one.reasons, MAX_REASONS))

    def _wall_ms(self, at_s: float) -> int:
        return self._clock.now_ms() + round((at_s - self._now_s()) * 1000)

    def _change(self) -> None:
        self._changed.set()

    # The tables

    def _key(self, peer: str) -> _Key:
        if peer not in self._keys and len(self._keys) >= MAX_KEYS:
            now_s = self._now_s()

            def guilt(name: str) -> tuple[float, int, float]:
                conduct = self._keys[name].conduct
                left_s = max(0.0, conduct.banned_until_s - now_s)
                return left_s, conduct.bans_at(now_s), conduct.points_at(now_s)

            for name in sorted(self._keys, key=guilt)[: MAX_KEYS // 8]:
                del self._keys[name]
        return self._keys.setdefault(peer, _Key())

    def _note(self, key: _Key, error: str, sentence: str, points: int) -> str:
        """Keep a reason; return its sentence, cleaned of what a peer may have put in."""
        text = "".join(c if c.isprintable() else "?" for c in sentence)
        text = text[:MAX_SENTENCE_CHARACTERS]
        key.reasons.append(Reason(self._clock.now_ms(), error, text, points))
        return text

    def _count(self, name: str, **labels: str) -> None:
        self._metrics.counter(name, **labels).add()
