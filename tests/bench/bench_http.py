"""The gateway beside the control socket: the same answers of one daemon, in the same run.

First token and tokens per second of 1, 8 and 32 askers at once, whole answers streamed;
then 1,000 connections at once: how many are answered and refused, how late the last hears
it, and what another asker notices. Run: python -m tests.bench.bench_http [--quick]
"""

from __future__ import annotations

import http.client
import json
import os
import shutil
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

from blyan_proto.rpc.errors import RpcError
from blyanctl import devnet
from blyanctl.client import Client, NoAnswer

QUICK = "--quick" in sys.argv
TOKENS = 32 if QUICK else 128
ASKERS = (1, 8) if QUICK else (1, 8, 32)
REPEATS = 2 if QUICK else 5
CROWD = 200 if QUICK else 1000

Ask = Callable[[], tuple[float, int]]  # -> seconds to the first token, tokens


class Gateway:
    """Where to ask, and with what."""

    def __init__(self, home: Path) -> None:
        place = json.loads((home / "http.json").read_text())
        self.token = Path(place["token_file"]).read_text().strip()
        self.host, self.port = (
            urlsplit(place["url"]).hostname,
            urlsplit(place["url"]).port,
        )

    def post(self, body: dict[str, object]) -> http.client.HTTPResponse:
        connection = http.client.HTTPConnection(str(self.host), self.port, timeout=120)
        headers = {
            "authorization": f"Bearer {self.token}",
            "content-type": "application/json",
        }
        raw = json.dumps({"model": "demo", "prompt": "def ", "temperature": 0, **body})
        connection.request("POST", "/v1/completions", raw, headers)
        return connection.getresponse()

    def ask(self) -> tuple[float, int]:
        began = time.perf_counter()
        answer, first, count = self.post({"max_tokens": TOKENS, "stream": True}), 0.0, 0
        if answer.status != 200:
            raise SystemExit(f"the gateway answered {answer.status}: {answer.read()!r}")
        for line in answer:
            if line.startswith(b'data: {"'):
                first = first or time.perf_counter() - began
                count += 1
        return first, count


def by_socket(home: Path) -> tuple[float, int]:
    began, first = time.perf_counter(), 0.0
    with Client(home, timeout_s=120) as client:
        asked = {"prompt": "def ", "max_tokens": TOKENS}
        stream = client.stream("infer.generate", asked)
        for _ in stream:
            first = first or time.perf_counter() - began
        return first, len(stream.result["token_ids"])


def measure(asks: dict[str, Ask], askers: int) -> dict[str, tuple[float, float]]:
    """Return the median seconds to the first token, and tokens/s of all together.

    The ways of asking take turns, so that what else the machine does meets them alike.
    """
    firsts: dict[str, list[float]] = {name: [] for name in asks}
    rates: dict[str, list[float]] = {name: [] for name in asks}

    def one(name: str) -> None:
        firsts[name].append(asks[name]()[0])

    for _ in range(REPEATS):
        for name in asks:
            threads = [
                threading.Thread(target=one, args=(name,)) for _ in range(askers)
            ]
            began = time.perf_counter()
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            rates[name].append(askers * TOKENS / (time.perf_counter() - began))
    median = statistics.median
    return {name: (median(firsts[name]), median(rates[name])) for name in asks}


def crowd(gateway: Gateway) -> tuple[Counter[str], float, float]:
    """Return what became of each, when the last refusal was heard, and the slowest look
    at /health meanwhile, in seconds."""
    became: Counter[str] = Counter()
    refused: list[float] = []
    healthy = [0.0]
    over = threading.Event()

    def one() -> None:
        began = time.perf_counter()
        try:
            answer = gateway.post({"max_tokens": TOKENS})
            answer.read()
            became[str(answer.status)] += 1
            if answer.status == 429:
                refused.append(time.perf_counter() - began)
        except (OSError, http.client.HTTPException) as error:
            became[type(error).__name__] += 1

    def look() -> None:
        connection = http.client.HTTPConnection(str(gateway.host), gateway.port)
        while not over.is_set():
            began = time.perf_counter()
            connection.request("GET", "/health")
            connection.getresponse().read()
            healthy.append(time.perf_counter() - began)
            time.sleep(0.02)

    looker = threading.Thread(target=look)
    looker.start()
    threads = [threading.Thread(target=one) for _ in range(CROWD)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    over.set()
    looker.join()
    return became, max(refused, default=0.0), max(healthy)


def main() -> None:
    os.environ["BLYAND_HTTP_LISTEN"] = "127.0.0.1:0"
    directory = Path(tempfile.mkdtemp(prefix="blyan-bench-"))
    try:
        (node,) = devnet.up(directory, 1, lambda text: None)
        with Client(node.home) as client:
            client.call("model.create", {"preset": "demo", "seed": 0})
        gateway = Gateway(node.home)
        ready(node.home)
        print(
            f"| demo model, {TOKENS} tokens, one daemon | askers | first token | tokens/s |"
        )
        print("| --- | ---: | ---: | ---: |")
        asks: dict[str, Ask] = {
            "control socket": lambda: by_socket(node.home),
            "HTTP": gateway.ask,
        }
        for askers in ASKERS:
            told = measure(asks, askers)
            for name, (first, rate) in told.items():
                print(f"| {name} | {askers} | {1000 * first:.1f} ms | {rate:.0f} |")
            part = 100 * told["HTTP"][1] / told["control socket"][1]
            print(f"| HTTP of the socket | {askers} | | {part:.0f} % |")
        became, last, healthy = crowd(gateway)
        ends = ", ".join(f"{count} × {what}" for what, count in sorted(became.items()))
        print(
            f"\n{CROWD} at once: {ends}; the last refusal after {last:.2f} s; ", end=""
        )
        print(f"/health took at most {1000 * healthy:.0f} ms meanwhile")
    finally:
        devnet.down(directory)
        shutil.rmtree(directory)


def ready(home: Path) -> None:
    """Wait until the model answers."""
    while True:
        try:
            with Client(home, timeout_s=30) as client:
                client.call("infer.generate", {"prompt": "a", "max_tokens": 1})
            return
        except (RpcError, NoAnswer):
            time.sleep(0.2)


if __name__ == "__main__":
    main()
