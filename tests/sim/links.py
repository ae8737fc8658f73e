"""Links that take time: each node sends and receives at a rate, one thing at a time."""

from __future__ import annotations

from dataclasses import dataclass, field

import trio


@dataclass
class Links:
    """The rates at which nodes send and receive; each way, each node has its own."""

    bytes_s: float
    delay_s: float  # there, and as long back
    carried: int = 0  # bytes
    _free: dict[tuple[str, str], float] = field(default_factory=dict)

    async def carry(self, source: str, target: str, size: int) -> None:
        """Wait as long as `size` bytes take, behind all that waits at either end."""
        self.carried += size
        now = trio.current_time()
        ends = (source, "out"), (target, "in")
        begun = max(now, *(self._free.get(end, 0.0) for end in ends))
        over = begun + size / self.bytes_s
        for end in ends:
            self._free[end] = over
        await trio.sleep(over + self.delay_s - now)
