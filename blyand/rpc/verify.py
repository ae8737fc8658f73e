"""Answers chain.verify: everything on this disk, checked again with progress."""

from __future__ import annotations

from collections.abc import Callable

from blyan_proto.genesis import Genesis
from blyan_proto.rpc import chain as spec
from blyan_proto.rpc.parts import Progress
from blyand.chain.audit import check_block, check_checkpoint
from blyand.compute import Threads
from blyand.rpc.bind import Answers, Emit
from blyand.rpc.chain import ChainView
from blyand.store.blobs import BlobStore
from blyand.store.sets import SetStore

AT_ONCE = 64  # blocks in one turn of the lane: some milliseconds
MAX_PROBLEMS = 1000


def bind(
    answers: Answers,
    *,
    genesis: Genesis,
    seen: ChainView,
    sets: SetStore,
    blobs: BlobStore,
    state_root: Callable[[], tuple[int, bytes]],
    lane: Threads,
    has_holes: Callable[[], bool] = lambda: False,
    floor: Callable[[], int] = lambda: 1,
) -> None:
    """Bind chain.verify.

    `state_root` reads the stored state whole and returns the height it is after and its
    root. `has_holes`: what a damaged database lost is not all back. `floor()`: the
    height from which on all blocks are here. `lane` reads and hashes.
    """

    @answers(spec.verify)
    async def verify(params: spec.VerifyChain, emit: Emit) -> spec.Verified:
        problems: list[spec.Problem] = []

        def note(what: str, id: bytes, problem: str | None) -> None:
            if problem is not None and len(problems) < MAX_PROBLEMS:
                problems.append(spec.Problem(what=what, id=id, problem=problem))

        blocks, store = seen.blocks, seen.checkpoints
        ids = await lane.run(blocks.ids)
        pruned, mending = 0, await lane.run(has_holes)
        lowest = floor()
        for at in range(0, len(ids), AT_ONCE):
            some = ids[at : at + AT_ONCE]
            for id, (problem, was_pruned) in zip(
                some,
                await lane.run(
                    lambda: [
                        check_block(
                            blocks, id, genesis.id, mending=mending, partial=lowest > 1
                        )
                        for id in some
                    ]
                ),
            ):
                note("block", id, problem)
                pruned += was_pruned
            await emit(Progress("checking blocks", at + len(some), len(ids), "blocks"))

        height, root = await lane.run(state_root)
        for at in range(lowest, height + 1):
            problem = await lane.run(check_checkpoint, blocks, store, sets, genesis, at)
            final = store.at(at)
            note("checkpoint", final.checkpoint.id if final else bytes(32), problem)
            if at % AT_ONCE == 0 or at == height:
                await emit(Progress("checking checkpoints", at, height, "checkpoints"))
        final = store.at(height) if height else None
        if final is not None and final.checkpoint.state_root != root:
            text = f"the state is not the one of checkpoint {height}; it is executed again at the next start"
            note("state", root, text)

        roots = [*blobs.roots(durable=True), *blobs.roots(durable=False)]
        for done, blob in enumerate(roots if params.blobs else (), 1):
            if not await lane.run(blobs.verify, blob) and blob in blobs.lost:
                note("blob", blob, "it was damaged and is removed; a peer is asked")
            await emit(Progress("hashing blobs", done, len(roots), "blobs"))
        return spec.Verified(
            sound=not problems,
            blocks=len(ids),
            pruned=pruned,
            checkpoints=max(0, height + 1 - lowest),
            blobs=len(roots) if params.blobs else 0,
            problems=problems,
        )
