"""The part of a model that every node has: embeddings, attention, routers, head."""

from __future__ import annotations

import threading
from collections import OrderedDict

import torch
from torch import Tensor

from blyan_proto.constants import VERSIONS_SERVED
from blyan_tile.model.transformer import Trunk
from blyand.inference.pins import Heads
from blyand.inference.weights import Blobs, load_group

KEPT = VERSIONS_SERVED + 1  # of one model: those adopted, and the trained one


class Trunks:
    """The trunks in use, made from local blobs. Any thread may ask."""

    def __init__(self, blobs: Blobs, device: str = "cpu", kept: int = KEPT) -> None:
        self.device = torch.device(device)
        self._blobs = blobs
        self._kept = kept
        self._lock = threading.Lock()
        self._trunks: OrderedDict[bytes, Trunk] = OrderedDict()

    def get(self, heads: Heads) -> Trunk:
        """Return the trunk of a pinned model; blocking. NotHere while a blob is missing."""
        name = heads.trunk
        with self._lock:
            if name in self._trunks:
                self._trunks.move_to_end(name)
                return self._trunks[name]
        parameters: dict[str, Tensor] = {}
        for group in heads.layout.shared_groups:
            tiles = heads.tiles[group.index]
            parameters |= load_group(
                self._blobs, heads.layout, group, tiles, self.device
            )
        trunk = Trunk(heads.architecture, parameters)
        with self._lock:
            trunk = self._trunks.setdefault(name, trunk)
            while len(self._trunks) > self._kept:
                self._trunks.popitem(last=False)
        return trunk
