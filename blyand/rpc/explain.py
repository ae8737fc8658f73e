"""Why money moved: a transaction with its signature, place, formula and postings."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from blyan_proto.block.block import Block
from blyan_proto.block.payload import KINDS
from blyan_proto.rpc import ledger as spec
from blyan_proto.rpc.errors import TRANSACTION_UNKNOWN, RpcError
from blyand.rpc.accounts import name_of
from blyand.rpc.chain import plain
from blyand.rules.economy.book import Purse
from blyand.store.blocks import BlockStore
from blyand.store.checkpoints import CheckpointStore
from blyand.store.schema import Outcome
from blyand.store.statements import AT_END, Entry, Line, Statements

# What a kind of transaction, or a reason of a posting, does with the numbers it reads.
FORMULAS = {
    "transfer": "the author pays amount to the receiver, and the fee",
    "reserve": "amount goes from free to held until it is captured, released or expired",
    "capture": "amount of the statement goes to the payee, the rest of the reserve back",
    "release": "all that is held for the reserve goes back to the payer",
    "reverse": "the payee gives amount back, at most what it captured",
    "stake": "lock goes from free to staked; unlock comes free after the delay",
    "registration": "the bond is brought up to bond out of free money",
}
FEE = (
    "; of all fees ever paid together a hundredth, rounded down, is burnt, the rest of "
    "each goes to the validators' pool"
)
END = (
    "what came due with this checkpoint, by its reasons; rewards of an epoch that it "
    "closed: `blyanctl reward explain`"
)
MAX_VALUE = 200  # characters


@dataclass(frozen=True)
class Books:
    """Where a transaction is looked up."""

    blocks: BlockStore
    checkpoints: CheckpointStore
    statements: Statements
    genesis_ms: int

    def time_of(self, height: int) -> int | None:
        """Return a checkpoint's chain time. Blocking."""
        if height == 0:
            return self.genesis_ms
        final = self.checkpoints.at(height)
        return final.checkpoint.time_ms if final else None


def explained(books: Books, name: str) -> spec.Explained:
    """Return all about a transaction. RpcError TRANSACTION_UNKNOWN. Blocking."""
    if name.isdecimal() and len(name) < 20:
        return _end_of(books, int(name))
    try:
        id = bytes.fromhex(name)
    except ValueError:
        id = b""
    signed = books.blocks.signed_header(id) if len(id) == 32 else None
    if signed is None:
        raise RpcError(
            TRANSACTION_UNKNOWN,
            f"{name[:80]!r} is no transaction here: give a block id (64 hex digits) or "
            "the height of a checkpoint",
        )
    header, outcome = signed.header, books.blocks.outcome(id)
    block = books.blocks.get(id)
    kind = KINDS[header.kind].name if header.kind in KINDS else str(header.kind)
    entry = None
    if outcome is not None:
        entry = books.statements.at(outcome.height, outcome.position)
    return spec.Explained(
        block=id,
        kind=kind,
        account=header.account,
        author=header.author,
        signature=signed.signature,
        sequence=header.sequence,
        made_ms=header.time_ms,
        checkpoint=outcome.height if outcome else None,
        position=outcome.position if outcome else None,
        time_ms=books.time_of(outcome.height) if outcome else None,
        outcome=_told(outcome),
        formula=_formula(kind, block),
        inputs=_inputs(block),
        postings=_postings(entry),
        pruned=block is None or _is_pruned(books, outcome, entry),
    )


def _end_of(books: Books, height: int) -> spec.Explained:
    time_ms = books.time_of(height)
    if time_ms is None:
        raise RpcError(TRANSACTION_UNKNOWN, f"checkpoint {height} is not here")
    lines: list[Line] = []
    position = AT_END
    while (entry := books.statements.at(height, position)) is not None:
        lines += entry.lines
        position += 1
    oldest = books.statements.oldest()
    return spec.Explained(
        block=None,
        kind="end" if height else "genesis",
        account=None,
        author=None,
        signature=None,
        sequence=None,
        made_ms=None,
        checkpoint=height,
        position=None,
        time_ms=time_ms,
        outcome="took effect",
        formula=END if height else "the genesis gives and bonds what it lists",
        inputs=[],
        postings=_postings(Entry(None, tuple(lines))),
        pruned=oldest is None or height < oldest,
    )


def _told(outcome: Outcome | None) -> str:
    if outcome is None:
        return "pending"
    if outcome.code == 0:
        return "took effect"
    return outcome.text or "no effect; no reason is recorded"


def _formula(kind: str, block: Block | None) -> str:
    formula = FORMULAS.get(kind, "moves no money by itself")
    has_fee = bool(block and getattr(block.content, "fee_micro", None))
    return formula + FEE if has_fee else formula


def _inputs(block: Block | None) -> list[spec.Input]:
    if block is None:
        return []
    return [
        spec.Input(name=name, value=str(value)[:MAX_VALUE])
        for name, value in _flat("", block.content)
        if value not in (None, "", [])
    ]


def _flat(prefix: str, message: Any) -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for field in fields(message):
        value = getattr(message, field.name)
        if hasattr(value, "__dataclass_fields__"):
            found += _flat(f"{prefix}{field.name}.", value)
        elif field.name != "version":
            found.append((prefix + field.name, plain(value)))
    return found


def _postings(entry: Entry | None) -> list[spec.ExplainedLine]:
    return [
        spec.ExplainedLine(
            account=line.account,
            name=name_of(line.account),
            purse=Purse(line.purse).name.lower(),
            change_micro=line.micro,
            why=line.why,
        )
        for line in (entry.lines if entry else ())
    ]


def _is_pruned(books: Books, outcome: Outcome | None, entry: Entry | None) -> bool:
    if outcome is None or entry is not None:
        return False
    oldest = books.statements.oldest()
    return oldest is None or outcome.height < oldest
