"""How long a validator waits: numbers of the genesis, growing with the round."""

from __future__ import annotations

from dataclasses import dataclass

from blyan_proto.genesis import Genesis
from blyand.rules.chain.effects import Step


@dataclass(frozen=True)
class Timing:
    """Seconds."""

    interval: float  # earliest from one checkpoint to the next
    idle: float  # from one to the next when nothing is to be ordered (DEC-A12)
    propose: float
    vote: float
    growth: float  # with each round, of both; so that some round is long enough

    @classmethod
    def of(cls, genesis: Genesis) -> Timing:
        limits = genesis.parameters
        return cls(
            limits.checkpoint_interval_ms / 1000,
            limits.idle_interval_ms / 1000,
            genesis.setting("propose_timeout_ms") / 1000,
            genesis.setting("vote_timeout_ms") / 1000,
            genesis.setting("round_growth_ms") / 1000,
        )

    def of_step(self, step: Step, round: int) -> float:
        """Return how long a step of a round may take."""
        first = self.propose if step is Step.PROPOSE else self.vote
        return first + self.growth * round
