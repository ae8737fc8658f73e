"""The chain: tips, blocks, checkpoints."""

from __future__ import annotations

from blyan_proto.rpc import proving
from blyan_proto.rpc.errors import BLOCK_UNKNOWN, CHECKPOINT_UNKNOWN, SYNC_HALTED
from blyan_proto.rpc.parts import Progress
from blyan_proto.rpc.spec import (
    LONG_DEADLINE_S,
    Address,
    Hex,
    Id,
    JsonObject,
    Key,
    Method,
    arg,
    declare,
    record,
)

CHAINS = ("A", "B", "C", "D")


@record
class GetTips:
    """Tell the tips of the four chains and the newest finalised checkpoint."""


@record
class ChainTips:
    """One chain's frontier."""

    chain: str = arg("A meta, B parameters, C ledger, D datasets")
    height: int = arg("largest height of a block held; -1 without blocks")
    blocks: int = arg("blocks held")
    tips: list[Id] = arg("ids of the blocks without children")


@record
class Tips:
    """Where the chains stand."""

    chains: list[ChainTips] = arg("the four chains")
    finalised: int = arg("height of the newest finalised checkpoint")
    checkpoint: Id = arg("its id; the genesis id at height 0")
    state_root: Id = arg("root of the state after it")
    pending: int = arg("blocks held that no checkpoint has ordered yet")


tips = declare(Method("chain.tips", GetTips, Tips, public=True))


@record
class GetLog:
    """List the newest blocks, newest first."""

    limit: int = arg("most blocks to list", default=20, low=1, high=1000)
    chain: str | None = arg("only this chain", default=None, choices=CHAINS)


@record
class BlockLine:
    """One block in a list."""

    id: Id = arg("block id")
    chain: str = arg("A, B, C or D")
    kind: str = arg("what its payload says")
    height: int = arg("1 + the largest height among its parents")
    parents: list[Id] = arg("blocks of the same chain that it follows")
    subject: str = arg("what it is about: a group, a dataset, or empty")
    account: Address = arg("whose block it is")
    time_ms: int = arg("author's clock, Unix milliseconds")
    checkpoint: int | None = arg("height of the checkpoint that ordered it; null: none")
    error: str | None = arg("why it had no effect; null if it had or is pending")


@record
class Log:
    """The newest blocks."""

    blocks: list[BlockLine] = arg("blocks, newest first")


log = declare(Method("chain.log", GetLog, Log, public=True))


@record
class GetStats:
    """Count what the chains hold: blocks, bytes, authors, and what disagrees."""


@record
class KindStats:
    """The ordered blocks of one kind."""

    chain: str = arg("A, B, C or D")
    kind: str = arg("what their payload says")
    blocks: int = arg("blocks ordered")
    refused: int = arg("of these, ordered without effect")
    payload_bytes: int = arg("bytes of their payloads, pruned ones included")


@record
class Stats:
    """What the chains hold, in numbers."""

    checkpoints: int = arg("height of the newest finalised checkpoint")
    blocks: int = arg("blocks that checkpoints have ordered")
    refused: int = arg("of these, ordered without effect")
    pending: int = arg("blocks held that no checkpoint has ordered yet")
    authors: int = arg("accounts that made an ordered block")
    equivocations: int = arg("authors that made two blocks under one count: evidence")
    blobs: int = arg("files of tensors, deltas and datasets held")
    blob_bytes: int = arg("bytes of these files")
    state_entries: int = arg("records of the executed state")
    checkpoint_s: float | None = arg("median time between the last checkpoints")
    kinds: list[KindStats] = arg("by chain and kind")


stats = declare(Method("chain.stats", GetStats, Stats, public=True))


@record
class ExportChain:
    """Write the block DAG, oldest block first: a line of JSON a block, or Graphviz text."""

    dot: bool = arg("write Graphviz text, as for `dot -Tsvg`", default=False)
    limit: int = arg("newest blocks to take", default=1000, low=1, high=100_000)
    chain: str | None = arg("only this chain", default=None, choices=CHAINS)


@record
class ExportedLine:
    """One line of the export."""

    line: str = arg("text without its end")


@record
class Exported:
    """The end of an export."""

    blocks: int = arg("blocks written")


export = declare(
    Method(
        "chain.export",
        ExportChain,
        Exported,
        streams=ExportedLine,
        public=True,
        deadline_s=LONG_DEADLINE_S,
    )
)


@record
class GetBlock:
    """Look up one block by its id."""

    id: Id = arg("block id, hex", positional=True)
    payload: bool = arg("include the payload", default=False)


@record
class Block:
    """A block with what this node knows about it."""

    id: Id = arg("block id")
    chain: str = arg("A, B, C or D")
    kind: str = arg("what its payload says")
    height: int = arg("1 + the largest height among its parents")
    parents: list[Id] = arg("blocks of the same chain that it follows")
    anchor_height: int = arg("finalised checkpoint that the author saw")
    anchor: Id = arg("its id")
    meta_ref: Id | None = arg("model block obeyed")
    subject: str = arg("what it is about: a group, a dataset, or empty")
    layer: int | None = arg("layer it belongs to")
    payload_bytes: int = arg("bytes of the payload")
    payload_digest: Id = arg("digest of the payload")
    account: Address = arg("whose block it is")
    author: Key = arg("key that signed it")
    sequence: int = arg("counts this account's blocks, from 1")
    time_ms: int = arg("author's clock, Unix milliseconds")
    checkpoint: int | None = arg("height of the checkpoint that ordered it; null: none")
    error: str | None = arg("why it had no effect; null if it had or is pending")
    payload: JsonObject | None = arg("the payload; null unless asked for and here")
    pruned_ms: int | None = arg(
        "chain time since when the payload is no longer kept here, Unix milliseconds; "
        "null: it is here"
    )


block = declare(
    Method("chain.block", GetBlock, Block, errors=(BLOCK_UNKNOWN,), public=True)
)


@record
class GetEvidence:
    """List the proofs that an author made two blocks under one sequence of a chain."""

    account: str = arg(
        "only against this account: in hex, or me", default="", positional=True
    )
    limit: int = arg("most proofs to list", default=100, low=1, high=1000)


@record
class SignedHeader:
    """One half of a proof: a header that the author signed."""

    id: Id = arg("block id, the digest of the header")
    author: Key = arg("key that signed it")
    time_ms: int = arg("author's clock, Unix milliseconds")
    header: Hex = arg("its canonical bytes")
    signature: Hex = arg("64 bytes, purpose `block`")


@record
class DoubleBlock:
    """Two blocks of one author where only one may be."""

    account: Address = arg("whose blocks they are")
    chain: str = arg("A, B, C or D")
    sequence: int = arg("the count that both bear")
    first: SignedHeader = arg("the block with the lower id")
    second: SignedHeader = arg("the other one")


@record
class Evidence:
    """The proofs that this node keeps: at most one for each author and chain."""

    total: int = arg("proofs kept, of this account or of all")
    proofs: list[DoubleBlock] = arg("by account and chain")


evidence = declare(Method("chain.evidence", GetEvidence, Evidence, public=True))


@record
class GetCheckpoint:
    """Look up one finalised checkpoint."""

    height: int | None = arg(
        "its height; default: the newest", default=None, low=0, positional=True
    )


@record
class Checkpoint:
    """A finalised checkpoint: an agreed order of blocks and the state after them."""

    id: Id = arg("checkpoint id; of the genesis at height 0")
    height: int = arg("1 + its parent's")
    parent: Id = arg("checkpoint before it")
    round: int = arg("consensus round that decided it")
    proposer: Key = arg("validator that proposed it")
    time_ms: int = arg("median chain time, Unix milliseconds")
    beacon: Id = arg("shared randomness after it")
    blocks: list[Id] = arg("blocks it orders, in execution order")
    state_root: Id = arg("root of the state after them")
    validators_root: Id = arg("root of the set that signed it")
    next_validators_root: Id = arg("root of the set that signs the next one")
    signers: list[Key] = arg("validators whose votes finalised it")


checkpoint = declare(
    Method(
        "chain.checkpoint",
        GetCheckpoint,
        Checkpoint,
        errors=(CHECKPOINT_UNKNOWN,),
        public=True,
    )
)


prove = proving.prove


@record
class VerifyChain:
    """Check everything on this disk again: blocks, checkpoints, state, and blobs."""

    blobs: bool = arg("hash the blobs, too; a damaged one is removed", default=True)


@record
class Problem:
    """Something on the disk that is not what it should be."""

    what: str = arg("block, checkpoint, state or blob")
    id: Id = arg("its id or root; for the state the root that was computed")
    problem: str = arg("what is wrong, and what becomes of it")


@record
class Verified:
    """What was checked, and what is wrong."""

    sound: bool = arg("nothing is wrong")
    blocks: int = arg("blocks whose id, signature, payload and parents were checked")
    pruned: int = arg("of these, blocks whose payload is no longer kept")
    checkpoints: int = arg("checkpoints whose chain, signatures and order were checked")
    blobs: int = arg("blobs hashed")
    problems: list[Problem] = arg("what is wrong; at most the first 1000")


verify = declare(
    Method(
        "chain.verify",
        VerifyChain,
        Verified,
        streams=Progress,
        deadline_s=None,
    )
)


@record
class SyncChain:
    """Wait until this node is level with its peers, and tell how far it has come."""


@record
class SyncProgress:
    """How far this node has come."""

    stage: str = arg("what it does, or waits for")
    checkpoint: int = arg("height of the newest checkpoint applied")
    known: int = arg("height that the network is known to have")
    blocks: int = arg("blocks fetched since the call began")
    fetched_bytes: int = arg("bytes of these blocks")
    peers: int = arg("peers connected and greeted")
    blocks_per_s: float = arg("blocks fetched a second, of late")
    left_s: float | None = arg("time that the rest may take; null while unknown")


@record
class Synced:
    """This node has everything that its peers have."""

    checkpoint: int = arg("height of the newest checkpoint applied")
    checkpoints: int = arg("checkpoints applied since the call began")
    blocks: int = arg("blocks fetched since the call began")
    fetched_bytes: int = arg("bytes of these blocks")
    peers: int = arg("peers connected and greeted")
    seconds: float = arg("how long it took")


sync = declare(
    Method(
        "chain.sync",
        SyncChain,
        Synced,
        streams=SyncProgress,
        errors=(SYNC_HALTED,),
        deadline_s=None,
    )
)
