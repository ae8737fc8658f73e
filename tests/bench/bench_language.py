"""What text costs: ``python -m tests.bench.bench_language [--quick]``.

A byte-level tokenizer of as many tokens as Qwen's, made of random merges: opening it in
a worker, encoding there beside `tokenizers` in this process, decoding token by token
here beside its own stream, and steps of a grammar. Medians.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import trio
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from tokenizers.decoders import DecodeStream

from blyan_proto.block.model import Architecture, Dtype, Model
from blyan_proto.codec import encode
from blyan_proto.constants import FORMAT_VERSION
from blyan_tile import tblock
from blyan_tile.tokenizer import companions_of
from blyand.compute import open_worker
from blyand.inference import grammars as grammar_ends
from blyand.inference import vocabularies as tokenizing
from blyand.inference.grammars import Grammars
from blyand.inference.vocabularies import Vocabularies

TOKENS, QUICK_TOKENS = 151_936, 20_000
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "tags": {"type": "array", "items": {"type": "string"}},
    },
    "required": ["name", "tags"],
    "additionalProperties": False,
}
ANSWER = '{"name": "a name of several words", "tags": ["one", "two"]}'


def made_tokenizer(count: int) -> Tokenizer:
    """Return a byte-level BPE tokenizer of `count` tokens."""
    random = Random(0)
    pieces = sorted(pre_tokenizers.ByteLevel.alphabet())
    known, merges = set(pieces), []
    while len(pieces) < count:
        a, b = random.choice(pieces[:4096]), random.choice(pieces[:512])
        if a + b not in known and len(a + b) < 16:
            known.add(a + b)
            pieces.append(a + b)
            merges.append((a, b))
    made = Tokenizer(models.BPE({p: i for i, p in enumerate(pieces)}, merges))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    return made


def model_of(root: bytes, count: int) -> Model:
    """Return a model with that tokenizer."""
    shape = Architecture(
        count, 1, 16, 1, 1, 16, 1, 1, 16, 10_000, 10_000, True, False, 1 << 20
    )
    return Model(FORMAT_VERSION, "bench", shape, root.hex(), Dtype.F32, 1, "")


async def timed_ms(call: Callable[[], Any], times: int = 1) -> float:
    """Return the median duration of an async call."""
    took = []
    for _ in range(times):
        began = time.perf_counter()
        await call()
        took.append(time.perf_counter() - began)
    return 1000 * statistics.median(took)


def row(what: str, ours_ms: float, theirs_ms: float | None = None) -> None:
    theirs = "" if theirs_ms is None else f"{theirs_ms:.3f}"
    print(f"| {what} | {ours_ms:.3f} | {theirs} |", flush=True)


async def text_costs(count: int, path: Path) -> None:
    theirs = made_tokenizer(count)
    files = companions_of({"tokenizer.json": theirs.to_str().encode()})
    array = np.frombuffer(encode(files), np.uint8)
    root = tblock.root_of(array)
    (path / root.hex()).write_bytes(tblock.to_bytes(array))
    model, text = model_of(root, count), "def main(): return 'naïve 5 €'\n" * 3000

    async def here(blob: bytes) -> None:
        await trio.lowlevel.checkpoint()

    async with open_worker("text", nice=0, limits=tokenizing.LIMITS) as worker:
        vocabularies = Vocabularies(here, lambda blob: path / blob.hex(), worker)
        opened = await timed_ms(lambda: vocabularies.of(model))
        row("open, with the start of the worker", opened)
        vocabulary = await vocabularies.of(model)
        row("the first text", await timed_ms(lambda: vocabulary.encode("a")))
        for size in (100, 10_000, 100_000 - 4):
            part = text.encode()[:size].decode(errors="ignore")
            began = time.perf_counter()
            for _ in range(5):
                theirs.encode(part)
            their_ms = 1000 * (time.perf_counter() - began) / 5
            ours = await timed_ms(lambda: vocabulary.encode(part), 9)
            row(f"encode {size} bytes", ours, their_ms)
        ids = await vocabulary.encode(text[:20_000])
        began, stream = time.perf_counter(), vocabulary.stream()
        for token in ids:
            stream.add(token)
        ours = 1000 * (time.perf_counter() - began) / len(ids)
        began, other = time.perf_counter(), DecodeStream()
        for token in ids:
            other.step(theirs, token)
        row("decode a token", ours, 1000 * (time.perf_counter() - began) / len(ids))
        answer = await vocabulary.encode(ANSWER)
    async with open_worker("grammar", nice=0, limits=grammar_ends.LIMITS) as worker:
        grammars, schema = Grammars(worker), json.dumps(SCHEMA)
        for what in ("begin a grammar, the tokens unknown", "begin a grammar"):
            began = time.perf_counter()
            async with grammars.opened(vocabulary, schema) as grammar:
                row(what, 1000 * (time.perf_counter() - began))
                assert grammar is not None
                took = []
                for token in answer:
                    began = time.perf_counter()
                    await grammar.accept(token)
                    took.append(1000 * (time.perf_counter() - began))
        row("a step of a grammar", statistics.median(took))
        row("its slowest step", max(took))


def main() -> None:
    """Print the table."""
    count = QUICK_TOKENS if "--quick" in sys.argv else TOKENS
    print(f"| ms, {count:,} tokens | here | tokenizers |\n| --- | ---: | ---: |")
    with tempfile.TemporaryDirectory() as path:
        trio.run(text_costs, count, Path(path))


if __name__ == "__main__":
    main()
