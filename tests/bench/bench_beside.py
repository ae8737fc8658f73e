"""How late tokens come while the node that makes them also trains.

    python -m tests.bench.bench_beside [--quick] [--preset demo] [--nice 20] [--least 100]

One daemon that holds and computes everything, asked by its control socket for one answer
at a time, each with another prompt. Blocks of answers alternate: the node learns in a run
of the same model, and does not. The bar is twice the 95th percentile at rest. Queue and
compute are those of the daemon's own histograms, of all its lane calls in these blocks:
means, and percentiles as Prometheus reads them off classes. Last, what a round of the run
took while answers were made.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from blyanctl import devnet
from tests.bench.bench_http import Gateway
from tests.functional.harness import Daemon, Network, network, wait_for

PROMPT = 32  # tokens
SETTLE_S = 2.0  # after training has stopped: its last step ends
STAGES = ("queue", "compute")
BAR = 2.0

Classes = Counter[float]  # upper bound in seconds -> spans up to it


@dataclass
class Found:
    """What was measured in one state of the node; times in seconds."""

    firsts: list[float] = field(default_factory=list)  # to the first token
    gaps: list[float] = field(default_factory=list)  # between tokens
    classes: dict[str, Classes] = field(default_factory=dict)
    sums: Counter[str] = field(default_factory=Counter)


def answer(node: Daemon, seed: int, tokens: int, found: Found) -> None:
    """Have one answer made, and note when its tokens came."""
    ids = np.random.default_rng(seed).integers(0, 256, PROMPT).tolist()
    params = {"token_ids": ids, "max_tokens": tokens, "ignore_eos": True}
    with node.client() as client:
        before = time.perf_counter()
        times = [before]
        for _ in client.stream("infer.generate", params):
            times.append(time.perf_counter())
    found.firsts.append(times[1] - times[0])
    found.gaps += [after - before for before, after in zip(times[1:], times[2:])]


def histograms(node: Daemon) -> tuple[dict[str, Classes], Counter[str]]:
    """Return what the daemon counted of its lane calls, and their seconds."""
    gateway = Gateway(node.home)
    url = f"http://{gateway.host}:{gateway.port}/metrics"
    classes: dict[str, Classes] = {stage: Counter() for stage in STAGES}
    sums: Counter[str] = Counter()
    with urllib.request.urlopen(url, timeout=30) as reply:
        for line in reply.read().decode().splitlines():
            for stage in STAGES:
                name = f"blyan_inference_{stage}_seconds"
                if line.startswith(f'{name}_bucket{{le="'):
                    bound = float(line.split('"')[1])  # the last is "+Inf"
                    classes[stage][bound] = int(line.split()[-1])
                elif line.startswith(f"{name}_sum "):
                    sums[stage] = float(line.split()[-1])
    return classes, sums


def block(node: Daemon, seeds: Sequence[int], tokens: int, found: Found) -> None:
    """Have some answers made; add what they came to."""
    before, sums_before = histograms(node)
    for seed in seeds:
        answer(node, seed, tokens, found)
    after, sums_after = histograms(node)
    for stage in STAGES:
        sums = found.classes.setdefault(stage, Counter())
        for bound, count in after[stage].items():
            sums[bound] += count - before[stage][bound]
        found.sums[stage] += sums_after[stage] - sums_before[stage]


def percentile(values: Sequence[float], share: float) -> float:
    return float(np.percentile(values, 100 * share))


def of_classes(classes: Classes, share: float) -> float:
    """Return a percentile in seconds, on a line between the bounds of its class."""
    total, low, below = max(classes.values(), default=0), 0.0, 0
    for bound, count in sorted(classes.items()):
        if count >= share * total > below:
            if bound == float("inf"):
                return low
            return low + (bound - low) * (share * total - below) / (count - below)
        low, below = bound, count
    return low


def open_gateway(net: Network, nice: int, least: int) -> None:
    """Start the node again with a gateway, and without guessed tokens."""
    devnet.down(net.directory)
    for node in net.nodes:
        file = node.home / "config.toml"
        text = file.read_text()
        for before, after in (
            ('# listen = ""', 'listen = "127.0.0.1:0"'),
            ("# lookup = 7", "lookup = 0"),
            ("# worker_nice = 10", f"worker_nice = {nice}"),
            ("# least_percent = 5", f"least_percent = {least}"),
        ):
            assert text.count(before) == 1, before
            text = text.replace(before, after)
        file.write_text(text)
        node.start()


def learning(node: Daemon) -> bool:
    status = node.call("train.status")
    return status["state"] == "learning" and status["round"] >= 1


def measure(
    node: Daemon, preset: str, blocks: int, answers: int, tokens: int
) -> tuple[dict[str, Found], list[float]]:
    """Return what was found at rest and beside training, and seconds per round."""
    found = {"at rest": Found(), "while it trains": Found()}
    rounds: list[float] = []
    answer(node, 10**6, tokens, Found())  # everything is loaded
    for number in range(blocks):
        seeds = [number * answers + place for place in range(answers)]
        block(node, seeds, tokens, found["at rest"])
        if number:
            node.call("train.start")
        else:
            node.call("train.start", preset=preset, dataset="corpus", rounds=5000)
        wait_for(lambda: learning(node), "a run under way", 300.0)
        began_s, first = time.perf_counter(), node.call("train.status")["round"]
        again = [seed + 10**5 for seed in seeds]
        block(node, again, tokens, found["while it trains"])
        passed = node.call("train.status")["round"] - first
        if passed:
            rounds.append((time.perf_counter() - began_s) / passed)
        node.call("train.stop")
        time.sleep(SETTLE_S)
    return found, rounds


def table(found: dict[str, Found]) -> Iterator[str]:
    yield "| ms | " + " | ".join(found) + " | ratio |"
    yield "| --- |" + " --- |" * (len(found) + 1)
    rows = {
        "first token, p50": lambda one: percentile(one.firsts, 0.5),
        "first token, p95": lambda one: percentile(one.firsts, 0.95),
        "between tokens, p50": lambda one: percentile(one.gaps, 0.5),
        "between tokens, p95": lambda one: percentile(one.gaps, 0.95),
        "between tokens, p99": lambda one: percentile(one.gaps, 0.99),
        "in the queue, mean": lambda one: mean(one, "queue"),
        "in the queue, p95": lambda one: of_classes(one.classes["queue"], 0.95),
        "computed, mean": lambda one: mean(one, "compute"),
        "computed, p95": lambda one: of_classes(one.classes["compute"], 0.95),
    }
    for name, row in rows.items():
        rest, beside = (row(one) for one in found.values())
        yield (
            f"| {name} | {1e3 * rest:.2f} | {1e3 * beside:.2f} "
            f"| {beside / max(rest, 1e-9):.2f} |"
        )


def mean(one: Found, stage: str) -> float:
    return one.sums[stage] / max(1, max(one.classes[stage].values(), default=0))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--preset", default="demo")
    parser.add_argument("--nice", type=int, default=10, help="compute.worker_nice")
    parser.add_argument("--least", type=int, default=5, help="training.least_percent")
    given = parser.parse_args()
    blocks, answers, tokens = (2, 4, 32) if given.quick else (6, 20, 64)
    with (
        tempfile.TemporaryDirectory() as name,
        network(Path(name) / "d", 1) as net,
    ):
        open_gateway(net, given.nice, given.least)
        node = net.nodes[0]
        node.call("model.create", preset=given.preset)
        node.call("data.add", max_mb=1, name="corpus")
        found, rounds = measure(node, given.preset, blocks, answers, tokens)
    print(
        f"{given.preset}, one daemon, {blocks * answers} answers of {tokens} tokens\n"
    )
    for line in table(found):
        print(line)
    late = [
        name
        for name, times in (
            ("first token", [one.firsts for one in found.values()]),
            ("between tokens", [one.gaps for one in found.values()]),
        )
        if percentile(times[1], 0.95) > BAR * percentile(times[0], 0.95)
    ]
    print(
        f"\np95 within {BAR:g} x: " + (f"no, {' and '.join(late)}" if late else "yes")
    )
    if rounds:
        print(f"a round meanwhile: {statistics.median(rounds):.1f} s")


if __name__ == "__main__":
    main()
