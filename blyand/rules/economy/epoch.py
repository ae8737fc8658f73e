"""Consensus epochs: spans of chain time at whose end rewards and validator sets change.

An epoch is closed by the first checkpoint whose time is a span or more after the one
that closed the epoch before, and that checkpoint is its last. When nothing was ordered
for long, an epoch is long; it is one epoch all the same (VAL-02, HZ-82, HZ-99).
"""

from __future__ import annotations

from dataclasses import replace

from blyan_proto.codec import U32, U64, message
from blyan_proto.genesis import Genesis
from blyand.rules.table import Table
from blyand.rules.view import Overlay, View


@message
class Epoch:
    """The running epoch."""

    number: U64  # the first one is 0
    began_ms: U64  # chain time of the checkpoint that closed the one before
    first_height: U64  # of its first checkpoint
    checkpoints: U32  # that were executed in it so far


EPOCH = Table(b"epoch", Epoch)  # one record


def begin(view: Overlay, genesis: Genesis) -> None:
    """Open epoch 0 with the genesis."""
    EPOCH.put(view, Epoch(0, genesis.time_ms, 1, 0))


def running(view: View) -> Epoch:
    """Return the running epoch."""
    epoch = EPOCH.get(view)
    assert epoch is not None
    return epoch


def is_over(epoch: Epoch, time_ms: int, span_ms: int) -> bool:
    """True for the checkpoint at `time_ms` when it closes the epoch."""
    return time_ms >= epoch.began_ms + span_ms


def count(view: Overlay) -> Epoch:
    """Count the checkpoint that is being executed; return the epoch with it."""
    epoch = running(view)
    epoch = replace(epoch, checkpoints=epoch.checkpoints + 1)
    EPOCH.put(view, epoch)
    return epoch


def follow(view: Overlay, epoch: Epoch, height: int, time_ms: int) -> None:
    """Open the epoch after `epoch`, which the checkpoint at `height` closed."""
    EPOCH.put(view, Epoch(epoch.number + 1, time_ms, height + 1, 0))
