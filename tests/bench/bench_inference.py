"""Answers of a 52-million-parameter Mixtral: transformers beside one process of ours.

    python -m tests.bench.bench_inference [--quick]

All rows of a table are measured in turns, in one run, with one tensor thread each; a row
is a median, its ratio that of medians. The daemon is asked by its control socket.
"""

from __future__ import annotations

import argparse
import itertools
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np  # noqa: E402
import torch  # noqa: E402
import trio  # noqa: E402

from blyan_proto.block.model import Architecture  # noqa: E402
from blyan_tile.model.transformer import LocalModel  # noqa: E402
from tests.bench import made_checkpoint  # noqa: E402
from tests.unit.daemon.inference_world import Net, Node, World, running  # noqa: E402

SHAPE = Architecture(
    vocabulary=8000,
    layers=8,
    width=512,
    heads=8,
    kv_heads=4,
    head_width=64,
    experts=8,
    experts_per_token=2,
    expert_width=384,
    rope_base=1_000_000,
    rms_epsilon_ppb=10_000,
    normalise_top_k=True,
    tied_embeddings=False,
    context=2048,
)
SHORT, LONG = 16, 256  # tokens of the prompts
ABREAST = (1, 8, 32)  # requests at once
WAVE = 1900  # tokens of the prompt that comes while others decode

Answer = tuple[float, float]  # seconds to the first token; tokens/s after it
Answers = Callable[[int, int], Answer]  # tokens of the prompt and of the answer


def prompt(length: int, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(5, 250, length).tolist()


class Theirs:
    """transformers in this process."""

    def __init__(self, checkpoint: Path) -> None:
        from transformers import MixtralForCausalLM

        self._model = MixtralForCausalLM.from_pretrained(checkpoint).float().eval()

    def answer(self, length: int, tokens: int, batch: int = 1) -> Answer:
        from transformers.cache_utils import DynamicCache

        ids = torch.tensor([prompt(length, seed) for seed in range(batch)])
        cache = DynamicCache(config=self._model.config)
        began_s = time.perf_counter()
        with torch.no_grad():
            for step in range(tokens):
                made = self._model(
                    ids, past_key_values=cache, use_cache=True, logits_to_keep=1
                )
                ids = made.logits[:, -1].argmax(dim=-1, keepdim=True)  # (B, 1)
                if not step:
                    first_s = time.perf_counter()
        rate = batch * (tokens - 1) / (time.perf_counter() - first_s)
        return first_s - began_s, rate


class OneLoop:
    """Our model in a loop, nothing around it."""

    def __init__(self, world: World) -> None:
        parameters = {k: torch.from_numpy(v) for k, v in world.parameters.items()}
        self._model = LocalModel(SHAPE, parameters)

    @torch.no_grad()
    def answer(self, length: int, tokens: int) -> Answer:
        cache = self._model.trunk.new_cache(length + tokens)
        ids = torch.tensor(prompt(length))
        began_s = time.perf_counter()
        for step in range(tokens):
            logits = self._model.prefill(ids, cache)  # (V,)
            ids = logits.argmax()[None]
            if not step:
                first_s = time.perf_counter()
        return first_s - began_s, (tokens - 1) / (time.perf_counter() - first_s)


class Generating:
    """Our serving in this process, without a daemon around it."""

    def __init__(self, world: World) -> None:
        self._node = Node(world, Net(), "me", world.all_experts())

    def answer(self, length: int, tokens: int) -> Answer:
        return trio.run(self._answers, length, tokens, 1)[0]

    def together(self, tokens: int, count: int) -> float:
        """Return tokens/s of `count` answers together."""
        began_s = time.perf_counter()
        trio.run(self._answers, SHORT, tokens, count)
        return count * tokens / (time.perf_counter() - began_s)

    def gaps(self, tokens: int, with_wave: bool) -> list[float]:
        """Return the seconds between the tokens of four answers, maybe with a wave."""
        return trio.run(self._gaps, tokens, with_wave)

    async def _answers(self, length: int, tokens: int, count: int) -> list[Answer]:
        made: list[Answer] = []

        async def one(seed: int) -> None:
            _, result = await self._node.generate(prompt(length, seed), tokens)
            made.append((result.time_to_first_token_s, result.tokens_per_s))

        async with running(self._node), trio.open_nursery() as nursery:
            for seed in range(count):
                nursery.start_soon(one, seed)
        return made

    async def _gaps(self, tokens: int, with_wave: bool) -> list[float]:
        gaps: list[float] = []

        async def one(seed: int) -> None:
            times: list[float] = []
            await self._node.generate(
                prompt(SHORT, seed),
                tokens,
                on_token=lambda made: times.append(time.perf_counter()),
            )
            gaps.extend(after - before for before, after in zip(times, times[1:]))

        async with running(self._node), trio.open_nursery() as nursery:
            for seed in range(4):
                nursery.start_soon(one, seed)
            if with_wave:
                await trio.sleep(0.2)
                nursery.start_soon(self._node.generate, prompt(WAVE), 1)
        return gaps


class Daemon:
    """A real daemon with the imported checkpoint, asked by its control socket.

    Every prompt is a new one: what it keeps of an earlier prompt would not be computed.
    """

    def __init__(self, directory: Path, checkpoint: Path) -> None:
        from blyanctl import devnet
        from blyanctl.client import Client

        self._home = devnet.up(directory, 1, lambda text: None)[0].home
        with Client(self._home) as client:
            given = {"directory": str(checkpoint)}
            self._model = client.call("model.import", given)["model"]
        self._client = Client(self._home)
        self._seeds = itertools.count(1000)

    def answer(self, length: int, tokens: int) -> Answer:
        result = self._ask(self._client, prompt(length, next(self._seeds)), tokens)
        timings = result["timings"]
        return timings["time_to_first_token_s"], timings["tokens_per_s"]

    def together(self, tokens: int, count: int) -> float:
        """Return tokens/s of `count` answers together, each on its own connection."""
        from blyanctl.client import Client

        def one(seed: int) -> None:
            with Client(self._home) as client:
                self._ask(client, prompt(SHORT, seed), tokens)

        seeds = [next(self._seeds) for _ in range(count)]
        began_s = time.perf_counter()
        with ThreadPoolExecutor(count) as pool:
            list(pool.map(one, seeds))
        return count * tokens / (time.perf_counter() - began_s)

    def _ask(self, client: object, ids: list[int], tokens: int) -> dict:
        params = {
            "model": self._model,
            "token_ids": ids,
            "max_tokens": tokens,
            "ignore_eos": True,
            "lookup": 0,  # as the others; `bench_lookup` measures guesses
        }
        return client.call("infer.generate", params)  # type: ignore[attr-defined]


def in_turns(
    rows: dict[str, Answers], length: int, tokens: int, repeats: int
) -> dict[str, Answer]:
    """Return each row's medians."""
    found: dict[str, list[Answer]] = {name: [] for name in rows}
    for _ in range(repeats + 1):
        for name, answer in rows.items():
            found[name].append(answer(length, tokens))
    return {
        name: (
            statistics.median(first for first, _ in answers[1:]),
            statistics.median(rate for _, rate in answers[1:]),
        )
        for name, answers in found.items()
    }


def one_answer(rows: dict[str, Answers], tokens: int, repeats: int) -> Iterator[str]:
    """Yield a table: one answer at a time."""
    short = in_turns(rows, SHORT, tokens, repeats)
    long = in_turns(rows, LONG, tokens, repeats)
    first_s, rate = short["transformers"]
    long_s, _ = long["transformers"]
    yield f"| one answer | first token, prompt {SHORT} | prompt {LONG} | tokens/s |"
    yield "| --- | --- | --- | --- |"
    for name in rows:
        yield (
            f"| {name} | {1e3 * short[name][0]:.1f} ms ({short[name][0] / first_s:.2f}) "
            f"| {1e3 * long[name][0]:.1f} ms ({long[name][0] / long_s:.2f}) "
            f"| {short[name][1]:.0f} ({short[name][1] / rate:.2f}) |"
        )


def many_answers(
    theirs: Theirs, ours: Generating, daemon: Daemon, tokens: int, repeats: int
) -> Iterator[str]:
    """Yield a table: several answers at once."""
    yield "| tokens/s of all answers | " + " | ".join(map(str, ABREAST)) + " at once |"
    yield "| --- |" + " --- |" * len(ABREAST)
    rows: dict[str, Callable[[int], float]] = {
        "transformers, as one batch": lambda n: theirs.answer(SHORT, tokens, n)[1],
        "serving in this process": lambda n: ours.together(tokens, n),
        "daemon": lambda n: daemon.together(tokens, n),
    }
    found: dict[tuple[str, int], list[float]] = {}
    for _ in range(repeats):
        for count in ABREAST:
            for name, rate in rows.items():
                found.setdefault((name, count), []).append(rate(count))
    for name in rows:
        rates = (statistics.median(found[name, count]) for count in ABREAST)
        yield f"| {name} | " + " | ".join(f"{rate:.0f}" for rate in rates) + " |"


def between_tokens(ours: Generating, tokens: int) -> Iterator[str]:
    """Yield a table: what a long prompt does to four answers under way."""
    yield "| ms between tokens, four answers | p50 | p99 | most |"
    yield "| --- | --- | --- | --- |"
    for name, with_wave in (
        ("alone", False),
        (f"while a prompt of {WAVE} tokens is read", True),
    ):
        gaps = sorted(ours.gaps(tokens, with_wave))
        at = [gaps[len(gaps) // 2], gaps[int(0.99 * len(gaps))], gaps[-1]]
        yield f"| {name} | " + " | ".join(f"{1e3 * gap:.1f}" for gap in at) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="less of everything")
    quick = parser.parse_args().quick
    torch.set_num_threads(1)
    tokens, repeats = (32, 2) if quick else (128, 5)
    directory = Path(tempfile.mkdtemp(prefix="blyan-bench-"))
    try:
        made_checkpoint.make(directory / "checkpoint")
        world = World(SHAPE)
        theirs, ours = Theirs(directory / "checkpoint"), Generating(world)
        daemon = Daemon(directory / "net", directory / "checkpoint")
        rows: dict[str, Answers] = {
            "transformers": theirs.answer,
            "our model in a loop": OneLoop(world).answer,
            "serving in this process": ours.answer,
            "daemon": daemon.answer,
        }
        for line in one_answer(rows, tokens, repeats):
            print(line, flush=True)
        print()
        for line in many_answers(theirs, ours, daemon, tokens, 1 if quick else 3):
            print(line, flush=True)
        print()
        for line in between_tokens(ours, 64 if quick else 256):
            print(line, flush=True)
    finally:
        from blyanctl import devnet

        devnet.down(directory / "net")
        shutil.rmtree(directory)


if __name__ == "__main__":
    main()
