"""Checks a proof of `chain prove`, from the votes of a checkpoint down to one record.

No daemon and no network: what is believed is named by the caller (DEC-A11).
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from blyan_proto.attested import MAX_ATTESTED_BYTES, Attested, verify_attested
from blyan_proto.codec import decode, from_plain
from blyan_proto.errors import DecodeError, ProtocolError
from blyan_proto.genesis import Genesis
from blyan_proto.rpc.spec import JsonObject
from blyan_proto.untyped import read_untyped
from blyan_proto.validators import ValidatorSet
from blyanctl.render import render

MAX_FILE_BYTES = 4 * MAX_ATTESTED_BYTES  # hexadecimal, and what stands beside it
EXIT_REFUSED, EXIT_USAGE = 1, 2
BALANCE = "balance"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add what is to be checked, and what is believed."""
    parser.add_argument(
        "file", metavar="FILE", help="what `--json chain prove` printed"
    )
    parser.add_argument(
        "--checkpoint",
        type=_checkpoint,
        metavar="[HEIGHT:]ID",
        help="believe this checkpoint, as `sync checkpoint` shows it",
    )
    parser.add_argument(
        "--genesis", type=Path, metavar="FILE", help="believe its first validators"
    )
    parser.add_argument(
        "--network", type=_id, metavar="ID", help="with --validators: the genesis id"
    )
    parser.add_argument(
        "--validators", type=_id, metavar="ROOT", help="believe this validator set"
    )


def run(arguments: argparse.Namespace) -> int:
    """Print what is proved; exit code 1 if nothing is."""
    try:
        believed = _believed(arguments)
        attested = _read(Path(arguments.file))
        value = verify_attested(attested, **believed)
    except OSError as error:
        text = f"Cannot read {error.filename}: {error.strerror}."
        return _fail(text, EXIT_USAGE)
    except ValueError as error:
        return _fail(f"Cannot check {arguments.file}: {error}.", EXIT_USAGE)
    except ProtocolError as error:
        return _fail(f"The proof does not hold: {error}.", EXIT_REFUSED)
    told = _told(attested, value)
    as_json = getattr(arguments, "json", False)
    sys.stdout.write((json.dumps(told) if as_json else render(told)) + "\n")
    return 0


def _fail(text: str, code: int) -> int:
    sys.stderr.write(text + "\n")
    return code


def _id(text: str) -> bytes:
    try:
        raw = bytes.fromhex(text)
    except ValueError:
        raw = b""
    if len(raw) != 32:
        raise argparse.ArgumentTypeError(f"{text!r} is not 32 bytes in hex")
    return raw


def _checkpoint(text: str) -> bytes:
    return _id(text.rpartition(":")[2])  # the id alone says which it is


def _believed(arguments: argparse.Namespace) -> dict[str, bytes | None]:
    network, validators = arguments.network, arguments.validators
    if arguments.genesis is not None:
        genesis = _genesis(arguments.genesis)
        network = genesis.id
        validators = validators or ValidatorSet(genesis.validators).root
    if arguments.checkpoint is None and None in (network, validators):
        raise ValueError(
            "name what you believe: --checkpoint ID, or --genesis FILE, or --network ID "
            "with --validators ROOT"
        )
    return {
        "checkpoint": arguments.checkpoint,
        "network": network,
        "validators": validators,
    }


def _genesis(path: Path) -> Genesis:
    with path.open("rb") as file:
        raw = file.read(MAX_FILE_BYTES)
    try:
        return from_plain(Genesis, json.loads(raw))
    except (ProtocolError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no genesis: {error}") from error


def _read(path: Path) -> Attested:
    with path.open("rb") as file:
        raw = file.read(MAX_FILE_BYTES + 1)
    if len(raw) > MAX_FILE_BYTES:
        raise ValueError("it is larger than a proof can be")
    try:
        plain = json.loads(raw)
    except (ValueError, RecursionError):
        plain = None
    proof = plain.get("proof") if isinstance(plain, dict) else None
    if not isinstance(proof, str):
        raise ValueError("it is not what `blyanctl --json chain prove` prints")
    return decode(Attested, bytes.fromhex(proof), MAX_ATTESTED_BYTES)


def _told(attested: Attested, value: bytes | None) -> JsonObject:
    """Return what is proved; nothing of it comes from elsewhere than the proof."""
    checkpoint = attested.final.checkpoint
    table, _, rest = attested.key.partition(b"/")
    fields: Any = None
    if value is not None:
        try:
            fields = read_untyped(value)
        except DecodeError:
            fields = value.hex()
    told: JsonObject = {
        "proved": True,
        "table": table.decode(errors="replace"),
        "key": rest.hex(),
        "present": value is not None,
        "fields": fields,
        "height": checkpoint.height,
        "checkpoint": checkpoint.id.hex(),
        "time_ms": checkpoint.time_ms,
        "state_root": checkpoint.state_root.hex(),
        "network": checkpoint.network.hex(),
        "validators_root": checkpoint.validators_root.hex(),
        "signers": [vote.voter.hex() for vote in attested.final.votes],
    }
    if told["table"] == BALANCE:
        told["account"] = rest[:20].hex()
        told["balance_micro"] = 0 if fields is None else fields[-1]
    return told
