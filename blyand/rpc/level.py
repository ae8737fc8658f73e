"""Answers chain.sync: how far this node has come, until it is level with its peers."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import trio

from blyan_proto.rpc import chain as spec
from blyan_proto.rpc.errors import SYNC_HALTED, RpcError, shared_code
from blyand.chain.follow import Follower
from blyand.chain.machine import Machine
from blyand.rpc.bind import Answers, Emit

STEP_S = 0.5  # between two signs of progress
LONELY_S = 20.0  # without a peer: a dialler that just began may need a while
STUCK_S = 15.0  # without a peer that gives the next block
SPAN = 20  # steps over which rates are taken


class Pace:
    """What was reached when, over the last steps."""

    def __init__(self) -> None:
        self._points: deque[tuple[float, int, int]] = deque(maxlen=SPAN)

    def note(self, now_s: float, checkpoint: int, blocks: int) -> None:
        """Remember a point."""
        self._points.append((now_s, checkpoint, blocks))

    def rates(self) -> tuple[float, float]:
        """Return checkpoints and blocks a second."""
        (began_s, *first), (now_s, *last) = self._points[0], self._points[-1]
        span_s = max(now_s - began_s, 1e-9)
        checkpoints, blocks = (b - a for a, b in zip(first, last))
        return checkpoints / span_s, blocks / span_s


class Watch:
    """One call: what it began with, and what would end it without success."""

    def __init__(
        self, machine: Machine, follower: Follower, peers: Callable[[], int]
    ) -> None:
        self._machine = machine
        self._follower = follower
        self._peers = peers
        self._began_s = trio.current_time()
        self._height = machine.clock.height
        self._blocks = follower.swarm.blocks
        self._bytes = follower.swarm.bytes
        self._pace = Pace()
        self._lonely_s = self._stuck_s = self._began_s

    def check(self) -> None:
        """Raise RpcError when waiting on is of no use."""
        if self._machine.halted:
            raise RpcError(SYNC_HALTED, self._machine.halted)
        now = trio.current_time()
        if self._peers():
            self._lonely_s = now
        if self._follower.stuck is None:
            self._stuck_s = now
        if now - self._lonely_s >= LONELY_S:
            raise RpcError(
                shared_code("chain", "no route"),
                "no peer is connected; `blyanctl peer connect ADDRESS` dials one",
            )
        if now - self._stuck_s >= STUCK_S and self._is_pruned():
            raise RpcError(
                shared_code("chain", "pruned"),
                f"checkpoint {self._machine.clock.height + 1} needs blocks that every "
                "connected peer has pruned; connect to a node with the role archive by "
                "`blyanctl peer connect ADDRESS`",
            )

    def _is_pruned(self) -> bool:
        stuck = self._follower.stuck
        return stuck is not None and self._follower.swarm.pruned_at(stuck) > 0

    def progress(self) -> spec.SyncProgress:
        """Return where this node stands."""
        height, known = self._machine.clock.height, self._follower.known
        blocks = self._follower.swarm.blocks - self._blocks
        self._pace.note(trio.current_time(), height, blocks)
        checkpoints_per_s, blocks_per_s = self._pace.rates()
        left = known - height
        return spec.SyncProgress(
            stage=self._stage(left),
            checkpoint=height,
            known=known,
            blocks=blocks,
            fetched_bytes=self._follower.swarm.bytes - self._bytes,
            peers=self._peers(),
            blocks_per_s=blocks_per_s,
            left_s=left / checkpoints_per_s if checkpoints_per_s > 0 else None,
        )

    def _stage(self, left: int) -> str:
        if not self._peers():
            return "waiting for a peer"
        if self._follower.stuck is not None:
            return "waiting for blocks that no connected peer gives"
        return "catching up" if left else "asking every peer for what is new"

    def result(self) -> spec.Synced:
        """Return what was done."""
        height, swarm = self._machine.clock.height, self._follower.swarm
        return spec.Synced(
            checkpoint=height,
            checkpoints=height - self._height,
            blocks=swarm.blocks - self._blocks,
            fetched_bytes=swarm.bytes - self._bytes,
            peers=self._peers(),
            seconds=trio.current_time() - self._began_s,
        )


def bind(
    answers: Answers,
    *,
    machine: Machine,
    follower: Follower,
    peers: Callable[[], int],
) -> None:
    """Bind chain.sync. `peers` is how many said hello."""

    @answers(spec.sync)
    async def sync(params: spec.SyncChain, emit: Emit) -> spec.Synced:
        watch = Watch(machine, follower, peers)
        level = trio.Event()
        refused: RpcError | None = None

        async def wait() -> None:
            await follower.level(patient=False)
            level.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait)
            while not level.is_set():
                try:
                    watch.check()
                except RpcError as error:
                    refused = error
                    break
                await emit(watch.progress())
                with trio.move_on_after(STEP_S):
                    await level.wait()
            nursery.cancel_scope.cancel()
        if refused is not None:
            raise refused
        await emit(watch.progress())
        return watch.result()
