"""What travels between regions in a round, and what near donors and edges save of it.

    python -m tests.bench.bench_edges [--quick]

No network and no clock: the demo model's layout, real placement, real draws of primaries
and edges, the lengths of real deltas, and where each byte goes. Nodes stand in the regions
in turns. Every holder of a group needs all of its accepted deltas (DEC-B5). Ways:

- direct: learner to primary; every holder fetches the blob from the primary.
- near: the same, but one of each region fetches it, the others from that one.
- edges: what nodes do, message by message: announcements, bundles by the region's edge,
  receipts; the second rank's deltas before it signs; then near signers, the edge, which
  asks for what it did not carry, or straight on (`blyand/training/donors.py`).
- summed: an edge sums its region's deltas and encodes the sum again at the same rank. The
  bytes alone: what it costs in loss is not measured here.

The first two and the last count deltas only; edges count all that is said about them.
The rank falls with the nodes, so that contributors x rank stay within 256, the limit above
which a run would have to re-encode anyway.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace

from blyan_proto.block.model import Codec, Run
from blyan_proto.digest import Domain, digest
from blyan_proto.types import Role, bitmap
from blyan_tile.compress import encoded_bytes
from blyan_tile.create import model_of, run_preset
from blyan_tile.delta import choice_of
from blyan_tile.layout import Group, layout_of
from blyand.rules.model.edges import edge_of
from blyand.rules.model.election import ranks
from blyand.rules.model.placement import place
from blyand.rules.records import Schedule, Seat

MODEL = model_of("demo", "demo")
LAYOUT = layout_of(MODEL)
ID = digest(Domain.SEED, b"edges")
MOST_RANK, RANKS_TOGETHER = 16, 256
WAYS = "direct", "near", "edges", "summed"
MB = 1e6
# Bytes of what goes around a delta: a manifest and its signature, an entry of it, a
# receipt, an entry of that; the frame, result and codes of an exchange.
MANIFEST, ENTRY, RECEIPT, VERDICT, FRAME = 262, 37, 172, 3, 12
DELTA, BASE = 66, 37  # a delta besides its tiles: ids and numbers; each tile's base


@dataclass(frozen=True)
class World:
    """Who holds what, where, and how long a delta of each group is."""

    schedule: Schedule
    held: dict[bytes, frozenset[int]]
    region: dict[bytes, str]
    lengths: list[int]  # per group


def world(nodes: int, regions: int) -> World:
    accounts = [digest(Domain.SEED, i.to_bytes(2, "little"))[:20] for i in range(nodes)]
    held = place(ID, LAYOUT, accounts, MODEL.replication)
    seats = tuple(
        Seat(
            account,
            b"\2" + bytes(32),
            Role.LEARN,
            1,
            bitmap(held[account], len(LAYOUT.groups)),
        )
        for account in sorted(accounts)
    )
    rank = min(MOST_RANK, RANKS_TOGETHER // nodes)
    run = run_preset("demo", ID, (ID,), 1, 0)
    codecs = tuple(
        replace(one, setting=rank) if one.codec is Codec.LR4 else one
        for one in run.codecs
    )
    lengths = [_length(group, replace(run, codecs=codecs)) for group in LAYOUT.groups]
    region = {account: f"{index % regions}" for index, account in enumerate(accounts)}
    return World(Schedule(ID, 0, 0, bytes(32), seats), held, region, lengths)


def _length(group: Group, run: Run) -> int:
    return DELTA + sum(
        BASE + encoded_bytes(*choice_of(run, tile.tensor_class, 0), tile.shape)
        for tile in group.tiles
    )


@dataclass
class Tally:
    """What travelled: bytes within and between regions, exchanges between them."""

    within: int = 0
    between: int = 0
    exchanges: int = 0

    def add(self, one: str, other: str, size: int, exchanges: int = 0) -> None:
        if one == other:
            self.within += size
        else:
            self.between += size
            self.exchanges += exchanges


def travelled(stand: World, round_: int, way: str) -> Tally:
    """Return what a round moves."""
    beacon = digest(Domain.BEACON, round_.to_bytes(4, "little"))
    schedule = replace(stand.schedule, round=round_, beacon=beacon)
    total = Tally()
    if way == "edges":
        _told(stand, schedule, total)
    for group in LAYOUT.groups:
        holders = [a for a, held in stand.held.items() if group.index in held]
        size = stand.lengths[group.index]
        if way == "edges":
            _back(stand, schedule, group.index, holders, total)
        else:
            home = stand.region[ranks(schedule, group.index)[0].account]
            count = Counter(stand.region[holder] for holder in holders)
            for source, target, deltas in _hops(count, home, way):
                total.add(source, target, deltas * size)
    return total


def _hops(count: Counter[str], home: str, way: str) -> Iterator[tuple[str, str, int]]:
    """Yield (from region, to region, deltas) for one group led from `home`."""
    everything = count.total()
    if way in ("direct", "near"):
        for region, there in count.items():
            yield region, home, there - (region == home)
            wanting = there - (region == home)
            first = min(1, wanting) if way == "near" else wanting
            yield home, region, first * everything
            yield region, region, (wanting - first) * everything
        return
    for region, there in count.items():  # summed
        yield region, region, there  # learners to their edge
        for other, wanting in count.items():
            if other != region:
                yield region, other, 1
            yield other, other, wanting


def _told(stand: World, schedule: Schedule, total: Tally) -> None:
    """Count announcements, and bundles with their receipts."""
    parcels: set[tuple[str, bytes]] = set()
    for learner, held in stand.held.items():
        here = stand.region[learner]
        announced: Counter[bytes] = Counter()  # entries, by rank
        sent: dict[tuple[bytes | None, bytes], list[int]] = {}
        for group in held:
            leading = ranks(schedule, group)
            announced.update(seat.account for seat in leading)
            edge = edge_of(schedule, group, stand.region, here)
            way = edge.account if edge else None
            sent.setdefault((way, leading[0].account), []).append(group)
        for rank, entries in announced.items():
            if rank != learner:
                size = (
                    2 * FRAME + MANIFEST + ENTRY * entries + RECEIPT + VERDICT * entries
                )
                total.add(here, stand.region[rank], size, 1)
        for (edge_account, primary), groups in sent.items():
            size = sum(stand.lengths[group] for group in groups)
            size += MANIFEST + RECEIPT + (ENTRY + VERDICT) * len(groups) + 2 * FRAME
            there = stand.region[primary]
            if edge_account is None:
                if primary != learner:
                    total.add(here, there, size, 1)
                continue
            if edge_account != learner:
                total.add(here, here, size)
            total.add(here, there, size)
            if (here, edge_account + primary) not in parcels:
                parcels.add((here, edge_account + primary))
                total.exchanges += 1


def _back(
    stand: World, schedule: Schedule, group: int, holders: list[bytes], total: Tally
) -> None:
    """Count how the deltas get to all holders; the second rank has them first."""
    size, leading = stand.lengths[group], ranks(schedule, group)
    home = stand.region[leading[0].account]
    count = Counter(stand.region[holder] for holder in holders)
    blob = len(holders) * size
    signers = {home}
    for seat in leading[1:2]:
        here = stand.region[seat.account]
        lacking = 0 if here == home else blob - _passed(stand, schedule, group, seat)
        total.add(home, here, lacking or blob, 1)
        signers.add(here)
    signed = {seat.account for seat in leading[:2]}
    for region in count:
        others = [h for h in holders if stand.region[h] == region and h not in signed]
        edge = edge_of(schedule, group, stand.region, region)
        if region not in signers and others:
            first = edge or next(s for s in schedule.seats if s.account in others)
            others.remove(first.account)
            lacking = blob - _passed(stand, schedule, group, first)
            total.add(home, region, lacking, 1)
        total.add(region, region, len(others) * blob)


def _passed(stand: World, schedule: Schedule, group: int, seat: Seat) -> int:
    """Return the bytes of a group's deltas that a node had in its hands."""
    here = stand.region[seat.account]
    if edge_of(schedule, group, stand.region, here) != seat:
        return stand.lengths[group]  # its own
    return stand.lengths[group] * sum(
        stand.region[learner] == here and group in held
        for learner, held in stand.held.items()
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true")
    rounds = 2 if parser.parse_args().quick else 20
    names = " | ".join(WAYS)
    print(
        f"| nodes | rank | regions | between, MB: {names} | exchanges | within: edges |"
    )
    print("|" + " --: |" * (5 + len(WAYS)))
    for nodes in (8, 16, 32, 64):
        rank = min(MOST_RANK, RANKS_TOGETHER // nodes)
        for regions in range(1, 6):
            stand = world(nodes, regions)
            made = {
                way: [travelled(stand, round_, way) for round_ in range(rounds)]
                for way in WAYS
            }
            cells = [
                f"{sum(one.between for one in made[way]) / rounds / MB:.2f}"
                for way in WAYS
            ]
            there = made["edges"]
            cells.append(f"{sum(one.exchanges for one in there) / rounds:.0f}")
            cells.append(f"{sum(one.within for one in there) / rounds / MB:.2f}")
            print(f"| {nodes} | {rank} | {regions} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
