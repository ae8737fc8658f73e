"""Who will sign: the validator set is chosen anew at the end of every epoch.

`choose` is the rule, on plain values. Strategy. Money decides who may be in and with
which weight; what was signed in the epoch decides how far the set may move:

- Leaving: less than a third of all weight in one epoch, or one member. Between two sets
  more than two thirds of the old weight stays, so that who trusts the old set finds it
  in the new one (docs/consensus.md, "Validator set").
- Entering: only as far as those who signed in the ended epoch make a quorum of the new
  set alone. So no newcomer, awake or not, can stop the chain, and their weight is
  always below a third. A set of one or two equal weights does not grow.
- Who is silent leaves before who merely wants to.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple


class Member(NamedTuple):
    """A validator, as the choice sees it."""

    account: bytes
    key: bytes
    weight: int
    tail: bytes


class Choice:
    """A set while it is being changed."""

    def __init__(self, members: Sequence[Member], proven: frozenset[bytes]) -> None:
        self._proven = proven  # accounts that signed in the ended epoch
        self._old = {member.account: member.weight for member in members}
        self._members = {member.account: member for member in members}
        self._room = (sum(self._old.values()) - 1) // 3  # what may leave
        self._left = 0

    @property
    def members(self) -> tuple[Member, ...]:
        return tuple(self._members.values())

    @property
    def total(self) -> int:
        return sum(member.weight for member in self._members.values())

    @property
    def proven(self) -> int:
        """The weight that the ended epoch has shown to be there."""
        return sum(
            min(member.weight, self._old.get(account, 0))
            for account, member in self._members.items()
            if account in self._proven
        )

    def lower(self, account: bytes, weight: int) -> None:
        """Take a member's weight down, to 0 to let it go; nothing where it may not be."""
        member = self._members[account]
        if not self._may_leave(member.weight - weight):
            return
        total, proven = self.total, self.proven
        others = {**self._members}
        if weight:
            others[account] = member._replace(weight=weight)
        else:
            del others[account]
        kept, self._members = self._members, others
        helps = self.proven == proven and self.total < total
        if not others or not (helps or 3 * self.proven > 2 * self.total):
            self._members = kept
            return
        self._left += member.weight - weight

    def exchange_key(self, account: bytes, key: bytes, tail: bytes) -> None:
        """Give a member its account's new key: for others one leaves and one enters."""
        member = self._members[account]
        if self._may_leave(member.weight):
            self._members[account] = member._replace(key=key, tail=tail)
            self._left += member.weight

    def exchange_tail(self, account: bytes, tail: bytes) -> None:
        """Give a member its new hash chain."""
        self._members[account] = self._members[account]._replace(tail=tail)

    def raise_to(self, wanted: Member, most: int) -> None:
        """Bring a member or a newcomer up to its weight, or as far as there is room."""
        known = self._members.get(wanted.account)
        if known is None and len(self._members) >= most:
            return
        weight = known.weight if known else 0
        room = (3 * self.proven - 1) // 2 - self.total
        more = min(wanted.weight - weight, room)
        if more > 0:
            self._members[wanted.account] = (known or wanted)._replace(
                weight=weight + more
            )

    def _may_leave(self, weight: int) -> bool:
        return not self._left or self._left + weight <= self._room


def choose(
    current: Sequence[Member],
    wanted: Mapping[bytes, Member],
    proven: frozenset[bytes],
    banned: frozenset[bytes],
    most: int,
) -> tuple[Member, ...]:
    """Return the set after an epoch, never empty; `current` itself when nothing moves.

    `wanted`: account -> what each account that may sign is to be, at most `most` of
    them. `proven`: accounts that signed in the epoch. `banned`: those that go first.
    The order of members stays, newcomers come last.
    """
    choice = Choice(current, proven)
    leaving = [member for member in current if member.account not in wanted]
    leaving.sort(
        key=lambda member: (
            member.account not in banned,
            member.account in proven,
            member.account,
        )
    )
    for member in leaving:
        choice.lower(member.account, 0)
    for member in current:
        wish = wanted.get(member.account)
        if wish is None:
            continue
        if wish.weight < member.weight:
            choice.lower(member.account, wish.weight)
        if wish.key != member.key:
            choice.exchange_key(member.account, wish.key, wish.tail)
        elif wish.tail != member.tail:
            choice.exchange_tail(member.account, wish.tail)
    for wish in sorted(wanted.values(), key=lambda one: (-one.weight, one.account)):
        choice.raise_to(wish, most)
    return choice.members
