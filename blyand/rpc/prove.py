"""Answers chain.prove: a record of executed state, proved from the votes downwards."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from blyan_proto.attested import Attested
from blyan_proto.codec import encode, to_plain
from blyan_proto.errors import DecodeError
from blyan_proto.genesis import Genesis
from blyan_proto.rpc import chain as spec
from blyan_proto.rpc import proving
from blyan_proto.rpc.errors import (
    CHECKPOINT_UNKNOWN,
    EXPERT_UNKNOWN,
    INVALID_PARAMS,
    RpcError,
)
from blyan_proto.rpc.spec import JsonObject
from blyan_proto.state import MAX_KEY_BYTES, StateProof
from blyan_proto.untyped import read_untyped
from blyan_proto.validators import Validators
from blyand.compute import Threads
from blyand.rpc.accounts import account_called
from blyand.rpc.bind import Answers
from blyand.rpc.resolve import group_called, model_called
from blyand.rules.chain.validators import predecessors
from blyand.rules.economy.book import BALANCES, Purse
from blyand.rules.records import GROUPS
from blyand.rules.view import View
from blyand.store.checkpoints import CheckpointStore
from blyand.store.state import State


@dataclass(frozen=True)
class _Wanted:
    """A key, and its record as it is declared; None for one of no known type."""

    key: bytes
    record: Any = None


def bind(
    answers: Answers,
    *,
    genesis: Genesis,
    account: bytes,
    state: State,
    checkpoints: CheckpointStore,
    lane: Threads,
) -> None:
    """Bind chain.prove. `account`: this node's. `lane` reads the database."""

    @answers(spec.prove)
    async def prove(params: proving.ProveState) -> proving.Proved:
        frozen = state.freeze()
        final = await lane.run(checkpoints.at, frozen.height)
        if final is None:
            text = "no checkpoint is final yet, so nothing vouches for the state"
            raise RpcError(CHECKPOINT_UNKNOWN, text)
        wanted = _wanted(frozen, params, account)
        proof: StateProof = await lane.run(frozen.prove, wanted.key)
        signed_by = predecessors(frozen)
        members = Validators(signed_by.members)
        attested = encode(Attested(final, members, wanted.key, proof))
        checkpoint = final.checkpoint
        return proving.Proved(
            key=wanted.key,
            value=proof.value,
            record=_shown(wanted, proof.value),
            height=checkpoint.height,
            checkpoint=checkpoint.id,
            time_ms=checkpoint.time_ms,
            state_root=checkpoint.state_root,
            network=genesis.id,
            validators_root=signed_by.root,
            signers=[vote.voter for vote in final.votes],
            proof_bytes=len(attested),
            proof=attested,
        )


def _wanted(view: View, params: proving.ProveState, own: bytes) -> _Wanted:
    """Return what a caller asks for. RpcError."""
    if params.what == "balance":
        account = account_called(params.name, own)
        parts = account, bytes([Purse[params.purse.upper()]])
        return _Wanted(BALANCES.key(*parts), BALANCES.get(view, *parts))
    if params.what == "expert":
        model = model_called(view, params.model)
        group = group_called(model, params.name, EXPERT_UNKNOWN)
        places = model.id, group.index
        return _Wanted(GROUPS.key(*places), GROUPS.get(view, *places))
    table, _, rest = params.name.partition("/")
    try:
        key = table.encode() + b"/" + bytes.fromhex(rest)
    except ValueError:
        text = "write the record as its table, `/`, and the key in hex, as balance/00ff"
        raise RpcError(INVALID_PARAMS, text) from None
    if len(key) > MAX_KEY_BYTES:
        raise RpcError(INVALID_PARAMS, f"a key has at most {MAX_KEY_BYTES} bytes")
    return _Wanted(key)


def _shown(wanted: _Wanted, value: bytes | None) -> JsonObject | None:
    if value is None:
        return None
    if wanted.record is not None:
        return to_plain(wanted.record)
    try:
        return {"fields": read_untyped(value)}
    except DecodeError:
        return {}
