"""Where the numbers of an epoch come from: blocks and votes, read again from the chain.

Nothing is kept for it: the heights of an epoch are in state, and its checkpoints and
blocks on this node, as far as it has them. A vote is shown where it is among those by
which this node knows the parent to be final.
"""

from __future__ import annotations

from collections.abc import Iterator

from blyan_proto.block.block import Block
from blyan_proto.block.ledger import Capture
from blyan_proto.block.model import TileUpdate
from blyan_proto.block.payload import KINDS
from blyan_proto.checkpoint import FinalCheckpoint
from blyan_proto.rpc import reward as spec
from blyand.errors import Pruned
from blyand.rules.economy.statement import Closed, Share, Source
from blyand.store.blocks import BlockStore
from blyand.store.checkpoints import CheckpointStore

MAX_CHECKPOINTS = 20_000  # read for one answer
TELLING = {
    kind.code: source
    for payload, source in (
        (TileUpdate, Source.LEARNING),
        (Capture, Source.INFERENCE),
    )
    for kind in KINDS.values()
    if kind.payload is payload
}


class Origins:
    """Finds the proofs of a share."""

    def __init__(self, blocks: BlockStore, checkpoints: CheckpointStore) -> None:
        self._blocks, self._checkpoints = blocks, checkpoints

    def of(
        self, closed: Closed, share: Share, limit: int
    ) -> tuple[list[spec.ProofLine], int, bool]:
        """Return at most `limit` proofs of each source, the newest first.

        Also how many more there are, and whether all that this takes is here. Blocking.
        """
        found: list[spec.ProofLine] = []
        count: dict[str, int] = {}
        complete = closed.last_height - closed.first_height < MAX_CHECKPOINTS
        first = max(closed.first_height, closed.last_height - MAX_CHECKPOINTS + 1)
        for height in range(closed.last_height, first - 1, -1):
            final = self._checkpoints.at(height)
            if final is None:
                complete = False
                continue
            for proof in self._at(final, share):
                if proof is None:
                    complete = False
                    continue
                count[proof.source] = count.get(proof.source, 0) + 1
                if count[proof.source] <= limit:
                    found.append(proof)
        return found, sum(count.values()) - len(found), complete

    def _at(
        self, final: FinalCheckpoint, share: Share
    ) -> Iterator[spec.ProofLine | None]:
        """Yield what a checkpoint tells of a share; None for what is not here."""
        height = final.checkpoint.height
        if share.service is not None:
            yield from self._vote(height, share.service.duty.key)
        sources = {part.source for part in share.parts}
        for id in final.checkpoint.blocks if sources & {*TELLING.values()} else ():
            signed = self._blocks.signed_header(id)
            if signed is None:
                yield None
                continue
            source = TELLING.get(signed.header.kind)
            outcome = self._blocks.outcome(id)
            if source not in sources or outcome is None or outcome.code:
                continue
            assert source is not None
            try:
                block = self._blocks.get(id)
            except Pruned:
                block = None
            if block is None:
                yield None
            elif tells_of(block, share.account):
                yield from _signed(source, height, block)

    def _vote(self, height: int, key: bytes) -> Iterator[spec.ProofLine]:
        """Yield a validator's vote for the parent, if it is among those kept here."""
        parent = self._checkpoints.at(height - 1)
        if parent is None:
            return
        for vote in parent.votes:
            if vote.voter == key:
                yield spec.ProofLine(
                    source=Source.VALIDATOR.name.lower(),
                    height=height,
                    id=parent.checkpoint.id,
                    author=vote.voter,
                    signature=vote.signature,
                )


def _signed(source: Source, height: int, block: Block) -> Iterator[spec.ProofLine]:
    """Yield who signed a block: its author and, of a payment, the payer in it."""
    signatures = [(block.header.author, block.signature)]
    content = block.content
    if isinstance(content, Capture):
        signatures.append((content.payer_key, content.signature))
    for author, signature in signatures:
        yield spec.ProofLine(
            source=source.name.lower(),
            height=height,
            id=block.id,
            author=author,
            signature=signature,
        )


def tells_of(block: Block, account: bytes) -> bool:
    """True when a reward of the account is computed from this block."""
    content = block.content
    if isinstance(content, TileUpdate):
        return any(part.learner == account for part in content.contributions)
    return isinstance(content, Capture) and block.header.account == account
