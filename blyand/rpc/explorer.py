"""Answers about the chains as a whole: statistics and exports of the block DAG."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import asdict
from statistics import median

import trio

from blyan_proto.block.header import SignedHeader
from blyan_proto.codec import encode
from blyan_proto.rpc import chain as spec
from blyan_proto.types import Chain
from blyand.chain.machine import Machine
from blyand.compute import Threads
from blyand.rpc.accounts import account_called
from blyand.rpc.bind import Answers, Emit
from blyand.rpc.chain import ChainView, newest, pending, plain
from blyand.rpc.tally import Tally
from blyand.store.blobs import BlobStore
from blyand.store.equivocations import Equivocations

RECENT = 100  # checkpoints behind the median interval
EXPORTED_AT_ONCE = 256


def bind(
    answers: Answers,
    *,
    account: bytes,
    machine: Machine,
    seen: ChainView,
    tally: Tally,
    blobs: BlobStore,
    state_entries: Callable[[], int],
    lane: Threads,
) -> None:
    """Bind chain.stats, chain.evidence and chain.export.

    `account`: this node's. `lane` reads the database.
    """

    @answers(spec.stats)
    async def stats(params: spec.GetStats) -> spec.Stats:
        height = machine.clock.height
        counts = await tally.upto(height, lane)
        waiting = await lane.run(pending, seen)
        kinds = [
            spec.KindStats(
                chain=chain.letter,
                kind=kind,
                blocks=count.blocks,
                refused=count.refused,
                payload_bytes=count.payload_bytes,
            )
            for (chain, kind), count in sorted(counts.kinds.items())
        ]
        return spec.Stats(
            checkpoints=height,
            blocks=sum(kind.blocks for kind in kinds),
            refused=sum(kind.refused for kind in kinds),
            pending=len(waiting),
            authors=len(counts.authors),
            equivocations=await lane.run(len, seen.blocks.equivocations),
            blobs=sum(len(blobs.roots(durable=kind)) for kind in (True, False)),
            blob_bytes=blobs.total_bytes,
            state_entries=state_entries(),
            checkpoint_s=await lane.run(interval_s, seen, height),
            kinds=kinds,
        )

    @answers(spec.evidence)
    async def evidence(params: spec.GetEvidence) -> spec.Evidence:
        held = seen.blocks.equivocations
        only = account_called(params.account, account) if params.account else None
        return await lane.run(evidence_of, held, only, params.limit)

    @answers(spec.export)
    async def export(params: spec.ExportChain, emit: Emit) -> spec.Exported:
        wanted = None if params.chain is None else Chain("ABCD".index(params.chain))
        height = machine.clock.height
        blocks = await lane.run(newest, seen, height, wanted, params.limit)
        blocks.reverse()
        lines = dot_lines(blocks) if params.dot else map(json_line, blocks)
        for number, line in enumerate(lines):
            await emit(spec.ExportedLine(line=line))
            if number % EXPORTED_AT_ONCE == 0:
                await trio.lowlevel.checkpoint()
        return spec.Exported(blocks=len(blocks))


def evidence_of(
    held: Equivocations, account: bytes | None, limit: int
) -> spec.Evidence:
    """Return at most `limit` proofs, of one author or of all. Blocking."""
    found: list[spec.DoubleBlock] = []
    total = 0
    for one in held:
        header = one.first.header
        if account not in (None, header.account):
            continue
        total += 1
        if len(found) < limit:
            found.append(
                spec.DoubleBlock(
                    account=header.account,
                    chain=header.chain.letter,
                    sequence=header.sequence,
                    first=_half_of(one.first),
                    second=_half_of(one.second),
                )
            )
    return spec.Evidence(total=total, proofs=found)


def _half_of(signed: SignedHeader) -> spec.SignedHeader:
    return spec.SignedHeader(
        id=signed.header.id,
        author=signed.header.author,
        time_ms=signed.header.time_ms,
        header=encode(signed.header),
        signature=signed.signature,
    )


def interval_s(seen: ChainView, height: int) -> float | None:
    """Return the median time between recent checkpoints; None before two. Blocking."""
    times = []
    for at in range(max(1, height - RECENT), height + 1):
        final = seen.checkpoints.at(at)
        if final is not None:
            times.append(final.checkpoint.time_ms)
    if len(times) < 2:
        return None
    return median(late - early for early, late in zip(times, times[1:])) / 1000


def json_line(block: spec.BlockLine) -> str:
    """Return one block as a line of JSON."""
    return json.dumps({name: plain(value) for name, value in asdict(block).items()})


COLOURS = {"A": "#d8c8f0", "B": "#c8e6c9", "C": "#fff3c4", "D": "#c9e2f5"}


def dot_lines(blocks: Iterable[spec.BlockLine]) -> Iterable[str]:
    """Yield a Graphviz digraph: an arrow from each block to its parents.

    Pending blocks are dashed, blocks without effect red; a chain has a colour.
    """
    yield "digraph blyan {"
    yield '  rankdir="RL"; node [shape=box, style=filled, fontname="sans-serif"];'
    for block in blocks:
        id = block.id.hex()[:12]
        lines = [f"{block.chain}{block.height} {block.kind}", block.subject, id]
        text = "\\n".join(_quoted(line) for line in lines if line)
        style = ', style="filled,dashed"' if block.checkpoint is None else ""
        style += ', color="red"' if block.error is not None else ""
        yield f'  "{id}" [label="{text}", fillcolor="{COLOURS[block.chain]}"{style}];'
        for parent in block.parents:
            yield f'  "{id}" -> "{parent.hex()[:12]}";'
    yield "}"


def _quoted(text: str) -> str:
    """Return text of a stranger's so that it stays inside a quoted label."""
    return "".join(c if c.isalnum() or c in " ._-:/" else "?" for c in text)
