"""What the answers by noun make of records, blocks and tiles."""

import dataclasses
import json
from types import SimpleNamespace

import numpy as np
import pytest
import trio
import trio.testing

from blyan_proto.block import sending
from blyan_proto.block.block import Block
from blyan_proto.block.data import Dataset, Tier
from blyan_proto.block.economy import Hardware, Registration, Transfer
from blyan_proto.block.gate import Gate
from blyan_proto.block.header import INLINE, NO_LAYER, Header
from blyan_proto.block.model import (
    Codec,
    Contribution,
    Cosignature,
    Inner,
    Model,
    TensorClass,
    TileRoots,
    TileUpdate,
    Weights,
)
from blyan_proto.block.payload import encode_payload, kind_of, payload_digest
from blyan_proto.checkpoint import (
    Checkpoint,
    FinalCheckpoint,
    Vote,
    VoteStage,
    VoteStatement,
)
from blyan_proto.codec import decode
from blyan_proto.errors import BadSignature, DecodeError
from blyan_proto.genesis import DEVNET, Balance, Genesis
from blyan_proto.protocols.delta import Entry, EntryVerdict, Manifest, Verdict
from blyan_proto.protocols.hello import Greeting
from blyan_proto.rpc import chain as chain_spec
from blyan_proto.rpc import data as data_spec
from blyan_proto.rpc import errors
from blyan_proto.rpc import expert as expert_spec
from blyan_proto.rpc import model as model_spec
from blyan_proto.rpc import node as node_spec
from blyan_proto.rpc import peer as peer_spec
from blyan_proto.rpc import tile as tile_spec
from blyan_proto.rpc import train as train_spec
from blyan_proto.rpc.methods import all_methods
from blyan_proto.signing import Purpose, SigningKey, check_signature
from blyan_proto.types import Chain, Role, bitmap
from blyan_proto.validators import Validator
from blyan_tile.create import create, model_of, run_preset
from blyan_tile.delta import choice_of
from blyan_tile.layout import layout_of
from blyan_tile.packed import PackJob, pack
from blyand.chain.machine import Machine
from blyand.chain.pool import Pool
from blyand.clock import ManualClock, SystemClock
from blyand.compute import Threads
from blyand.config import Config
from blyand.errors import NoRoute, NotHere, Unavailable, WrongAnswer
from blyand.events import Broadcast, CheckpointFinalised
from blyand.inference.hardware import Speed
from blyand.inference.routes import Routes
from blyand.net.host import PeerInfo
from blyand.net.identity import peer_id_of
from blyand.net.standing import Standing
from blyand.poison import PoisonBox
from blyand.protocols.delta import signed_receipt
from blyand.protocols.meeting import Met
from blyand.rpc import (
    audit,
    cache,
    chain,
    checkpoint,
    data,
    expert,
    explorer,
    gate,
    history,
    level,
    model,
    node,
    packing,
    peer,
    plan,
    proof,
    prove,
    rounds,
    runs,
    tile,
    train,
    usage,
    verify,
)
from blyand.rpc.bind import Answers
from blyand.rpc.carried import Carried
from blyand.rpc.fates import Kept
from blyand.rpc.holders import Holders
from blyand.rpc.ordering import Ordering
from blyand.rpc.publishing import Publishing
from blyand.rpc.resolve import model_called
from blyand.rpc.tally import Tally
from blyand.rules.chain import intake as intake_rules
from blyand.rules.model.model import add_weights
from blyand.rules.model.model import create as create_model
from blyand.rules.model.places import OPEN_RUNS, note_move
from blyand.rules.model.schedule import write_schedule
from blyand.rules.records import (
    CLOCK,
    DATASETS,
    GROUPS,
    MODELS,
    NODES,
    RUNS,
    SCHEDULES,
    TIPS,
    VERSIONS,
    DatasetRecord,
    RunRecord,
    Schedule,
    Seat,
    Tip,
    Tips,
    Version,
)
from blyand.rules.view import Overlay
from blyand.store.blobs import BlobStore
from blyand.store.blocks import BlockStore
from blyand.store.budget import Budget
from blyand.store.checkpoints import CheckpointStore
from blyand.store.memory import MemoryStore
from blyand.store.rounds import (
    Heard,
    Led,
    Moved,
    Moves,
    Outcome,
    Part,
    Report,
    Rounds,
    Takeover,
    micro,
)
from blyand.store.sets import SetStore
from blyand.store.state import State
from blyand.training import birth
from blyand.training.holder import Version as Held
from blyand.training.journal import Step
from blyand.training.ways import Ways

KEY, OTHER = SigningKey(bytes(31) + b"\x01"), SigningKey(bytes(31) + b"\x02")
METHODS = all_methods()


def registration(key):
    return Registration(
        1, key.public, int(Role.LEARN), "", Hardware("cpu", 1, 1), 0, bytes(32)
    )


GENESIS = Genesis(
    version=1,
    name="test",
    salt=bytes(32),
    time_ms=1_000_000,
    parameters=dataclasses.replace(DEVNET, work_bits=0),
    validators=(Validator(KEY.public, 1, bytes(32)),),
    participants=(registration(KEY), registration(OTHER)),
    balances=(Balance(KEY.account, 10**9),),
)


class World:
    """One node's chain without a network: what answers are read from."""

    def __init__(self, path):
        self.store = MemoryStore()
        self.blocks = BlockStore(self.store)
        self.checkpoints = CheckpointStore(self.store)
        self.state = State()
        self.events = Broadcast()
        self.lane = Threads("test", 2)
        self.machine = Machine(
            GENESIS,
            self.state,
            self.checkpoints,
            self.lane,
            self.events,
            PoisonBox(path / "poison"),
            SetStore(self.store),
        )
        self.pool = Pool()
        self.blobs = BlobStore(path / "blobs")
        self.heads = {}
        self.held = frozenset()
        self.holder = SimpleNamespace(
            held=lambda model: self.held,
            head=lambda model, group: self.heads.get((model, group)),
        )
        self.ordering = Ordering(self.machine, self.blocks, self.events)
        self.holders = Holders(self.machine, self.holder, KEY.account)
        self.answers = Answers(METHODS)
        self.items = []
        self._sequence = 0

    @property
    def view(self):
        return self.machine.view

    def block(self, payload, subject="", time_ms=5, parents=()):
        """Make a block, stored and pending."""
        kind, raw = kind_of(payload), encode_payload(payload)
        self._sequence += 1
        header = Header(
            version=1,
            network=GENESIS.id,
            chain=kind.chain,
            kind=kind.code,
            height=len(parents),
            parents=tuple(parents),
            anchor_height=0,
            anchor=GENESIS.id,
            meta_ref=None,
            subject=subject,
            layer=NO_LAYER,
            payload_type=INLINE,
            payload_bytes=len(raw),
            payload_digest=payload_digest(raw),
            account=KEY.account,
            author=KEY.public,
            sequence=self._sequence,
            time_ms=time_ms,
            nonce=0,
        )
        signature = KEY.sign(Purpose.BLOCK, GENESIS.id, header)
        made = Block(header, signature, raw)
        checked = intake_rules.check(made, GENESIS, time_ms)
        # A parent that is not here any more was once.
        before = intake_rules.Place(kind.chain, len(parents) - 1)
        place_of = self.blocks.place_of
        verified = intake_rules.verify(checked, lambda id: place_of(id) or before)
        self.blocks.put_many([verified])
        self.pool.add(made)
        return made

    def order(self, *blocks, change=lambda overlay: None, error=None):
        """Finalise a checkpoint over `blocks`; `change` gives its effect on the state."""
        clock = self.machine.clock
        overlay = Overlay(self.state)
        height = clock.height + 1
        CLOCK.put(
            overlay,
            dataclasses.replace(clock, height=height, time_ms=1_000_000 + height),
        )
        for block in blocks:
            header = block.header
            tips = Tips((Tip(block.id, header.height),))
            TIPS.put(overlay, tips, bytes([header.chain]))
        change(overlay)
        checkpoint = Checkpoint(
            version=1,
            network=GENESIS.id,
            height=height,
            parent=bytes(32),
            round=0,
            proposer=KEY.public,
            time_ms=1_000_000 + height,
            beacon=bytes(32),
            preimage=bytes(32),
            blocks=tuple(block.id for block in blocks),
            receipts=(),
            state_root=self.state.preview(overlay.changes),
            validators_root=bytes(32),
            next_validators_root=bytes(32),
        )
        statement = VoteStatement(1, VoteStage.PRECOMMIT, height, 0, checkpoint.id)
        final = FinalCheckpoint(checkpoint, (Vote(statement, KEY.public, bytes(64)),))
        outcomes = [(1, error) if error else (0, "")] * len(blocks)
        self.checkpoints.commit_checkpoint(final, overlay.changes, outcomes)
        self.state.apply(overlay.changes)
        for block in blocks:
            self.pool.remove(block.id)
        self.events.publish(CheckpointFinalised(final, b"", tuple(blocks)))

    async def ask(self, name, /, **params):
        """Call a method as the server does, and check the answer's shape."""
        method = METHODS[name]
        arguments = [method.params(**params)]
        if method.streams is not None:

            async def emit(item):
                method.write_item(item)
                self.items.append(item)

            arguments.append(emit)
        result = await self.answers[name](*arguments)
        assert method.read_result(method.write_result(result)) == result
        return result


def with_model(world, name="tiny", seed=0):
    """Put a whole model on the chain, its tiles into the blobs; return its record."""
    payload = model_of("tiny", name)
    birth = world.block(payload, subject=name)
    layout = layout_of(payload)
    random = np.random.default_rng(seed)
    weights = [
        Weights(
            1,
            birth.id,
            group.index,
            tuple(
                TileRoots(
                    world.blobs.put_array(
                        random.standard_normal(tile.shape, np.float32), durable=False
                    ),
                    None,
                )
                for tile in group.tiles
            ),
        )
        for group in layout.groups
    ]
    blocks = [world.block(payload) for payload in weights]

    def change(overlay):
        create_model(overlay, birth, payload, 1)
        for block, content in zip(blocks, weights):
            add_weights(overlay, block, content, 1)

    world.order(birth, *blocks, change=change)
    for group, block, content in zip(layout.groups, blocks, weights):
        head = Held(block.id, None, None, 0, content.tiles)
        world.heads[birth.id, group.index] = head
    world.held = frozenset(range(len(layout.groups)))
    return MODELS.get(world.view, birth.id)


def with_dataset(world, name="text"):
    payload = Dataset(1, name, bytes(32), 900, 3, 30_000, "MIT", "here", 0, None)
    block = world.block(payload, subject=name)
    record = DatasetRecord(block.id, payload, KEY.account, Tier.PENDING)
    world.order(block, change=lambda o: DATASETS.put(o, record, block.id))
    return record


def follow_model(world, record, *keys):
    """Let nodes say that they hold everything."""

    def change(overlay):
        for key in keys:
            known = NODES.get(overlay, key.account)
            held = bitmap(set(range(record.groups)), record.groups)
            said = dataclasses.replace(known, model=record.id, held=held)
            NODES.put(overlay, said, key.account)

    world.order(change=change)


def open_run(world, record, dataset, **numbers):
    """Order a run block; return the run's record."""
    run = run_preset("tiny", record.id, (dataset.id,), 6, 0)
    run = dataclasses.replace(run, **numbers)
    block = world.block(run, subject=record.model.name)
    made = RunRecord(block.id, run, KEY.account, 0, (), False)
    world.order(block, change=lambda o: put_run(o, made))
    return made


def put_run(overlay, record):
    RUNS.put(overlay, record, record.id)
    if record.finished:
        OPEN_RUNS.remove(overlay, record.id)
    else:
        note_move(overlay, record, 0)
    model_record = MODELS.get(overlay, record.run.model)
    open_one = None if record.finished else record.id
    MODELS.put(
        overlay, dataclasses.replace(model_record, run=open_one), model_record.id
    )
    for round in range(record.closed, record.run.rounds):
        write_schedule(overlay, record, round, DEVNET.liveness_span_ms)


@pytest.fixture
def world(tmp_path):
    made = World(tmp_path)
    yield made
    made.blobs.close()


def refusal(code, ask):
    with pytest.raises(errors.RpcError) as caught:
        trio.run(ask)
    assert caught.value.code == code.code
    return caught.value.message


# node and peer


def met(peer, **greeting):
    return Met(
        PeerInfo(peer, "/ip4/127.0.0.1/tcp/9", inbound=False, admitted=True),
        Greeting(
            **{
                "network": GENESIS.id,
                "software": "blyand/0.1.0",
                "roles": int(Role.LEARN | Role.SERVE),
                "region": "",
                "addresses": (),
                "model": None,
                "held": b"",
                "finalised": 3,
                "checkpoint": bytes(32),
                **greeting,
            }
        ),
        since=0.0,
    )


def test_the_status_says_what_is_wrong(world, tmp_path):
    with_model(world)
    world.held = frozenset({0, 1})
    pending = world.block(Transfer(1, OTHER.account, 1, 0, ""), parents=[bytes(32)])
    peers = {}
    learner = SimpleNamespace(status="training round 3 of 6", paused=False)
    hardware = SimpleNamespace(speed=None)
    standing = node.Standing(
        world.machine,
        SimpleNamespace(behind=0),
        world.pool,
        SimpleNamespace(peers=peers),
        world.holder,
        learner,
        lambda: ("the database was repaired",),
        Budget(None, tmp_path),
        hardware,
        lambda size: 1,
        tmp_path,
        KEY.account,
    )
    (tmp_path / "file").write_bytes(bytes(1000))
    stops = []
    host = SimpleNamespace(
        peer_id=peer_id_of(KEY.public),
        addresses=("/ip4/127.0.0.1/tcp/1/p2p/x",),
        traffic=lambda: {"/b": (1, 2), "/a": (3, 4)},
        peers=lambda: (),
    )

    async def main():
        node.bind(
            world.answers,
            config=Config(),
            host=host,
            standing=standing,
            roles=("learn", "serve"),
            stop=lambda: stops.append(1),
            disk_lane=Threads("test", 1),
        )
        status = await world.ask("node.status")
        assert status.account == KEY.account and status.finalised == 1
        assert status.height == pending.header.height == 1
        assert [h.groups for h in status.hosted] == [["embed", "layer0.trunk"]]
        assert status.training == learner.status and status.hardware is None
        hardware.speed = Speed("a T4", True, 16 << 30, 65.0, 300.0, 15.75)
        assert "repaired" in status.warnings[0] and "no peer" in status.warnings[1]
        peers["x"] = learner.paused = True
        world.machine.halted = "checkpoint 9 gives another state root here"
        status = await world.ask("node.status")
        assert (status.hardware.tier, status.hardware.most_copies) == (9, 1)
        assert status.peers == 1 and len(status.warnings) == 3
        assert status.warnings[0] == world.machine.halted
        assert status.disk_bytes >= 1000 and status.disk_limit_bytes is None
        resources = await world.ask("node.resources")
        assert resources.disk_free_bytes > 0 and resources.disk_bytes >= 1000
        traffic = await world.ask("node.traffic")
        assert (traffic.up_bytes, traffic.down_bytes) == (4, 6)
        assert [line.protocol for line in traffic.protocols] == ["/a", "/b"]
        options = {o.name: o for o in (await world.ask("node.config")).options}
        assert options["node.roles"].value == ["learn", "serve"]
        assert options["node.roles"].source == "default"
        await world.ask("node.stop")
        assert stops == [1]

    trio.run(main)


def test_peers_and_connecting(world):
    record = with_model(world)
    known = {"a": met("a", model=record.id, held=bitmap({0}, record.groups))}

    async def connect(address):
        if "/127.0.0.9/" in address:
            raise NoRoute("nobody listens there")
        return address.rpartition("/")[2]

    async def wait_gone(peer):
        if peer != "stranger":
            await trio.sleep_forever()

    async def greeted(peer):
        if peer not in known:
            await trio.sleep_forever()
        return True

    def answering():
        routes = Routes()
        routes.answered("a", 0.0015, rows=1)
        routes.failed("a", WrongAnswer("half a row"))
        return routes.of("a")

    standing = Standing("me", now_s=lambda: 0.0)
    standing.blame("a", DecodeError("nonsense"))
    standing.ban("banned", 60, "too loud")
    peer.bind(
        world.answers,
        host=SimpleNamespace(
            peer_id="me", connect=connect, wait_gone=wait_gone, standing=standing
        ),
        meeting=SimpleNamespace(peers=known, greeted=greeted),
        view=lambda: world.view,
        known=lambda peer: answering(),
        clock=SystemClock(),
    )

    async def main():
        (line,) = (await world.ask("peer.list")).peers
        assert (line.score, line.state) == (10, "good")
        assert line.roles == ["learn", "serve"] and line.outbound
        assert line.hosted[0].groups == ["embed"] and line.latency_ms == 1.5
        assert (line.calls, line.wrong) == (1, 1)
        connected = await world.ask("peer.connect", address="/ip4/1.2.3.4/tcp/1/p2p/a")
        assert connected.peer_id == "a"

    trio.run(main)
    for code, address in (
        (errors.PEER_REFUSED, "/ip4/1.2.3.4/tcp/1/p2p/me"),
        (errors.PEER_REFUSED, "/ip4/1.2.3.4/tcp/1/p2p/stranger"),
        (errors.PEER_REFUSED, "/ip4/1.2.3.4/tcp/1/p2p/banned"),
        (errors.PEER_UNREACHABLE, "/ip4/127.0.0.9/tcp/1/p2p/a"),
        (errors.ADDRESS_INVALID, "/ip4/1.2.3.4/tcp/1"),
    ):
        said = refusal(code, lambda: world.ask("peer.connect", address=address))
    assert said.startswith("an address of a peer ends in")


def test_judging_peers_by_hand(world):
    me, a, b, c = (peer_id_of(SigningKey(bytes([n]) * 32).public) for n in (1, 2, 3, 4))
    saved, gone, forgiven, clock = [], [], [], ManualClock(10**12)

    async def save(raw):
        saved.append(raw)

    async def disconnect(peer):
        gone.append(peer)

    standing = Standing(me, save=save, clock=clock, now_s=lambda: clock.now_ms() / 1000)
    info = PeerInfo(a, "/ip4/1.2.3.4/tcp/5", inbound=True, admitted=False)
    peer.bind(
        world.answers,
        host=SimpleNamespace(
            peer_id=me,
            standing=standing,
            peers=lambda: (info,),
            disconnect=disconnect,
            gossip=SimpleNamespace(forgive=forgiven.append),
        ),
        meeting=SimpleNamespace(peers={b: met(b)}),
        view=lambda: world.view,
        known=lambda peer: Routes().of(peer),
        clock=clock,
    )

    async def main():
        standing.blame(a, BadSignature("forged"))
        clock.advance(60_000)
        standing.blame(a, DecodeError("nonsense"))
        shown = await world.ask("peer.show", peer_id=a)
        assert (shown.state, shown.connected, shown.outbound) == ("throttled", 1, 0)
        assert shown.address == info.address and shown.software is None
        standing.blame_address("1.2.3.4", DecodeError("before it had a name"))
        assert (await world.ask("peer.show", peer_id=a)).address_score == 10
        assert [(r.age_s, r.error, r.points) for r in shown.reasons] == [
            (0, "DecodeError", 10),
            (60, "BadSignature", 50),
        ]
        assert 55 < shown.score < 60 and shown.banned_for_s is None
        banned = await world.ask("peer.ban", peer_id=b, minutes=2, reason="too loud")
        assert banned.banned_for_s == 120 and len(saved) == 1
        assert (await world.ask("peer.show", peer_id=b)).software == "blyand/0.1.0"
        clock.advance(30_000)
        (line,) = (await world.ask("peer.bans")).bans
        assert (line.peer_id, line.banned_for_s) == (b, 90)
        assert (line.error, line.reason, line.bans) == ("operator", "too loud", 0)
        assert (await world.ask("peer.unban", peer_id=b)).was == "banned"
        assert (await world.ask("peer.unban", peer_id=a)).was == "throttled"
        assert forgiven == [b, a]
        assert not (await world.ask("peer.bans")).bans and len(saved) == 3
        assert (await world.ask("peer.show", peer_id=a)).score == 0
        await world.ask("peer.disconnect", peer_id=a)
        assert gone == [a]

    trio.run(main)
    for code, method, params in (
        (errors.PEER_UNKNOWN, "peer.show", {"peer_id": c}),
        (errors.PEER_UNKNOWN, "peer.disconnect", {"peer_id": c}),
        (errors.PEER_REFUSED, "peer.ban", {"peer_id": me}),
        (errors.INVALID_PARAMS, "peer.ban", {"peer_id": a, "minutes": 0}),
        (errors.PEER_INVALID, "peer.unban", {"peer_id": "nobody"}),
        (errors.PEER_INVALID, "peer.show", {"peer_id": "x" * 10_000}),
    ):
        refusal(code, lambda: world.ask(method, **params))


# chain


def bind_chain(world):
    seen = chain.ChainView(world.blocks, world.checkpoints, world.pool)
    tally = Tally(world.blocks, world.checkpoints)
    shared = {"machine": world.machine, "seen": seen, "tally": tally}
    chain.bind(world.answers, **shared, lane=world.lane)
    explorer.bind(
        world.answers,
        account=b"a" * 20,
        **shared,
        blobs=world.blobs,
        state_entries=lambda: len(world.state),
        lane=world.lane,
    )
    prove.bind(
        world.answers,
        genesis=GENESIS,
        account=b"a" * 20,
        state=world.state,
        checkpoints=world.checkpoints,
        lane=world.lane,
    )
    level.bind(world.answers, machine=world.machine, follower=None, peers=lambda: 0)
    verify.bind(
        world.answers,
        genesis=GENESIS,
        seen=seen,
        sets=SetStore(world.store),
        blobs=world.blobs,
        state_root=world.checkpoints.stored_state_root,
        lane=world.lane,
    )


def test_tips_and_log_show_ordered_and_pending_blocks(world):
    bind_chain(world)

    async def main():
        before = await world.ask("chain.tips")
        assert before.checkpoint == GENESIS.id and before.state_root == world.state.root
        assert [line.height for line in before.chains] == [-1] * 4
        one, two = (
            world.block(Transfer(1, OTHER.account, n, 0, ""), time_ms=n) for n in (1, 2)
        )
        world.order(one)
        world.order(two, error="no money")
        three = world.block(
            Transfer(1, OTHER.account, 3, 0, ""), time_ms=3, parents=[two.id]
        )
        tips = await world.ask("chain.tips")
        line = tips.chains[Chain.LEDGER]
        assert (line.blocks, line.height, line.tips) == (3, 1, [three.id])
        assert (tips.pending, tips.finalised) == (1, 2)
        assert tips == await world.ask("chain.tips")
        log = (await world.ask("chain.log")).blocks
        assert [b.id for b in log] == [three.id, two.id, one.id]
        assert [b.checkpoint for b in log] == [None, 2, 1]
        assert [b.error for b in log] == [None, "no money", None]
        assert [b.kind for b in log] == ["transfer"] * 3
        assert len((await world.ask("chain.log", limit=2)).blocks) == 2
        assert (await world.ask("chain.log", chain="A")).blocks == []

    trio.run(main)


def test_statistics_count_what_is_ordered(world):
    bind_chain(world)
    one = world.block(Transfer(1, OTHER.account, 1, 0, ""), time_ms=1)
    two = world.block(Transfer(1, OTHER.account, 2, 0, ""), time_ms=2)
    world.order(one)
    world.order(two, error="no money")
    world.block(Transfer(1, OTHER.account, 3, 0, ""), time_ms=3)

    async def main():
        stats = await world.ask("chain.stats")
        assert (stats.checkpoints, stats.blocks, stats.refused) == (2, 2, 1)
        assert (stats.pending, stats.authors, stats.equivocations) == (1, 1, 0)
        (kind,) = stats.kinds
        assert (kind.chain, kind.kind, kind.blocks) == ("C", "transfer", 2)
        assert kind.payload_bytes == 2 * one.header.payload_bytes
        assert stats.state_entries == len(world.state)
        assert stats == await world.ask("chain.stats")

    trio.run(main)


def test_two_blocks_under_one_sequence_are_shown_with_what_proves_them(world):
    bind_chain(world)
    one = world.block(Transfer(1, OTHER.account, 1, 0, ""))
    world._sequence = 0
    two = world.block(Transfer(1, OTHER.account, 2, 0, ""))

    async def main():
        found = await world.ask("chain.evidence")
        (proof,) = found.proofs
        assert (proof.account, proof.chain, proof.sequence) == (KEY.account, "C", 1)
        assert {proof.first.id, proof.second.id} == {one.id, two.id}
        for half in (proof.first, proof.second):
            header = decode(Header, half.header, 4096)
            assert header.id == half.id and header.author == half.author
            network, author = header.network, header.author
            check_signature(Purpose.BLOCK, network, header, author, half.signature)
        assert await world.ask("chain.evidence", account=KEY.account.hex()) == found
        with pytest.raises(errors.RpcError, match="is not an account"):
            await world.ask("chain.evidence", account="nobody")
        assert (
            await world.ask("chain.evidence", account=OTHER.account.hex())
        ).total == 0
        assert (await world.ask("chain.stats")).equivocations == 1

    trio.run(main)


def test_the_dag_as_graphviz_and_as_json(world):
    bind_chain(world)
    one = world.block(Transfer(1, OTHER.account, 1, 0, ""), time_ms=1)
    world.order(one)
    two = world.block(Transfer(1, OTHER.account, 2, 0, ""), time_ms=2, parents=[one.id])

    async def main():
        done = await world.ask("chain.export", dot=True)
        lines = [item.line for item in world.items]
        assert done.blocks == 2
        assert lines[0] == "digraph blyan {" and lines[-1] == "}"
        assert f'  "{two.id.hex()[:12]}" -> "{one.id.hex()[:12]}";' in lines
        world.items.clear()
        await world.ask("chain.export")
        first, second = [json.loads(item.line) for item in world.items]
        assert (first["id"], first["checkpoint"]) == (one.id.hex(), 1)
        assert second["parents"] == [one.id.hex()] and second["checkpoint"] is None

    trio.run(main)


def test_a_block_and_a_checkpoint(world):
    bind_chain(world)
    one = world.block(Transfer(1, OTHER.account, 7, 0, "memo"))
    world.order(one)

    async def main():
        block = await world.ask("chain.block", id=one.id, payload=True)
        assert block.payload["to"] == OTHER.account.hex()
        assert block.payload["amount_micro"] == 7 and block.layer is None
        newest = await world.ask("chain.checkpoint")
        assert newest.height == 1 and newest.blocks == [one.id]
        assert newest.signers == [KEY.public]
        genesis = await world.ask("chain.checkpoint", height=0)
        assert genesis.id == GENESIS.id and genesis.signers == []

    trio.run(main)
    refusal(errors.BLOCK_UNKNOWN, lambda: world.ask("chain.block", id=bytes(32)))
    refusal(errors.CHECKPOINT_UNKNOWN, lambda: world.ask("chain.checkpoint", height=2))


# models, experts, datasets


def bind_models(world, publishing=None):
    expert.bind(world.answers, holders=world.holders, latency_ms=lambda peer: None)
    cache.bind(world.answers, None)
    model.bind(
        world.answers,
        holders=world.holders,
        ordering=world.ordering,
        publishing=publishing,
    )
    checkpoint.bind(
        world.answers,
        holders=world.holders,
        ordering=world.ordering,
        publishing=publishing,
        fetcher=None,
    )
    packing.bind(
        world.answers,
        holders=world.holders,
        ordering=world.ordering,
        publishing=publishing,
        fetcher=None,
    )


def test_models_and_experts_with_their_holders(world):
    record = with_model(world)
    follow_model(world, record, OTHER)
    world.held = frozenset({0})
    bind_models(world)

    async def main():
        (line,) = (await world.ask("model.list")).models
        assert line.groups == record.groups and line.groups_held == 1
        shown = await world.ask("model.show", model="tiny")
        assert [g.holders for g in shown.groups[:2]] == [2, 1]
        assert shown.active_parameters < shown.parameters == line.parameters
        experts = (await world.ask("expert.list", model=record.id.hex())).experts
        assert len(experts) == 8 and not any(e.local for e in experts)
        one = await world.ask("expert.show", name="layer1.expert2")
        assert [h.peer_id for h in one.holders] == [peer_id_of(OTHER.public)]
        assert one.root == one.adopted_root and one.primaries == []

    trio.run(main)
    ask = world.ask
    text = refusal(
        errors.EXPERT_UNKNOWN, lambda: ask("expert.show", name="layer1.exprt2")
    )
    assert "layer1.expert2" in text
    refusal(errors.EXPERT_UNKNOWN, lambda: ask("expert.show", name="embed"))
    assert "'tiny'" in refusal(
        errors.MODEL_UNKNOWN, lambda: ask("model.show", model="tyni")
    )
    assert refusal(
        errors.MODEL_UNKNOWN, lambda: ask("model.show", model="mixtral-8x7b")
    ).endswith("; there are: tiny")
    with_model(world, "second")
    assert "second, tiny" in refusal(errors.MODEL_AMBIGUOUS, lambda: ask("model.show"))


def bind_history(world):
    history.bind(
        world.answers, ordering=world.ordering, blocks=world.blocks, lane=world.lane
    )


def test_the_history_of_a_group_goes_back_to_its_weights(world):
    record = with_model(world)
    run = open_run(world, record, with_dataset(world))
    group = layout_of(record.model).group_named("layer0.expert1")
    first = GROUPS.get(world.view, record.id, group.index)
    part = Contribution(OTHER.account, b"d" * 32, 0, 700, 4096, 10**6, 10**6)
    update = TileUpdate(
        version=1,
        model=record.id,
        run=run.id,
        group=group.index,
        round=0,
        lease_epoch=1,
        rank=1,
        parent=first.head,
        base=first.tiles,
        contributions=(part,),
        result=first.tiles,
        blob=bytes(32),
        cosignatures=(Cosignature(KEY.public, bytes(64)),),
    )
    moved = world.block(update, subject=group.name)

    def move(overlay):
        head = dataclasses.replace(first, head=moved.id, run=run.id, rounds=1)
        GROUPS.put(overlay, head, record.id, group.index)

    world.order(moved, change=move)
    bind_history(world)

    async def main():
        told = await world.ask("expert.history", name=group.name)
        trained, weights = told.versions
        assert told.complete and told.parameters == group.elements
        assert (trained.round, trained.rank, trained.tokens) == (1, 1, 4096)
        assert trained.block == moved.id and not trained.adopted
        assert (weights.round, weights.adopted) == (None, True)
        assert weights.block == first.head and weights.root == trained.root
        short = await world.ask("expert.history", name=group.name, limit=1)
        assert short.versions == told.versions[:1] and not short.complete
        world.store.write_batch(world.blocks.prune([first.head], 1), sync=True)
        assert not (await world.ask("expert.history", name=group.name)).complete

    trio.run(main)


def test_no_model_yet(world):
    with pytest.raises(errors.RpcError, match="model create"):
        model_called(world.view, None)


def publishing_of(world, tmp_path, effect):
    """Publishing whose worker runs jobs here, and whose blocks are ordered at once."""

    class Worker:
        async def call(self, job, report=None):
            run = pack if isinstance(job, PackJob) else create
            return run(job, report or (lambda progress: None))

    async def make(payload, *, subject="", layer=NO_LAYER, meta_ref=None):
        block = world.block(payload, subject=subject)
        world.order(block, change=lambda overlay: effect(overlay, block, payload))
        return block

    async def make_many(drafts):
        for one in drafts:
            await make(one.payload, subject=one.subject, layer=one.layer)

    chain = birth.Chain(make, make_many, list, lambda: world.view, bytes(20))
    lane, work = world.lane, tmp_path / "work"
    return Publishing(Worker(), world.blobs, lane, lane, chain, work)


def test_creating_a_model_ends_when_its_weights_are_ordered(world, tmp_path):
    def effect(overlay, block, payload):
        if isinstance(payload, Model):
            create_model(overlay, block, payload, 1)
        else:
            add_weights(overlay, block, payload, 1)

    bind_models(world, publishing_of(world, tmp_path, effect))

    async def main():
        made = await world.ask("model.create", preset="tiny", name="mine")
        record = MODELS.get(world.view, made.model_id)
        assert record.weights == record.groups == made.groups
        assert record.model.replication == DEVNET.replication
        assert world.items[-1].done == world.items[-1].total == made.groups
        assert list((tmp_path / "work").iterdir()) == []

    trio.run(main)
    ask = world.ask
    refusal(
        errors.MODEL_EXISTS, lambda: ask("model.create", preset="tiny", name="mine")
    )
    assert "'tiny'" in refusal(
        errors.PRESET_UNKNOWN, lambda: ask("model.create", preset="tinny")
    )


def test_a_model_begins_with_the_packed_weights_of_another(world, tmp_path):
    effect = {Model: create_model, Weights: add_weights}
    publishing = publishing_of(
        world,
        tmp_path,
        lambda overlay, block, one: effect[type(one)](overlay, block, one, 1),
    )
    bind_models(world, publishing)
    first, second = str(tmp_path / "first"), str(tmp_path / "second")

    async def main():
        made = await world.ask("model.create", preset="tiny", name="one", seed=3)
        told = await world.ask("model.pack", model="one", file=first)
        assert (told.model, told.run, told.round) == (made.model_id, None, 0)
        begun = await world.ask(
            "model.create", preset="tiny", name="two", weights=first
        )
        note = MODELS.get(world.view, begun.model_id).model.note
        assert note.endswith(told.root.hex())
        again = await world.ask("model.pack", model="two", file=second)
        assert again.bytes == told.bytes
        assert list((tmp_path / "work").iterdir()) == []

    trio.run(main)
    ask = world.ask
    there = refusal(
        errors.EXPORT_REFUSED, lambda: ask("model.pack", model="one", file=first)
    )
    assert "already" in there
    for name, preset, why in (
        (first, "demo", "architecture"),
        (str(tmp_path), "tiny", "directory"),
        (str(tmp_path / "none"), "tiny", "No such file"),
        (__file__, "tiny", "TBLOCK"),
    ):
        params = {"preset": preset, "name": "three", "weights": name}
        told = refusal(errors.WEIGHTS_INVALID, lambda: ask("model.create", **params))
        assert why in told


def test_datasets(world, tmp_path):
    publishing = publishing_of(world, tmp_path, lambda *_: None)
    data.bind(world.answers, ordering=world.ordering, publishing=publishing)
    with_dataset(world)

    async def main():
        (line,) = (await world.ask("data.list")).datasets
        assert (line.name, line.tier, line.local) == ("text", "pending", False)
        assert (await world.ask("data.show")).license == "MIT"

    trio.run(main)
    (tmp_path / "text").mkdir()
    for code, directory in (
        (errors.DIRECTORY_UNREADABLE, "relative"),
        (errors.DIRECTORY_UNREADABLE, str(tmp_path / "absent")),
        (errors.DATASET_EXISTS, str(tmp_path / "text")),
    ):
        refusal(code, lambda: world.ask("data.add", directory=directory))


# tiles


def bind_tiles(world):
    tile.bind(
        world.answers,
        ordering=world.ordering,
        holder=world.holder,
        blocks=world.blocks,
        blobs=world.blobs,
        lane=world.lane,
    )


def test_roots_are_those_of_the_bytes_on_this_disk(tmp_path):
    worlds = [World(tmp_path / name) for name in "ab"]
    for world in worlds:
        with_model(world)
        bind_tiles(world)

    async def main():
        one, two = [await world.ask("tile.roots") for world in worlds]
        assert one == two and one.tiles > len(one.groups) == 13
        assert one.round == 0 and one.checkpoint == 1
        world = worlds[1]
        lost = world.heads[one.model_id, 3].tiles[0].weights
        path = world.blobs.path(lost)
        path.chmod(0o600)
        raw = bytearray(path.read_bytes())
        raw[5000] ^= 1  # in the data
        path.write_bytes(raw)
        three = await world.ask("tile.roots")
        assert three.digest != one.digest
        assert [g.group for g in one.groups if g not in three.groups] == [
            "layer0.expert0"
        ]
        world.held = frozenset({0})
        assert (await world.ask("tile.roots")).groups == one.groups[:1]

    trio.run(main)
    for world in worlds:
        world.blobs.close()


def test_roots_at_a_round_and_the_tiles_themselves(world):
    record = with_model(world)
    run = open_run(world, record, with_dataset(world))
    bind_tiles(world)
    moved = world.block(Transfer(1, OTHER.account, 1, 0, ""))  # stands for an update

    def close(overlay):
        put_run(overlay, dataclasses.replace(run, closed=1))
        for group in list(GROUPS.scan(overlay, record.id)):
            head = dataclasses.replace(group, head=moved.id, run=run.id, rounds=1)
            GROUPS.put(overlay, head, record.id, group.group)
            version = Version(moved.id, group.tiles, group.head, group.tiles, ())
            VERSIONS.put(overlay, version, run.id, 0, group.group)

    world.order(moved, change=close)

    async def main():
        roots = await world.ask("tile.roots")
        assert roots.round == 1 and roots.checkpoint == world.machine.clock.height
        assert await world.ask("tile.roots", round=1) == roots
        with pytest.raises(Unavailable, match="not finalised"):
            await world.ask("tile.roots", round=2)
        tiles = await world.ask("tile.list", group="layer0.trunk")
        assert {line.group for line in tiles.tiles} == {"layer0.trunk"}
        vectors = await world.ask("tile.show", group="layer0.trunk", index=4)
        assert vectors.tensor_class == "vector" and vectors.shape == [128]
        assert vectors.pieces[0].rows == [] and vectors.pieces[0].columns == [0, 64]
        world.heads.clear()
        with pytest.raises(NotHere):
            await world.ask("tile.show", group="layer0.trunk", index=4)

    trio.run(main)
    refusal(
        errors.TILE_UNKNOWN,
        lambda: world.ask("tile.show", group="layer0.trunk", index=9),
    )


# training


class FakeJournal:
    """A journal that the test writes."""

    def __init__(self, run):
        self.run = run
        self.made = {}
        self.awaited = set()
        self.first = None
        self._changed = trio.Event()

    def close(self, round, loss=None, awaited=False):
        report = Report(
            self.run,
            round,
            6,
            2_000_000,
            micro(loss),
            closed=True,
            tokens=10,
            own_tokens=4,
        )
        self.made[round] = report
        (self.awaited.add if awaited else self.awaited.discard)(round)
        self._changed.set()
        self._changed = trio.Event()

    def reports(self, run):
        return [self.made[round] for round in sorted(self.made)]

    all_reports = reports

    def before(self, run):
        return self.first

    def awaits(self, record, round):
        return round in self.awaited

    async def archives(self, record):
        raise NotHere("nobody has it")

    async def changed(self):
        await self._changed.wait()


def watching_of(world, journal, paused=lambda: False):
    return rounds.Watching(lambda: world.view, journal, world.lane, lambda: 3, paused)


def bind_training(world, journal, make=None, learner=None, kept=None):
    train.bind(
        world.answers,
        account=KEY.account,
        key=KEY.public,
        kept=Kept(world.blocks, kept or Rounds(MemoryStore())),
        clock=ManualClock(7),
        ordering=world.ordering,
        make=make,
        holder=world.holder,
        learner=learner,
        watching=watching_of(world, journal),
        carried=Carried(
            Ways(KEY.account, lambda: world.view, lambda _: None, lambda _: False),
            lambda: {
                ("/blyan/edge/1", "other"): (5, 2),
                ("/blyan/blobs/1", "same"): (1, 0),
            },
        ),
        liveness_ms=DEVNET.liveness_span_ms,
    )


def test_watching_shows_each_round_once_with_its_loss(world):
    run = open_run(world, with_model(world), with_dataset(world), rounds=4)

    def closed(count):
        finished = count == 4
        changed = dataclasses.replace(run, closed=count, finished=finished)
        world.order(change=lambda overlay: put_run(overlay, changed))

    async def main():
        journal = FakeJournal(run.id)
        bind_training(world, journal)
        journal.awaited.add(None)  # the judgement before the first round is under way
        results = []

        async def watch():
            results.append(await world.ask("train.watch"))

        async def seen(count):
            for _ in range(20):  # threads may be at work in between
                await trio.testing.wait_all_tasks_blocked()
            assert [item.round for item in world.items] == list(range(count))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch)
            await trio.testing.wait_all_tasks_blocked()
            assert world.items == []
            journal.first = 5.5
            journal.awaited.clear()
            closed(1)
            journal.close(0, awaited=True)
            await seen(1)
            assert world.items[0].held_out_loss == 5.5
            journal.close(0, loss=3.0)
            await seen(2)
            closed(2)
            journal.close(1, awaited=True)
            await seen(2)
            closed(3)
            journal.awaited.discard(1)  # a later round is closed: none comes any more
            journal.close(2)
            await seen(4)
            closed(4)
            journal.close(3, awaited=True)
            await seen(4)
            journal.close(3, loss=1.5)
        (result,) = results
        assert [item.round for item in world.items] == [0, 1, 2, 3, 4]
        losses = [item.held_out_loss for item in world.items]
        assert losses == [5.5, 3.0, None, None, 1.5]
        assert (result.outcome, result.round, result.tokens) == ("finished", 4, 40)
        assert (result.first_held_out_loss, result.held_out_loss) == (5.5, 1.5)

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0.05))


def test_a_report_adds_up_what_every_learner_had(world):
    run = open_run(world, with_model(world), with_dataset(world), rounds=2000)
    slow = SigningKey(b"\x05" * 32).account

    def seen(round):
        return Report(
            run.id,
            round,
            2000,
            closed=True,
            tokens=30,
            took_ms=1500,
            bytes_up=100,
            float32_bytes=6400,
            learners=2,
            primaries=(Led(slow, 2),),
            parts=(Part(slow, 10, 0, 3, 0), Part(KEY.account, 20, 4, 0, 1)),
            takeovers=(Takeover(0, 1, slow),) if round == 7 else (),
        )

    async def main():
        journal = FakeJournal(run.id)
        journal.made = {round: seen(round) for round in range(1500)}
        journal.first = 5.5
        bind_training(world, journal)
        report = await world.ask("train.report")
        assert report.tokens == 45_000 and report.compression_ratio == 64
        assert report.seconds == 2250 and report.first_held_out_loss == 5.5
        assert (report.outcome, report.model, report.dataset) == (
            "open",
            "tiny",
            "text",
        )
        ours, theirs = report.learners
        assert (ours.rounds, ours.listed, ours.clipped) == (1500, 6000, 1500)
        assert (theirs.peer_id, theirs.rounds) == (slow.hex(), 0)
        assert (theirs.missed, theirs.primary_of, theirs.takeovers) == (4500, 3000, 1)
        assert report.every == 2 and len(report.history) == 750
        assert report.history[-1].round == 1500  # the newest is always there
        assert report.history[3].takeovers[0].group == "embed"
        assert report.history[0].tokens_per_s == 20
        assert {"name": "sequence", "value": str(run.run.sequence)} in [
            vars(one) for one in report.settings
        ]

    trio.run(main)


def test_a_watcher_may_ask_for_the_round_under_way(world):
    run = open_run(world, with_model(world), with_dataset(world), rounds=1)

    async def main():
        journal = FakeJournal(run.id)
        journal.step_now = Step(0, 3, 20, "loss 2.5")
        watching = watching_of(world, journal)
        seen = []

        async def emit(item):
            seen.append(item)
            if len(seen) == 2:
                ended = dataclasses.replace(run, closed=1, finished=True)
                journal.close(0)
                world.order(change=lambda overlay: put_run(overlay, ended))

        await rounds.follow(watching, run.id, emit, live=True)
        assert [item.round for item in seen] == [0, 1, 1]
        first, now, last = (item.under_way for item in seen)
        assert first is None and last is None
        assert (now.doing, now.step, now.steps) == ("training, loss 2.5", 3, 20)

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0.05))


def fates_of(explained):
    return {one.group: (one.fate, one.why) for one in explained.fates}


def test_explaining_says_what_became_of_every_delta_and_keeps_the_signatures(world):
    record, network = with_model(world), GENESIS.id
    run = open_run(world, record, with_dataset(world))
    them = SigningKey(b"\x05" * 32)
    layout = layout_of(record.model)
    embed, trunk, router, expert, other = layout.groups[:5]
    every = range(len(layout.groups) - 1)
    seat = Seat(
        them.account, them.public, int(Role.LEARN), 1, bitmap(every, len(layout.groups))
    )
    clipped = Contribution(them.account, bytes(32), 0, 9, 7, 250_000, 500_000, 3 << 24)
    ours = Contribution(KEY.account, bytes(32), 0, 9, 7, 1_000_000, 1_000_000)
    whole = dataclasses.replace(clipped, clip_ppm=1_000_000)

    def update(group, *parts):
        tiles = tuple(TileRoots(bytes(32), None) for _ in group.tiles)
        payload = TileUpdate(
            1, record.id, run.id, group.index, 0, 1, 0, bytes(32), tiles, parts, tiles,
            bytes(32), (Cosignature(KEY.public, bytes(64)),),
        )  # fmt: skip
        return world.block(payload, subject=group.name)

    made = [
        update(embed, whole),
        update(trunk, clipped),
        update(router, ours),
        update(expert, ours),
    ]

    def change(overlay):
        schedule = Schedule(run.id, 0, 1, bytes(32), (seat,))
        SCHEDULES.put(overlay, schedule, run.id, 0)
        RUNS.put(overlay, dataclasses.replace(run, closed=1), run.id)
        node = NODES.get(overlay, KEY.account)
        theirs = dataclasses.replace(node, account=them.account, key=them.public)
        NODES.put(overlay, theirs, them.account)

    world.order(*made, change=change)
    manifest = Manifest(
        run.id,
        0,
        them.account,
        (Entry(router.index, bytes(32)), Entry(expert.index, None)),
        bytes(32),
        bytes(32),
    )
    signature = them.sign(Purpose.DELTA_BUNDLE, network, manifest)
    verdicts = [
        EntryVerdict(router.index, Verdict.NOT_FINITE),
        EntryVerdict(expert.index, Verdict.TAKEN),
    ]
    receipt = signed_receipt(KEY, network, manifest, verdicts)
    outcomes = tuple(Outcome(one.group, one.verdict, 7, 9, "") for one in verdicts)
    kept = Rounds(MemoryStore())
    moved = [Moved(b.content.group, b.id) for b in made]
    kept.put_moves(run.id, 0, Moves(tuple(moved)))
    kept.hear(Heard(5, manifest, them.public, signature, outcomes, receipt.signature))

    async def main():
        bind_training(world, FakeJournal(run.id), kept=kept)
        found = await world.ask("train.explain", peer=them.account.hex(), round=1)
        fates = fates_of(found)
        assert fates[embed.name] == ("listed", "it weighs 25.00 % of the sum")
        assert fates[trunk.name][0] == "clipped" and "50.0 %" in fates[trunk.name][1]
        assert fates[router.name] == ("refused", "it holds numbers that are not finite")
        assert fates[expert.name][0] == "nothing"
        assert fates[other.name][0] == "open"
        assert layout.groups[-1].name not in fates
        by_group = {one.group: one for one in found.fates}
        assert by_group[trunk.name].norm == 3.0 and by_group[trunk.name].signers == 1
        assert "1 refused" in found.summary and "1 clipped" in found.summary
        (bundle,) = found.bundles
        check_signature(
            Purpose.DELTA_BUNDLE,
            network,
            manifest,
            bundle.learner_key,
            bundle.learner_signature,
        )
        check_signature(
            Purpose.DELTA_RECEIPT,
            network,
            receipt.claim,
            bundle.primary_key,
            bundle.receipt_signature,
        )
        assert bundle.verdicts == "1 taken, 1 not finite"
        end = peer_id_of(them.public)[-8:]
        assert await world.ask("train.explain", peer="…" + end, round=1) == found
        nothing = await world.ask("train.explain", peer="me", round=1)
        assert {one.fate for one in nothing.fates} == {"listed"}
        with pytest.raises(NotHere, match="not open yet"):
            await world.ask("train.explain", peer="me", round=9)

    trio.run(main)


def test_watching_ends_when_this_node_stops_learning(world):
    run = open_run(world, with_model(world), with_dataset(world))
    paused = []

    async def main():
        watching = watching_of(world, FakeJournal(run.id), lambda: bool(paused))

        async def emit(item):
            paused.append(item)

        result = await rounds.follow(watching, run.id, emit)
        assert result.outcome == "stopped" and result.round == 0

    trio.run(main)


def test_starting_makes_a_run_once_its_groups_are_held(world):
    record, dataset = with_model(world), with_dataset(world)
    made = []

    async def make(payload, *, subject, meta_ref):
        block = world.block(payload, subject=subject)
        made.append(payload)
        opened = RunRecord(block.id, payload, KEY.account, 0, (), False)
        world.order(block, change=lambda overlay: put_run(overlay, opened))
        return block

    learner = SimpleNamespace(status="training round 0 of 6", paused=False)
    learner.resume = lambda: setattr(learner, "paused", False)
    learner.pause = lambda: setattr(learner, "paused", True)
    ask = world.ask

    async def main():
        bind_training(world, FakeJournal(bytes(32)), make, learner)
        assert (await ask("train.status")).state == "waiting"
        assert (await ask("train.status")).inner is None
        numbers = dict(
            preset="tiny", rounds=9, codec=["DENSE"], inner_rate=0.001, inner="muon"
        )
        async with trio.open_nursery() as nursery:
            started = []

            async def start():
                started.append(await ask("train.start", **numbers))

            nursery.start_soon(start)
            await trio.testing.wait_all_tasks_blocked()
            assert made == []  # nobody holds the model yet
            follow_model(world, record, KEY, OTHER)
        (first,) = started
        assert first.created and first.rounds == 9 and first.dataset == "text"
        run = made[0]
        assert (run.inner_rate[0].rate_ppb, run.inner) == (1_000_000, Inner.MUON)
        assert {choice.codec for choice in run.codecs} == {Codec.DENSE}
        again = await ask("train.start", preset="tiny", rounds=9)
        assert again == dataclasses.replace(first, created=False)
        status = await ask("train.status")
        assert status.state == "learning" and status.run == first.run
        assert (status.within_bytes, status.between_bytes) == (1, 7)
        assert status.region is None and status.edge_of == []
        assert status.learners == 2 and 0 < len(status.primary_of) < record.groups
        assert status.inner == "muon"
        assert (await ask("train.stop")).run == first.run
        assert learner.paused and (await ask("train.stop")).run is None
        assert (await ask("train.status")).state == "paused"

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0.05))
    assert len(made) == 1 and dataset.id == made[0].datasets[0]
    refusal(errors.RUN_ACTIVE, lambda: ask("train.start", rounds=10))
    refusal(errors.RUN_UNKNOWN, lambda: ask("train.start", run=bytes(32)))


def test_settings_that_make_no_run(world):
    record = with_model(world)
    start = train_spec.Start

    def refuse(code, **numbers):
        with pytest.raises(errors.RpcError) as caught:
            runs.run_of(start(**{"preset": "tiny", **numbers}), record, bytes(32))
        assert caught.value.code == code.code

    for name in train_spec.INNER:
        run = runs.run_of(start(preset="tiny", inner=name), record, bytes(32))
        assert run.inner is Inner[name.upper()]
    assert len(train_spec.INNER) == len(Inner)
    refuse(errors.PRESET_UNKNOWN, preset="huge")
    refuse(errors.RUN_INVALID, sequence=257)
    refuse(errors.RUN_INVALID, codec=["LR4:0"])
    refuse(errors.RUN_INVALID, codec=["matrix=LR4:4", "LR4:8"])
    refuse(errors.RUN_INVALID, rounds=2_000_000)
    refuse(errors.RUN_INVALID, gate_margin=0.1)
    assert runs.run_of(start(preset="tiny", gate=0), record, bytes(32)).gate is None
    gated = runs.run_of(start(preset="tiny", gate=5, gate_margin=0), record, bytes(32))
    assert gated.gate == Gate(5, 128, 1645, 0)
    again = runs.changed(gated, start(preset="tiny"))
    assert again == gated  # left out, it is no other run
    texts = ["matrix=LR4:8@2", "matrix=SC:64/1@5", "embedding=ROWS:Q/4"]
    run = runs.run_of(start(preset="tiny", codec=texts), record, bytes(32))
    sent = [
        [sending.text_of(*choice_of(run, one, at)) for at in (0, 2, 5)]
        for one in (TensorClass.MATRIX, TensorClass.EMBEDDING, TensorClass.ROUTER)
    ]
    assert sent[0] == ["LR4:16", "LR4:8", "SC:64/1"]
    assert sent[1] == ["ROWS:Q/4"] * 3 and sent[2] == ["DENSE"] * 3


def test_every_spec_of_these_nouns_has_its_answer(world):
    bind_chain(world)
    bind_history(world)
    bind_tiles(world)
    proof.bind(world.answers, ordering=world.ordering, proof=None, lane=None)
    bind_models(world)
    usage.bind(
        world.answers, holders=world.holders, usage=None, replication=None, lane=None
    )
    plan.bind(world.answers, around=None, lane=None)
    bind_training(world, None)
    gate.bind(world.answers, ordering=world.ordering)
    audit.bind(
        world.answers, account=KEY.account, ordering=world.ordering, inspector=None
    )
    data.bind(
        world.answers,
        ordering=world.ordering,
        publishing=SimpleNamespace(blobs=None, lane=None),
    )
    modules = (chain_spec, tile_spec, expert_spec, model_spec, train_spec, data_spec)
    for noun in modules:
        for declared in vars(noun).values():
            if type(declared).__name__ == "Method":
                assert world.answers[declared.name]
    assert node_spec.status.name not in world.answers._answers
    assert peer_spec.list_.name not in world.answers._answers
