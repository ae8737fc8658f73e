"""A run from a preset and the caller's numbers, and when it may begin. DEC-B7."""

from __future__ import annotations

from dataclasses import replace

from blyan_proto.block import sending
from blyan_proto.block.gate import Gate
from blyan_proto.block.model import Inner, RateStep, Run
from blyan_proto.constants import PPM
from blyan_proto.rpc.errors import PRESET_UNKNOWN, RUN_INVALID, RpcError
from blyan_proto.rpc.records import nearest
from blyan_proto.rpc.train import Start
from blyan_proto.types import Role, members
from blyan_tile.create import run_preset
from blyand.rules.model.model import layout_for
from blyand.rules.model.run import check_numbers
from blyand.rules.model.schedule import live_seats
from blyand.rules.records import NODES, ModelRecord
from blyand.rules.verdict import Reject
from blyand.rules.view import View

GATE_WINDOWS = 128  # 16,384 tokens of the demo preset
GATE_BOUND_MILLI = 1645  # 95 %, one-sided
GATE_MARGIN_MICRO = 2_000  # tests/bench/bench_gate.py says what it costs

ROUNDS = {"demo": 30, "tiny": 6}  # presets, and how long their runs are by default


def run_of(params: Start, model: ModelRecord, dataset: bytes) -> Run:
    """Return the run that a caller asks for. RpcError PRESET_UNKNOWN, RUN_INVALID."""
    if params.preset not in ROUNDS:
        hint = nearest(params.preset, ROUNDS)
        text = f"no preset of runs is called {params.preset!r}{hint}"
        raise RpcError(PRESET_UNKNOWN, f"{text} (there are {', '.join(ROUNDS)})")
    rounds = params.rounds or ROUNDS[params.preset]  # the inner rate falls over them
    base = run_preset(params.preset, model.id, (dataset,), rounds, 0)
    run = changed(base, params)
    context = model.model.architecture.context
    if run.sequence > context:
        raise RpcError(
            RUN_INVALID,
            f"sequences of {run.sequence} tokens do not fit the model's context of "
            f"{context}; give a shorter --sequence",
        )
    try:
        check_numbers(run)
    except Reject as error:
        raise RpcError(RUN_INVALID, str(error)) from error
    return run


def changed(run: Run, params: Start) -> Run:
    """Return `run` with the numbers that the caller gave in place of its own.

    RpcError RUN_INVALID.
    """
    given = {
        "rounds": params.rounds,
        "inner_steps": params.inner_steps,
        "batch": params.batch,
        "sequence": params.sequence,
        "outer_rate_ppm": _scaled(params.outer_rate, PPM),
        "outer_momentum_ppm": _scaled(params.outer_momentum, PPM),
        "from_residual": params.from_residual,
        "quorum_ppm": _scaled(params.quorum, PPM),
        "deadline_ms": _scaled(params.deadline_s, 1000),
        "adopt_every": params.adopt_every,
        "snapshot_every": params.snapshot_every,
        "seed": params.seed,
    }
    changes: dict[str, object] = {k: v for k, v in given.items() if v is not None}
    if params.inner_rate is not None:
        rate = _scaled(params.inner_rate, 10**9)
        assert rate is not None
        changes["inner_rate"] = (RateStep(0, rate),)
    if params.inner is not None:
        changes["inner"] = Inner[params.inner.upper()]
    if params.codec is not None:
        try:
            changes["codecs"] = sending.chosen(params.codec, run.codecs)
        except ValueError as error:
            raise RpcError(RUN_INVALID, str(error)) from error
    changes["gate"] = _gate(run.gate, params)
    return replace(run, **changes)  # type: ignore[arg-type]


def _gate(gate: Gate | None, params: Start) -> Gate | None:
    """Return the gate that a caller asks for: the run's own, with other numbers."""
    if params.gate == 0:
        return None
    if params.gate is None and gate is None:
        if params.gate_margin is not None or params.gate_windows is not None:
            raise RpcError(RUN_INVALID, "give --gate, the validators to draw, too")
        return None
    gate = gate or Gate(1, GATE_WINDOWS, GATE_BOUND_MILLI, GATE_MARGIN_MICRO)
    margin = _scaled(params.gate_margin, PPM)
    return replace(
        gate,
        validators=params.gate or gate.validators,
        windows=params.gate_windows or gate.windows,
        margin_micro=gate.margin_micro if margin is None else margin,
    )


def _scaled(value: float | None, unit: int) -> int | None:
    return None if value is None else round(value * unit)


def missing(view: View, model: ModelRecord, liveness_ms: int) -> list[str]:
    """Return the groups that no live learner holds: a round could not close on them."""
    seats = live_seats(view, model.id, liveness_ms)
    held = [members(seat.held) for seat in seats if seat.roles & Role.LEARN]
    groups = layout_for(model.model).groups
    return [g.name for g in groups if not any(g.index in one for one in held)]


def is_spread(view: View, model: ModelRecord, liveness_ms: int) -> bool:
    """True when every registered node has taken up its share of the model's groups."""
    nodes = sum(1 for _ in NODES.scan(view))
    held = [members(s.held) for s in live_seats(view, model.id, liveness_ms)]
    return all(
        sum(group.index in one for one in held)
        >= (nodes if group.expert is None else min(nodes, model.model.replication))
        for group in layout_for(model.model).groups
    )
