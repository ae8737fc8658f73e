"""Error codes of the control interface: JSON-RPC's own, and one hundred per noun.

The first ten codes of every noun's hundred mean the same everywhere (`SHARED`): the
daemon or the network cannot do it now, and nobody made a mistake. The others are the
caller's mistakes, named here beside their noun.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class ErrorCode:
    """One way in which a call can fail."""

    code: int
    name: str
    meaning: str


class RpcError(Exception):
    """A call that failed, as the caller sees it: a code and one sentence."""

    def __init__(self, code: int | ErrorCode, message: str, data: Any = None) -> None:
        super().__init__(message)
        self.code = code.code if isinstance(code, ErrorCode) else code
        self.message = message
        self.data = data

    def to_json(self) -> dict[str, Any]:
        """Return the JSON-RPC error object."""
        body: dict[str, Any] = {"code": self.code, "message": self.message}
        if self.data is not None:
            body["data"] = self.data
        return body


PARSE_ERROR = ErrorCode(-32700, "parse error", "the line is not JSON")
INVALID_REQUEST = ErrorCode(-32600, "invalid request", "not a JSON-RPC 2.0 request")
UNKNOWN_METHOD = ErrorCode(-32601, "unknown method", "no such method")
INVALID_PARAMS = ErrorCode(-32602, "invalid params", "unknown, missing or wrong params")
INTERNAL = ErrorCode(-32603, "internal error", "the daemon failed; its log says how")
OVERLOADED = ErrorCode(-32010, "overloaded", "too many requests under way")
LINE_TOO_LONG = ErrorCode(-32011, "line too long", "a request above 1 MiB")
REPLY_TOO_LONG = ErrorCode(-32012, "reply too long", "a result above 16 MiB")
TIMED_OUT = ErrorCode(-32013, "timed out", "not done within the method's deadline")
NOT_PUBLIC = ErrorCode(-32014, "not public", "not answered over HTTP")

GENERAL = (
    PARSE_ERROR,
    INVALID_REQUEST,
    UNKNOWN_METHOD,
    INVALID_PARAMS,
    INTERNAL,
    OVERLOADED,
    LINE_TOO_LONG,
    REPLY_TOO_LONG,
    TIMED_OUT,
    NOT_PUBLIC,
)

NOUN_BASES = {
    "node": 100,
    "peer": 200,
    "chain": 300,
    "expert": 400,
    "model": 500,
    "data": 600,
    "train": 700,
    "tile": 800,
    "infer": 900,
    "net": 1000,
    "pin": 1100,
    "sync": 1200,
    "ledger": 1400,
    "supply": 1500,
    "reward": 1600,
    "validator": 1700,
    "slash": 1800,
    "consensus": 1900,
    "key": 2000,
}

# Offsets inside every noun's hundred.
SHARED = (
    ErrorCode(0, "unavailable", "cannot be done now"),
    ErrorCode(1, "busy", "everyone who could is busy; try again"),
    ErrorCode(2, "not here", "this node does not have it"),
    ErrorCode(3, "pruned", "it was here, and is past its retention"),
    ErrorCode(4, "too slow", "a peer did not answer in time"),
    ErrorCode(5, "no route", "no reachable peer can do it"),
    ErrorCode(6, "stale version", "the version asked for is no longer served"),
    ErrorCode(7, "disk full", "this node has no room for it"),
)


def shared_code(noun: str, name: str) -> int:
    """Return the code of one of `SHARED` in a noun's hundred; 'unavailable' if unknown."""
    offsets = {shared.name: shared.code for shared in SHARED}
    return NOUN_BASES[noun] + offsets.get(name, 0)


BACKUP_REFUSED = ErrorCode(110, "backup refused", "no backup can be made there")
GATEWAY_OFF = ErrorCode(111, "gateway off", "this node does not serve HTTP")

ADDRESS_INVALID = ErrorCode(210, "address invalid", "not a multiaddr with /p2p/…")
PEER_UNREACHABLE = ErrorCode(211, "peer unreachable", "nobody answered there")
PEER_REFUSED = ErrorCode(
    212, "peer refused", "the peer is of another network, banned, or us"
)
PEER_INVALID = ErrorCode(213, "peer invalid", "not a peer id")
PEER_UNKNOWN = ErrorCode(214, "peer unknown", "no such peer is connected or remembered")

BLOCK_UNKNOWN = ErrorCode(310, "block unknown", "no such block here")
CHECKPOINT_UNKNOWN = ErrorCode(311, "checkpoint unknown", "no such checkpoint here")
SYNC_HALTED = ErrorCode(312, "sync halted", "this node executes no checkpoint any more")

EXPERT_UNKNOWN = ErrorCode(410, "expert unknown", "the model has no such group")

MODEL_UNKNOWN = ErrorCode(510, "model unknown", "no such model, or none yet")
MODEL_AMBIGUOUS = ErrorCode(511, "model ambiguous", "several fit; name one")
MODEL_EXISTS = ErrorCode(512, "model exists", "the name is taken")
PRESET_UNKNOWN = ErrorCode(513, "preset unknown", "no such preset")
CHECKPOINT_INVALID = ErrorCode(
    514, "checkpoint invalid", "the files are no checkpoint that can be imported"
)
EXPORT_REFUSED = ErrorCode(515, "export refused", "it cannot be written so, or there")
WEIGHTS_INVALID = ErrorCode(
    516, "weights invalid", "the file is no packed model of that architecture"
)

DATASET_UNKNOWN = ErrorCode(610, "dataset unknown", "no such dataset, or none yet")
DATASET_AMBIGUOUS = ErrorCode(611, "dataset ambiguous", "several fit; name one")
DATASET_EXISTS = ErrorCode(612, "dataset exists", "the name is taken")
DIRECTORY_UNREADABLE = ErrorCode(613, "directory unreadable", "no readable text there")

RUN_UNKNOWN = ErrorCode(710, "run unknown", "no such run, or none yet")
RUN_ACTIVE = ErrorCode(711, "run active", "another run of this model is under way")
RUN_INVALID = ErrorCode(712, "run invalid", "these settings make no run")

TILE_UNKNOWN = ErrorCode(810, "tile unknown", "the model has no such group or tile")

PROMPT_INVALID = ErrorCode(
    910, "prompt invalid", "give a prompt or token ids, not both"
)
PROMPT_TOO_LONG = ErrorCode(911, "prompt too long", "above the model's context")
REQUEST_INVALID = ErrorCode(912, "request invalid", "a setting does not fit the model")
REQUEST_UNKNOWN = ErrorCode(913, "request unknown", "no such request is under way")

PIN_INVALID = ErrorCode(1110, "pin invalid", "not the id of a block or blob")
PIN_UNKNOWN = ErrorCode(1111, "pin unknown", "it is not pinned")
BLOB_UNKNOWN = ErrorCode(1112, "blob unknown", "no such blob here or at a peer")
PINS_FULL = ErrorCode(1113, "pins full", "no more can be pinned")

NO_CHECKPOINT = ErrorCode(1210, "no checkpoint", "nothing is final here yet")
ACCOUNT_INVALID = ErrorCode(1410, "account invalid", "not an account, a pool or me")
PAYMENT_REFUSED = ErrorCode(1411, "payment refused", "it had no effect; it says why")
KEY_CONFLICT = ErrorCode(1412, "key conflict", "the key names another payment")
FUNDS_SHORT = ErrorCode(1413, "funds short", "the account owns less than that")
TRANSACTION_UNKNOWN = ErrorCode(1414, "transaction unknown", "no such one here")
QUOTE_INVALID = ErrorCode(1415, "quote invalid", "not a quote, or not for this node")
QUOTE_EXPIRED = ErrorCode(1416, "quote expired", "ask for a new one")
SESSION_UNKNOWN = ErrorCode(1417, "session unknown", "no such session on this node")
DELIVERY_MISMATCH = ErrorCode(
    1418, "delivery mismatch", "more than 10 % off what was quoted"
)
EPOCH_UNKNOWN = ErrorCode(1610, "epoch unknown", "not over yet, or too long ago")
RECIPIENT_INVALID = ErrorCode(1611, "recipient invalid", "no peer id and no account")
RECIPIENT_UNKNOWN = ErrorCode(1612, "recipient unknown", "it got nothing in that epoch")

VALIDATOR_REFUSED = ErrorCode(
    1710, "validator refused", "it had no effect; it says why"
)
VALIDATOR_UNKNOWN = ErrorCode(1711, "validator unknown", "no such node is registered")

SLASH_UNKNOWN = ErrorCode(1810, "slash unknown", "no such penalty")
EVIDENCE_INVALID = ErrorCode(1811, "evidence invalid", "the file proves nothing")
EVIDENCE_REFUSED = ErrorCode(1812, "evidence refused", "it had no effect; it says why")

KEY_REFUSED = ErrorCode(2010, "key refused", "the key was not changed; it says why")

NOUN_ERRORS = (
    BACKUP_REFUSED,
    GATEWAY_OFF,
    ADDRESS_INVALID,
    PEER_UNREACHABLE,
    PEER_REFUSED,
    PEER_INVALID,
    PEER_UNKNOWN,
    BLOCK_UNKNOWN,
    CHECKPOINT_UNKNOWN,
    SYNC_HALTED,
    EXPERT_UNKNOWN,
    MODEL_UNKNOWN,
    MODEL_AMBIGUOUS,
    MODEL_EXISTS,
    PRESET_UNKNOWN,
    CHECKPOINT_INVALID,
    EXPORT_REFUSED,
    WEIGHTS_INVALID,
    DATASET_UNKNOWN,
    DATASET_AMBIGUOUS,
    DATASET_EXISTS,
    DIRECTORY_UNREADABLE,
    RUN_UNKNOWN,
    RUN_ACTIVE,
    RUN_INVALID,
    TILE_UNKNOWN,
    PROMPT_INVALID,
    PROMPT_TOO_LONG,
    REQUEST_INVALID,
    REQUEST_UNKNOWN,
    PIN_INVALID,
    PIN_UNKNOWN,
    BLOB_UNKNOWN,
    PINS_FULL,
    NO_CHECKPOINT,
    ACCOUNT_INVALID,
    PAYMENT_REFUSED,
    KEY_CONFLICT,
    FUNDS_SHORT,
    TRANSACTION_UNKNOWN,
    QUOTE_INVALID,
    QUOTE_EXPIRED,
    SESSION_UNKNOWN,
    DELIVERY_MISMATCH,
    EPOCH_UNKNOWN,
    RECIPIENT_INVALID,
    RECIPIENT_UNKNOWN,
    VALIDATOR_REFUSED,
    VALIDATOR_UNKNOWN,
    SLASH_UNKNOWN,
    EVIDENCE_INVALID,
    EVIDENCE_REFUSED,
    KEY_REFUSED,
)
