"""The published formats, read a second time: by code that shares nothing with ours.

`tests/second` uses the standard library only. What it decodes, it decodes by the tables
of the normative pages; so a page that says too little or something else fails here.
"""

import json
import re
from pathlib import Path

import pytest

from tests.documents import tables
from tests.second import light
from tests.second.canonical import SCHEMA, Malformed, decode, encode
from tests.second.curve import is_signed
from tests.second.light import digest

VECTORS = Path(__file__).parent / "vectors"
BLOCKS = json.loads((VECTORS / "blocks.json").read_text())
MESSAGES = json.loads((VECTORS / "messages.json").read_text())
TBLOCKS = json.loads((VECTORS / "tile_tblock.json").read_text())
CODES = {
    row[0]: row[3]
    for head, *rows in tables("block-format.md")
    if head[:2] == ["code", "kind"]
    for row in rows
}
STATE = json.loads((VECTORS / "state.json").read_text())


def same(kind, told, read):
    """Compare a decoded value with the vector's JSON; enumerations are told by name."""
    kind = kind.rstrip("?")
    if kind in SCHEMA and isinstance(read, dict):
        assert list(told) == list(read)
        for name, of, meaning in SCHEMA[kind][-len(read) :]:
            if isinstance(told[name], str) and isinstance(read[name], int):
                called = re.escape(told[name]).replace("_", "[ _]")
                pair = rf"\b{read[name]}:? (\w+ )*?{called}\b"
                assert re.search(pair, meaning, re.I), (kind, name, meaning)
            else:
                same(of, told[name], read[name])
    elif isinstance(read, list):
        for one, other in zip(told, read, strict=True):
            same(kind[1:-1].rpartition("; ")[0], one, other)
    else:
        assert told == (read.hex() if isinstance(read, bytes) else read)


@pytest.mark.parametrize("name", BLOCKS["blocks"])
def test_a_block(name):
    vector = BLOCKS["blocks"][name]
    block = decode("Block", bytes.fromhex(vector["raw"]))
    header, payload = block["header"], block["payload"]
    same("Header", vector["header"], header)
    raw = encode("Header", header)
    assert digest("BLOCK", raw).hex() == vector["id"]
    assert digest("WORK", raw).hex() == vector["work"]
    assert digest("PAYLOAD", payload) == header["payload_digest"]
    assert len(payload) == header["payload_bytes"]
    kind = CODES[str(header["kind"])]
    same(kind, vector["payload"], decode(kind, payload))
    signed = digest("SIGNATURE", b"block", header["network"], raw)
    assert is_signed(header["author"], signed, block["signature"])
    assert not is_signed(header["author"], digest("BLOCK", raw), block["signature"])


def test_the_genesis_and_a_checkpoint():
    genesis = BLOCKS["genesis"]
    raw = bytes.fromhex(genesis["raw"])
    same("Genesis", genesis["plain"], decode("Genesis", raw))
    assert digest("GENESIS", raw).hex() == genesis["id"]
    final = BLOCKS["final_checkpoint"]
    read = decode("FinalCheckpoint", bytes.fromhex(final["raw"]))
    body = encode("Checkpoint", read["checkpoint"])
    assert digest("CHECKPOINT", body).hex() == final["id"]
    for vote in read["votes"]:
        statement = encode("VoteStatement", vote["statement"])
        signed = digest(
            "SIGNATURE", b"checkpoint vote", bytes.fromhex(genesis["id"]), statement
        )
        assert is_signed(vote["voter"], signed, vote["signature"])


SIGNED_IN_EVIDENCE = {
    1: ("Vote", "VoteStatement", "voter", b"checkpoint vote"),
    2: ("SignedProposal", "ProposalStatement", "proposer", b"checkpoint proposal"),
}


@pytest.mark.parametrize("place", range(len(BLOCKS["evidence"])))
def test_evidence_holds_by_itself(place):
    vector = BLOCKS["evidence"][place]
    read = decode("Evidence", bytes.fromhex(vector["raw"]))
    same("Evidence", vector["plain"], read)
    network = bytes.fromhex(BLOCKS["genesis"]["id"])
    if read["offence"] in SIGNED_IN_EVIDENCE:
        kind, of, signer, purpose = SIGNED_IN_EVIDENCE[read["offence"]]
        pair = [decode(kind, raw) for raw in read["statements"]]
        for one in pair:
            signed = digest("SIGNATURE", purpose, network, encode(of, one["statement"]))
            assert is_signed(one[signer], signed, one["signature"])
        first, second = (one["statement"] for one in pair)
        differing = {name for name in first if first[name] != second[name]}
        assert differing == {"checkpoint"} and pair[0][signer] == pair[1][signer]
    elif read["offence"] == 3:
        pair = [decode("SignedClaim", raw) for raw in read["statements"]]
        first, second = (one["claim"] for one in pair)
        assert {name for name in first if first[name] != second[name]} == {"result"}
    else:
        header, shown = read["headers"][0]["header"], read["statements"][0]
        signed = digest("SIGNATURE", b"block", network, encode("Header", header))
        assert is_signed(header["author"], signed, read["headers"][0]["signature"])
        if digest("PAYLOAD", shown) == header["payload_digest"]:
            assert header["payload_bytes"] != len(shown)
        else:
            assert [digest("BLOCK", shown)] == header["parents"]
            assert decode("Header", shown)["height"] + 1 != header["height"]


def test_the_fingerprint_of_a_range():
    vector = BLOCKS["sum"]
    ids = [bytes.fromhex(id) for id in vector["ids"]]
    total = sum(int.from_bytes(id, "big") for id in ids) % 2**256
    made = digest("RANGE", len(ids).to_bytes(8, "big"), total.to_bytes(32, "big"))
    assert vector["count"] == len(ids)
    assert made[:16].hex() == vector["fingerprint"]


@pytest.mark.parametrize(
    "name, kind",
    [
        ("claim", "UpdateClaim"),
        ("archive_index", "ArchiveIndex"),
        ("quote", "Quote"),
        ("receipts", "Receipts"),
    ],
)
def test_other_records(name, kind):
    vector = BLOCKS[name]
    same(kind, vector["plain"], decode(kind, bytes.fromhex(vector["raw"])))


def test_what_payer_and_payee_sign():
    network = bytes.fromhex(BLOCKS["genesis"]["id"])
    quote = decode("Quote", bytes.fromhex(BLOCKS["quote"]["raw"]))
    raw = encode("QuoteStatement", quote["statement"])
    assert digest("QUOTE", raw).hex() == BLOCKS["quote"]["id"]
    signed = digest("SIGNATURE", b"quote", network, raw)
    assert is_signed(quote["key"], signed, quote["signature"])
    block = decode("Block", bytes.fromhex(BLOCKS["blocks"]["capture"]["raw"]))
    capture = decode("Capture", block["payload"])
    raw = encode("DeliveryStatement", capture["statement"])
    signed = digest("SIGNATURE", b"delivery", network, raw)
    assert is_signed(capture["payer_key"], signed, capture["signature"])


@pytest.mark.parametrize(
    "name", [n for n, v in MESSAGES.items() if v["type"] in SCHEMA]
)
def test_a_message(name):
    vector = MESSAGES[name]
    raw = bytes.fromhex(vector["raw"])
    read = decode(vector["type"], raw)
    read.pop("", None)  # the code of a choice
    same(vector["type"], vector["plain"], read)


@pytest.mark.parametrize("name", TBLOCKS)
def test_the_root_of_a_tensor_file(name):
    vector = TBLOCKS[name]
    leaves = [bytes.fromhex(leaf) for leaf in vector["leaves"]]

    def root(leaves):
        if len(leaves) < 2:
            return leaves[0] if leaves else digest("EMPTY")
        left = 1 << (len(leaves) - 1).bit_length() - 1
        return digest("NODE", root(leaves[:left]), root(leaves[left:]))

    header = bytes.fromhex(vector["header"])
    assert digest("TBLOCK", header, b"", root(leaves)).hex() == vector["root"]


@pytest.mark.parametrize("name", STATE["states"])
def test_a_state_and_its_proofs(name):
    vector = STATE["states"][name]
    pairs = {
        bytes.fromhex(key): bytes.fromhex(value)
        for key, value in vector["pairs"].items()
    }
    root = light.state_root(pairs)
    assert root.hex() == vector["root"]
    part = decode("StatePart", bytes.fromhex(vector["part"]["raw"]))
    same("StatePart", vector["part"]["plain"], part)
    for pair in part["pairs"]:
        assert digest("STATE", pair["key"])[0] == part["chunk"]
        assert pairs[pair["key"]] == pair["value"]
    for key, raw in vector["proofs"].items():
        proof = decode("StateProof", bytes.fromhex(raw))
        shown = light.check_state(root, bytes.fromhex(key), proof)
        assert shown == pairs.get(bytes.fromhex(key))


def test_the_chunks_of_a_state():
    pairs = {
        bytes.fromhex(key): bytes.fromhex(value)
        for key, value in STATE["states"]["many"]["pairs"].items()
    }
    told = decode("StateManifest", bytes.fromhex(STATE["manifest"]))
    assert told["hashes"] == light.manifest(pairs)


def test_a_light_client():
    vector = STATE["attested"]
    read = decode("Attested", bytes.fromhex(vector["raw"]))
    same("Attested", vector["plain"], read)
    trusted = (vector["network"], vector["validators_root"])
    network, root = map(bytes.fromhex, trusted)
    assert light.check_attested(read, network, root) == bytes(300)
    del read["final"]["votes"][1]  # 3 of 5: not more than two thirds
    with pytest.raises(light.Refused, match="quorum"):
        light.check_attested(read, network, root)


def test_what_is_not_canonical_is_refused():
    raw = bytes.fromhex(BLOCKS["blocks"]["transfer"]["raw"])
    for bad in (raw + b"\0", raw[:-1], b"\xdc\0\x03" + raw[1:]):
        with pytest.raises(Malformed):
            decode("Block", bad)
    with pytest.raises(Malformed):
        decode("U64", b"\xcc\x01")
    with pytest.raises(Malformed):
        decode("[U8; 1…2]", b"\x93\x01\x02\x03")
