"""What guessing by lookup is worth: tokens per traversal of texts, tokens/s of daemons.

    python -m tests.bench.bench_lookup [--quick] [--preset small]

First without a model: if one wrote these texts, token by token, how many tokens would a
traversal of its layers make? Code is the standard library, JSON this repository's test
vectors, prose its documents; the tokenizer is a BPE of 8,000 tokens, trained on the
standard library; the first quarter of each text is the prompt.

Then four daemons as in `bench_span`, random weights: two hold half of the layers each, the
fourth asks, in turns with guesses and without. What a greedy answer of random weights comes to repeats itself: that is the text with repetition,
continued from where it began to. Drawn at temperature 1 it never does: the plain text. Real
text is in between, where the first table says.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from blyan_tile.model.lookup import agreeing, draft
from tests.bench import made_checkpoint
from tests.bench.bench_span import host_layers, prompt, ready
from tests.bench.delays import delayed
from tests.functional.harness import Daemon, Network, network

ONE_WAY_S = (0.01, 0.04)
MOST = (1, 3, 7, 15)  # tokens drafted at once
AT_ONCE = 7
TEXT_TOKENS = 2000  # of one text
ROOT = Path(__file__).parents[2]


def texts() -> dict[str, list[str]]:
    """Return some texts of each kind."""
    library = sorted(Path(sys.modules["json"].__file__ or "").parents[1].glob("*.py"))
    return {
        "code": [path.read_text(errors="ignore") for path in library[40:80:5]],
        "JSON": [p.read_text() for p in sorted(ROOT.glob("tests/vectors/*.json"))],
        "prose": [path.read_text() for path in sorted(ROOT.glob("docs/*.md"))[:8]],
    }


def per_traversal(tokens: Sequence[int], most: int) -> tuple[int, int, int, int]:
    """Return tokens, traversals, drafted and accepted ones of one text."""
    all_tokens = np.array(tokens, np.int64)
    start = place = len(tokens) // 4
    steps = drafted = accepted = 0
    while place < len(tokens):
        guess = draft(all_tokens[:place], min(most, len(tokens) - 1 - place))
        right = agreeing(guess, tokens[place:])
        drafted, accepted = drafted + len(guess), accepted + right
        place, steps = place + right + 1, steps + 1
    return len(tokens) - start, steps, drafted, accepted


def without_model() -> Iterator[str]:
    from tokenizers import Tokenizer

    with tempfile.TemporaryDirectory() as name:
        made_checkpoint.make_tokenizer(Path(name), 8000)
        tokenizer = Tokenizer.from_file(f"{name}/tokenizer.json")
    yield "| tokens per traversal (accepted of the drafted) | " + " | ".join(
        f"{most} at once" for most in MOST
    ) + " |"
    yield "| --- |" + " --- |" * len(MOST)
    for kind, found in texts().items():
        coded = [tokenizer.encode(text).ids[:TEXT_TOKENS] for text in found]
        cells = []
        for most in MOST:
            sums = np.sum([per_traversal(tokens, most) for tokens in coded], axis=0)
            count, steps, drafted, accepted = sums.tolist()
            cells.append(f"{count / steps:.2f} ({100 * accepted / drafted:.0f} %)")
        yield f"| {kind} | " + " | ".join(cells) + " |"


def asked(
    node: Daemon,
    tokens: list[int],
    temperature: float,
    route: str,
    count: int,
    lookup: int,
) -> dict[str, Any]:
    return node.call(
        "infer.generate",
        token_ids=tokens,
        max_tokens=count,
        ignore_eos=True,
        temperature=temperature,
        seed=1,
        route=route,
        lookup=lookup,
    )


def measure(
    net: Network, kinds: dict[str, tuple[list[int], float]], count: int, repeats: int
) -> Iterator[str]:
    """Yield a row for each way and kind of text, asked in turns with and without."""
    for route in ("spans", "experts"):
        for kind, (tokens, temperature) in kinds.items():
            rates: dict[int, list[float]] = {}
            answers = {}
            for _ in range(repeats):
                for most in (0, AT_ONCE):
                    made = asked(net[-1], tokens, temperature, route, count, most)
                    answers[most] = made
                    rates.setdefault(most, []).append(made["timings"]["tokens_per_s"])
            before, after = (statistics.median(rates[most]) for most in (0, AT_ONCE))
            last = answers[AT_ONCE]
            same = last["token_ids"] == answers[0]["token_ids"]
            yield (
                f"| {route} | {kind} | {before:.1f} | {after:.1f} "
                f"| {after / before:.2f} | {last['drafted']} | {last['accepted']} "
                f"| {'yes' if same else 'no'} |"
            )


def in_daemons(preset: str, count: int, repeats: int) -> None:
    from blyan_tile.create import architecture_of

    layers = architecture_of(preset).layers
    with (
        tempfile.TemporaryDirectory() as name,
        network(Path(name) / "d", 4, validators=1) as net,
    ):
        net.nodes[0].call("model.create", preset=preset, seed=0)
        host_layers(net, layers)
        ready(net)
        begun = prompt(16)
        begun += asked(net[-1], begun, 0.0, "spans", 400, 0)["token_ids"]
        kinds = {"repeating": (begun, 0.0), "plain": (prompt(16), 1.0)}

        def show(delay_s: float) -> None:
            ready(net)
            for row in measure(net, kinds, count, repeats):
                print(f"| {2000 * delay_s:.0f} ms {row}", flush=True)

        show(0.0)
        with delayed(net, ONE_WAY_S[0]) as wire:
            for wire.one_way_s in ONE_WAY_S:
                show(wire.one_way_s)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--preset", default="small")
    arguments = parser.parse_args()
    for line in without_model():
        print(line, flush=True)
    count, repeats = (48, 2) if arguments.quick else (128, 5)
    print(f"\n{arguments.preset}, {count} tokens, medians of {repeats}, tokens/s\n")
    print(
        "| round trip | way | text | without | guessing | ratio | drafted | accepted "
        "| same tokens |"
    )
    print("| --- " * 9 + "|")
    in_daemons(arguments.preset, count, repeats)


if __name__ == "__main__":
    main()
