"""Answers by spans and by experts beside one process, and with a delay on the wires.

    python -m tests.bench.bench_span [--quick] [--preset small]

The model has random weights; `small` has the shape of a 52 M-parameter Mixtral (d 512, 8
layers, 8 experts, 2 of them a token). Four daemons on loopback, one tensor thread each: one
holds the first half of the layers besides what placement gives it, one the second half;
the fourth asks, with half of each layer's experts and no whole layer. Tokens/s are those
after the first, greedy, medians; in the same run the same tokens by one process with one
thread. A hop is what a token took longer than in one process, divided by the calls to peers
that it made. Then with a proxy before each daemon that delays every byte, by 10 and 40 ms.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from blyan_proto.rpc.errors import RpcError
from blyanctl import devnet
from tests.bench.delays import delayed
from tests.functional.harness import Daemon, Network, network, wait_for

ONE_WAY_S = (0.01, 0.04)
SHORT, LONG = 16, 512  # tokens of a prompt
SEED = 0


@dataclass(frozen=True)
class Row:
    """What one way of computing came to."""

    name: str
    rate: float  # tokens/s
    first_s: float  # to the first token, after a short prompt
    long_s: float  # after a long one
    calls: float  # to peers, of a token
    tokens: tuple[int, ...]


def prompt(length: int) -> list[int]:
    return [(37 * place + 11) % 256 for place in range(length)]


def alone(preset: str, count: int, repeats: int) -> Row:
    """Run one process with one thread; called in a process of its own."""
    import torch

    from blyan_tile.create import architecture_of, initial_parameters
    from blyan_tile.model.transformer import generate_local

    torch.set_num_threads(1)
    architecture = architecture_of(preset)
    arrays = initial_parameters(architecture, SEED)
    parameters = {name: torch.from_numpy(array) for name, array in arrays.items()}
    rates, firsts, longs, tokens = [], [], [], []
    for _ in range(repeats):
        began = time.perf_counter()
        made = generate_local(parameters, architecture, prompt(SHORT), count)
        tokens = [next(made)]
        firsts.append(time.perf_counter() - began)
        began = time.perf_counter()
        tokens += list(made)
        rates.append((len(tokens) - 1) / (time.perf_counter() - began))
        began = time.perf_counter()
        next(generate_local(parameters, architecture, prompt(LONG), 1))
        longs.append(time.perf_counter() - began)
    return Row(
        "one process",
        statistics.median(rates),
        statistics.median(firsts),
        statistics.median(longs),
        0.0,
        tuple(tokens),
    )


def asked(node: Daemon, route: str, count: int, repeats: int) -> Row:
    """Ask a daemon along a route."""
    answers, longs = [], []
    for _ in range(repeats):
        answers.append(
            node.call(
                "infer.generate",
                token_ids=prompt(SHORT),
                max_tokens=count,
                ignore_eos=True,
                route=route,
                lookup=0,  # as in one process; `bench_lookup` measures guesses
            )
        )
        long = node.call(
            "infer.generate", token_ids=prompt(LONG), max_tokens=1, route=route
        )
        longs.append(long["timings"]["time_to_first_token_s"])
    timings = [answer["timings"] for answer in answers]
    remote = sum(
        peer["calls"]
        for peer in answers[-1]["peers"]
        if peer["peer_id"] != node.peer_id
    )
    return Row(
        route,
        statistics.median(timing["tokens_per_s"] for timing in timings),
        statistics.median(timing["time_to_first_token_s"] for timing in timings),
        statistics.median(longs),
        remote / count,
        tuple(answers[-1]["token_ids"]),
    )


def show(rows: list[Row], base: Row, delay_s: float) -> None:
    for row in rows:
        slower_ms = 1e3 / row.rate - 1e3 / base.rate
        hop = f"{slower_ms / row.calls:.2f} ms" if row.calls else "–"
        same = "yes" if row.tokens == base.tokens else "no"
        print(
            f"| {2000 * delay_s:.0f} ms | {row.name} | {row.rate:.1f} "
            f"| {100 * row.rate / base.rate:.0f} % | {row.first_s * 1e3:.0f} ms "
            f"| {row.long_s * 1e3:.0f} ms | {row.calls:.1f} | {hop} | {same} |",
            flush=True,
        )


def host_layers(net: Network, layers: int) -> None:
    """Start the nodes again, two of them with whole layers."""
    half = layers // 2
    devnet.down(net.directory)
    for node, wish in zip(net.nodes, (f"0-{half - 1}", f"{half}-{layers - 1}")):
        file = node.home / "config.toml"
        text = file.read_text()
        assert '# spans = "off"' in text
        file.write_text(text.replace('# spans = "off"', f'spans = "{wish}"'))
    for node in net.nodes:
        node.start()


def ready(net: Network) -> None:
    """Wait until the asker has found spans for all layers."""
    asker = net.nodes[-1]

    def found() -> bool:
        try:
            answer = asker.call(
                "infer.generate",
                token_ids=prompt(4),
                max_tokens=2,
                route="spans",
                lookup=0,
            )
        except RpcError:
            return False
        others = [p for p in answer["peers"] if p["peer_id"] != asker.peer_id]
        return len(others) == 2 and all(p["calls"] == 2 for p in others)

    wait_for(found, "spans for all layers", 240.0)


def in_daemons(preset: str, layers: int, count: int, repeats: int, base: Row) -> None:
    with (
        tempfile.TemporaryDirectory() as name,
        network(Path(name) / "d", 4, validators=1) as net,
    ):
        net.nodes[0].call("model.create", preset=preset, seed=SEED)
        host_layers(net, layers)
        measure(net, count, repeats, base, 0.0)
        with delayed(net, ONE_WAY_S[0]) as wire:
            for wire.one_way_s in ONE_WAY_S:
                measure(net, count, repeats, base, wire.one_way_s)


def measure(net: Network, count: int, repeats: int, base: Row, delay_s: float) -> None:
    ready(net)
    ways = "spans", "experts", "auto"
    rows = [asked(net.nodes[-1], way, count, repeats) for way in ways]
    show(rows, base, delay_s)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--preset", default="small")
    parser.add_argument("--alone", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    count, repeats = (32, 2) if arguments.quick else (128, 5)
    if arguments.alone:
        row = alone(arguments.preset, count, repeats)
        print(json.dumps(row.__dict__))
        return
    from blyan_tile.create import architecture_of

    made = subprocess.run(
        [sys.executable, "-m", "tests.bench.bench_span", "--alone"]
        + ["--preset", arguments.preset]
        + (["--quick"] if arguments.quick else []),
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    told = json.loads(made.stdout)
    base = Row(**{**told, "tokens": tuple(told["tokens"])})
    print(f"{arguments.preset}, greedy, {count} tokens, medians of {repeats}\n")
    print(
        f"| round trip | way | tokens/s | of one process | first token, prompt {SHORT} "
        f"| prompt {LONG} | calls a token | a hop | same tokens |"
    )
    print("| --- " * 9 + "|")
    show([base], base, 0.0)
    layers = architecture_of(arguments.preset).layers
    in_daemons(arguments.preset, layers, count, repeats, base)


if __name__ == "__main__":
    main()
