"""Checking again what is on the disk, piece by piece: nothing is believed.

Each function answers None, or one sentence on what is wrong. All are blocking.
"""

from __future__ import annotations

from blyan_proto.block.block import check_block_signature, check_wellformed
from blyan_proto.errors import ProtocolError
from blyan_proto.genesis import Genesis
from blyand.errors import Pruned, StorageFault
from blyand.rules.chain.intake import check_final
from blyand.rules.verdict import Reject
from blyand.store.blocks import BlockStore
from blyand.store.checkpoints import CheckpointStore
from blyand.store.schema import Outcome
from blyand.store.sets import SetStore


def check_block(
    blocks: BlockStore,
    id: bytes,
    network: bytes,
    *,
    mending: bool = False,
    partial: bool = False,
) -> tuple[str | None, bool]:
    """Check one block: digests, signature, payload, parents, height.

    Returns what is wrong, and whether its payload was pruned (which is no fault, unless
    a damaged database is `mending`: then nobody knows). `partial`: history is not all
    here, so that a parent may be missing.
    """
    try:
        signed = blocks.signed_header(id)
    except StorageFault as error:
        return str(error), False
    if signed is None:
        return "its header is gone", False
    header = signed.header
    if header.id != id:
        return "its id is not the digest of its header", False
    if header.network != network:
        return "it belongs to another network", False
    heights = []
    for parent in header.parents:
        above = blocks.signed_header(parent)
        if above is None and partial:
            return _check_content(blocks, id, mending)
        if above is None:
            return f"its parent {parent.hex()[:16]} is not here", False
        heights.append(above.header.height)
    if header.height != (1 + max(heights) if heights else 0):
        return "its height is not one more than its highest parent's", False
    return _check_content(blocks, id, mending)


def _check_content(
    blocks: BlockStore, id: bytes, mending: bool
) -> tuple[str | None, bool]:
    try:
        block = blocks.get(id)
    except Pruned:
        if blocks.dropped_ms(id) is None:
            asked = "; peers are asked for it" if mending else ""
            return f"its payload is gone, and was not pruned{asked}", False
        return None, True
    assert block is not None
    try:
        check_wellformed(block)
        check_block_signature(block)
    except ProtocolError as error:
        return str(error), False
    return None, False


def check_checkpoint(
    blocks: BlockStore,
    checkpoints: CheckpointStore,
    sets: SetStore,
    genesis: Genesis,
    height: int,
) -> str | None:
    """Check one final checkpoint: its parent, its signatures, what it orders.

    Its signers are those that the checkpoint before it names.
    """
    try:
        final = checkpoints.at(height)
        parent = checkpoints.at(height - 1) if height > 1 else None
    except StorageFault as error:
        return str(error)
    if final is None or (height > 1 and parent is None):
        return f"checkpoint {height if final is None else height - 1} is not here"
    before, root = genesis.id, genesis.founders.root
    if parent is not None:
        before, root = parent.checkpoint.id, parent.checkpoint.next_validators_root
    if final.checkpoint.parent != before:
        return "it does not follow the checkpoint before it"
    voters = sets.at(root)
    if voters is None:
        return "the validator set that signs it is not here"
    try:
        check_final(final, genesis, voters)
    except Reject as error:
        return str(error)
    if height > checkpoints.executed_height:
        return None
    for position, id in enumerate(final.checkpoint.blocks):
        if not blocks.has(id):
            return f"it orders block {id.hex()[:16]}, which is not here"
        outcome = blocks.outcome(id)
        place = None if outcome is None else (outcome.height, outcome.position)
        if place == (height, position):
            continue
        if outcome is None or not _is_noted(checkpoints, id, outcome):
            return f"block {id.hex()[:16]} is not noted as ordered by it"
    return None


def _is_noted(checkpoints: CheckpointStore, id: bytes, outcome: Outcome) -> bool:
    """Whether a block was ordered where its outcome says; it may be so elsewhere, too."""
    try:
        final = checkpoints.at(outcome.height)
    except StorageFault:
        return False
    at = outcome.position
    return final is not None and final.checkpoint.blocks[at : at + 1] == (id,)
