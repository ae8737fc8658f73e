"""Bytes sent and received, by protocol, class of link and region, kept as metrics."""

from __future__ import annotations

from blyand.metrics import Counter, Metrics
from blyand.net.link import UNKNOWN


class Meter:
    """Counts what goes over one protocol and one class of link to one kind of region."""

    def __init__(self, up: Counter, down: Counter) -> None:
        self.up, self.down = up, down


class Traffic:
    """All meters of a host."""

    def __init__(self, metrics: Metrics | None = None) -> None:
        self._metrics = metrics or Metrics()
        self._meters: dict[tuple[str, str, str], Meter] = {}

    def meter(self, protocol: str, link: str = UNKNOWN, region: str = UNKNOWN) -> Meter:
        """Return the meter of a protocol over a class of link, made if new.

        `region`: whether the other end stands in this node's; SAME, OTHER or UNKNOWN.
        """
        known = self._meters.get((protocol, link, region))
        if known is None:
            labels = {"protocol": protocol, "link": link, "region": region}
            known = self._meters[protocol, link, region] = Meter(
                *(
                    self._metrics.counter("blyan_net_bytes", **labels, way=way)
                    for way in ("up", "down")
                )
            )
        return known

    def add(
        self, protocol: str, up: int = 0, down: int = 0, link: str = UNKNOWN
    ) -> None:
        """Count bytes of a protocol."""
        meter = self.meter(protocol, link)
        if up:
            meter.up.add(up)
        if down:
            meter.down.add(down)

    def counts(self) -> dict[str, tuple[int, int]]:
        """Return {protocol: (bytes up, bytes down)} over all links."""
        found: dict[str, tuple[int, int]] = {}
        for (protocol, _), (up, down) in self.by_region().items():
            before = found.get(protocol, (0, 0))
            found[protocol] = before[0] + up, before[1] + down
        return found

    def by_region(self) -> dict[tuple[str, str], tuple[int, int]]:
        """Return {(protocol, region): (bytes up, bytes down)} over all links."""
        found: dict[tuple[str, str], tuple[int, int]] = {}
        for (protocol, _, region), meter in self._meters.items():
            up, down = found.get((protocol, region), (0, 0))
            counted = up + meter.up.value, down + meter.down.value
            found[protocol, region] = counted
        return found
