"""Counters, gauges and histograms by name and labels; read as one snapshot.

Labels may come from outside (a peer, a protocol), so the number of series is bounded:
above it, new ones are counted together under ``other``.
"""

from __future__ import annotations

import bisect
import itertools
import json
import threading
from typing import TypeVar

MAX_SERIES = 4096


class Counter:
    """A number that only grows. Safe to add to from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._value = 0

    def add(self, amount: int = 1) -> None:
        """Grow by `amount` (not negative)."""
        if amount < 0:
            raise ValueError("a counter only grows")
        with self._lock:
            self._value += amount

    @property
    def value(self) -> int:
        return self._value


class Gauge:
    """A number that is what it was last set to."""

    def __init__(self) -> None:
        self._value: float = 0

    def set(self, value: float) -> None:
        self._value = value

    @property
    def value(self) -> float:
        return self._value


class Histogram:
    """How often a span of time fell into each of a few classes. `BOUNDS_S` are fixed."""

    BOUNDS_S = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts = [0] * (len(self.BOUNDS_S) + 1)
        self._sum_s = 0.0

    def observe(self, seconds: float) -> None:
        """Count one span."""
        place = bisect.bisect_left(self.BOUNDS_S, seconds)
        with self._lock:
            self._counts[place] += 1
            self._sum_s += seconds

    def read(self) -> tuple[tuple[int, ...], float]:
        """Return how many were at most each bound (the last: all), and their sum."""
        with self._lock:
            return tuple(itertools.accumulate(self._counts)), self._sum_s


S = TypeVar("S", Counter, Gauge, Histogram)
Series = dict[tuple[str, tuple[tuple[str, str], ...]], S]  # (name, labels) -> series


class Metrics:
    """A daemon's series. Asking for the same one twice gives the same."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counters: Series[Counter] = {}
        self._gauges: Series[Gauge] = {}
        self._histograms: Series[Histogram] = {}

    def counter(self, name: str, **labels: str) -> Counter:
        """Return the counter `name` with these labels, made at 0 if new."""
        return self._find(self._counters, Counter, name, labels)

    def gauge(self, name: str, **labels: str) -> Gauge:
        """Return the gauge `name` with these labels, made at 0 if new."""
        return self._find(self._gauges, Gauge, name, labels)

    def histogram(self, name: str, **labels: str) -> Histogram:
        """Return the histogram `name` with these labels, made empty if new."""
        return self._find(self._histograms, Histogram, name, labels)

    def snapshot(self) -> dict[str, int | float]:
        """Return counters and gauges as ``name{label="value"}`` -> value, sorted."""
        named: dict[str, int | float] = {}
        named |= {spell(*key): one.value for key, one in self.counters().items()}
        named |= {spell(*key): one.value for key, one in self.gauges().items()}
        return dict(sorted(named.items()))

    def counters(self) -> Series[Counter]:
        with self._lock:
            return dict(self._counters)

    def gauges(self) -> Series[Gauge]:
        with self._lock:
            return dict(self._gauges)

    def histograms(self) -> Series[Histogram]:
        with self._lock:
            return dict(self._histograms)

    def _find(
        self, known: Series[S], kind: type[S], name: str, labels: dict[str, str]
    ) -> S:
        key = name, tuple(sorted(labels.items()))
        with self._lock:
            if key not in known and len(known) >= MAX_SERIES:
                key = name, tuple((label, "other") for label in sorted(labels))
            return known.setdefault(key, kind())


def spell(name: str, labels: tuple[tuple[str, str], ...]) -> str:
    """Return ``name{label="value",…}``, or the name alone without labels."""
    if not labels:
        return name
    pairs = (f"{label}={json.dumps(value)}" for label, value in labels)
    return f"{name}{{{','.join(pairs)}}}"
