"""A small network in memory: signed blocks, checkpoints, and executed state."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from blyan_proto.block.block import Block
from blyan_proto.block.data import Dataset
from blyan_proto.block.economy import Hardware, Heartbeat, Registration
from blyan_proto.block.header import INLINE, NO_LAYER, Header
from blyan_proto.block.model import (
    Adoption,
    Architecture,
    Contribution,
    Cosignature,
    Dtype,
    Model,
    RateStep,
    Run,
    TileRoots,
    TileUpdate,
    Weights,
)
from blyan_proto.block.payload import encode_payload, kind_of, payload_digest
from blyan_proto.block.sending import chosen
from blyan_proto.constants import FORMAT_VERSION, PPM
from blyan_proto.genesis import DEVNET, Balance, Genesis
from blyan_proto.signing import Purpose, SigningKey
from blyan_proto.types import Role, bitmap
from blyan_proto.validators import Validator
from blyand.rules.chain.execute import Moment, Outcome, begin, execute
from blyand.rules.chain.intake import Place, Verified, check, verify
from blyand.rules.chain.order import order
from blyand.rules.model.adoption import versions_of
from blyand.rules.model.election import ranks
from blyand.rules.model.model import heads_root, layout_for
from blyand.rules.model.schedule import next_round
from blyand.rules.model.update import contribution_weights
from blyand.rules.posting import Posting
from blyand.rules.records import CLOCK, GROUPS, SCHEDULES, Group, Schedule
from blyand.store.state import State

START_MS = 1_700_000_000_000
STEP_MS = 250
ARCHITECTURE = Architecture(
    vocabulary=256,
    layers=1,
    width=16,
    heads=2,
    kv_heads=1,
    head_width=8,
    experts=4,
    experts_per_token=2,
    expert_width=24,
    rope_base=10_000,
    rms_epsilon_ppb=1_000,
    normalise_top_k=True,
    tied_embeddings=False,
    context=64,
)


def some(seed: object) -> random.Random:
    """Return a random source that a name seeds."""
    return random.Random(str(seed))


def key(name: object) -> SigningKey:
    """Return a key by name."""
    return SigningKey(some(f"key {name}").randbytes(32))


def registration(key: SigningKey, **changed: Any) -> Registration:
    """Return what a participant registers with."""
    made = Registration(
        version=FORMAT_VERSION,
        key=key.public,
        roles=int(Role.LEARN | Role.SERVE),
        region="",
        hardware=Hardware("cpu", 1 << 30, 1),
        bond_micro=0,
        beacon_tail=None,
    )
    return replace(made, **changed)


def genesis_of(keys: list[SigningKey], tail: bytes, **changed: Any) -> Genesis:
    """Return a genesis in which the first key validates alone and all take part."""
    made = Genesis(
        version=FORMAT_VERSION,
        name="unit",
        salt=some("salt").randbytes(32),
        time_ms=START_MS,
        parameters=replace(DEVNET, work_bits=0),
        validators=(Validator(keys[0].public, 1, tail),),
        participants=tuple(registration(key) for key in keys),
        balances=tuple(Balance(key.account, 1_000) for key in keys),
    )
    return replace(made, **changed)


def sign_block(
    genesis: Genesis, key: SigningKey, payload: Any, **changed: Any
) -> Block:
    """Return a signed block without parents; `changed` header fields win."""
    kind, raw = kind_of(payload), encode_payload(payload)
    fields: dict[str, Any] = dict(
        version=FORMAT_VERSION,
        network=genesis.id,
        chain=kind.chain,
        kind=kind.code,
        height=0,
        parents=(),
        anchor_height=0,
        anchor=genesis.id,
        meta_ref=None,
        subject="",
        layer=NO_LAYER,
        payload_type=INLINE,
        payload_bytes=len(raw),
        payload_digest=payload_digest(raw),
        account=key.account,
        author=key.public,
        sequence=1,
        time_ms=START_MS,
        nonce=0,
    )
    header = Header(**{**fields, **changed})
    return Block(header, key.sign(Purpose.BLOCK, genesis.id, header), raw)


def child_of(
    genesis: Genesis, key: SigningKey, payload: Any, *parents: Block, **changed: Any
) -> Block:
    """Return a signed block on top of others."""
    return sign_block(
        genesis,
        key,
        payload,
        parents=tuple(sorted(parent.id for parent in parents)),
        height=1 + max(parent.header.height for parent in parents),
        **changed,
    )


def verified(
    genesis: Genesis, *blocks: Block, known: Sequence[Block] = ()
) -> list[Verified]:
    """Return blocks as the rules verify them, parents among them or `known`."""
    places = {
        block.id: Place(block.header.chain, block.header.height)
        for block in (*known, *blocks)
    }
    return [
        verify(check(block, genesis, block.header.time_ms), places.get)
        for block in blocks
    ]


def beat(model: bytes | None = None, held: bytes = b"", load: int = 0) -> Heartbeat:
    """Return a heartbeat."""
    return Heartbeat(FORMAT_VERSION, model, held, load)


def model(**changed: Any) -> Model:
    """Return a model of seven groups: embed, trunk, router and four experts."""
    made = Model(FORMAT_VERSION, "tiny", ARCHITECTURE, "bytes", Dtype.F32, 2, "")
    return replace(made, **changed)


def dataset(**changed: Any) -> Dataset:
    """Return a dataset."""
    blob = some("archive").randbytes(32)
    made = Dataset(1, "plays", blob, 9000, 3, 30_000, "CC0-1.0", "", 0, None)
    return replace(made, **changed)


# All codecs take part in what nodes do to each other.
CODECS = ("matrix=LR4:4", "matrix=LRC:4@1", "matrix=SC:64/1@2", "matrix=LR4:2@3")
CODECS += ("embedding=ROWS:Q/2", "router=Q:4")


def run_of(model: bytes, dataset: bytes, **changed: Any) -> Run:
    """Return a run of three rounds that trains two ahead."""
    made = Run(
        version=FORMAT_VERSION,
        model=model,
        datasets=(dataset,),
        held_out_ppm=30_000,
        rounds=3,
        inner_steps=2,
        batch=2,
        sequence=32,
        inner_rate=(RateStep(0, 1_500_000),),
        beta1_ppm=900_000,
        beta2_ppm=950_000,
        decay_ppm=50_000,
        clip_ppm=PPM,
        auxiliary_ppm=10_000,
        codecs=chosen(CODECS, ()),
        feedback_ppm=PPM,
        outer_rate_ppm=900_000,
        outer_momentum_ppm=500_000,
        delta_clip_ppm=0,
        quorum_ppm=500_000,
        deadline_ms=10_000,
        grace_ms=1_000,
        min_tokens=64,
        rotation=0,
        adopt_every=0,
        snapshot_every=0,
        rounds_ahead=2,
        seed=7,
    )
    return replace(made, **changed)


def roots(name: object, count: int, momentum: bool = False) -> tuple[TileRoots, ...]:
    """Return the roots of tiles by name."""
    source = some(f"roots {name}")
    return tuple(
        TileRoots(source.randbytes(32), source.randbytes(32) if momentum else None)
        for _ in range(count)
    )


class World:
    """Executed state under `execute`, and everything that makes it move."""

    def __init__(self, nodes: int = 3, **changed: Any) -> None:
        self.keys = [key(index) for index in range(nodes)]
        self.genesis = genesis_of(self.keys, some("tail").randbytes(32), **changed)
        self.view = State()
        self.view.apply(begin(self.genesis).changes)
        self.ended: tuple[Posting, ...] = ()  # postings of the last checkpoint's end
        self._sequences: dict[bytes, int] = {}
        self._last: dict[tuple[bytes, int], Block] = {}

    @property
    def height(self) -> int:
        clock = CLOCK.get(self.view)
        assert clock is not None
        return clock.height

    @property
    def time_ms(self) -> int:
        clock = CLOCK.get(self.view)
        assert clock is not None
        return clock.time_ms

    def block(
        self, payload: Any, key: SigningKey | None = None, **changed: Any
    ) -> Block:
        """Return a block with its author's next sequence, on its author's last one."""
        author = key or self.keys[0]
        account = changed.get("account", author.account)
        sequence = self._sequences.get(account, 0) + 1
        self._sequences[account] = sequence
        changed.setdefault("sequence", sequence)
        place = (author.account, kind_of(payload).chain)
        last = self._last.get(place)
        if last is not None:
            changed.setdefault("parents", (last.id,))
            changed.setdefault("height", last.header.height + 1)
        made = sign_block(self.genesis, author, payload, **changed)
        self._last[place] = made
        return made

    def checkpoint(
        self,
        *blocks: Block,
        step_ms: int = STEP_MS,
        signers: Sequence[SigningKey] = (),
        proposer: SigningKey | None = None,
    ) -> list[Outcome]:
        """Execute one checkpoint; return the outcomes in the order given here."""
        moment = Moment(
            self.height + 1,
            self.time_ms + step_ms,
            self.genesis,
            (proposer or self.keys[0]).public,
            some(("preimage", self.height + 1)).randbytes(32),
            frozenset(signer.public for signer in signers),
        )
        done = execute(self.view, order(blocks), moment, [])
        self.view.apply(done.changes)
        self.ended = done.postings
        found = {outcome.block: outcome for outcome in done.outcomes}
        return [found[block.id] for block in blocks]

    def errors(self, *blocks: Block, **more: int) -> list[str | None]:
        """Execute one checkpoint; return what each block came to."""
        return [outcome.error for outcome in self.checkpoint(*blocks, **more)]

    def ordered(self, payload: Any, key: SigningKey | None = None) -> Block:
        """Execute a payload in a checkpoint of its own; it must take effect."""
        block = self.block(payload, key)
        assert self.errors(block) == [None]
        return block


class Training(World):
    """A world with a model whose weights are complete, held by everybody, and a dataset."""

    def __init__(self, nodes: int = 3, **changed: Any) -> None:
        super().__init__(nodes, **changed)
        self.model, self.groups = self.grow()
        self.dataset = self.ordered(dataset()).id
        self.hold()

    def grow(self, **changed: Any) -> tuple[bytes, int]:
        """Create a model with first weights; return its id and number of groups."""
        payload = model(**changed)
        made = self.ordered(payload)
        groups = layout_for(payload).groups
        weights = [
            self.block(
                Weights(1, made.id, group.index, roots(group.name, len(group.tiles)))
            )
            for group in groups
        ]
        assert self.errors(*weights) == [None] * len(groups)
        return made.id, len(groups)

    def hold(self, model: bytes | None = None) -> None:
        """Everybody says that it holds all of a model."""
        held = bitmap(set(range(self.groups)), self.groups)
        beats = [self.block(beat(model or self.model, held), key) for key in self.keys]
        assert self.errors(*beats) == [None] * len(beats)

    def open(self, **changed: Any) -> bytes:
        """Start a run; return its id."""
        model = changed.pop("model", self.model)
        return self.ordered(run_of(model, self.dataset, **changed)).id

    def schedule(self, run: bytes, round: int) -> Schedule:
        found = SCHEDULES.get(self.view, run, round)
        assert found is not None
        return found

    def group(self, index: int, model: bytes | None = None) -> Group:
        found = GROUPS.get(self.view, model or self.model, index)
        assert found is not None
        return found

    def draft(
        self,
        run: bytes,
        group: int,
        /,
        learners: int = 2,
        rank: int = 0,
        head: Group | None = None,
        signatures: int = 2,
        **changed: Any,
    ) -> TileUpdate:
        """Return the next update of a group, signed by its author and another rank."""
        head = head or self.group(group)
        round = changed.get("round", next_round(head, run))
        schedule = SCHEDULES.get(self.view, run, round)
        seats = ranks(schedule, group) if schedule else ()
        tokens = [100 + index for index in range(learners)]
        weights = contribution_weights(tokens)
        accounts = sorted(key.account for key in self.keys)[:learners]
        parts = tuple(
            Contribution(account, bytes(32), 10 * i, 10, tokens[i], weights[i], PPM)
            for i, account in enumerate(accounts)
        )
        fields: dict[str, Any] = dict(
            version=FORMAT_VERSION,
            model=head.model,
            run=run,
            group=group,
            round=round,
            lease_epoch=schedule.epoch if schedule else 0,
            rank=rank,
            parent=head.head,
            base=head.tiles,
            contributions=parts,
            result=roots((run, group, round), len(head.tiles), momentum=True),
            blob=some("deltas").randbytes(32) if parts else None,
        )
        if not parts:
            fields["result"] = head.tiles
        fields.update(changed)
        signer = self.author_of(seats[rank].key) if rank < len(seats) else self.keys[0]
        others = [self.author_of(s.key) for s in seats if s.key != signer.public]
        return self.cosigned(fields, signer, *others[: signatures - 1])

    def cosigned(self, fields: dict[str, Any], *signers: SigningKey) -> TileUpdate:
        """Return an update with the signatures of `signers`, in their order."""
        empty = (Cosignature(signers[0].public, bytes(64)),)
        claim = TileUpdate(**{**fields, "cosignatures": empty}).claim
        signed = tuple(
            Cosignature(s.public, s.sign(Purpose.TILE_UPDATE, self.genesis.id, claim))
            for s in signers
        )
        return TileUpdate(**{"cosignatures": signed, **fields})

    def author_of(self, public: bytes) -> SigningKey:
        return next(key for key in self.keys if key.public == public)

    def update(self, run: bytes, group: int, /, **changed: Any) -> Block:
        """Return the block of a group's next update, by its rank."""
        update = self.draft(run, group, **changed)
        return self.block(update, self.author_of(update.cosignatures[0].signer))

    def move(self, run: bytes, *groups: int) -> None:
        """Order the next update of these groups (of all)."""
        blocks = [self.update(run, g) for g in groups or range(self.groups)]
        assert self.errors(*blocks) == [None] * len(blocks)

    def adoption(self, run: bytes, round: int, **changed: Any) -> Adoption:
        """Return the adoption of a round's heads."""
        versions = versions_of(self.view, run, round, self.groups) or []
        root = heads_root([version.tiles for version in versions])
        made = Adoption(FORMAT_VERSION, self.model, run, round, root, 0, 0)
        return replace(made, **changed)
