"""Experts that are ready to compute: least recently used first to go."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence

import torch

from blyan_tile.layout import Group, Layout
from blyan_tile.model.expert import Expert
from blyand.inference.weights import Blobs, load_group
from blyand.metrics import Metrics


class Experts:
    """Versions of experts by group root, within a byte budget. Any thread may ask.

    On the CPU an expert is a view over mapped files, so the budget bounds what may
    stay in the page cache on our behalf; on an accelerator it bounds device memory.
    """

    def __init__(
        self,
        blobs: Blobs,
        budget_bytes: int,
        metrics: Metrics,
        device: str = "cpu",
    ) -> None:
        self.device = torch.device(device)
        self._blobs = blobs
        self._budget_bytes = budget_bytes
        self._lock = threading.Lock()
        self._resident: OrderedDict[bytes, tuple[Expert, int]] = OrderedDict()
        self._bytes = 0
        self._hits = metrics.counter("expert_hits")
        self._misses = metrics.counter("expert_misses")
        self._evictions = metrics.counter("expert_evictions")
        self._gauge = metrics.gauge("expert_resident_bytes")

    def get(
        self, layout: Layout, group: Group, root: bytes, tiles: Sequence[bytes]
    ) -> Expert:
        """Return the version `root` of an expert, made of `tiles`; blocking. NotHere."""
        with self._lock:
            found = self._resident.get(root)
            if found is not None:
                self._resident.move_to_end(root)
                self._hits.add()
                return found[0]
        self._misses.add()
        parameters = load_group(self._blobs, layout, group, tiles, self.device)
        expert = Expert(
            parameters[f"{group.name}.gate.weight"],
            parameters[f"{group.name}.up.weight"],
            parameters[f"{group.name}.down.weight"],
        )
        self._keep(root, expert, sum(t.nbytes for t in parameters.values()))
        return expert

    @property
    def resident_bytes(self) -> int:
        """Bytes of the experts that are ready."""
        return self._bytes

    def _keep(self, root: bytes, expert: Expert, size: int) -> None:
        with self._lock:
            if root not in self._resident:
                self._resident[root] = (expert, size)
                self._bytes += size
            # One that is larger than the whole budget stays until the next one comes.
            while self._bytes > self._budget_bytes and len(self._resident) > 1:
                _, (_, freed) = self._resident.popitem(last=False)
                self._bytes -= freed
                self._evictions.add()
            self._gauge.set(self._bytes)
