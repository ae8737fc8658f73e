"""A light client from the pages alone: docs/block-format.md, docs/consensus.md "State".

It knows a network's id and a validator set (or its root), and checks a final checkpoint's
quorum, then a state proof under it. Standard library only.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from tests.documents import tables
from tests.second.blake3 import derive
from tests.second.canonical import encode
from tests.second.curve import is_signed

CONTEXTS = {
    row[0]: row[1]
    for head, *rows in tables("block-format.md")
    if head[:2] == ["domain", "context"]
    for row in rows
}
PRECOMMIT = 2
BUCKET_BITS = 16


class Refused(Exception):
    """What was shown does not follow from what is believed."""


def digest(domain: str, *parts: bytes) -> bytes:
    framed = b"".join(len(part).to_bytes(8, "little") + part for part in parts)
    return derive(CONTEXTS[domain], framed)


def _must(holds: bool, what: str) -> None:
    if not holds:
        raise Refused(what)


def set_root(members: list[dict[str, Any]]) -> bytes:
    """Return the root of a validator set."""
    return digest("SET", *(encode("Validator", member) for member in members))


def check_final(
    final: dict[str, Any], network: bytes, members: list[dict[str, Any]]
) -> None:
    """Refused unless more than two thirds of the set's weight made it final."""
    checkpoint = final["checkpoint"]
    _must(checkpoint["network"] == network, "network")
    _must(checkpoint["validators_root"] == set_root(members), "validator set")
    id = digest("CHECKPOINT", encode("Checkpoint", checkpoint))
    weights = {member["key"]: member["weight"] for member in members}
    _must(len(weights) == len(members) and all(weights.values()), "set")
    _must(checkpoint["proposer"] in weights, "proposer")
    counted: set[bytes] = set()
    for vote in final["votes"]:
        told, voter = vote["statement"], vote["voter"]
        _must(voter in weights and voter not in counted, "voter")
        counted.add(voter)
        _must(told["version"] == 1 and told["stage"] == PRECOMMIT, "stage")
        _must(told["height"] == checkpoint["height"], "height")
        _must(told["round"] == final["votes"][0]["statement"]["round"], "round")
        _must(told["checkpoint"] == id, "checkpoint")
        raw = encode("VoteStatement", told)
        signed = digest("SIGNATURE", b"checkpoint vote", network, raw)
        _must(is_signed(voter, signed, vote["signature"]), "signature")
    weight = sum(weights[voter] for voter in counted)
    _must(3 * weight > 2 * sum(weights.values()), "quorum")


def check_state(root: bytes, key: bytes, proof: dict[str, Any]) -> bytes | None:
    """Return the value under a key, None if it is absent there. Refused."""
    path = digest("STATE", key)
    entries, paths = proof["entries"], [entry[:32] for entry in proof["entries"]]
    _must(all(one < other for one, other in zip(paths, paths[1:])), "order")
    _must(all(other[:2] == path[:2] for other in paths), "bucket")
    hashed = digest("BUCKET", *entries)
    bucket = int.from_bytes(path[:2], "big")
    _must(len(proof["siblings"]) == BUCKET_BITS, "siblings")
    for level, sibling in enumerate(proof["siblings"]):
        pair = (sibling, hashed) if bucket >> level & 1 else (hashed, sibling)
        hashed = digest("NODE", *pair)
    _must(hashed == root, "root")
    value = proof["value"]
    if path not in paths:
        _must(value is None, "a value of nothing")
        return None
    _must(value is not None, "no value")
    _must(entries[paths.index(path)][32:] == digest("VALUE", value), "value")
    return bytes(value)


def state_root(pairs: dict[bytes, bytes]) -> bytes:
    """Return the root of a whole state."""
    return _levels(pairs)[BUCKET_BITS].get(0, _empty()[BUCKET_BITS])


def manifest(pairs: dict[bytes, bytes]) -> list[bytes]:
    """Return the hashes of the 256 chunks."""
    level = _levels(pairs)[BUCKET_BITS - 8]
    return [level.get(chunk, _empty()[BUCKET_BITS - 8]) for chunk in range(256)]


def _levels(pairs: dict[bytes, bytes]) -> list[dict[int, bytes]]:
    """Return number -> hash of every node that has pairs below, from buckets to root."""
    buckets: dict[int, list[bytes]] = {}
    for key, value in pairs.items():
        path = digest("STATE", key)
        entry = path + digest("VALUE", value)
        buckets.setdefault(int.from_bytes(path[:2], "big"), []).append(entry)
    levels = [{at: digest("BUCKET", *sorted(some)) for at, some in buckets.items()}]
    for below in _empty()[:BUCKET_BITS]:
        known = levels[-1]
        pairs_of = {at // 2: (at & ~1, at | 1) for at in known}
        levels.append(
            {
                at: digest("NODE", known.get(left, below), known.get(right, below))
                for at, (left, right) in pairs_of.items()
            }
        )
    return levels


@lru_cache(maxsize=1)
def _empty() -> list[bytes]:
    """Return the hash of a node without pairs, by level."""
    found = [digest("BUCKET")]
    while len(found) <= BUCKET_BITS:
        found.append(digest("NODE", found[-1], found[-1]))
    return found


def check_attested(
    attested: dict[str, Any], network: bytes, validators_root: bytes
) -> bytes | None:
    """Return what a network's checkpoint says of the key of an `Attested`. Refused."""
    members = attested["validators"]["members"]
    _must(set_root(members) == validators_root, "validator set")
    check_final(attested["final"], network, members)
    root = attested["final"]["checkpoint"]["state_root"]
    return check_state(root, attested["key"], attested["proof"])
