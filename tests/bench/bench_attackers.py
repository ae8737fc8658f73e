"""What liars do to a run: held-out loss by attack and number of liars, with and without clip.

    python -m tests.bench.bench_attackers [--quick] [--out DIR] [--seeds 1 2 3] [--all]

Ten learners of the tiny preset, H 5, LR4, from a warm start, on Python's library. The
real parts do the work (tests/sim/attacks/arena.py). One seed takes about a quarter of an
hour on one thread. With --out, what is done stays done: start again, and it goes on.
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

import torch

from blyan_proto.constants import PPM
from blyan_tile import tblock
from blyan_tile.corpus import Archive, ArchiveJob, build, pack
from blyan_tile.create import model_of, run_preset
from tests.sim.attacks.arena import Arena
from tests.sim.attacks.liars import ATTACKS

LEARNERS = 10
LIARS = (3, 4)  # of ten: above 25 %, and 40 %
SIX = ("sign flip", "scaling", "ALIE", "IPM", "label flip", "copycat")
MORE = ("disguised copy", "random", "NaN", "stale", "free rider")
WARM_STEPS = 400
WARM_RATE = 3e-3
JUDGED_EVERY = 5

Row = tuple[str, int, bool, int]  # attack, liars, clip, seed; attack "": fewer learners


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


def played(row: Row, rounds: int, warm_steps: int, folder: Path) -> dict[str, object]:
    """Play all rounds of one row; return what came out."""
    name, liars, is_clipped, seed = row
    began = time.process_time()
    run = replace(
        run_preset("tiny", bytes(32), (bytes(32),), rounds, seed),
        delta_clip_ppm=3 * PPM if is_clipped else 0,
    )
    text = archives(folder)
    with tempfile.TemporaryDirectory(dir=folder) as work:
        arena = Arena(model_of("tiny", "bench"), run, text, Path(work), seed)
        warm = folder / f"warm-{warm_steps}-{seed}.npz"
        if not warm.exists():
            arena.warm_up(warm_steps, WARM_RATE)
            arena.save(warm)
        arena.load(warm)
        losses = [arena.judge()]
        honest = range(LEARNERS - liars)
        bad = range(LEARNERS - liars, LEARNERS) if name else ()
        for round in range(rounds):
            arena.play(
                round,
                honest,
                bad,
                ATTACKS[name or "honest"],
                is_flipped=name == "label flip",
            )
            if (round + 1) % JUDGED_EVERY == 0 or round + 1 == rounds:
                losses.append(arena.judge())
    return {
        "row": row,
        "losses": losses,
        "refused": dict(arena.refused),
        "clipped": sum(arena.clipped[one] for one in honest),
        "clipped_liars": sum(arena.clipped[one] for one in bad),
        "seconds": time.process_time() - began,
    }


def rows(seeds: Sequence[int], names: Sequence[str], liars: Sequence[int]) -> list[Row]:
    plain = [("", 0, True, seed) for seed in seeds]
    alone = [("", count, True, seed) for seed in seeds for count in liars]
    alone += [("", 0, False, seed) for seed in seeds]
    attacked = [
        (name, count, clip, seed)
        for seed in seeds
        for clip in (True, False)
        for name in names
        for count in liars
    ]
    return plain + alone + attacked


def table(done: dict[Row, dict[str, object]], liars: Sequence[int]) -> str:
    """Return the rows as a table: the final loss, the mean of the seeds."""

    def cell(name: str, count: int, clip: bool) -> str:
        found = [
            entry["losses"]
            for (row_name, row_count, row_clip, _), entry in done.items()
            if (row_name, row_count, row_clip) == (name, count, clip)
        ]
        ends = [float(losses[-1]) for losses in found]  # type: ignore[index]
        return f"{statistics.mean(ends):.3f}" if ends else "-"

    start = [entry["losses"][0] for entry in done.values()]  # type: ignore[index]
    names = list(dict.fromkeys(name for name, *_ in done if name))
    head = [f"{count} of {LEARNERS}" for count in liars]
    lines = [
        f"held-out nats per byte at the start {statistics.mean(start):.3f}; after all "
        f"rounds, ten honest ones: clip {cell('', 0, True)}, no clip "
        f"{cell('', 0, False)}; the honest ones alone, with clip: "
        + ", ".join(f"{LEARNERS - count}: {cell('', count, True)}" for count in liars),
        "",
        "| attack | "
        + " | ".join(f"{h}, clip" for h in head)
        + " | "
        + " | ".join(f"{h}, no clip" for h in head)
        + " | refused |",
        "| --- |" + " --- |" * (2 * len(liars) + 1),
    ]
    for name in names:
        cells = [cell(name, count, clip) for clip in (True, False) for count in liars]
        refused: dict[str, int] = {}
        for (row_name, _, clip, _), entry in done.items():
            if row_name == name and clip:
                refused |= entry["refused"]  # type: ignore[operator]
        lines.append(
            f"| {name} | " + " | ".join(cells) + f" | {', '.join(refused) or '-'} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="few rounds, two attacks")
    parser.add_argument(
        "--all", action="store_true", help="every attack of the library"
    )
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seeds", type=int, nargs="*", default=[1])
    parser.add_argument("--only", nargs="*", help="these attacks")
    parser.add_argument("--out", type=Path, help="a folder for what is done")
    options = parser.parse_args()
    torch.set_num_threads(1)
    names = options.only or (SIX + MORE if options.all else SIX)
    liars, rounds, warm = LIARS, options.rounds, WARM_STEPS
    if options.quick:
        names, liars, rounds, warm = ("sign flip", "scaling"), (4,), 3, 50
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.out or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        log = folder / f"attackers-{rounds}-{warm}.jsonl"
        done: dict[Row, dict[str, object]] = {}
        if log.exists():
            for line in log.read_text().splitlines():
                entry = json.loads(line)
                done[tuple(entry["row"])] = entry
        for row in rows(options.seeds, names, liars):
            if row not in done:
                done[row] = played(row, rounds, warm, folder)
                with log.open("a") as file:
                    file.write(json.dumps(done[row]) + "\n")
                seconds = done[row]["seconds"]
                print(
                    f"{row}: {done[row]['losses'][-1]:.4f}, {seconds:.0f} s", flush=True
                )  # type: ignore[index]
        wanted = set(rows(options.seeds, names, liars))
        print(table({row: done[row] for row in done if row in wanted}, liars))


if __name__ == "__main__":
    main()
