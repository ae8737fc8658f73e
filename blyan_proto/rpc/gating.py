"""The gate before adoption, as people see it (noun: train)."""

from __future__ import annotations

from blyan_proto.rpc.errors import RUN_UNKNOWN
from blyan_proto.rpc.spec import Id, Method, arg, declare, record

RUN_HELP = "run block id, hex; default: the newest"


@record
class GetGate:
    """Tell how drawn validators judged a run's newest version before its adoption."""

    run: Id | None = arg(RUN_HELP, default=None)


@record
class GateScore:
    """What one validator measured."""

    validator: str = arg("account, hex")
    windows: int = arg("windows measured")
    before: float = arg("mean loss of what is adopted, nats per token")
    after: float = arg("mean loss of the version")
    bound: float = arg("upper bound of the difference, after less before")
    outlier: bool = arg("further from the median than devices explain")
    median: bool = arg("this score decided")


@record
class GateStand:
    """Where a run's newest version stands before its gate."""

    run: Id = arg("run block id")
    gate: bool = arg("the run has a gate; false: heads are adopted by schedule")
    state: str = arg("none, open, passed, failed or expired")
    reason: str = arg("what that means, in a sentence")
    round: int = arg("round of the version, from 1; 0: none yet")
    needed: int = arg("scores that decide")
    drawn: list[str] = arg("accounts of the validators that were drawn, hex")
    margin: float = arg("by which the bound may exceed 0, nats per token")
    deviations: float = arg("standard errors in the bound")
    sealed: int = arg("validators that sealed a score; shown when enough have")
    scores: list[GateScore] = arg("scores that were shown so far")
    withheld: list[str] = arg("accounts that sealed a score and did not show it, hex")


gate = declare(Method("train.gate", GetGate, GateStand, errors=(RUN_UNKNOWN,)))
