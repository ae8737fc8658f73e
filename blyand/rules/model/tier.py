"""What class of hardware a node is, and how many experts it may take on. GPU-01…03, HZ-54

The formula is the white paper's. It saturates: a T4 scores 141 and is of the highest
tier with its 16 GiB. So the number of experts is bounded by memory besides.
"""

from __future__ import annotations

from collections.abc import Sequence

TIERS = 10


def score(vram_gb: float, tflops: float, pcie_gbps: float) -> float:
    """Return the score; `tflops` of 16-bit products, `pcie_gbps` in gigabytes a second."""
    return round(vram_gb * 0.5 + tflops * 2 + pcie_gbps * 0.2, 6)


def tier_of(points: float) -> int:
    """Return the tier, 0 to 9."""
    return max(0, min(TIERS - 1, int(points // 10)))


def most_experts(
    tier: int, limits: Sequence[int], memory_bytes: int, expert_bytes: int
) -> int:
    """Return how many experts a node may take on: `limits` has the number of each tier."""
    return max(0, min(limits[tier], memory_bytes // max(1, expert_bytes)))
