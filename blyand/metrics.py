"""Counters and gauges by name and labels; read as one snapshot.

Labels may come from outside (a peer, a protocol), so the number of series is bounded:
above it, new ones are counted together under ``other``.
"""

from __future__ import annotations

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


S = TypeVar("S", Counter, Gauge)


class Metrics:
    """A daemon's counters and gauges. Asking for the same series twice gives the same."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counters: dict[str, Counter] = {}
        self._gauges: dict[str, Gauge] = {}

    def counter(self, name: str, **labels: str) -> Counter:
        """Return the counter `name` with these labels, made at 0 if new."""
        return self._find(self._counters, Counter, name, labels)

    def gauge(self, name: str, **labels: str) -> Gauge:
        """Return the gauge `name` with these labels, made at 0 if new."""
        return self._find(self._gauges, Gauge, name, labels)

    def snapshot(self) -> dict[str, int | float]:
        """Return every series as ``name{label="value"}`` -> value, sorted by name."""
        with self._lock:
            series: dict[str, Counter | Gauge] = {**self._counters, **self._gauges}
        return {key: series[key].value for key in sorted(series)}

    def _find(
        self, known: dict[str, S], kind: type[S], name: str, labels: dict[str, str]
    ) -> S:
        with self._lock:
            key = _series_key(name, labels)
            if key not in known and len(known) >= MAX_SERIES:
                key = _series_key(name, {label: "other" for label in labels})
            return known.setdefault(key, kind())


def _series_key(name: str, labels: dict[str, str]) -> str:
    if not labels:
        return name
    pairs = (f"{label}={json.dumps(labels[label])}" for label in sorted(labels))
    return f"{name}{{{','.join(pairs)}}}"
