"""Tokens per second of the demo model: four daemons against one process.

Both generate greedily from the same prompt with the same weights, one tensor thread.
Run: python -m tests.bench.bench_generate
"""

from __future__ import annotations

import os
import shutil
import statistics
import tempfile
import time
from pathlib import Path

TOKENS = 128
REPEATS = 5
PROMPT = "def "
SEED = 0


def one_process() -> tuple[list[float], list[int]]:
    """Return tokens/s of each repeat, and the tokens."""
    import torch

    from blyan_tile.create import architecture_of, initial_parameters
    from blyan_tile.model.transformer import generate_local

    torch.set_num_threads(1)
    architecture = architecture_of("demo")
    arrays = initial_parameters(architecture, SEED)
    parameters = {name: torch.from_numpy(array) for name, array in arrays.items()}
    rates, tokens = [], []
    for _ in range(REPEATS):
        prompt = list(PROMPT.encode())
        made = generate_local(parameters, architecture, prompt, TOKENS)
        tokens = [next(made)]
        began = time.perf_counter()
        tokens += list(made)
        rates.append((len(tokens) - 1) / (time.perf_counter() - began))
    return rates, tokens


def four_daemons() -> tuple[list[float], list[int], int, int]:
    """Return tokens/s, the tokens, local calls and remote calls of the last answer."""
    from blyanctl import devnet
    from blyanctl.client import Client

    directory = Path(tempfile.mkdtemp(prefix="blyan-bench-"))
    try:
        nodes = devnet.up(directory, 4, lambda text: None)
        with Client(nodes[0].home) as client:
            client.call("model.create", {"preset": "demo", "seed": SEED})
        asker = nodes[-1]
        with Client(asker.home) as client:
            while any(
                expert["holders"] < 2
                for expert in client.call("expert.list")["experts"]
            ):
                time.sleep(0.2)
            me = client.call("node.status")["peer_id"]
            rates, result = [], {}
            for _ in range(REPEATS):
                result = client.call(
                    "infer.generate",
                    {"prompt": PROMPT, "max_tokens": TOKENS, "lookup": 0},
                )
                rates.append(result["timings"]["tokens_per_s"])
        calls = {peer["peer_id"]: peer["calls"] for peer in result["peers"]}
        local = calls.pop(me, 0)
        return rates, result["token_ids"], local, sum(calls.values())
    finally:
        devnet.down(directory)
        shutil.rmtree(directory)


def main() -> None:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    alone, tokens = one_process()
    network, answer, local, remote = four_daemons()
    one, four = statistics.median(alone), statistics.median(network)
    print("| demo model, greedy, median of five | tokens/s | of one process |")
    print("| --- | --- | --- |")
    print(f"| one process, all experts local | {one:.0f} | 100 % |")
    print(f"| four daemons, experts at their holders | {four:.0f} | ", end="")
    print(f"{100 * four / one:.0f} % |")
    print(f"\nexpert calls of one answer: {local} here, {remote} at peers; ", end="")
    print(f"the same tokens: {'yes' if tokens == answer else 'no'}")


if __name__ == "__main__":
    main()
