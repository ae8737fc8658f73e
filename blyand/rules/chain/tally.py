"""The votes of one stage of one round, counted by voter and by value, within a bound.

A quorum for a checkpoint is a quorum of voters that signed it, whatever else they signed:
a vote that conflicts with an earlier one of its voter counts for its own checkpoint, and
a voter counts once for "any". So all honest nodes that hold the same votes see the same
quorums, in whatever order the votes came.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from blyan_proto.checkpoint import Vote
from blyan_proto.validators import ValidatorSet

VALUES_KEPT = 2  # of one voter, beside checkpoints that the node looks for


class Tally:
    """Votes by value. A value is a checkpoint's id, or None for nil."""

    def __init__(self, validators: ValidatorSet) -> None:
        self._validators = validators
        self._by_voter: dict[bytes, list[Vote]] = {}
        self._by_value: dict[bytes | None, dict[bytes, Vote]] = {}
        self._weights: dict[bytes | None, int] = {}
        self.weight = 0  # of all that voted

    def add(
        self, vote: Vote, is_wanted: Callable[[bytes | None], bool]
    ) -> tuple[bool, Vote | None]:
        """Count a vote once; return whether it counts, and an earlier one it contradicts.

        Of a voter's values the first two count, further ones only where `is_wanted`.
        """
        value = vote.statement.checkpoint
        given = self._by_voter.setdefault(vote.voter, [])
        if any(earlier.statement.checkpoint == value for earlier in given):
            return False, None
        first = given[0] if given else None
        if len(given) >= VALUES_KEPT and not is_wanted(value):
            return False, first
        weight = self._validators.weight_of(vote.voter)
        if not given:
            self.weight += weight
        given.append(vote)
        self._by_value.setdefault(value, {})[vote.voter] = vote
        self._weights[value] = self._weights.get(value, 0) + weight
        return True, first

    def drop(self, voter: bytes) -> None:
        """Forget a voter."""
        given = self._by_voter.pop(voter, [])
        weight = self._validators.weight_of(voter)
        if given:
            self.weight -= weight
        for vote in given:
            value = vote.statement.checkpoint
            del self._by_value[value][voter]
            self._weights[value] -= weight
            if not self._by_value[value]:
                del self._by_value[value], self._weights[value]

    @property
    def is_quorum(self) -> bool:
        """Whether a quorum voted for anything."""
        return self._validators.is_quorum(self.weight)

    def has_quorum(self, value: bytes | None) -> bool:
        return self._validators.is_quorum(self._weights.get(value, 0))

    def chosen(self) -> Iterator[bytes]:
        """Yield the checkpoints with a quorum: one, unless a third of the weight lies."""
        for value, weight in self._weights.items():
            if value is not None and self._validators.is_quorum(weight):
                yield value

    def votes_for(self, value: bytes | None) -> tuple[Vote, ...]:
        """Return the votes for `value` in the order of the set."""
        votes = self._by_value.get(value, {})
        members = self._validators.members
        return tuple(votes[m.key] for m in members if m.key in votes)

    def vote_of(self, voter: bytes, value: bytes | None) -> Vote | None:
        """Return the vote of a voter for `value`."""
        return self._by_value.get(value, {}).get(voter)

    def values(self) -> list[bytes | None]:
        """Return what was voted for, the heaviest first."""
        return sorted(
            self._weights, key=lambda value: (-self._weights[value], value or b"")
        )

    def values_of(self, voter: bytes) -> int:
        """Return for how many values a voter's votes are held."""
        return len(self._by_voter.get(voter, ()))

    def __len__(self) -> int:
        """Return the number of votes held."""
        return sum(len(given) for given in self._by_voter.values())
