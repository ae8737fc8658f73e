"""Which peers to ask for an expert, best first."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Candidate:
    """A peer that says it holds an expert, as the requester sees it."""

    peer: str
    latency_ms: float  # smoothed round trip of its answers; 0 when never asked
    in_flight: int
    failures: int  # in a row
    last_failure_age_s: float


COOL_OFF_S = 5.0  # a peer that just failed goes last for this long


def rank(candidates: Iterable[Candidate]) -> list[str]:
    """Return peer ids, best first; ties by id so that the choice is reproducible."""

    def cost(candidate: Candidate) -> tuple[bool, float, str]:
        cooling = bool(candidate.failures) and (
            candidate.last_failure_age_s < COOL_OFF_S * min(candidate.failures, 6)
        )
        expected = (candidate.latency_ms + 1.0) * (1 + candidate.in_flight)
        return (cooling, round(expected, 1), candidate.peer)

    return [candidate.peer for candidate in sorted(candidates, key=cost)]
