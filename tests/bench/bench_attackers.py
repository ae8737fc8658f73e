"""What liars do to a run: held-out loss by attack, number of liars, and way to sum.

    python -m tests.bench.bench_attackers [--quick] [--robust] [--all] [--out DIR] [--seeds 1 2 3]

Ten learners of the tiny preset, H 5, LR4, from a warm start, on Python's library. The
real parts do the work (tests/sim/attacks/arena.py). --robust adds sums that are no rules
of the network, some of them coded again. One seed takes about a quarter of an hour on one thread. With --out, what
is done stays done: start again, and it goes on.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from blyan_proto.constants import PPM
from blyan_tile import tblock
from blyan_tile.corpus import Archive, ArchiveJob, build, pack
from blyan_tile.create import model_of, run_preset
from tests.sim.attacks.aggregators import AGGREGATORS
from tests.sim.attacks.arena import Arena
from tests.sim.attacks.liars import ATTACKS, none

LEARNERS = 10
# Of ten, 3 are above 25 %, 4 are 40 %.
SIX = ("sign flip", "scaling", "ALIE", "IPM", "label flip", "copycat")
MORE = ("IPM apart", "disguised copy", "random", "NaN", "stale", "free rider")
WARM_STEPS = 400
WARM_RATE = 3e-3
JUDGED_EVERY = 5

# The network's sum: who opposes most others left out or not, a clip or not.
WATCH, CLIP, PLAIN = "watched", "clip", "no clip"
AGAIN = ", sent again"  # the sum coded like a delta, as one that a primary sends
COLUMNS = ((WATCH, 3), (WATCH, 4), (CLIP, 4))
ROBUST = (
    (PLAIN, 4),
    *((name, 4) for name in AGGREGATORS if name != "mean"),  # after a clip
    *((name + AGAIN, 4) for name in AGGREGATORS),
)
NOBODY, AWAY = "nobody", "they stay away"

Row = tuple[str, int, str, int]  # attack, liars, sum, seed


def archives(folder: Path) -> Path:
    """Write the text, and the same with every byte b as 255 - b; return the first."""
    plain = folder / "archive"
    if not plain.exists():
        job = ArchiveJob("", str(plain), 4 << 20, 30_000)
        build(job, lambda _: None)
        with plain.open("rb") as file:
            text = Archive(tblock.open_array(file.fileno()))
        flipped = [
            (f"{index}.txt", (255 - view).tobytes(), is_held_out)
            for is_held_out, views in enumerate((text.train, text.held_out))
            for index, view in enumerate(views, 10_000 * is_held_out)
        ]
        array = tblock.bytes_array(
            pack([(name, raw, bool(out)) for name, raw, out in flipped])
        )
        outline = tblock.outline_of(array)
        with (folder / "flipped").open("wb") as file:
            file.write(outline.head_bytes() + array.tobytes() + outline.tail_bytes())
    return plain


def played(row: Row, rounds: int, warm_steps: int, folder: Path) -> dict[str, Any]:
    """Play all rounds of one row; return what came out."""
    name, liars, how, seed = row
    began = time.process_time()
    run = replace(
        run_preset("tiny", bytes(32), (bytes(32),), rounds, seed),
        delta_clip_ppm=0 if how == PLAIN else 3 * PPM,
    )
    text = archives(folder)
    with tempfile.TemporaryDirectory(dir=folder) as work:
        arena = Arena(
            model_of("tiny", "bench"),
            run,
            text,
            Path(work),
            seed,
            AGGREGATORS.get(how.removesuffix(AGAIN)),
            how == WATCH,
            how.endswith(AGAIN),
        )
        warm = folder / f"warm-{warm_steps}-{seed}.npz"
        if not warm.exists():
            arena.warm_up(warm_steps, WARM_RATE)
            arena.save(warm)
        arena.load(warm)
        losses = [arena.judge()]
        honest = range(LEARNERS - liars)
        bad = () if name == AWAY else range(LEARNERS - liars, LEARNERS)
        for round in range(rounds):
            arena.play(
                round,
                honest,
                bad,
                ATTACKS.get(name, none),
                is_flipped=name == "label flip",
            )
            if (round + 1) % JUDGED_EVERY == 0 or round + 1 == rounds:
                losses.append(arena.judge())
    return {
        "row": row,
        "losses": losses,
        "refused": dict(arena.refused),
        "left_out": dict(arena.left_out),
        "clipped": sum(arena.clipped[one] for one in honest),
        "clipped_liars": sum(arena.clipped[one] for one in bad),
        "seconds": time.process_time() - began,
    }


def rows(
    seeds: Sequence[int], names: Sequence[str], columns: Sequence[tuple[str, int]]
) -> list[Row]:
    ways = list(dict.fromkeys(how for how, _ in columns))
    return [
        row
        for seed in seeds
        for row in (
            *((NOBODY, 0, how, seed) for how in ways),
            *((name, count, how, seed) for how, count in columns for name in names),
        )
    ]


def table(
    done: dict[Row, dict[str, Any]],
    names: Sequence[str],
    columns: Sequence[tuple[str, int]],
    seeds: Sequence[int],
) -> str:
    """Return the final losses, the mean of the seeds."""

    def cell(name: str, how: str, count: int) -> str:
        made = [done[name, count, how, seed]["losses"][-1] for seed in seeds]
        return f"{statistics.mean(made):.3f}"

    start = statistics.mean(entry["losses"][0] for entry in done.values())
    lines = [
        f"held-out nats per byte; {start:.3f} at the start",
        "",
        "| who lies | "
        + " | ".join(f"{how}, {n}" for how, n in columns)
        + " | refused |",
        "| --- |" + " --- |" * (len(columns) + 1),
        f"| {NOBODY} | "
        + " | ".join(cell(NOBODY, how, 0) for how, _ in columns)
        + " | - |",
    ]
    for name in names:
        cells = [cell(name, how, count) for how, count in columns]
        refused = {
            why
            for (attack, _, how, _), entry in done.items()
            if attack == name and how != PLAIN
            for why in entry["refused"]
        }
        why = ", ".join(sorted(refused)) or "-"
        lines.append(f"| {name} | " + " | ".join(cells) + f" | {why} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="few rounds, two attacks")
    parser.add_argument(
        "--all", action="store_true", help="every attack of the library"
    )
    parser.add_argument("--robust", action="store_true", help="more ways to sum")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seeds", type=int, nargs="*", default=[1])
    parser.add_argument("--only", nargs="*", help="these attacks")
    parser.add_argument("--out", type=Path, help="a folder for what is done")
    options = parser.parse_args()
    torch.set_num_threads(1)
    names = (AWAY, *(options.only or (SIX + MORE if options.all else SIX)))
    columns = COLUMNS + ROBUST if options.robust else COLUMNS
    rounds, warm = options.rounds, WARM_STEPS
    if options.quick:
        names, columns, rounds, warm = ("sign flip", "scaling"), COLUMNS[1:], 3, 50
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.out or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        log = folder / f"attackers-{rounds}-{warm}.jsonl"
        done: dict[Row, dict[str, Any]] = {}
        if log.exists():
            for line in log.read_text().splitlines():
                entry = json.loads(line)
                done[tuple(entry["row"])] = entry
        wanted = rows(options.seeds, names, columns)
        for row in wanted:
            if row not in done:
                made = done[row] = played(row, rounds, warm, folder)
                with log.open("a") as file:
                    file.write(json.dumps(made) + "\n")
                told = f"{made['losses'][-1]:.4f}, {made['seconds']:.0f} s"
                print(f"{row}: {told}", flush=True)
        chosen = {row: done[row] for row in wanted}
        print(table(chosen, names, columns, options.seeds))


if __name__ == "__main__":
    main()
