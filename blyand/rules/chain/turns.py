"""Whose turn it is to propose: smooth weighted round robin over priorities (DEC-A11).

State holds one priority for each member of the set. Every height takes one turn; round r
of a height is the turn r further, taken on a copy, so that rounds cost nobody its turn.
Integers only; docs/consensus.md, "Agreement".
"""

from __future__ import annotations

from collections.abc import Mapping

from blyan_proto.validators import ValidatorSet


def take_turn(
    validators: ValidatorSet, priorities: tuple[int, ...]
) -> tuple[int, tuple[int, ...]]:
    """Return the index of the proposer and the priorities after its turn.

    `priorities` are in the order of the set. Their sum does not change.
    """
    raised = [
        priority + member.weight
        for priority, member in zip(priorities, validators.members, strict=True)
    ]
    chosen = raised.index(max(raised))  # ties: the lowest index
    raised[chosen] -= validators.total
    return chosen, tuple(raised)


def carry_over(
    priorities: Mapping[bytes, int], validators: ValidatorSet
) -> tuple[int, ...]:
    """Return the priorities of a set that follows one with `priorities` by key.

    A newcomer starts at −(W + W/8): leaving and coming back wins no turn. The spread is
    brought within 2 W, then the mean to 0, so that no priority grows without a bound
    and nobody waits longer than its weight says.
    """
    total = validators.total
    newcomer = -(total + total // 8)
    carried = [priorities.get(member.key, newcomer) for member in validators.members]
    spread = max(carried) - min(carried)
    if spread > 2 * total:
        ratio = -(-spread // (2 * total))
        carried = [priority // ratio for priority in carried]
    mean = sum(carried) // len(carried)
    return tuple(priority - mean for priority in carried)


class Turns:
    """The proposers of the rounds of one height, found as they are asked for."""

    def __init__(self, validators: ValidatorSet, priorities: tuple[int, ...]) -> None:
        self._validators = validators
        self._priorities = priorities  # after the rounds in `_proposers`
        self._proposers: list[bytes] = []

    def proposer_of(self, round: int) -> bytes:
        """Return the key whose turn `round` is. Takes time in proportion to it."""
        while len(self._proposers) <= round:
            index, self._priorities = take_turn(self._validators, self._priorities)
            self._proposers.append(self._validators.members[index].key)
        return self._proposers[round]
