"""Regenerates blocks.json and messages.json: canonical bytes of every record that travels.

    python -m tests.vectors.make_proto           writes both files beside this one
    python -m tests.vectors.make_proto blocks    prints one of them

Values are fixed; signatures are deterministic (RFC 6979). A changed file is a changed
format: docs/block-format.md and docs/protocols/ come first.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from blake3 import blake3

from blyan_proto import merkle
from blyan_proto.block import data, economy, gate, ledger, model
from blyan_proto.block.block import Block, encode_block
from blyan_proto.block.header import INLINE, NO_LAYER, Header, SignedHeader
from blyan_proto.block.payload import encode_payload, kind_of, payload_digest
from blyan_proto.block.work import work_digest
from blyan_proto.checkpoint import (
    BlobReceipt,
    Checkpoint,
    FinalCheckpoint,
    Proposal,
    ProposalStatement,
    Receipts,
    ReceiptStatement,
    SignedProposal,
    Vote,
    VoteStage,
    VoteStatement,
)
from blyan_proto.codec import encode, to_plain
from blyan_proto.digest import Domain, digest
from blyan_proto.genesis import DEVNET, Balance, Genesis
from blyan_proto.holdings import Holdings, RoundHoldings, Voters
from blyan_proto.protocols import (
    audit,
    blobs,
    blocks,
    cosign,
    delta,
    edge,
    expert,
    hello,
    providers,
    reach,
    span,
    sync,
    votes,
)
from blyan_proto.signing import Purpose, SigningKey
from blyan_proto.types import Role, bitmap
from blyan_proto.validators import Validator, ValidatorSet

HERE = Path(__file__).parent
TIME_MS = 1_767_225_600_000  # 2026-01-01


def hash_of(name: str) -> bytes:
    """Return 32 fixed bytes by name."""
    return blake3(f"vector {name}".encode()).digest()


KEY = SigningKey(hash_of("key"))
OTHER = SigningKey(hash_of("other key"))
HARDWARE = economy.Hardware("cpu", 8 << 30, 4)
REGISTRATION = economy.Registration(
    1,
    KEY.public,
    int(Role.LEARN | Role.VALIDATE),
    "eu",
    HARDWARE,
    5_000_000,
    hash_of("tail"),
)
VALIDATOR = Validator(KEY.public, 1, hash_of("tail"))
GENESIS = Genesis(
    version=1,
    name="vector",
    salt=hash_of("salt"),
    time_ms=TIME_MS,
    parameters=replace(DEVNET, work_bits=0),
    validators=(VALIDATOR,),
    participants=(REGISTRATION,),
    balances=(Balance(KEY.account, 10_000_000), Balance(OTHER.account, 250)),
)
NETWORK = GENESIS.id

ARCHITECTURE = model.Architecture(
    vocabulary=256,
    layers=2,
    width=64,
    heads=4,
    kv_heads=2,
    head_width=16,
    experts=4,
    experts_per_token=2,
    expert_width=96,
    rope_base=10_000,
    rms_epsilon_ppb=1_000,
    normalise_top_k=True,
    tied_embeddings=False,
    context=512,
    query_key_norm=model.QueryKeyNorm.WIDTH,
    shared_width=32,
    clip_qkv_micro=8_000_000,
    attention_window=64,
    attention_bias=model.BiasKind.QKV,
    dense_layers=(1,),
    dense_width=128,
    shared_gate=True,
    rope=model.RopeScaling(
        model.RopeKind.YARN,
        factor_ppb=4_000_000_000,
        original_context=128,
        low_ppb=1_000_000_000,
        high_ppb=32_000_000_000,
        attention_ppb=1_100_000_000,
        whole_pairs=False,
    ),
)
MODEL_ID, RUN_ID, DATASET_ID = hash_of("model"), hash_of("run"), hash_of("dataset")
RUN = model.Run(
    version=1,
    model=MODEL_ID,
    datasets=(DATASET_ID,),
    held_out_ppm=50_000,
    rounds=15,
    inner_steps=20,
    batch=8,
    sequence=128,
    inner_rate=(model.RateStep(0, 1_500_000), model.RateStep(10, 750_000)),
    beta1_ppm=900_000,
    beta2_ppm=990_000,
    decay_ppm=50_000,
    clip_ppm=1_000_000,
    auxiliary_ppm=10_000,
    codecs=(
        model.CodecChoice(model.TensorClass.MATRIX, 0, model.Codec.LR4, 16),
        model.CodecChoice(model.TensorClass.VECTOR, 0, model.Codec.DENSE, 0),
    ),
    feedback_ppm=1_000_000,
    outer_rate_ppm=900_000,
    outer_momentum_ppm=500_000,
    delta_clip_ppm=0,
    quorum_ppm=500_000,
    deadline_ms=60_000,
    grace_ms=2_000,
    min_tokens=64,
    rotation=0,
    adopt_every=3,
    snapshot_every=5,
    rounds_ahead=2,
    seed=7,
    gate=gate.Gate(5, 256, 1645, 2_000),
    inner=model.Inner.MUON,
)


def roots(name: str, count: int = 2) -> tuple[model.TileRoots, ...]:
    return tuple(
        model.TileRoots(hash_of(f"{name} {i}"), hash_of(f"{name} m {i}") if i else None)
        for i in range(count)
    )


def signed(update: model.TileUpdate, key: SigningKey) -> model.Cosignature:
    return model.Cosignature(
        key.public, key.sign(Purpose.TILE_UPDATE, NETWORK, update.claim)
    )


def make_update() -> model.TileUpdate:
    learners = sorted([KEY.account, OTHER.account])
    fields: dict[str, Any] = dict(
        version=1,
        model=MODEL_ID,
        run=RUN_ID,
        group=5,
        round=3,
        lease_epoch=41,
        rank=0,
        parent=hash_of("parent"),
        base=roots("base"),
        contributions=(
            model.Contribution(
                learners[0], hash_of("d0"), 0, 700, 4096, 600_000, 10**6
            ),
            model.Contribution(
                learners[1], hash_of("d1"), 700, 650, 2048, 400_000, 10**6
            ),
        ),
        result=roots("result"),
        blob=hash_of("deltas"),
    )
    draft = model.TileUpdate(
        **fields, cosignatures=(model.Cosignature(KEY.public, bytes(64)),)
    )
    return model.TileUpdate(
        **fields, cosignatures=(signed(draft, KEY), signed(draft, OTHER))
    )


UPDATE = make_update()
ROTATION = economy.RotationStatement(1, KEY.account, OTHER.public)
DELIVERY = ledger.DeliveryStatement(
    1,
    hash_of("reserve"),
    MODEL_ID,
    (ledger.Usage(5, 12), ledger.Usage(6, 300)),
    1_024,
    180,
    950_000,
    1_000_000,
)
QUOTE = ledger.QuoteStatement(
    1,
    KEY.account,
    OTHER.account,
    MODEL_ID,
    1_000,
    1_100_000,
    TIME_MS,
    TIME_MS + 300_000,
    hash_of("quote salt"),
)
SIGNED_QUOTE = ledger.Quote(QUOTE, KEY.public, KEY.sign(Purpose.QUOTE, NETWORK, QUOTE))


def vote(checkpoint: bytes | None, stage: VoteStage = VoteStage.PRECOMMIT) -> Vote:
    statement = VoteStatement(1, stage, 12, 0, checkpoint)
    signature = KEY.sign(Purpose.CHECKPOINT_VOTE, NETWORK, statement)
    return Vote(statement, KEY.public, signature)


def bare_proposal(checkpoint: bytes) -> SignedProposal:
    statement = ProposalStatement(1, 12, 1, None, checkpoint)
    signature = KEY.sign(Purpose.CHECKPOINT_PROPOSAL, NETWORK, statement)
    return SignedProposal(statement, KEY.public, signature)


PAYLOADS: tuple[Any, ...] = (
    model.Model(1, "tiny", ARCHITECTURE, "bytes", model.Dtype.BF16, 2, "a vector"),
    RUN,
    model.Adoption(1, MODEL_ID, RUN_ID, 2, hash_of("heads"), 5_545_177, 2_100_000),
    model.Placement(1, MODEL_ID, 3, 0),
    model.Weights(1, MODEL_ID, 5, (model.TileRoots(hash_of("w"), None),)),
    UPDATE,
    model.Snapshot(1, MODEL_ID, 5, hash_of("update"), 3, roots("result")),
    REGISTRATION,
    economy.Heartbeat(1, MODEL_ID, bitmap({0, 1, 5, 12}, 13), 250_000),
    economy.Transfer(1, OTHER.account, 1_000, 0, "thanks · 谢谢"),
    economy.Bond(1, 500, 0),
    economy.KeyRotation(
        1, OTHER.public, OTHER.sign(Purpose.KEY_ROTATION, NETWORK, ROTATION)
    ),
    economy.Evidence(
        1,
        economy.Offence.DOUBLE_VOTE,
        KEY.account,
        (),
        (encode(vote(hash_of("one"))), encode(vote(None))),
    ),
    economy.Dispute(1, RUN_ID, 5, 3, hash_of("update"), 1, roots("true")[1]),
    economy.DisputeVerdict(1, hash_of("update"), False),
    ledger.Reserve(
        1,
        OTHER.account,
        1_100_000,
        500,
        QUOTE.id,
        QUOTE.until_ms,
        TIME_MS + 10**6,
        b"k",
    ),
    ledger.Capture(
        1, DELIVERY, OTHER.public, OTHER.sign(Purpose.DELIVERY, NETWORK, DELIVERY)
    ),
    ledger.Release(1, hash_of("reserve")),
    ledger.Reverse(1, hash_of("reserve"), 250, b"again"),
    ledger.Stake(1, 0, 7_000_000),
    data.Dataset(
        1,
        "plays",
        hash_of("archive"),
        120_345,
        37,
        50_000,
        "CC0-1.0",
        "https://example.org/plays",
        2,
        None,
    ),
    data.DatasetVote(1, DATASET_ID, data.Tier.GOLD, "clean", hash_of("report")),
    economy.LatencyReport(
        1,
        tuple(
            economy.Latency(account, latency)
            for account, latency in zip(
                sorted([KEY.account, OTHER.account]),
                (economy.LatencyClass.LOCAL, economy.LatencyClass.DISTANT),
            )
        ),
    ),
    economy.Censure(1, OTHER.account, "transfers of 0x12 since checkpoint 400"),
    gate.Score(
        1,
        MODEL_ID,
        RUN_ID,
        2,
        hash_of("heads 0"),
        hash_of("heads"),
        64,
        320_000_000,
        319_500_000,
        5_000_000_000,
        hash_of("salt of a score"),
    ),
    gate.SealedScore(1, MODEL_ID, RUN_ID, 2, hash_of("beacon"), hash_of("seal")),
)
INDEX = data.ArchiveIndex(
    1,
    (
        data.ArchiveFile("a/one.txt", 0, 10, False),
        data.ArchiveFile("a/two.txt", 10, 0, True),
        data.ArchiveFile("b.txt", 10, 5, False),
    ),
)


def make_block(
    payload: Any, key: SigningKey = KEY, network: bytes = NETWORK, **changed: Any
) -> Block:
    """Return a signed block around a payload; `changed` header fields win."""
    kind, raw = kind_of(payload), encode_payload(payload)
    fields: dict[str, Any] = dict(
        version=1,
        network=network,
        chain=kind.chain,
        kind=kind.code,
        height=7,
        parents=tuple(sorted([hash_of("tip one"), hash_of("tip two")])),
        anchor_height=11,
        anchor=hash_of("anchor"),
        meta_ref=MODEL_ID if kind.name in ("weights", "tile_update") else None,
        subject="layer0.expert1" if kind.name == "tile_update" else "",
        layer=0 if kind.name == "tile_update" else NO_LAYER,
        payload_type=INLINE,
        payload_bytes=len(raw),
        payload_digest=payload_digest(raw),
        account=key.account,
        author=key.public,
        sequence=kind.code,
        time_ms=TIME_MS + 5,
        nonce=0,
    )
    header = Header(**{**fields, **changed})
    return Block(header, key.sign(Purpose.BLOCK, network, header), raw)


def claimed(update: model.TileUpdate) -> model.SignedClaim:
    return model.SignedClaim(update.claim, signed(update, KEY))


def make_evidence() -> tuple[economy.Evidence, ...]:
    """Return one proof of each offence that evidence shows."""
    one, other = hash_of("one"), hash_of("other")
    pairs: dict[economy.Offence, tuple[Any, Any]] = {
        economy.Offence.DOUBLE_VOTE: (vote(one), vote(other)),
        economy.Offence.DOUBLE_PROPOSAL: (bare_proposal(one), bare_proposal(other)),
        economy.Offence.DOUBLE_HEAD: (
            claimed(UPDATE),
            claimed(replace(UPDATE, result=roots("another result"))),
        ),
    }
    made = [
        economy.Evidence(
            1, offence, KEY.account, (), tuple(sorted(encode(one) for one in pair))
        )
        for offence, pair in pairs.items()
    ]
    parent = make_block(PAYLOADS[8]).header
    for lie, shown in (
        (make_block(PAYLOADS[9], payload_bytes=3), encode(PAYLOADS[9])),
        (make_block(PAYLOADS[9], height=9, parents=(parent.id,)), encode(parent)),
    ):
        signed_header = SignedHeader(lie.header, lie.signature)
        offence = economy.Offence.INVALID_BLOCK
        made.append(
            economy.Evidence(1, offence, KEY.account, (signed_header,), (shown,))
        )
    return tuple(made)


EVIDENCE = make_evidence()
BLOCKS = {kind_of(payload).name: make_block(payload) for payload in PAYLOADS}
ROOT_BLOCK = make_block(PAYLOADS[9], height=0, parents=())
SUMMED = [hash_of(f"summed {index}") for index in range(5)]
RECEIPT = ReceiptStatement(1, BLOCKS["tile_update"].id)
CHECKPOINT = Checkpoint(
    version=1,
    network=NETWORK,
    height=12,
    parent=hash_of("anchor"),
    round=0,
    proposer=KEY.public,
    time_ms=TIME_MS + 250,
    beacon=digest(Domain.BEACON, hash_of("beacon"), hash_of("preimage")),
    preimage=hash_of("preimage"),
    blocks=(BLOCKS["dataset"].id, BLOCKS["tile_update"].id),
    receipts=(
        BlobReceipt(
            RECEIPT.block,
            OTHER.public,
            OTHER.sign(Purpose.BLOB_RECEIPT, NETWORK, RECEIPT),
        ),
    ),
    state_root=hash_of("state"),
    validators_root=ValidatorSet((VALIDATOR,)).root,
    next_validators_root=ValidatorSet((VALIDATOR,)).root,
    parent_signers=b"\x01",
)
RECEIPTS = Receipts(CHECKPOINT.receipts)
FINAL = FinalCheckpoint(CHECKPOINT, (vote(CHECKPOINT.id),))


def proposal(round: int = 0, valid_round: int | None = None) -> Proposal:
    """Return the checkpoint put to the vote."""
    statement = ProposalStatement(
        1, CHECKPOINT.height, round, valid_round, CHECKPOINT.id
    )
    signed = KEY.sign(Purpose.CHECKPOINT_PROPOSAL, NETWORK, statement)
    return Proposal(statement, CHECKPOINT, KEY.public, signed)


PROPOSAL = proposal()
HOLDINGS = Holdings(
    CHECKPOINT.height,
    3,
    (
        RoundHoldings(
            3,
            (CHECKPOINT.id,),
            (Voters(CHECKPOINT.id, b"\x05"), Voters(None, b"\x0a")),
            (),
        ),
        RoundHoldings(1, (), (Voters(CHECKPOINT.id, b"\x07"),), ()),
    ),
)

GREETING = hello.Greeting(
    network=NETWORK,
    software="blyan/0.1.0",
    roles=int(Role.LEARN | Role.SERVE),
    region="eu",
    addresses=("/ip4/192.0.2.7/tcp/4001",),
    model=MODEL_ID,
    held=bitmap({0, 5}, 13),
    finalised=12,
    checkpoint=CHECKPOINT.id,
)
DELTA = delta.Delta(
    version=1,
    run=RUN_ID,
    group=5,
    round=3,
    learner=KEY.account,
    base=tuple(tile.weights for tile in UPDATE.base),
    tokens=4096,
    tiles=(b"\x02\x10" + bytes(12), b"\x01\x00" + bytes(4)),
)
LOG = tuple(
    audit.LoggedStep(
        hash_of(f"batch {index}"),
        5_500_000 - index,
        hash_of(f"state {index}") if audit.is_mark(index, 5) else None,
    )
    for index in range(5)
)
LOG_STATEMENT = audit.LogStatement(
    version=1,
    run=RUN_ID,
    round=3,
    learner=KEY.account,
    lease_epoch=41,
    steps=len(LOG),
    log=audit.root_of(LOG),
    entries=(
        audit.LogEntry(5, DELTA.digest, hash_of("d5"), hash_of("e5")),
        audit.LogEntry(6, None, None, None),
    ),
    device="cpu AVX2 torch 2.13.0",
    threads=2,
    worked_ms=1_234,
)
MANIFEST = delta.Manifest(
    run=RUN_ID,
    round=3,
    learner=KEY.account,
    entries=(delta.Entry(5, DELTA.digest), delta.Entry(6, None)),
    residual=hash_of("residual"),
    change=hash_of("change"),
    log=audit.root_of(LOG),
)
RECEIPT = delta.ReceiptClaim(
    RUN_ID,
    3,
    (
        delta.EntryVerdict(5, delta.Verdict.TAKEN),
        delta.EntryVerdict(6, delta.Verdict.NOT_PRIMARY),
    ),
    MANIFEST.digest,
)
BUNDLE = delta.Bundle(
    MANIFEST, KEY.public, KEY.sign(Purpose.DELTA_BUNDLE, NETWORK, MANIFEST), (DELTA,)
)
SIGNED_RECEIPT = delta.Receipt(
    RECEIPT.run,
    RECEIPT.round,
    RECEIPT.verdicts,
    RECEIPT.manifest,
    KEY.public,
    KEY.sign(Purpose.DELTA_RECEIPT, NETWORK, RECEIPT),
)
# name -> message, and the choice it travels in
MESSAGES: dict[str, tuple[Any, Any]] = {
    "hello": (
        hello.Hello(GREETING, KEY.sign(Purpose.HELLO, NETWORK, GREETING)),
        None,
    ),
    "known_peers": (
        hello.KnownPeers((hello.Address("16Uiu2HAm", ("/ip4/192.0.2.8/tcp/1",)),)),
        None,
    ),
    "dial_back": (reach.DialBack(4001), None),
    "dialled": (reach.Dialled(reach.Outcome.REACHED, "192.0.2.8", True), None),
    "provide": (
        providers.Provide((hash_of("blob"), hash_of("expert"))),
        providers.REQUEST,
    ),
    "kept": (providers.Kept(2), None),
    "find": (providers.Find(hash_of("blob")), providers.REQUEST),
    "found": (
        providers.Found(
            (hello.Address("16Uiu2HAm", ("/ip4/192.0.2.8/tcp/1",)),),
            (hello.Address("16Uiu2HAn", ("/ip6/2001:db8::1/tcp/2",)),),
        ),
        None,
    ),
    "get_blocks": (blocks.GetBlocks((BLOCKS["bond"].id,)), blocks.REQUEST),
    "blocks": (
        blocks.Blocks((BLOCKS["bond"], ROOT_BLOCK), (hash_of("pruned"),), 5),
        None,
    ),
    "compare": (
        blocks.Compare((blocks.Range("", blocks.sum_of(0, 0).fingerprint),)),
        blocks.REQUEST,
    ),
    "compare_deeper": (
        blocks.Compare(
            (blocks.Range("07e", None), blocks.Range("a", hash_of("f")[:16]))
        ),
        blocks.REQUEST,
    ),
    "compared": (
        blocks.Compared(
            (
                blocks.Held(2, (hash_of("one"), hash_of("two")), ()),
                blocks.Held(
                    9, (), tuple(blocks.sum_of(n, n << 250) for n in range(16))
                ),
                blocks.Held(0, (), ()),
            )
        ),
        None,
    ),
    "get_checkpoints": (sync.GetCheckpoints(12, 128), sync.REQUEST),
    "proposal": (PROPOSAL, None),
    "re_proposal": (proposal(3, 1), None),
    "holdings": (HOLDINGS, votes.MESSAGE),
    "holdings_not_begun": (Holdings(12, None, ()), votes.MESSAGE),
    "checkpoints": (sync.Checkpoints(12, (FINAL,)), None),
    "get_handovers": (sync.GetHandovers(1, 128), sync.REQUEST),
    "get_validators": (sync.GetValidators(CHECKPOINT.validators_root), sync.REQUEST),
    "get_offers": (sync.GetOffers(12), sync.REQUEST),
    "offers": (sync.Offers(12, (FINAL,)), None),
    "get_manifest": (sync.GetManifest(CHECKPOINT.id), sync.REQUEST),
    "get_part": (sync.GetPart(CHECKPOINT.id, 7, b"\x07" * 32), sync.REQUEST),
    "get_headers": (sync.GetHeaders((ROOT_BLOCK.id,)), sync.REQUEST),
    "headers": (
        sync.Headers((SignedHeader(ROOT_BLOCK.header, ROOT_BLOCK.signature),)),
        None,
    ),
    "get_outline": (blobs.GetOutline(hash_of("blob")), blobs.REQUEST),
    "get_leaves": (blobs.GetLeaves(hash_of("blob"), 16, 16), blobs.REQUEST),
    "outline": (blobs.OutlineOf(bytes(128), b"", (hash_of("leaf"),)), None),
    "leaf": (blobs.Leaf(16, b"some bytes"), None),
    "forward": (
        expert.Forward(
            model=MODEL_ID,
            numerics=expert.Numerics.REFERENCE,
            width=2,
            experts=(
                expert.ExpertRows(5, hash_of("group"), b"\x00\x00\x01\x00"),
                expert.ExpertRows(6, hash_of("group 6"), b"\x01\x00"),
            ),
            activations=bytes(range(16)),
        ),
        expert.REQUEST,
    ),
    "forward_bf16": (
        expert.Forward(
            model=MODEL_ID,
            numerics=expert.Numerics.BF16,
            width=2,
            experts=(expert.ExpertRows(5, hash_of("group"), b"\x00\x00"),),
            activations=bytes(range(4)),
        ),
        expert.REQUEST,
    ),
    "outputs": (expert.Outputs(3, (bytes(16), bytes(8))), expert.ANSWER),
    "open": (
        span.Open(
            session=hash_of("session")[:16],
            model=MODEL_ID,
            numerics=expert.Numerics.REFERENCE,
            first=2,
            end=4,
            versions=span.versions_digest(
                MODEL_ID, 2, 4, [hash_of("group"), hash_of("group 6")]
            ),
            capacity=300,
        ),
        span.REQUEST,
    ),
    "opened": (span.Opened(0), span.ANSWER),
    "step": (
        span.Step(hash_of("session")[:16], 256, 1, bytes(range(16))),
        span.REQUEST,
    ),
    "stepped": (span.Stepped(bytes(range(8))), span.ANSWER),
    "end": (span.End(hash_of("session")[:16]), span.REQUEST),
    "ended": (span.Ended(258), span.ANSWER),
    "bundle": (BUNDLE, delta.REQUEST),
    "parcel": (
        edge.Parcel((edge.Addressed(KEY.account, BUNDLE),)),
        edge.REQUEST,
    ),
    "get_pieces": (
        edge.GetPieces(hash_of("deltas"), (edge.Span(0, 96), edge.Span(300, 96))),
        edge.REQUEST,
    ),
    "replies": (edge.Replies((SIGNED_RECEIPT, None)), edge.ANSWER),
    "pieces": (edge.Pieces((b"first", b"")), edge.ANSWER),
    "ask": (audit.Ask(RUN_ID, 3, (1, 4)), audit.REQUEST),
    "shown": (
        audit.Shown(
            audit.SignedLog(
                LOG_STATEMENT,
                KEY.public,
                KEY.sign(Purpose.TRAINING_LOG, NETWORK, LOG_STATEMENT),
            ),
            tuple(
                audit.ShownStep(
                    index, LOG[index], merkle.prove([one.leaf for one in LOG], index)
                )
                for index in (1, 4)
            ),
        ),
        audit.ANSWER,
    ),
    "absent": (audit.Absent(3), audit.ANSWER),
    "draft": (
        cosign.Draft(replace(UPDATE, cosignatures=UPDATE.cosignatures[:1])),
        cosign.REQUEST,
    ),
    "cosigned": (cosign.Cosigned(UPDATE.cosignatures[0].signature), cosign.ANSWER),
    "declined": (cosign.Declined(cosign.Reason.OTHER_RESULT), cosign.ANSWER),
    "receipt": (SIGNED_RECEIPT, delta.ANSWER),
}


def encode_message(name: str) -> bytes:
    """Return the bytes of a sample as they stand in a frame."""
    value, choice = MESSAGES[name]
    return encode(value) if choice is None else bytes(choice.encode(value))


def build_blocks() -> dict[str, Any]:
    return {
        "genesis": {
            "id": NETWORK.hex(),
            "raw": encode(GENESIS).hex(),
            "plain": to_plain(GENESIS),
        },
        "final_checkpoint": {
            "id": CHECKPOINT.id.hex(),
            "raw": encode(FINAL).hex(),
            "plain": to_plain(FINAL),
        },
        "receipts": {"raw": encode(RECEIPTS).hex(), "plain": to_plain(RECEIPTS)},
        "archive_index": {"raw": encode(INDEX).hex(), "plain": to_plain(INDEX)},
        "claim": {
            "raw": encode(UPDATE.claim).hex(),
            "plain": to_plain(UPDATE.claim),
        },
        "quote": {
            "id": QUOTE.id.hex(),
            "raw": encode(SIGNED_QUOTE).hex(),
            "plain": to_plain(SIGNED_QUOTE),
        },
        "evidence": [
            {"raw": encode(one).hex(), "plain": to_plain(one)} for one in EVIDENCE
        ],
        "sum": {
            "ids": [id.hex() for id in SUMMED],
            **to_plain(
                blocks.sum_of(
                    len(SUMMED), sum(int.from_bytes(id, "big") for id in SUMMED)
                )
            ),
        },
        "blocks": {
            name: {
                "id": block.id.hex(),
                "work": f"{work_digest(block.header):064x}",
                "raw": encode_block(block).hex(),
                "header": to_plain(block.header),
                "payload": to_plain(block.content),
                "signature": block.signature.hex(),
            }
            for name, block in (*BLOCKS.items(), ("transfer_root", ROOT_BLOCK))
        },
    }


def build_messages() -> dict[str, Any]:
    return {
        name: {
            "type": type(value).__name__,
            "raw": encode_message(name).hex(),
            "plain": to_plain(value),
        }
        for name, (value, _) in MESSAGES.items()
    }


BUILD = {"blocks": build_blocks, "messages": build_messages}


def main(names: list[str]) -> None:
    for name in names:
        print(json.dumps(BUILD[name](), indent=1, ensure_ascii=False))
    if not names:
        for name, build in BUILD.items():
            text = json.dumps(build(), indent=1, ensure_ascii=False)
            (HERE / f"{name}.json").write_text(text + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
