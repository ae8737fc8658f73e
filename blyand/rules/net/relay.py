"""What a relay grants: places for nodes behind NAT, and circuits to them.

Everything is counted by peer and by address, because keys are free. Pure: times are
arguments. docs/nat.md
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

RESERVATIONS = 128
CIRCUITS = 64


@dataclass(frozen=True)
class RelayLimits:
    """What one relay gives away at most."""

    reservations: int = RESERVATIONS
    reservations_per_address: int = 8
    reservation_s: float = 3600.0
    circuits: int = CIRCUITS
    circuits_per_target: int = 16
    circuits_per_source: int = 4
    circuits_per_address: int = 8  # opened from one address
    circuit_bytes: int = 512 << 20  # both directions together
    circuit_s: float = 7200.0
    idle_s: float = 120.0  # a circuit on which nothing moves is closed


class Refused(Exception):
    """A limit is reached, or the target has no place here. Nobody's fault."""


class NoPlace(Refused):
    """The target of a circuit has reserved nothing at this relay."""


@dataclass(frozen=True)
class Circuit:
    """One admitted circuit."""

    number: int
    source: str
    address: str  # of the source
    target: str


class Ledger:
    """Places and circuits of one relay."""

    def __init__(self, limits: RelayLimits) -> None:
        self.limits = limits
        self._places: dict[str, tuple[str, float]] = {}  # peer -> (address, end)
        self._circuits: dict[int, Circuit] = {}
        self._opened = 0

    def reserve(self, peer: str, address: str, now_s: float) -> float:
        """Give or renew a place; returns when it ends. Refused above a limit."""
        self._expire(now_s)
        others = {p: place for p, place in self._places.items() if p != peer}
        held = Counter(place[0] for place in others.values())
        if (
            len(others) >= self.limits.reservations
            or held[address] >= self.limits.reservations_per_address
        ):
            raise Refused("no place is free")
        end_s = now_s + self.limits.reservation_s
        self._places[peer] = (address, end_s)
        return end_s

    def release(self, peer: str) -> None:
        """Forget a peer's place: it disconnected."""
        self._places.pop(peer, None)

    def open(self, source: str, address: str, target: str, now_s: float) -> Circuit:
        """Admit a circuit. NoPlace, or Refused above a limit."""
        self._expire(now_s)
        if target not in self._places or target == source:
            raise NoPlace("the target has no place at this relay")
        every = self._circuits.values()
        limits = self.limits
        if (
            len(self._circuits) >= limits.circuits
            or sum(c.target == target for c in every) >= limits.circuits_per_target
            or sum(c.source == source for c in every) >= limits.circuits_per_source
            or sum(c.address == address for c in every) >= limits.circuits_per_address
        ):
            raise Refused("no circuit is free")
        self._opened += 1
        circuit = Circuit(self._opened, source, address, target)
        self._circuits[circuit.number] = circuit
        return circuit

    def close(self, circuit: Circuit) -> None:
        """The circuit ended."""
        self._circuits.pop(circuit.number, None)

    @property
    def places(self) -> tuple[str, ...]:
        """The peers that hold a place (some may have run out since)."""
        return tuple(self._places)

    @property
    def circuits(self) -> tuple[Circuit, ...]:
        """The open circuits."""
        return tuple(self._circuits.values())

    def _expire(self, now_s: float) -> None:
        for peer in [p for p, (_, end_s) in self._places.items() if end_s <= now_s]:
            del self._places[peer]
