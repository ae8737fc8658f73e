"""How the experts of each model were used, as far as this node saw it (GROUP-01, GROUP-06).

Strategy. What routers chose is kept as it comes and counted later, in a thread: whoever
reads counts first. Visits are counted in a ring of ten-minute windows over the last hour.
Pairs, which take experts x experts for a layer, are counted once and halved whenever a
window begins, so that old habits fade. Models that were used longest ago are forgotten.
"""

from __future__ import annotations

import copy
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import trio

from blyan_proto.block.model import Architecture
from blyan_tile.layout import Group
from blyan_tile.model.visits import Choices

WINDOW_S = 600.0
WINDOWS = 7  # the one under way, and an hour of whole ones
MODELS_KEPT = 4
MAX_PAIRS = 1 << 24  # numbers of a model's pairs, 64 MiB; above it none are counted
MAX_ROWS = 1 << 20  # not yet counted, of all layers; what comes on top is left out
ROWS = 4096  # counted at once
FOLD_S = 5.0


@dataclass
class Window:
    """Ten minutes."""

    number: int
    visits: np.ndarray  # (L, E) int64: tokens that went there, seen at the router
    served: np.ndarray  # (L, E) int64: rows computed for peers
    tokens: np.ndarray  # (L,) int64


@dataclass
class Use:
    """One model's use."""

    architecture: Architecture
    windows: deque[Window] = field(default_factory=lambda: deque(maxlen=WINDOWS))
    pairs: np.ndarray | None = None  # (L, E, E) uint32, faded; symmetric, diagonal 0
    pair_visits: np.ndarray | None = None  # (L, E) float64, faded alike
    pair_tokens: np.ndarray | None = None  # (L,) float64, faded alike

    @property
    def visits(self) -> np.ndarray:
        """Tokens of the last hour by layer and expert, (L, E) int64."""
        return sum((w.visits for w in self.windows), self._zero())

    @property
    def used(self) -> np.ndarray:
        """The same with what peers had computed here, (L, E) int64."""
        return sum((w.served for w in self.windows), self.visits)

    @property
    def tokens(self) -> int:
        """Tokens of the last hour in the layer that saw most of them."""
        seen = sum((w.tokens for w in self.windows), self._zero()[:, 0])
        return int(seen.max(initial=0))

    def _zero(self) -> np.ndarray:
        shape = self.architecture
        return np.zeros((shape.layers, shape.experts), np.int64)


@dataclass(frozen=True)
class _Noted:
    """What was seen and is not counted yet."""

    window: int
    model: bytes
    architecture: Architecture
    choices: Choices
    served: tuple[int, int, int] | None = None  # layer, expert, rows


class Usage:
    """Counts visits. `run` is the service behind it; any thread may note and read."""

    def __init__(self, now_s: Callable[[], float] = time.monotonic) -> None:
        self._now_s = now_s
        self._lock = threading.Lock()  # of what is pending; held for moments
        self._pending: list[_Noted] = []
        self._rows = 0
        self._counting = threading.Lock()
        self._models: OrderedDict[bytes, Use] = OrderedDict()

    def note(self, model: bytes, shape: Architecture, choices: Choices) -> None:
        """Note what the routers of a model chose for some tokens."""
        rows = sum(len(one) for steps in choices.values() for one in steps)
        self._add(_Noted(self._window, model, shape, choices), rows)

    def serve(self, model: bytes, shape: Architecture, group: Group, rows: int) -> None:
        """Note that a peer had `rows` computed by an expert of this node."""
        assert group.layer is not None and group.expert is not None
        served = group.layer, group.expert, rows
        self._add(_Noted(self._window, model, shape, {}, served), 1)

    def of(self, model: bytes) -> Use | None:
        """Return a copy of what is known of a model; None: nothing. Blocking."""
        self.fold()
        with self._counting:
            use = self._models.get(model)
            if use is None:
                return None
            self._in(use, self._window)  # so that what is old goes
            return copy.deepcopy(use)

    def fold(self) -> None:
        """Count what was noted. Blocking."""
        with self._counting:
            with self._lock:
                pending, self._pending, self._rows = self._pending, [], 0
            for noted in pending:
                use = self._use(noted.model, noted.architecture)
                window = self._in(use, noted.window)
                for layer, steps in noted.choices.items():
                    chosen = np.concatenate([one.cpu().numpy() for one in steps])
                    for some in np.split(chosen, range(ROWS, len(chosen), ROWS)):
                        _count(use, window, layer, some)
                if noted.served is not None:
                    layer, expert, rows = noted.served
                    window.served[layer, expert] += rows

    async def run(
        self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Count now and then, until cancelled."""
        task_status.started()
        while True:
            await trio.sleep(FOLD_S)
            if self._pending:
                await trio.to_thread.run_sync(self.fold)

    def _add(self, noted: _Noted, rows: int) -> None:
        with self._lock:
            if rows and self._rows + rows <= MAX_ROWS:
                self._pending.append(noted)
                self._rows += rows

    @property
    def _window(self) -> int:
        return int(self._now_s() // WINDOW_S)

    def _use(self, model: bytes, shape: Architecture) -> Use:
        use = self._models.get(model)
        if use is None:
            use = self._models[model] = Use(shape)
            while len(self._models) > MODELS_KEPT:
                self._models.popitem(last=False)
        self._models.move_to_end(model)
        return use

    def _in(self, use: Use, number: int) -> Window:
        """Return a window; what is older than the ring goes into its oldest one."""
        shape = use.architecture
        newest = use.windows[-1].number if use.windows else None
        if newest is None or number > newest:
            if use.pairs is not None and newest is not None:
                _fade(use, number - newest)
            zero = np.zeros((shape.layers, shape.experts), np.int64)
            use.windows.append(Window(number, zero, zero.copy(), zero[:, 0].copy()))
        while number - use.windows[0].number >= WINDOWS:
            use.windows.popleft()
        return next((w for w in use.windows if w.number >= number), use.windows[-1])


def _count(use: Use, window: Window, layer: int, chosen: np.ndarray) -> None:
    """Count the choices (n, k) of n tokens in a layer."""
    shape = use.architecture
    counts = np.bincount(chosen.ravel(), minlength=shape.experts)  # (E,)
    window.visits[layer] += counts
    window.tokens[layer] += len(chosen)
    if use.pairs is None:
        if shape.layers * shape.experts**2 > MAX_PAIRS:
            return
        use.pairs = np.zeros((shape.layers, shape.experts, shape.experts), np.uint32)
        use.pair_visits = np.zeros((shape.layers, shape.experts))
        use.pair_tokens = np.zeros(shape.layers)
    assert use.pair_visits is not None and use.pair_tokens is not None
    # Counted, not multiplied: a product would wake the threads of a linear algebra.
    both = chosen[:, :, None] * shape.experts + chosen[:, None, :]  # (n, k, k)
    together = np.bincount(both.ravel(), minlength=shape.experts**2)
    use.pairs[layer] += together.reshape(use.pairs[layer].shape).astype(np.uint32)
    np.fill_diagonal(use.pairs[layer], 0)
    use.pair_visits[layer] += counts
    use.pair_tokens[layer] += len(chosen)


def _fade(use: Use, windows: int) -> None:
    shift = min(windows, 31)
    assert use.pairs is not None
    assert use.pair_visits is not None and use.pair_tokens is not None
    use.pairs >>= np.uint32(shift)
    use.pair_visits /= 2.0**shift
    use.pair_tokens /= 2.0**shift
