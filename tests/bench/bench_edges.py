"""What travels between regions in a round, and what edge aggregators would save of it.

    python -m tests.bench.bench_edges [--quick]

No network and no clock: the demo model's layout, real placement, real draws of primaries,
the lengths of real deltas, and where each byte has to go. Nodes stand in the regions in
turns. A delta goes to its group's primary; every other holder of the group needs all of
the accepted deltas (DEC-B5). Ways:

- direct: learner to primary; every holder fetches the blob from the primary.
- near: the same, but a holder fetches from one of its own region as soon as that has it.
- edges: an edge per region takes its learners' deltas and passes each on, once, to every
  other region with a holder of the group: its own region's never come back. Nothing is
  summed, so signatures stay those of the learners.
- summed: an edge sums its region's deltas and encodes the sum again at the same rank. The
  bytes alone: what it costs in loss is not measured here.

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
from blyand.rules.model.election import ranks
from blyand.rules.model.placement import place
from blyand.rules.records import Schedule, Seat

MODEL = model_of("demo", "demo")
LAYOUT = layout_of(MODEL)
ID = digest(Domain.SEED, b"edges")
MOST_RANK, RANKS_TOGETHER = 16, 256
WAYS = "direct", "near", "edges", "summed"
MB = 1e6


@dataclass(frozen=True)
class World:
    """Who holds what, where, and how long a delta of each group is."""

    schedule: Schedule
    held: dict[bytes, frozenset[int]]
    region: dict[bytes, int]
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
    region = {account: index % regions for index, account in enumerate(accounts)}
    return World(Schedule(ID, 0, 0, bytes(32), seats), held, region, lengths)


def _length(group: Group, run: Run) -> int:
    return sum(
        encoded_bytes(*choice_of(run, tile.tensor_class, 0), tile.shape)
        for tile in group.tiles
    )


def travelled(stand: World, round_: int, way: str) -> Counter[bool]:
    """Return the bytes of one round: {True: between regions, False: within one}."""
    beacon = digest(Domain.BEACON, round_.to_bytes(4, "little"))
    schedule = replace(stand.schedule, round=round_, beacon=beacon)
    total: Counter[bool] = Counter()
    for group in LAYOUT.groups:
        holders = [a for a, held in stand.held.items() if group.index in held]
        primary = ranks(schedule, group.index)[0].account
        for source, target, deltas in _hops(stand, holders, primary, way):
            total[source != target] += deltas * stand.lengths[group.index]
    return total


def _hops(
    stand: World, holders: list[bytes], primary: bytes, way: str
) -> Iterator[tuple[int, int, int]]:
    """Yield (from region, to region, deltas) for one group."""
    home = stand.region[primary]
    count = Counter(stand.region[holder] for holder in holders)
    everything = len(holders)
    if way in ("direct", "near"):
        for holder in holders:
            if holder != primary:
                yield stand.region[holder], home, 1
        for region, there in count.items():
            wanting = there - (region == home)
            first = min(1, wanting) if way == "near" else wanting
            yield home, region, first * everything
            yield region, region, (wanting - first) * everything
        return
    for region, there in count.items():
        sent = 1 if way == "summed" else there
        yield region, region, there  # learners to their edge
        for other, wanting in count.items():
            if other != region:
                yield region, other, sent
            # from the edge to its holders, who have their own delta
            own = wanting if other == region and way == "edges" else 0
            yield other, other, sent * wanting - own


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true")
    rounds = 4 if parser.parse_args().quick else 40
    names = " | ".join(WAYS)
    print(
        f"| nodes | rank | regions | between regions, MB: {names} | within: {names} |"
    )
    print("|" + " --: |" * (3 + 2 * len(WAYS)))
    for nodes in (8, 16, 32, 64):
        rank = min(MOST_RANK, RANKS_TOGETHER // nodes)
        for regions in range(1, 6):
            stand = world(nodes, regions)
            made = {way: Counter[bool]() for way in WAYS}
            for way, total in made.items():
                for round_ in range(rounds):
                    total.update(travelled(stand, round_, way))
            cells = [
                f"{made[way][wide] / rounds / MB:.2f}"
                for wide in (True, False)
                for way in WAYS
            ]
            print(f"| {nodes} | {rank} | {regions} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
