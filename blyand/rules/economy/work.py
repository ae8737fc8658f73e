"""What the work of the running epoch is worth, by every source's formula.

Before any pool or budget: those belong to the distribution.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from blyan_proto.constants import PPM
from blyan_proto.genesis import Genesis
from blyand.rules.economy import claims, duty, latency, reward, usage
from blyand.rules.economy.epoch import Epoch
from blyand.rules.economy.statement import Line, Service, Source
from blyand.rules.trust.offences import is_guilty
from blyand.rules.view import View

JUDGING = (Source.VALIDATION, Source.DATASET)


@dataclass(frozen=True)
class Piece:
    """What one account did for one source."""

    count: int  # checkpoints signed, calls answered, tokens learned from, submissions
    micro: int  # what that is worth

    def __add__(self, other: Piece) -> Piece:
        return Piece(self.count + other.count, self.micro + other.micro)


NOTHING = Piece(0, 0)
Pieces = Mapping[bytes, Piece]  # by account


@dataclass(frozen=True)
class Work:
    """An epoch's work."""

    pieces: Mapping[Source, Pieces]
    services: Mapping[bytes, Service]  # of validators, by account
    lines: tuple[Line, ...]  # behind the inference pieces
    inference_ppm: int  # inference's share of demand, smoothed
    alpha_ppm: int  # what inference is weighed by; learning by the rest


def measure(
    view: View, genesis: Genesis, epoch: Epoch, time_ms: int, inference_ppm: int
) -> Work:
    """Return the work of the running epoch as it is worth when it ends at `time_ms`.

    `inference_ppm` is what the epoch before left.
    """
    lines = usage.lines(view, genesis.setting("expert_base_micro"), time_ms)
    learned = claims.of(view, Source.LEARNING)
    inference_ppm = reward.smoothed(
        inference_ppm,
        sum(usage.earned(line, PPM) for line in lines),
        sum(one.micro for one in learned),
    )
    alpha, beta = reward.shares(inference_ppm)
    services = _services(view, genesis, epoch, time_ms)
    pieces = {
        Source.VALIDATOR: _validators(
            services, epoch, genesis.setting("validator_pool_micro")
        ),
        Source.INFERENCE: _servers(lines, alpha),
        Source.LEARNING: {
            one.account: Piece(one.count, one.micro * beta // PPM) for one in learned
        },
    }
    for source in JUDGING:
        pieces[source] = {
            one.account: Piece(one.count, one.micro) for one in claims.of(view, source)
        }
    return Work(
        pieces,
        {service.duty.account: service for service in services},
        tuple(lines),
        inference_ppm,
        alpha,
    )


def _services(
    view: View, genesis: Genesis, epoch: Epoch, time_ms: int
) -> list[Service]:
    """Return what is known of every validator that signed anything."""
    span_ms = genesis.setting("latency_span_ms")
    return [
        Service(
            duty=one,
            latency_ms=latency.bound_ms(view, one.account, time_ms, span_ms),
            is_faultless=not is_guilty(view, one.account, epoch.first_height),
        )
        for one in duty.running(view)
        if one.signed
    ]


def _validators(
    services: Sequence[Service], epoch: Epoch, pool: int
) -> dict[bytes, Piece]:
    found: dict[bytes, Piece] = {}
    for service in services:
        done, latency = service.duty, service.latency_ms
        micro = reward.validator(
            pool,
            done.signed,
            epoch.checkpoints,
            duty.uptime_ppm(done),
            is_fast=latency is not None and latency <= reward.FAST_MS,
            is_faultless=service.is_faultless,
        )
        known = found.get(done.account, NOTHING)
        found[done.account] = known + Piece(done.signed, micro)
    return found


def _servers(lines: Sequence[Line], alpha_ppm: int) -> dict[bytes, Piece]:
    found: dict[bytes, Piece] = {}
    for line in lines:
        piece = Piece(line.calls, usage.earned(line, alpha_ppm))
        found[line.server] = found.get(line.server, NOTHING) + piece
    return found
