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
from blyand.errors import StaleVersion, Unavailable
from blyand.inference.call import most_rows
from blyand.inference.course import Parts
from blyand.inference.passes import Pass, run_pass
from blyand.inference.pins import Heads
from blyand.inference.scatter import Tally
from blyand.rules.model.heads import Which

OWNER = "evaluation"  # takes its turn as a peer does: requests come first
SEQUENCE = 128
ROWS = 2048  # tokens of one pass
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

    def __init__(self, parts: Parts) -> None:
        self._parts = parts

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
        lane, tally = self._parts.lane, Tally()
        windows = await lane.run(
            held_out_windows, [tokens], sequence, count or len(tokens)
        )  # (N, T + 1)
        rows = min(ROWS, most_rows(heads.architecture.width))
        batches = np.array_split(windows, -(-len(windows) * sequence // rows))
        trunk = await lane.run(self._parts.trunks.get, heads)
        overtaken = partial(self._is_overtaken, heads)
        run = Pass(
            heads,
            trunk,
            None,
            tally,
            deadline_s,
            overtaken,
            Numerics.REFERENCE,  # of the masters, whatever the node serves with
            OWNER,
        )
        sums: list[float] = []
        failure: Unavailable | None = None
        todo = iter(batches)

        async def work() -> None:
            nonlocal failure
            for batch in todo:  # (B, T + 1); shared, so each batch is taken once
                finish = partial(_loss, batch[:, 1:])
                try:
                    ids = torch.from_numpy(batch[:, :-1])  # (B, T)
                    made = await run_pass(self._parts.scatter, lane, run, ids, finish)
                    sums.append(made)
                except Unavailable as error:
                    failure = failure or error
                    nursery.cancel_scope.cancel()

        with self._parts.versions.pinned(zip(heads.roots, heads.tiles)):
            async with trio.open_nursery() as nursery:
                for _ in range(ABREAST):
                    nursery.start_soon(work)
        if failure is not None:
            raise failure
        measured = windows[:, 1:].size
        return Measured(
            loss=math.fsum(sums) / measured,
            tokens=measured,
            height=heads.height,
            calls=tally.calls,
            retries=tally.retries,
            repinned=repinned,
        )

    def _is_overtaken(self, heads: Heads) -> bool:
        newest = (self._parts.pins.newest(heads.model, which) for which in Which)
        return all(one.roots != heads.roots for one in newest)


def _loss(targets: np.ndarray, trunk: Trunk, hidden: Tensor) -> float:
    """targets (B, T), hidden (B, T, d) -> the sum of their losses."""
    logits = trunk.logits(hidden).flatten(0, 1).float()  # (n, V)
    wanted = torch.from_numpy(targets).flatten().to(logits.device)  # (n,)
    losses = F.cross_entropy(logits, wanted, reduction="none")  # (n,)
    return float(losses.double().sum())
