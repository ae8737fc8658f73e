"""Budget: so many at once, then one every so often, by name; bounded in memory."""

from __future__ import annotations

NAMES = 1024


class Budget:
    """A token bucket for each name. Above 1,024 names that spent lately: nothing."""

    def __init__(self, burst: int, every_s: float) -> None:
        self._burst, self._every_s = burst, every_s
        self._spent: dict[str, tuple[float, float]] = {}  # name -> (tokens out, when)

    def take(self, name: str, now_s: float) -> bool:
        """Spend one of a name's tokens; False when it has none now."""
        out = self._out(name, now_s)
        if out > self._burst - 1 or not self._room(name, now_s):
            return False
        self._spent[name] = (out + 1, now_s)
        return True

    def _out(self, name: str, now_s: float) -> float:
        out, at_s = self._spent.get(name, (0.0, now_s))
        return max(0.0, out - (now_s - at_s) / self._every_s)

    def _room(self, name: str, now_s: float) -> bool:
        if name in self._spent or len(self._spent) < NAMES:
            return True
        for other in [one for one in self._spent if not self._out(one, now_s)]:
            del self._spent[other]
        return len(self._spent) < NAMES
