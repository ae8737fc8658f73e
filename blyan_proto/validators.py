"""Who signs checkpoints, and when they are enough. docs/consensus.md"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated

from blyan_proto.codec import U16, Size, encode, message
from blyan_proto.constants import MAX_VALIDATORS
from blyan_proto.digest import Domain, digest
from blyan_proto.types import Hash, PublicKey


@message
class Validator:
    """A member of the set that signs checkpoints."""

    key: PublicKey
    weight: U16
    beacon_tail: Hash


@message
class Validators:
    """The members of a set, as they are stored and travel."""

    members: Annotated[tuple[Validator, ...], Size(1, MAX_VALIDATORS)]

    def __post_init__(self) -> None:
        if len({member.key for member in self.members}) != len(self.members):
            raise ValueError("a validator is in the set twice")
        if not all(member.weight for member in self.members):
            raise ValueError("a validator without weight")


@dataclass(frozen=True)
class ValidatorSet:
    """Who signs a checkpoint, in an order that is part of the set."""

    members: tuple[Validator, ...]

    def __iter__(self) -> Iterator[Validator]:
        return iter(self.members)

    def __len__(self) -> int:
        return len(self.members)

    @cached_property
    def root(self) -> bytes:
        """What a checkpoint names the set by, 32 bytes."""
        return digest(Domain.SET, *(encode(member) for member in self.members))

    @cached_property
    def weights(self) -> dict[bytes, int]:
        """Weight by key."""
        return {member.key: member.weight for member in self.members}

    @cached_property
    def total(self) -> int:
        """The weight of all."""
        return sum(member.weight for member in self.members)

    def weight_of(self, key: bytes) -> int:
        """Return a validator's weight; 0 for whoever is none."""
        return self.weights.get(key, 0)

    def is_quorum(self, weight: int) -> bool:
        """True for more than two thirds of all weight (HZ-28)."""
        return 3 * weight > 2 * self.total

    def exceeds_third(self, weight: int) -> bool:
        """True for more than a third: at least one of them is honest."""
        return 3 * weight > self.total
