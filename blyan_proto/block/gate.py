"""The gate before adoption: what a run asks of it, and a validator's score (chain A).

A score is sealed before it is shown: nobody can say what another one measured.
docs/block-format.md section 4"""

from __future__ import annotations

from typing import Annotated

from blyan_proto.codec import U8, U16, U32, U64, Range, encode, message
from blyan_proto.digest import Domain, digest
from blyan_proto.types import BlockId, Hash

MOST_MICRO = 2**24 - 1  # of a window's loss, micro-nats per token; more counts as this


@message
class Gate:
    """Part of a run: heads are adopted when drawn validators found them good enough."""

    validators: Annotated[int, Range(1, 64)]  # drawn for each version
    windows: Annotated[int, Range(2, 65_535)]  # of the run's sequence length, drawn
    bound_milli: U16  # deviations of the confidence bound, 1/1000; 1645: 95 %
    margin_micro: U64  # by which the mean loss may rise; 0: it has to fall, certainly


@message
class SealedScore:
    """Chain A: a drawn validator has measured; what, it shows when enough have sealed."""

    version: U8
    model: BlockId
    run: BlockId
    round: U32
    beacon: Hash  # that drew the validators and the windows
    seal: Hash  # of its score


@message
class Score:
    """Chain A: what a drawn validator measured on the same windows before and after."""

    version: U8
    model: BlockId
    run: BlockId
    round: U32
    before: Hash  # heads root of what is adopted
    after: Hash  # heads root of the round's versions
    windows: Annotated[int, Range(2, 65_535)]
    before_micro: U64  # sum over the windows of their mean losses, micro-nats per token
    after_micro: U64
    squares: U64  # sum over the windows of the squared difference of the two
    salt: Hash  # random: measuring again does not tell what is under a seal

    @property
    def rise_micro(self) -> int:
        """Sum of the differences, after less before."""
        return self.after_micro - self.before_micro

    def seal(self, account: bytes) -> bytes:
        """Return the seal of this score by its author: another one's fits nobody else."""
        return digest(Domain.SEAL, account, encode(self))

    def __post_init__(self) -> None:
        if max(self.before_micro, self.after_micro) > self.windows * MOST_MICRO:
            raise ValueError("a loss beyond its bound")
        if self.rise_micro**2 > self.windows * self.squares:
            raise ValueError("squares that belong to no differences")
