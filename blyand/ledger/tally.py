"""How payments went of late: rates, delays, reasons (LEDGER-10, 19, 20)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from blyand.rules.economy.session import Failure, SessionState
from blyand.store.sessions import Session, Side

PERIODS_MS = {"1h": 3_600_000, "24h": 86_400_000, "7d": 7 * 86_400_000}
PARTS = 12  # of a period, in a time series


@dataclass(frozen=True)
class Part:
    """One twelfth of a period."""

    began_ms: int
    credited: int
    failed: int


@dataclass(frozen=True)
class Tally:
    """The payments that ended in a period."""

    credited: int  # those given back later included
    reversed: int
    failures: dict[Failure, int]  # of every kind
    authorize_ms: tuple[
        int, int
    ]  # payer, from quote to reserve: median, 95th percentile
    credit_ms: tuple[int, int]  # payee, from receipt to credit
    parts: tuple[Part, ...]

    @property
    def ended(self) -> int:
        return self.credited + self.failed

    @property
    def failed(self) -> int:
        return sum(self.failures.values())

    def share_ppm(self, count: int) -> int:
        """Return what part of those that ended `count` is; 0 where none ended."""
        return count * 1_000_000 // self.ended if self.ended else 0


def tally(sessions: Iterable[Session], period_ms: int, now_ms: int) -> Tally:
    """Count what moved in the last `period_ms`."""
    since = max(0, now_ms - period_ms)
    recent = [one for one in sessions if one.moved_ms > since]
    credited = [one for one in recent if _at(one, SessionState.CREDITED) > since]
    failed = [one for one in recent if _at(one, SessionState.FAILED) > since]
    kinds = Counter(one.failure for one in failed)
    width = -(-period_ms // PARTS)

    def within(moments: Sequence[int], part: int) -> int:
        low = since + part * width
        return sum(low < moment <= low + width for moment in moments)

    paid_ms = [_at(one, SessionState.CREDITED) for one in credited]
    failed_ms = [_at(one, SessionState.FAILED) for one in failed]
    return Tally(
        credited=len(credited),
        reversed=sum(_at(one, SessionState.REVERSED) > since for one in recent),
        failures={kind: kinds.get(kind, 0) for kind in Failure},
        authorize_ms=_percentiles(
            (one for one in recent if one.side is Side.PAYER),
            SessionState.QUOTED,
            SessionState.AUTHORIZED,
            since,
        ),
        credit_ms=_percentiles(
            (one for one in recent if one.side is Side.PAYEE),
            SessionState.CAPTURED,
            SessionState.CREDITED,
            since,
        ),
        parts=tuple(
            Part(since + n * width, within(paid_ms, n), within(failed_ms, n))
            for n in range(PARTS)
        ),
    )


def _at(session: Session, state: SessionState) -> int:
    return session.times_ms[state]


def _percentiles(
    sessions: Iterable[Session], first: SessionState, then: SessionState, since: int
) -> tuple[int, int]:
    spans = sorted(
        _at(one, then) - _at(one, first) for one in sessions if _at(one, then) > since
    )
    if not spans:
        return 0, 0
    return spans[len(spans) // 2], spans[min(len(spans) - 1, len(spans) * 95 // 100)]
