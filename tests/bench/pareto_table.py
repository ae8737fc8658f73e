"""The results of tests.bench.bench_pareto and the tables made of them."""

from __future__ import annotations

import json
import math
import statistics
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.bench.convergence import TILE_PARAMETERS, Trial

Row = dict[str, Any]
Curve = Sequence[Sequence[float]]  # (round, held-out loss)


PUBLISHED = Path(__file__).with_name("pareto.jsonl")  # what docs/training.md shows


class Results:
    """The file of results, a line per trial, and those that are published."""

    def __init__(self, folder: Path, corpus: str, *, afresh: bool = False) -> None:
        """`corpus`: the digest of the text; results on another are of no use.

        `afresh`: published ones are measured again.
        """
        folder.mkdir(parents=True, exist_ok=True)
        self._path, self._corpus = folder / "results.jsonl", corpus
        self._found: dict[str, Row] = {}
        for path in [self._path] if afresh else [PUBLISHED, self._path]:
            for line in path.read_text().splitlines() if path.exists() else ():
                row = json.loads(line)
                if row["corpus"] == corpus:
                    self._found[row["key"]] = row

    def __contains__(self, trial: Trial) -> bool:
        return trial.key in self._found

    def add(self, row: Row) -> None:
        row["corpus"] = self._corpus
        self._found[row["key"]] = row
        with self._path.open("a") as file:
            print(json.dumps(row), file=file)

    def rows(self, preset: str, start: str, steps: int) -> list[Row]:
        """Return the trials of one setting, in the order in which they ended."""
        return [
            row
            for row in self._found.values()
            if (row["preset"], row["start"], row["steps"]) == (preset, start, steps)
        ]

    def tuned(self, preset: str, start: str) -> str | None:
        """Return the name of the dense arm that the grid found best."""
        dense = [row for row in self.rows(preset, start, 20) if is_dense(row)]
        first = [row for row in dense if row["seed"] == 0]
        if not first:
            return None
        rounds = min(row["rounds"] for row in first)
        losses = {str(r["arm"]): last(r) for r in first if r["rounds"] == rounds}
        return min(losses, key=lambda arm: losses[arm])

    def all_tables(self, preset: str, start: str) -> str:
        """Return a table for each length of a round and each number of rounds."""
        kinds = {
            (row["steps"], row["rounds"])
            for row in self._found.values()
            if (row["preset"], row["start"]) == (preset, start) and is_dense(row)
        }
        return "\n\n".join(
            table(self, preset, start, steps, rounds) for steps, rounds in sorted(kinds)
        )


def is_dense(row: Row) -> bool:
    return str(row["arm"]).startswith("dense")


def last(row: Row) -> float:
    return float(row["curve"][-1][1])


def loss_at(curve: Curve, round_: float) -> float | None:
    """Return the loss after a round, between two judgements on the line; None beyond."""
    for (left, high), (right, low) in zip(curve, curve[1:]):
        if left <= round_ <= right:
            return high + (low - high) * (round_ - left) / (right - left)
    return None


def round_of(curve: Curve, loss: float) -> float | None:
    """Return when a curve first came down to a loss; None if it never did."""
    for (left, high), (right, low) in zip(curve, curve[1:]):
        if low <= loss:
            return left + (right - left) * (high - loss) / max(high - low, 1e-9)
    return None


def extra_tokens(curve: Curve, dense: Curve, rounds: int) -> str:
    """Return in percent how many more tokens a curve took to the dense loss at `rounds`.

    Where it never got there, how many more it took to the loss that it did reach: with "~".
    """
    target = loss_at(dense, rounds)
    reached = None if target is None else round_of(curve, target)
    if reached is not None:
        return f"{100 * (reached / rounds - 1):+.0f} %"
    end, lowest = curve[-1][0], min(loss for _, loss in curve)
    same = round_of(dense, lowest)
    return f"~{100 * (end / same - 1):+.0f} %" if same else "-"


def table(results: Results, preset: str, start: str, steps: int, rounds: int) -> str:
    """Return the rows that can be held against dense runs of `rounds` rounds."""
    rows = results.rows(preset, start, steps)
    dense = {
        row["seed"]: row
        for row in sorted(rows, key=lambda row: -last(row))
        if is_dense(row) and row["rounds"] == rounds
    }
    arms: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        longer = loss_at(row["curve"], rounds) is not None
        same = row["rounds"] == rounds or (row["rounds"] > rounds and not is_dense(row))
        if row["seed"] in dense and longer and same and row["rounds"] < 2 * rounds:
            arms[row["arm"]].append(row)
    lines = [
        f"{preset}, {start}, H {steps}, {rounds} rounds; seeds: {len(dense)}",
        "",
        "| arm | outer | EF | KB per 2 M | bytes per 1000 parameters and step |"
        " loss | against best dense | extra tokens |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for arm, group in sorted(
        arms.items(), key=lambda pair: _mean_loss(pair[1], rounds)
    ):
        lines.append(_line(arm, group, dense, rounds, steps))
    return "\n".join(lines)


def _losses(group: Sequence[Row], rounds: int) -> list[float]:
    found = (loss_at(row["curve"], rounds) for row in group)
    return [loss for loss in found if loss is not None]


def _mean_loss(group: Sequence[Row], rounds: int) -> float:
    return statistics.fmean(_losses(group, rounds))


def _line(
    arm: str, group: Sequence[Row], dense: dict[int, Row], rounds: int, steps: int
) -> str:
    losses = _losses(group, rounds)
    best = statistics.fmean(last(dense[row["seed"]]) for row in group)
    loss = statistics.fmean(losses)
    spread = f" ± {statistics.stdev(losses):.4f}" if len(losses) > 1 else ""
    kb = statistics.fmean(row["kb"] for row in group)
    per_step = kb * 1e6 / TILE_PARAMETERS / steps
    extra = " ".join(
        extra_tokens(row["curve"], dense[row["seed"]]["curve"], rounds) for row in group
    )
    first = group[0]
    rate, mu = first["outer"]
    beta = "-" if is_dense(first) or math.isclose(first["beta"], 0) else first["beta"]
    return (
        f"| {arm} | {rate}/{mu} | {beta} | {kb:.1f} | {per_step:.2f} |"
        f" {loss:.4f}{spread} | {100 * (loss / best - 1):+.2f} % | {extra} |"
    )
