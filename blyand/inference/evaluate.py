"""How well the model predicts held-out text, through the path that serves (DEC-B17)."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
import trio
from torch import Tensor
from torch.nn import functional as F

from blyan_proto.protocols.expert import Numerics
from blyan_tile.batches import JUDGED_TOKENS, held_out_windows
from blyan_tile.model.transformer import Trunk
from blyand.compute import Threads
from blyand.errors import StaleVersion, Unavailable
from blyand.inference.call import most_rows
from blyand.inference.course import Parts
from blyand.inference.passes import Pass, run_pass
from blyand.inference.pins import Heads
from blyand.inference.scatter import Tally
from blyand.rules.model.heads import Which
from blyand.rules.net.fair import EVALUATION

SEQUENCE = 128
ROWS = 512  # tokens of one pass: an answer that comes meanwhile waits for one layer
ABREAST = 2  # passes under way at once: one computes while one waits for peers


@dataclass(frozen=True)
class Measured:
    """A held-out loss."""

    loss: float  # nats per token
    tokens: int
    height: int  # of the checkpoint
    calls: Counter[str]  # expert calls answered, by peer
    retries: int
    repinned: int


class Evaluation:
    """Measures held-out loss with experts here and at peers."""

    def __init__(self, parts: Parts, lane: Threads) -> None:
        """`lane`: where answers do not wait for it."""
        self._parts = parts
        self._lane = lane

    async def newest(
        self,
        model: bytes,
        which: Which,
        tokens: np.ndarray,
        count: int = JUDGED_TOKENS,
        deadline_s: float = float("inf"),
    ) -> Measured:
        """Measure the newest finalised heads; begin again if they are overtaken.

        Otherwise like `measure`.
        """
        repinned = 0
        while True:
            heads = self._parts.pins.newest(model, which)
            try:
                return await self.measure(
                    heads, tokens, count, deadline_s=deadline_s, repinned=repinned
                )
            except StaleVersion:
                if not self._parts.pins.is_newer(heads, which):
                    raise
                repinned += 1

    async def measure(
        self,
        heads: Heads,
        tokens: np.ndarray,
        count: int = JUDGED_TOKENS,
        sequence: int = SEQUENCE,
        deadline_s: float = float("inf"),
        repinned: int = 0,
    ) -> Measured:
        """Return the mean loss over `count` of `tokens`, (N,) uint8; 0: all of them.

        The windows of `sequence` tokens are those of `batches.held_out_windows`, each
        with an empty context. LimitExceeded for less text than one; NoRoute, NotHere;
        StaleVersion when these heads are no longer served and newer ones are final.
        `deadline_s`: trio time.
        """
        sequence = min(sequence, heads.architecture.context)
        windows = await self._lane.run(
            held_out_windows, [tokens], sequence, count or len(tokens)
        )  # (N, T + 1)
        tally = Tally()
        sums = await self.losses(heads, windows, tally, deadline_s)  # (N,)
        measured = windows[:, 1:].size
        return Measured(
            loss=math.fsum(sums.tolist()) / measured,
            tokens=measured,
            height=heads.height,
            calls=tally.calls,
            retries=tally.retries,
            repinned=repinned,
        )

    async def losses(
        self,
        heads: Heads,
        windows: np.ndarray,
        tally: Tally,
        deadline_s: float = float("inf"),
    ) -> np.ndarray:
        """windows (N, T + 1) int64 -> the sum of each one's losses (N,) float64, nats.

        Fails as `measure`.
        """
        lane = self._lane
        rows = min(ROWS, most_rows(heads.architecture.width))
        length = windows.shape[1] - 1
        parts = np.array_split(
            np.arange(len(windows)), -(-len(windows) * length // rows)
        )
        trunk = await lane.run(self._parts.trunks.get, heads)
        run = Pass(
            heads,
            trunk,
            None,
            tally,
            deadline_s,
            partial(self._is_overtaken, heads),
            Numerics.REFERENCE,  # of the masters, whatever the node serves with
            EVALUATION,
        )
        found = np.zeros(len(windows))  # (N,)
        failure: Unavailable | None = None
        todo = iter(parts)

        async def work() -> None:
            nonlocal failure
            for part in todo:  # (B,) indices; shared, so each part is taken once
                batch = windows[part]  # (B, T + 1)
                finish = partial(_losses, batch[:, 1:])
                try:
                    ids = torch.from_numpy(batch[:, :-1])  # (B, T)
                    made = await run_pass(self._parts.scatter, lane, run, ids, finish)
                    found[part] = made
                except Unavailable as error:
                    failure = failure or error
                    nursery.cancel_scope.cancel()

        with self._parts.versions.pinned(zip(heads.roots, heads.tiles)):
            async with trio.open_nursery() as nursery:
                for _ in range(ABREAST):
                    nursery.start_soon(work)
        if failure is not None:
            raise failure
        return found

    def _is_overtaken(self, heads: Heads) -> bool:
        newest = (self._parts.pins.newest(heads.model, which) for which in Which)
        return all(one.roots != heads.roots for one in newest)


def _losses(targets: np.ndarray, trunk: Trunk, hidden: Tensor) -> np.ndarray:
    """targets (B, T), hidden (B, T, d) -> the sum of each row's losses (B,) float64."""
    logits = trunk.logits(hidden).flatten(0, 1).float()  # (n, V)
    wanted = torch.from_numpy(targets).flatten().to(logits.device)  # (n,)
    losses = F.cross_entropy(logits, wanted, reduction="none")  # (n,)
    sums: np.ndarray = losses.double().view(targets.shape).sum(1).cpu().numpy()
    return sums
