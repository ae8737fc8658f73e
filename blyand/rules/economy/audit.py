"""Whether the books are right: every purse added up, and held against what moved (LEDGER-05).

Two independent accounts of the same money are compared: the purses in state, and the
postings since an earlier audit on top of what the purses held then. Their difference
names the account.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

Place = tuple[bytes, int]  # account, purse
Amounts = Iterator[tuple[Place, int]]  # ascending by place

MAX_DRIFTS = 1_000


@dataclass(frozen=True)
class Drift:
    """A purse that does not hold what it should, micro-BLY."""

    account: bytes
    purse: int
    holds_micro: int
    should_micro: int


@dataclass
class Audit:
    """An audit under way: feed it with `step` until that returns False.

    `before` is what the purses held at the earlier audit, `moved` what came to them
    since. Without an earlier audit nothing is expected of a purse: `expects` is False.
    """

    now: Amounts
    before: Amounts
    moved: dict[Place, int]
    expects: bool = True
    sum_micro: int = 0
    purses: int = 0
    drifts: list[Drift] = field(default_factory=list)
    changed: dict[Place, int] = field(default_factory=dict)  # for the next baseline
    _holds: tuple[Place, int] | None = None
    _held: tuple[Place, int] | None = None
    _begun: bool = False

    def step(self, count: int) -> bool:
        """Compare at most `count` purses; return False when all are."""
        if not self._begun:
            self._begun = True
            self._holds, self._held = next(self.now, None), next(self.before, None)
        for _ in range(count):
            holds, held = self._holds, self._held
            if holds is None and held is None:
                self._finish()
                return False
            place = min(pair[0] for pair in (holds, held) if pair is not None)
            micro = expected = 0
            if holds is not None and holds[0] == place:
                micro, self._holds = holds[1], next(self.now, None)
                self.sum_micro += micro
                self.purses += 1
            if held is not None and held[0] == place:
                expected, self._held = held[1], next(self.before, None)
            self._compare(place, micro, expected)
        return True

    def _finish(self) -> None:
        """What moved and is in neither: it came and went, or it is gone."""
        for place in list(self.moved):
            self._compare(place, 0, 0)

    def _compare(self, place: Place, micro: int, held: int) -> None:
        moved = self.moved.pop(place, 0)
        if micro != held:
            self.changed[place] = micro
        if self.expects and micro != held + moved and len(self.drifts) < MAX_DRIFTS:
            self.drifts.append(Drift(*place, micro, held + moved))
