"""The keys and values of one sequence in a run of layers.

Held by whoever attends: the requester in expert mode, the server of a span (DEC-S3).
Memory grows with the sequence: `capacity` is what it may come to, not what it takes. With
a sliding window it holds what can still be seen, and some more to redo a step.
"""

from __future__ import annotations

import torch
from torch import Tensor

from blyan_proto.block.model import Architecture
from blyan_proto.errors import LimitExceeded
from blyan_tile.model.visits import Visits

PAGE_TOKENS = 64  # keys are allocated, dropped and looked at in multiples of it
REDONE_TOKENS = 256  # with a window: steps that can be taken back, at least
ELEMENT_BYTES = 4  # float32


def page_end(tokens: int) -> int:
    """Return `tokens` rounded up to whole pages."""
    return -(-tokens // PAGE_TOKENS) * PAGE_TOKENS


def first_seen(position: int, window: int) -> int:
    """Return where the first page begins that a query at `position` looks at.

    It looks at whole pages from there to the end of its own. `window`: 0 for all.
    """
    if not window:
        return 0
    page = position - position % PAGE_TOKENS
    seen = max(0, page - window + 1)
    return seen - seen % PAGE_TOKENS


def kept_tokens(architecture: Architecture, tokens: int) -> int:
    """Return the tokens, in whole pages, that a sequence of `tokens` keeps."""
    window = architecture.attention_window
    if window:  # what is seen, taken back and added at once, and broken pages
        tokens = min(tokens, window + 2 * REDONE_TOKENS + 3 * PAGE_TOKENS)
    return page_end(tokens)


def cache_bytes(architecture: Architecture, tokens: int, layers: int) -> int:
    """Return the memory of a sequence of `tokens` in `layers` layers."""
    per_token = 2 * architecture.kv_heads * architecture.head_width * ELEMENT_BYTES
    return layers * kept_tokens(architecture, tokens) * per_token


class KeyValueCache:
    """Keys and values of up to `capacity` tokens in the layers first to end - 1.

    Layers are numbered as in the model; they fill one after the other.
    """

    def __init__(
        self,
        architecture: Architecture,
        capacity: int,
        device: torch.device | None = None,
        first: int = 0,
        end: int | None = None,
    ) -> None:
        """LimitExceeded when `capacity` is above the model's context."""
        if not 0 < capacity <= architecture.context:
            raise LimitExceeded(
                f"{capacity} tokens, the model's context is {architecture.context}"
            )
        self.first = first
        self.end = architecture.layers if end is None else end
        self.capacity = capacity
        self._window = architecture.attention_window
        self._most = kept_tokens(architecture, capacity)
        shape = (2, architecture.kv_heads, 0, architecture.head_width)
        empty = torch.zeros(shape, device=device)  # (2, G, 0, w)
        self.visits: Visits | None = None  # of its tokens, where somebody wants to know
        count = self.end - first
        self._pages = [empty] * count  # keys and values, (2, G, room, w) each
        self._starts = [0] * count  # position of the first that is kept
        self._lengths = [0] * count

    def visit(self, layer: int, experts: Tensor) -> None:
        """Note the experts (T, k) int64 that tokens went to, where that is wanted."""
        if self.visits is not None:
            self.visits.add(layer, experts)

    @property
    def tokens(self) -> int:
        """Tokens that every layer has seen."""
        return min(self._lengths)

    @property
    def bytes(self) -> int:
        """Memory of the keys and values now."""
        return sum(pages.nbytes for pages in self._pages)

    def length(self, layer: int) -> int:
        """Tokens that `layer` has seen: the position of its next one."""
        return self._lengths[layer - self.first]

    def append(self, layer: int, pairs: Tensor) -> None:
        """Add T tokens, keys and values (2, G, T, w). LimitExceeded when they do not fit."""
        place = layer - self.first
        length, count = self._lengths[place], pairs.shape[2]
        end = length + count
        if end > self.capacity:
            raise LimitExceeded(f"{end} tokens, this session has {self.capacity}")
        if end - self._starts[place] > self._pages[place].shape[2]:
            self._make_room(place, end)
        start = length - self._starts[place]
        self._pages[place].narrow(2, start, count).copy_(pairs)
        self._lengths[place] = end

    def seen(self, layer: int, start: int, end: int) -> Tensor:
        """Return keys and values of positions in whole pages, (2, G, S, w).

        What no token has filled yet is finite.
        """
        place = layer - self.first
        first = self._starts[place]
        return self._pages[place].narrow(2, start - first, end - start)

    def keeps(self, tokens: int) -> bool:
        """True when a sequence could go on after the first `tokens` of this one."""
        start = first_seen(tokens, self._window)
        return tokens <= self.tokens and max(self._starts) <= start

    def copy(self, other: KeyValueCache, tokens: int) -> None:
        """Take the first `tokens` of another sequence over, which `keeps` them.

        Of the same architecture and layers; this cache is empty. LimitExceeded.
        """
        if tokens > self.capacity:
            raise LimitExceeded(f"{tokens} tokens, this session has {self.capacity}")
        for place, (pages, start) in enumerate(zip(other._pages, other._starts)):
            kept = pages[:, :, : page_end(tokens) - start]  # (2, G, room, w)
            self._pages[place] = kept.clone()
            self._starts[place] = start
            self._lengths[place] = tokens

    def rewind(
        self, tokens: int, first: int | None = None, end: int | None = None
    ) -> None:
        """Forget everything after the first `tokens`, so that a step can be redone.

        In the layers `first` to `end` - 1, by default all. LimitExceeded when a window
        has passed over what would be needed.
        """
        for layer in range(first or self.first, end or self.end):
            place = layer - self.first
            if tokens >= self._lengths[place]:
                continue
            if self._starts[place] > first_seen(tokens, self._window):
                raise LimitExceeded(f"the first {tokens} tokens are no longer kept")
            self._lengths[place] = tokens

    def _make_room(self, place: int, end: int) -> None:
        """Make room up to position `end`: drop what nobody sees, then grow."""
        length, old = self._lengths[place], self._starts[place]
        start = first_seen(max(0, length - REDONE_TOKENS), self._window)
        pages = self._pages[place]
        needed = page_end(end) - start
        room = max(
            needed, min(self._most, max(pages.shape[2], page_end(2 * (length - start))))
        )
        grown = pages.new_zeros(2, pages.shape[1], room, pages.shape[3])
        grown[:, :, : length - start] = pages[:, :, start - old : length - old]
        self._pages[place], self._starts[place] = grown, start
