"""Which payload a kind carries, and on which chain it belongs (DEC-A3)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from blyan_proto.block import data, economy, gate, ledger, model
from blyan_proto.codec import decode, encode
from blyan_proto.constants import FORMAT_VERSION, MAX_PAYLOAD_BYTES
from blyan_proto.digest import Domain, digest
from blyan_proto.errors import DecodeError
from blyan_proto.types import Chain


@dataclass(frozen=True)
class Kind:
    """One kind of block: its code, its chain, the type of its payload."""

    code: int
    name: str
    chain: Chain
    payload: type


_TABLE = (
    Kind(1, "model", Chain.META, model.Model),
    Kind(2, "run", Chain.META, model.Run),
    Kind(3, "adoption", Chain.META, model.Adoption),
    Kind(4, "placement", Chain.META, model.Placement),
    Kind(5, "score", Chain.META, gate.Score),
    Kind(6, "sealed_score", Chain.META, gate.SealedScore),
    Kind(16, "weights", Chain.PARAMETERS, model.Weights),
    Kind(17, "tile_update", Chain.PARAMETERS, model.TileUpdate),
    Kind(18, "snapshot", Chain.PARAMETERS, model.Snapshot),
    Kind(32, "registration", Chain.LEDGER, economy.Registration),
    Kind(33, "heartbeat", Chain.LEDGER, economy.Heartbeat),
    Kind(34, "transfer", Chain.LEDGER, economy.Transfer),
    Kind(35, "bond", Chain.LEDGER, economy.Bond),
    Kind(36, "key_rotation", Chain.LEDGER, economy.KeyRotation),
    Kind(37, "evidence", Chain.LEDGER, economy.Evidence),
    Kind(38, "dispute", Chain.LEDGER, economy.Dispute),
    Kind(39, "reserve", Chain.LEDGER, ledger.Reserve),
    Kind(40, "capture", Chain.LEDGER, ledger.Capture),
    Kind(41, "release", Chain.LEDGER, ledger.Release),
    Kind(42, "reverse", Chain.LEDGER, ledger.Reverse),
    Kind(43, "stake", Chain.LEDGER, ledger.Stake),
    Kind(70, "dispute_verdict", Chain.LEDGER, economy.DisputeVerdict),
    Kind(48, "dataset", Chain.DATASETS, data.Dataset),
    Kind(49, "dataset_vote", Chain.DATASETS, data.DatasetVote),
    Kind(64, "latency_report", Chain.LEDGER, economy.LatencyReport),
    Kind(65, "censure", Chain.LEDGER, economy.Censure),
)
KINDS = {kind.code: kind for kind in _TABLE}
_BY_TYPE = {kind.payload: kind for kind in _TABLE}


def kind_of(payload: Any) -> Kind:
    """Return the kind that carries a payload of this type."""
    return _BY_TYPE[type(payload)]


def decode_payload(code: int, raw: bytes) -> Any:
    """Return the payload message of kind `code`. DecodeError for a kind unknown here."""
    kind = KINDS.get(code)
    if kind is None:
        raise DecodeError(f"unknown kind of block {code}")
    payload: Any = decode(kind.payload, raw, MAX_PAYLOAD_BYTES)
    if payload.version != FORMAT_VERSION:
        raise DecodeError(f"{kind.name} payload of version {payload.version}")
    return payload


def payload_digest(raw: bytes) -> bytes:
    """Return the digest that a header names its payload by."""
    return digest(Domain.PAYLOAD, raw)


def encode_payload(payload: Any) -> bytes:
    """Return a payload's canonical bytes."""
    return encode(payload)
