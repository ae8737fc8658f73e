"""How fast this machine computes, measured once and remembered. GPU-01, GPU-03

A micro-benchmark of three things: products of large matrices, a matrix read once (what a
token costs while it decodes), copies to an accelerator. Each is the best of a few tries of
some milliseconds, so that a busy moment does not decide. A processor without accelerator
counts by its products alone: its memory is no video memory, and nothing is copied.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch
import trio

from blyand.compute import Threads
from blyand.rules.model.tier import score, tier_of

logger = logging.getLogger(__name__)

TRIES = 5
PRODUCT_ROWS = 768  # on a processor: about 0.9 GFLOP
PRODUCT_ROWS_CUDA = 4096
READ_BYTES = 64 << 20
WIDTH = 4096
COPY_BYTES = 64 << 20
GIB = 1 << 30
GIGA = 1e9
TERA = 1e12


@dataclass(frozen=True)
class Speed:
    """What was measured of one device."""

    device: str  # its name, the threads and the library: what the numbers hold for
    accelerator: bool
    memory_bytes: int
    tflops: float  # products in 16 bits on an accelerator, in 32 on a processor
    read_gb_per_s: float
    copy_gb_per_s: float  # to the accelerator; 0: there is none

    @property
    def score(self) -> float:
        """The points of GPU-01."""
        vram_gb = self.memory_bytes / GIB if self.accelerator else 0.0
        return score(vram_gb, self.tflops, self.copy_gb_per_s)

    @property
    def tier(self) -> int:
        """0 to 9."""
        return tier_of(self.score)

    def seconds(self, weight_bytes: int, flops: int) -> float:
        """Return how long one token takes to pass weights that are in memory."""
        return max(
            weight_bytes / (self.read_gb_per_s * GIGA), flops / (self.tflops * TERA)
        )


class Hardware:
    """The speed of a node's device; None until it was measured."""

    def __init__(
        self,
        device: str,
        lane: Threads,
        saved: bytes | None = None,
        save: Callable[[bytes], Awaitable[None]] | None = None,
    ) -> None:
        """`saved` is what `save` was given in a former life, if anything."""
        self.speed: Speed | None = None
        self._device = torch.device(device)
        self._lane = lane
        self._saved = saved
        self._save = save

    async def measure(self) -> Speed:
        """Return the speed: as it was saved for this very device, or measured now."""
        if self.speed is not None:
            return self.speed
        name = await trio.to_thread.run_sync(_name, self._device)
        speed = read_speed(self._saved) if self._saved else None
        if speed is None or speed.device != name:
            speed = await self._measured(name)
            if self._save is not None:
                await self._save(json.dumps(asdict(speed)).encode())
        self.speed = speed
        logger.info("tier %d: %s", speed.tier, speed)
        return speed

    async def run(
        self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Measure, then do nothing until cancelled."""
        task_status.started()
        await self.measure()
        await trio.sleep_forever()

    async def _measured(self, name: str) -> Speed:
        device, run = self._device, self._lane.run
        rows = PRODUCT_ROWS if device.type == "cpu" else PRODUCT_ROWS_CUDA
        kind = torch.float32 if device.type == "cpu" else torch.float16
        square = await run(lambda: torch.ones(rows, rows, dtype=kind, device=device))
        product_s = await self._best(lambda: square @ square)
        wide = await run(lambda: torch.ones(READ_BYTES // 4 // WIDTH, WIDTH).to(device))
        vector = await run(lambda: torch.ones(WIDTH, device=device))
        read_s = await self._best(lambda: wide @ vector)
        copy = 0.0
        if device.type != "cpu":
            pinned = await run(lambda: torch.empty(COPY_BYTES // 4).pin_memory())
            copy_s = await self._best(lambda: pinned.to(device, non_blocking=True))
            copy = COPY_BYTES / copy_s / GIGA
        return Speed(
            device=name,
            accelerator=device.type != "cpu",
            memory_bytes=_memory_bytes(device),
            tflops=round(2 * rows**3 / product_s / TERA, 6),
            read_gb_per_s=round(READ_BYTES / read_s / GIGA, 3),
            copy_gb_per_s=round(copy, 3),
        )

    async def _best(self, work: Callable[[], object]) -> float:
        return min([await self._lane.run(self._timed, work) for _ in range(TRIES)])

    def _timed(self, work: Callable[[], object]) -> float:
        began_s = time.perf_counter()
        with torch.no_grad():
            work()
        if self._device.type != "cpu":
            torch.cuda.synchronize(self._device)
        return max(time.perf_counter() - began_s, 1e-9)


def read_speed(raw: bytes) -> Speed | None:
    """Return a saved speed; None where it is another version's, or damaged."""
    try:
        found = json.loads(raw)
        speed = Speed(**found)
    except (ValueError, TypeError):
        return None
    kinds: dict[str, tuple[type, ...]] = {
        "str": (str,),
        "bool": (bool,),
        "int": (int,),
        "float": (int, float),
    }
    for one in fields(Speed):
        value = getattr(speed, one.name)
        if not isinstance(value, kinds[str(one.type)]):
            return None
    return speed if speed.tflops > 0 and speed.read_gb_per_s > 0 else None


def _name(device: torch.device) -> str:
    if device.type != "cpu":
        return f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}"
    try:
        text = Path("/proc/cpuinfo").read_text(errors="replace")
    except OSError:
        text = ""
    lines = [line for line in text.splitlines() if line.startswith("model name")]
    name = lines[0].partition(":")[2].strip() if lines else "processor"
    threads = torch.get_num_threads()
    return f"{name}, {threads} threads, torch {torch.__version__}"


def _memory_bytes(device: torch.device) -> int:
    if device.type != "cpu":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
