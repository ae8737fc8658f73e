"""What a learner learned from, looked at by another node (noun: train)."""

from __future__ import annotations

from blyan_proto.rpc.errors import ACCOUNT_INVALID, RUN_UNKNOWN
from blyan_proto.rpc.spec import Id, Method, arg, declare, record


@record
class AuditLearner:
    """Look at the log of a learner's round: batches derived again, steps repeated."""

    learner: str = arg("account, hex, or me", positional=True)
    round: int | None = arg(
        "round, from 1; default: the newest closed",
        default=None,
        low=1,
        positional=True,
    )
    run: Id | None = arg("run block id, hex; default: the newest", default=None)
    steps: int | None = arg(
        "steps to draw; default: one in a hundred", default=None, low=1, high=65_535
    )
    repeat: int = arg(
        "inner steps to repeat from the round's first version; 0: none",
        default=0,
        low=0,
        high=65_535,
    )


@record
class Audited:
    """What an audit saw. What is not sound and certain is refused for a day here."""

    run: Id = arg("run block id")
    round: int = arg("round, from 1")
    learner: str = arg("account, hex")
    finding: str = arg(
        "sound, absent, short, other delta, false batch, false state or far"
    )
    reason: str = arg("what was found, in a sentence")
    steps: int = arg("steps of the log")
    checked: int = arg("steps whose batches were derived again")
    confidence: float = arg("that this shows a lie in a tenth of the steps")
    repeated: int = arg("steps repeated here")
    exact: bool = arg("repeated on the same class of device: bits were compared")
    loss_difference: float = arg("largest of a repeated step, nats per token")
    groups: int = arg("groups in which the chain counts this learner's delta")
    samples: int = arg("sequences learned from, as the run prescribes")
    datasets: list[Id] = arg("block ids of the datasets that they came from")
    log: Id | None = arg("Merkle root of the log; null: none was shown")
    device: str = arg("class of the learner's device, as it says")
    own_device: str = arg("that repeated here; empty: none")
    seconds: float = arg("what the round took, as the learner says")


@record
class AuditStep:
    """One inner step was repeated."""

    done: int = arg("steps repeated")
    total: int = arg("of so many")


audit = declare(
    Method(
        "train.audit",
        AuditLearner,
        Audited,
        errors=(RUN_UNKNOWN, ACCOUNT_INVALID),
        streams=AuditStep,
        deadline_s=None,
    )
)
