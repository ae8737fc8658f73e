"""Settings of the genesis: numbers of systems that came after its first version.

Every setting has a default; a genesis names those that differ. A node must understand
all that it is given: an unknown name makes the genesis unusable for it.
"""

from __future__ import annotations

from typing import NamedTuple

from blyan_proto.constants import MAX_VALIDATORS

DAY_MS = 86_400_000


class Known(NamedTuple):
    """A setting that this software knows."""

    default: int
    low: int
    high: int
    meaning: str  # with its unit


SETTINGS: dict[str, Known] = {
    "clock_bound_ms": Known(
        10_000, 10, 3_600_000, "farthest that a proposal's time is from a voter's clock"
    ),
    "propose_timeout_ms": Known(
        3_000, 10, 600_000, "wait for a proposal in round 0 of a height"
    ),
    "vote_timeout_ms": Known(
        1_000, 10, 600_000, "wait for more votes, in either stage, in round 0"
    ),
    "round_growth_ms": Known(500, 1, 600_000, "by which both grow with each round"),
    "dispute_span_ms": Known(
        600_000, 1_000, 86_400_000, "a dispute that has no verdict by then is dropped"
    ),
    "run_idle_span_ms": Known(
        DAY_MS, 1_000, 3_650 * DAY_MS, "without an update so long, a run makes room"
    ),
    "epoch_span_ms": Known(
        3_600_000, 1_000, 2_592_000_000, "consensus epoch: rewards, validator set"
    ),
    "expert_base_micro": Known(
        1_000_000, 0, 10**15, "micro-BLY of an expert's reward for one epoch, as base"
    ),
    "learning_micro": Known(
        1_000_000, 0, 10**15, "micro-BLY for a million tokens that a model learned from"
    ),
    "payout_minimum_micro": Known(
        10_000_000, 0, 10**15, "micro-BLY of rewards that wait until there are as many"
    ),
    "quality_envelope_ppm": Known(
        200_000, 0, 1_000_000, "most that judging data may take of an epoch's budget"
    ),
    "reward_budget_micro": Known(
        100_000_000_000, 0, 10**15, "most micro-BLY of rewards in a day of chain time"
    ),
    "validation_micro": Known(
        20_000_000, 0, 10**15, "micro-BLY for an accepted submission that was judged"
    ),
    "validator_pool_micro": Known(
        1_000_000_000, 0, 10**15, "most micro-BLY for all validators in one epoch"
    ),
    "vesting_span_ms": Known(
        604_800_000, 0, 31_536_000_000, "how long a reward can still be slashed"
    ),
    "transfer_fee_micro": Known(
        0, 0, 10**12, "least fee of a transfer or reserve, micro-BLY"
    ),
    "idempotency_span_ms": Known(
        86_400_000, 1_000, 2_592_000_000, "how long a payment's key is remembered"
    ),
    "escrow_span_ms": Known(
        86_400_000, 1_000, 2_592_000_000, "longest time for which money is reserved"
    ),
    "reversal_span_ms": Known(
        86_400_000, 1_000, 2_592_000_000, "how long a captured amount can be given back"
    ),
    "stake_delay_ms": Known(
        604_800_000, 1_000, 31_536_000_000, "from unlocking a stake to spending it"
    ),
    "cent_price_micro": Known(
        10_000_000, 1, 10**15, "micro-BLY for one US cent (TOKEN-05)"
    ),
    "token_price_micro": Known(
        1_000, 0, 10**12, "micro-BLY for one generated token, unless quoted otherwise"
    ),
    # Nodes and validators. A bond of 1,000 BLY is a weight of 1.
    "unbond_span_ms": Known(
        21 * DAY_MS,
        2_000,
        3_650 * DAY_MS,
        "from the release of a bond to its end; above the trust span",
    ),
    "validator_bond_micro": Known(
        1_000_000_000, 0, 10**15, "bond that a validator needs, micro-BLY"
    ),
    "primary_bond_micro": Known(
        10_000_000, 0, 10**15, "bond that a primary needs, micro-BLY"
    ),
    "bond_unit_micro": Known(
        1_000_000_000, 1, 10**15, "bond for each unit of a validator's weight"
    ),
    "max_validators": Known(32, 1, MAX_VALIDATORS, "most members of the set"),
    "downtime_span_ms": Known(
        DAY_MS, 1_000, 3_650 * DAY_MS, "silence of a validator that costs, each time"
    ),
    "absence_span_ms": Known(
        3 * DAY_MS, 1_000, 3_650 * DAY_MS, "silence after which it leaves the set"
    ),
    "censure_span_ms": Known(
        7 * DAY_MS, 1_000, 3_650 * DAY_MS, "how long a vote of censure counts"
    ),
    "latency_span_ms": Known(
        DAY_MS, 1_000, 3_650 * DAY_MS, "how long a report of latencies counts"
    ),
    # What a class of hardware may copy beyond its placement (GPU-02): 1, 2, 4, … 512.
    **{
        f"tier{tier}_experts": Known(
            1 << tier, 0, 65_535, f"most experts that a node of tier {tier} may copy"
        )
        for tier in range(10)
    },
}
