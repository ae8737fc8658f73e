"""What choosing a token costs: ``python -m tests.bench.bench_sampling [--quick]``.

Medians over many positions for the vocabularies of real models, beside a full softmax of
the same logits in numpy, which is what a plain implementation needs first.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable

import numpy as np

from blyan_tile.model.sampling import History, Sampling, choose

VOCABULARIES = (32_000, 50_304, 151_936)
SETTINGS: dict[str, Sampling] = {
    "greedy": Sampling(),
    "temperature": Sampling(0.8, 1),
    "top_k 40": Sampling(0.8, 1, top_k=40),
    "top_p 0.9": Sampling(0.8, 1, top_p=0.9),
    "min_p 0.05": Sampling(0.8, 1, min_p=0.05),
    "top_k 40, top_p 0.95": Sampling(0.8, 1, top_k=40, top_p=0.95),
    "penalties": Sampling(0.8, 1, top_p=0.9, presence_penalty=1, frequency_penalty=1),
}


def median_ms(call: Callable[[int], object], times: int) -> float:
    """Return the median duration of one call, in milliseconds."""
    took = []
    for at in range(times):
        began = time.perf_counter()
        call(at)
        took.append(time.perf_counter() - began)
    return 1000 * statistics.median(took)


def softmax(logits: np.ndarray) -> np.ndarray:
    """Return probabilities (V,) in float64."""
    weights = np.exp(logits.astype(np.float64) - logits.max())
    return weights / weights.sum()


def main() -> None:
    """Print one row per setting, one column per vocabulary."""
    times = 20 if "--quick" in sys.argv else 200
    print("| ms a token | " + " | ".join(f"V = {v:,}" for v in VOCABULARIES) + " |")
    print("| --- |" + " ---: |" * len(VOCABULARIES))
    rows: dict[str, list[float]] = {}
    for vocabulary in VOCABULARIES:
        rng = np.random.default_rng(0)
        # most tokens far below a few likely ones, as a trained model has it
        logits = rng.gumbel(size=vocabulary).astype(np.float32) * 2
        history = History(rng.integers(0, vocabulary, 500).tolist())
        for token in rng.integers(0, vocabulary, 200).tolist():
            history.add(token)
        for name, sampling in SETTINGS.items():
            rows.setdefault(name, []).append(
                median_ms(lambda at: choose(logits, sampling, at, history), times)
            )
        rows.setdefault("top_p 0.9, 20 likeliest told", []).append(
            median_ms(
                lambda at: choose(logits, SETTINGS["top_p 0.9"], at, history, None, 20),
                times,
            )
        )
        rows.setdefault("numpy softmax alone", []).append(
            median_ms(lambda at: softmax(logits), times)
        )
    for name, row in rows.items():
        print(f"| {name} | " + " | ".join(f"{value:.3f}" for value in row) + " |")


if __name__ == "__main__":
    main()
