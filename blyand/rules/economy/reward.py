"""Reward formulas in fixed point: what work is worth, before pools and budgets.

Factors are parts per million, amounts micro-BLY. Each formula multiplies first and
divides once, so there is one rounding, downward. docs/rewards.md has them for people.
"""

from __future__ import annotations

from collections.abc import Sequence

from blyan_proto.constants import PPM

HOUR_MS = 3_600_000
FAST_MS = 100  # VAL-01: a validator at most this far away signs fast
STALE_PPM = 800_000  # REWARD-01: an expert whose last use was over an hour ago
SHARE_LOW_PPM, SHARE_HIGH_PPM = 200_000, 800_000  # REWARD-03: bounds of each share
SMOOTHING = 8  # REWARD-03: an epoch counts an eighth of what all before it do
REPUTATION_PPM = (PPM, 5 * PPM)  # REWARD-06: "2-5x" for quality, nothing extra without


def validator(
    pool_micro: int,
    signed: int,
    checkpoints: int,
    uptime_ppm: int,
    *,
    is_fast: bool,
    is_faultless: bool,
) -> int:
    """Return a validator's part of an epoch before the pool is shared out (VAL-01).

    pool x signed / checkpoints x (1 + min(1, uptime)) x 1.1 if fast x 1.2 if faultless.
    Penalties come off what it has not been paid yet (SLASH-05), so not here again.
    """
    tenths = (11 if is_fast else 10) * (12 if is_faultless else 10)
    factor = (PPM + min(PPM, uptime_ppm)) * tenths
    return pool_micro * signed * factor // (max(1, checkpoints) * PPM * 100)


def usage_ppm(calls: int) -> int:
    """Return min(calls / 100, 2)."""
    return min(calls * PPM // 100, 2 * PPM)


def speed_ppm(response_ms: int) -> int:
    """Return max(0.5, 2 - seconds)."""
    return max(PPM // 2, 2 * PPM - response_ms * 1_000)


def recency_ppm(idle_ms: int) -> int:
    """Return 1 for an expert used within the last hour, else 0.8."""
    return PPM if idle_ms <= HOUR_MS else STALE_PPM


def expert(
    base_micro: int, calls: int, response_ms: int, score_ppm: int, idle_ms: int
) -> int:
    """Return the reward of an expert that answered `calls` (REWARD-01).

    base x usage x speed x (1 + score) x recency; at most 8 x base.
    """
    return server(base_micro, calls, 1, 1, response_ms, score_ppm, idle_ms)


def server(
    base_micro: int,
    calls: int,
    fees: int,
    all_fees: int,
    response_ms: int,
    score_ppm: int,
    idle_ms: int,
) -> int:
    """Return what one of an expert's servers gets of that: its part of the fees.

    Usage is the expert's, so that an expert earns no more from many servers. It is not
    shared by calls: whoever counts them for itself could take from others for nothing.
    Speed, score and recency are the server's own.
    """
    product = usage_ppm(calls) * speed_ppm(response_ms)
    product *= (PPM + min(PPM, score_ppm)) * recency_ppm(idle_ms) * fees
    return base_micro * product // (PPM**4 * max(1, all_fees))


def learning(micro_per_mtoken: int, tokens: int, groups: int) -> int:
    """Return what a contribution to one of a model's groups is worth.

    A learner that trained all groups on T tokens gets T tokens' worth.
    """
    return micro_per_mtoken * tokens // (1_000_000 * groups)


def validation(micro: int, submissions: int, reputation_ppm: int) -> int:
    """Return the reward of accepted submissions (REWARD-05), by reputation (REWARD-06)."""
    low, high = REPUTATION_PPM
    return micro * submissions * max(low, min(high, reputation_ppm)) // PPM


def smoothed(inference_ppm: int, inference_micro: int, learning_micro: int) -> int:
    """Return inference's share of the demand after one more epoch, averaged over time."""
    demand = inference_micro + learning_micro
    if not demand:
        return inference_ppm
    ratio = inference_micro * PPM // demand
    return (inference_ppm * (SMOOTHING - 1) + ratio) // SMOOTHING


def shares(inference_ppm: int) -> tuple[int, int]:
    """Return alpha and beta, what inference and learning rewards are weighed by.

    Their sum is always 1 (REWARD-03).
    """
    alpha = max(SHARE_LOW_PPM, min(SHARE_HIGH_PPM, inference_ppm))
    return alpha, PPM - alpha


def scale(amounts: Sequence[int], limit: int) -> list[int]:
    """Return the amounts, in proportion where all of them are more than `limit`.

    Each is rounded down, so that together they never exceed it; the rest of less than
    a micro-BLY for each recipient is not paid.
    """
    total = sum(amounts)
    if total <= limit:
        return list(amounts)
    return [amount * limit // total for amount in amounts]


def allowance(left: int, time_ms: int, end_ms: int, span_ms: int) -> int:
    """Return what an epoch that ends at `time_ms` may take of a budget until `end_ms`.

    What is left is shared evenly among the epochs that can still end before, so that no
    hour can take what the others live on.
    """
    following = max(0, end_ms - 1 - time_ms) // span_ms
    return left // (following + 1)
