"""What a network begins with: made from its founders, shown, and checked.

A founder runs `blyand init --json` and hands over what it prints; a genesis is made from
these lines and from what a TOML file says beside them. The id is everything in it
(GEN-01, GEN-04): whoever has the file can check that it is the one that was announced.
"""

from __future__ import annotations

import json
import secrets
import time
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from blyan_proto.block.economy import Registration
from blyan_proto.codec import from_plain, to_plain
from blyan_proto.constants import FORMAT_VERSION
from blyan_proto.errors import ProtocolError
from blyan_proto.genesis import (
    DEVNET,
    DEVNET_SETTINGS,
    Balance,
    Genesis,
    Parameters,
    Setting,
)
from blyan_proto.signing import is_public_key
from blyan_proto.types import Role
from blyan_proto.validators import Validator
from blyand.errors import ConfigFault
from blyand.rules.chain.execute import begin
from blyand.rules.verdict import Reject

MAX_FILE_BYTES = 4 << 20
PARAMETERS = {one.name for one in fields(Parameters)}
# A newcomer enters a set only where those known to sign are a quorum with it: of one
# or two founders of its weight they would not be (docs/consensus.md section 11).
FEW, FEW_WEIGHT = 3, 4


@dataclass(frozen=True)
class Plan:
    """What a genesis is made of besides its founders' registrations."""

    name: str = "blyan-devnet"
    parameters: Mapping[str, int] = field(default_factory=dict)  # unlike the devnet's
    settings: Mapping[str, int] = field(default_factory=dict)  # unlike the devnet's
    balances: Mapping[bytes, int] = field(default_factory=dict)  # account -> micro-BLY
    weights: Mapping[bytes, int] = field(default_factory=dict)  # key -> weight
    salt: bytes | None = None  # 32 bytes; None: random (DEC-A15)
    time_ms: int = 0  # 0: now


def read_founder(path: Path) -> Registration:
    """Return the registration in what a founder's `blyand init --json` printed."""
    plain = _json(path)
    try:
        if isinstance(plain, dict) and "registration" in plain:
            plain = plain["registration"]
        return from_plain(Registration, plain)
    except (ValueError, ProtocolError) as error:
        raise ConfigFault(
            f"{path} is not what `blyand init --json` prints: {error}"
        ) from error


def read_plan(path: Path) -> Plan:
    """Return the plan in a TOML or JSON file. ConfigFault names what is wrong in it."""
    plain = _json(path) if path.suffix == ".json" else _toml(path)
    known = {"name", "parameters", "settings", "balances", "weights", "salt", "time_ms"}
    if not isinstance(plain, dict) or (unknown := set(plain) - known):
        what = repr(min(unknown)) if isinstance(plain, dict) else "what stands there"
        raise ConfigFault(f"{path}: {what} is none of {', '.join(sorted(known))}")

    def numbers(name: str) -> dict[str, int]:
        return _numbers(plain.get(name, {}))

    try:
        return Plan(
            name=str(plain.get("name", Plan.name)),
            parameters=numbers("parameters"),
            settings=numbers("settings"),
            balances={
                _bytes(to, 20): micro for to, micro in numbers("balances").items()
            },
            weights={_bytes(key, 33): one for key, one in numbers("weights").items()},
            salt=_bytes(plain["salt"], 32) if "salt" in plain else None,
            time_ms=_numbers({"time_ms": plain.get("time_ms", 0)})["time_ms"],
        )
    except ValueError as error:
        raise ConfigFault(f"{path}: {error}") from error


def found(plan: Plan, founders: Sequence[Registration]) -> Genesis:
    """Return the genesis of a plan. ConfigFault when it would not be a sound one.

    Founders that validate are the validators, each with weight 1, or where they are few
    with `FEW_WEIGHT`, unless the plan says otherwise; weight 0 leaves one out. The order
    of the founders does not count.
    """
    founders = sorted(founders, key=lambda founder: founder.key)
    if strange := set(plan.parameters) - PARAMETERS:
        raise ConfigFault(f"there is no parameter {min(strange)!r}")
    if not any(plan.balances.values()):
        raise ConfigFault(
            "this gives nobody any money, so nothing could ever be paid: add --balance "
            "ACCOUNT=MICRO, or balances to the plan"
        )
    settings = {one.name: one.value for one in DEVNET_SETTINGS} | dict(plan.settings)
    if missing := set(plan.weights) - {founder.key for founder in founders}:
        raise ConfigFault(f"{min(missing).hex()} has a weight and is no founder")
    try:
        genesis = Genesis(
            version=FORMAT_VERSION,
            name=plan.name,
            salt=plan.salt or secrets.token_bytes(32),
            time_ms=plan.time_ms or time.time_ns() // 1_000_000,
            parameters=replace(DEVNET, **plan.parameters),
            validators=tuple(_validators(plan, founders)),
            participants=tuple(founders),
            balances=tuple(
                Balance(account, micro)
                for account, micro in sorted(plan.balances.items())
            ),
            settings=tuple(
                Setting(name, value) for name, value in sorted(settings.items())
            ),
        )
        from_plain(Genesis, to_plain(genesis))  # every bound holds
    except (ValueError, ProtocolError) as error:
        raise ConfigFault(f"this makes no genesis: {error}") from error
    problems = list(problems_of(genesis))
    if problems:
        raise ConfigFault(f"this makes no sound genesis: {problems[0]}")
    return genesis


def _validators(plan: Plan, founders: Sequence[Registration]) -> Iterator[Validator]:
    validating = [one for one in founders if one.roles & Role.VALIDATE]
    usual = 1 if len(validating) >= FEW else FEW_WEIGHT
    for founder in founders:
        weight = plan.weights.get(founder.key, usual if founder in validating else 0)
        if not weight:
            continue
        if founder.beacon_tail is None:
            raise ConfigFault(
                f"{founder.key.hex()} is to validate and has no beacon tail; its home is "
                "to be made with the role validate"
            )
        yield Validator(founder.key, weight, founder.beacon_tail)


def problems_of(genesis: Genesis) -> Iterator[str]:
    """Yield what is wrong with a genesis that could be decoded, one sentence each."""
    named = [("validator", one.key) for one in genesis.validators]
    named += [("participant", one.key) for one in genesis.participants]
    strange = [(what, key) for what, key in named if not is_public_key(key)]
    for what, key in strange:
        yield f"the key {key.hex()} of a {what} is no point of the curve"
    part = {one.key for one in genesis.participants}
    for one in genesis.validators:
        if not one.weight:
            yield f"the validator {one.key.hex()} has no weight"
        if one.key not in part:
            yield f"the validator {one.key.hex()} takes no part"
    if len({one.key for one in genesis.validators}) != len(genesis.validators):
        yield "a validator is named twice"
    for name in ("checkpoint_blocks", "checkpoint_bytes", "trust_span_ms"):
        if not getattr(genesis.parameters, name):
            yield f"the parameter {name} is 0"
    if not strange:
        try:
            begin(genesis)
        except (Reject, ValueError, ProtocolError) as error:
            yield str(error)


def _json(path: Path) -> Any:
    try:
        return json.loads(_text(path))
    except ValueError as error:
        raise ConfigFault(f"{path} is not JSON: {error}") from error


def _toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(_text(path))
    except tomllib.TOMLDecodeError as error:
        raise ConfigFault(f"{path} is not TOML: {error}") from error


def _text(path: Path) -> str:
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise ConfigFault(f"{path} is too large")
        return path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is no text"
        raise ConfigFault(f"cannot read {path}: {why}") from error


def _numbers(table: Any) -> dict[str, int]:
    if not isinstance(table, dict):
        raise ValueError(f"{table!r} is no table")
    for name, value in table.items():
        if type(value) is not int:
            raise ValueError(f"{name} is {value!r}, not a whole number")
    return table


def _bytes(text: Any, size: int) -> bytes:
    try:
        raw = bytes.fromhex(str(text).removeprefix("0x"))
    except ValueError:
        raw = b""
    if len(raw) != size:
        raise ValueError(f"{text!r} is not {size} bytes in hexadecimal")
    return raw
