"""One daemon under attack: waves of strangers, an honest peer, and what it all costs.

A wave plays every behaviour once, each by a new key at an address of its own. Between
two waves the daemon comes to rest and is measured (DEC-E3).
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import trio

from blyan_proto.rpc.errors import RpcError
from blyand import genesis as genesis_file
from tests.functional.attacks import gossip, handshakes, mux, raw, requests, yamux
from tests.functional.attacks.attacker import BEHAVIOURS, Attacker, Victim
from tests.functional.attacks.honest import Honest, honest
from tests.functional.harness import Daemon, network, wait_for

FILES = (
    raw,
    handshakes,
    yamux,
    mux,
    requests,
    gossip,
)  # imported: they fill BEHAVIOURS
AT_ONCE = 16  # strangers
LIMIT_S = 40.0  # of one behaviour
REST_S = 60.0  # until everything of a wave has to be gone


@dataclass
class Outcome:
    """What became of one behaviour, over all waves."""

    times: int = 0
    seconds: float = 0.0
    did: set[str] = field(default_factory=set)
    standing: set[str] = field(default_factory=set)
    failures: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Footprint:
    """What the daemon takes while nobody but the honest peer is there."""

    tasks: int
    files: int
    connections: int
    resident_mib: float


class Siege:
    """A victim, its honest peer, and the waves so far."""

    def __init__(self, node: Daemon, victim: Victim, peer: Honest) -> None:
        self.node, self.victim, self.peer = node, victim, peer
        self.patience = 7  # how often a stranger repeats what was refused
        self.outcomes: dict[str, Outcome] = {}
        self.waves = 0

    def wave(self, names: Sequence[str] = tuple(BEHAVIOURS)) -> Footprint:
        """Play the behaviours once; return the footprint when all is over."""
        self.waves += 1
        trio.run(self._wave, tuple(names))
        return self.rest()

    async def _wave(self, names: tuple[str, ...]) -> None:
        places = trio.CapacityLimiter(AT_ONCE)
        async with trio.open_nursery() as nursery:
            for number, name in enumerate(names):
                address = f"127.{10 + self.waves % 200}.{number}.1"
                nursery.start_soon(self._play, name, address, places)

    async def _play(
        self, name: str, address: str, places: trio.CapacityLimiter
    ) -> None:
        outcome = self.outcomes.setdefault(name, Outcome())
        async with places:
            attacker = Attacker(self.victim, address, self.patience)
            began = time.monotonic()
            try:
                with trio.fail_after(LIMIT_S):
                    outcome.did.add(await BEHAVIOURS[name](attacker))
            except Exception as error:
                outcome.failures.append("; ".join(sentences(error)))
            outcome.times += 1
            outcome.seconds += time.monotonic() - began
            standing = await trio.to_thread.run_sync(self._standing, attacker)
            if standing:
                outcome.standing.add(standing)
            if attacker.accountable and standing not in ("throttled", "banned"):
                outcome.failures.append(f"its key stands {standing or 'well'}")

    def _standing(self, attacker: Attacker) -> str:
        """What the victim thinks of a key now; "" for one that never misbehaved."""
        try:
            told = self.node.call("peer.show", peer_id=attacker.peer_id)
        except RpcError:
            return ""
        return str(told["state"]) if told["reasons"] else ""

    def rest(self) -> Footprint:
        """Wait until two looks a second apart see the same; return what they see."""
        until = time.monotonic() + REST_S
        before = self.look()
        while True:
            time.sleep(1.0)
            now = self.look()
            same = (now.tasks, now.files) == (before.tasks, before.files)
            if (same and now.connections <= 1) or time.monotonic() > until:
                return now
            before = now

    def look(self) -> Footprint:
        """The least of some looks: the honest peer's requests come and go."""
        looks = []
        for _ in range(8):
            told = self.node.call("node.resources")
            looks.append(told)
            time.sleep(0.03)
        return Footprint(
            tasks=min(one["tasks"] for one in looks),
            files=min(one["files"] for one in looks),
            connections=min(one["connections"] for one in looks),
            resident_mib=min(one["resident_bytes"] for one in looks) / 2**20,
        )

    def failures(self) -> list[str]:
        """One sentence for each behaviour that the victim put up with."""
        return [
            f"{name}: {failure}"
            for name, outcome in self.outcomes.items()
            for failure in outcome.failures
        ]

    def table(self) -> Iterator[str]:
        """Yield the rows of what was done and what became of it."""
        yield f"| {'behaviour':42} | times | s each | the victim | its key then |"
        yield "| --- | --- | --- | --- | --- |"
        for name, one in sorted(self.outcomes.items()):
            did = ", ".join(sorted(one.did)) or "FAILED"
            standing = ", ".join(sorted(one.standing)) or "-"
            seconds = one.seconds / max(1, one.times)
            yield f"| {name:42} | {one.times} | {seconds:.1f} | {did} | {standing} |"


def sentences(error: BaseException) -> list[str]:
    if isinstance(error, BaseExceptionGroup):
        return [leaf for one in error.exceptions for leaf in sentences(one)]
    return [f"{type(error).__name__}: {error}"[:300]]


@contextmanager
def siege(directory: Path) -> Iterator[Siege]:
    """Give a daemon with a model, and an honest peer that it serves."""
    with network(directory, 1) as net:
        node = net[0]
        node.call("model.create", preset="tiny")
        wait_for(lambda: len(node.hosted()) == 13, "it holds all groups")
        tiles = node.call("tile.list")
        victim = Victim(
            peer_id=node.peer_id,
            port=int(node.address.split("/")[4]),
            genesis=genesis_file.load(node.home / "genesis.json"),
            model=bytes.fromhex(tiles["model_id"]),
            root=bytes.fromhex(tiles["tiles"][0]["weights_root"]),
        )
        with honest(victim, "127.9.9.9") as peer:
            yield Siege(node, victim, peer)
