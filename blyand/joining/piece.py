"""The missing blocks of a few checkpoints while they come, from one peer or several.

What came stays whatever happens to its giver: a slow link brings a piece in many turns.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from blyan_proto.block.block import Block
from blyan_proto.block.header import SignedHeader
from blyan_proto.block.model import Model, Run
from blyan_proto.block.payload import KINDS
from blyan_proto.genesis import Genesis
from blyan_proto.signing import Purpose, check_signature
from blyand.compute import Threads
from blyand.rules.chain.intake import Checked, check_ordered
from blyand.rules.chain.retention import NAMING

NEEDED = NAMING | {
    kind.code for kind in KINDS.values() if kind.payload in (Model, Run)
}  # kinds of which state may need an old payload


class Given(Protocol):
    """Blocks that a peer gave, and those whose payload it dropped."""

    blocks: list[Block]
    pruned: list[bytes]
    answered: int  # of the ids asked for, from the first on


class Asking(Protocol):
    """What a piece asks of a peer."""

    async def headers(self, peer: str, ids: Sequence[bytes]) -> list[SignedHeader]: ...

    async def blocks(self, peer: str, ids: Sequence[bytes]) -> Given: ...


class Piece:
    """What peers gave of the blocks of a few checkpoints."""

    def __init__(
        self,
        height: int,
        genesis: Genesis,
        asking: Asking,
        lane: Threads,
        count: Callable[[Sequence[Any]], None],
        *,
        archives: bool,
    ) -> None:
        """Of the checkpoints from `height` downwards; `count` hears of all that came."""
        self.height = height
        self._genesis, self._asking, self._lane = genesis, asking, lane
        self._count, self._archives = count, archives
        self.whole: dict[bytes, Checked] = {}
        self._headers: dict[bytes, SignedHeader] = {}
        self._pruned: set[bytes] = set()  # whose payload some peer dropped

    @property
    def headers(self) -> list[SignedHeader]:
        """Those of which the header came alone."""
        return [one for id, one in self._headers.items() if id not in self.whole]

    def lacks(self, missing: Mapping[bytes, bool]) -> list[bytes]:
        """Return those of `missing` that did not come; with each, whether it is old."""
        return [id for id in missing if not self._has(id)]

    def _has(self, id: bytes) -> bool:
        signed = self._headers.get(id)
        if id in self.whole or signed is None:
            return id in self.whole
        return signed.header.kind not in NEEDED or id in self._pruned

    async def fetch(
        self, peer: str, missing: Mapping[bytes, bool], at_once: int
    ) -> None:
        """Ask for what lacks, `at_once` ids a time; of old ones that nothing needs the
        header alone. Unavailable, ProtocolError, Reject: what came before is kept."""
        lacking = self.lacks(missing)
        old = [id for id in lacking if missing[id] and id not in self._headers]
        await self._fetch_headers(peer, old, at_once)
        wanted = [
            id
            for id in self.lacks(missing)
            if not missing[id] or id in self._headers  # it is one of the needed
        ]
        while wanted:
            given = await self._asking.blocks(peer, wanted[:at_once])
            for checked in await self._lane.run(_check_blocks, given.blocks):
                self.whole[checked.id] = checked
            self._count(given.blocks)
            self._pruned.update(given.pruned)
            wanted = wanted[given.answered :]
            if not given.answered:
                return
        if not self._archives:
            bare = [
                id
                for id in self.lacks(missing)
                if id in self._pruned and id not in self._headers
            ]
            await self._fetch_headers(peer, bare, at_once)

    async def _fetch_headers(
        self, peer: str, ids: Sequence[bytes], at_once: int
    ) -> None:
        for start in range(0, len(ids), at_once):
            given = await self._asking.headers(peer, ids[start : start + at_once])
            await self._lane.run(_check_headers, given, self._genesis)
            self._headers.update((signed.header.id, signed) for signed in given)
            self._count(given)


def _check_blocks(blocks: Sequence[Block]) -> list[Checked]:
    return [check_ordered(block) for block in blocks]


def _check_headers(headers: Sequence[SignedHeader], genesis: Genesis) -> None:
    for signed in headers:
        check_signature(
            Purpose.BLOCK,
            genesis.id,
            signed.header,
            signed.header.author,
            signed.signature,
        )
