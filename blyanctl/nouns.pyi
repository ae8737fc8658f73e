"""Made from the declarations by `make docs`; do not edit."""

from collections.abc import Iterator
from typing import Any, Generic, TypeVar

from blyan_proto.rpc import (
    auditing,
    chain,
    consensus,
    data,
    demand,
    expert,
    explaining,
    gating,
    infer,
    key,
    ledger,
    model,
    net,
    node,
    packing,
    parts,
    payment,
    peer,
    pin,
    planning,
    proving,
    reward,
    slash,
    supply,
    sync,
    tile,
    train,
    validator,
)
from blyan_proto.rpc.spec import JsonObject, Method
from blyanctl.client import Stream
from blyanctl.trio_client import TaskAnswer

T = TypeVar("T")
R = TypeVar("R")

class Answer(Generic[T, R]):
    def __init__(self, method: Method, stream: Stream) -> None: ...
    def __iter__(self) -> Iterator[T]: ...
    @property
    def result(self) -> R: ...

def params_of(
    method: Method, places: tuple[Any, ...], named: dict[str, Any]
) -> JsonObject: ...

class Nouns:
    node: Node
    net: Net
    peer: Peer
    chain: Chain
    sync: Sync
    consensus: Consensus
    expert: Expert
    model: Model
    data: Data
    train: Train
    tile: Tile
    pin: Pin
    ledger: Ledger
    supply: Supply
    reward: Reward
    validator: Validator
    slash: Slash
    key: Key
    infer: Infer
    def invoke(self, method: Method, params: JsonObject) -> Any: ...

class TaskNouns:
    node: TaskNode
    net: TaskNet
    peer: TaskPeer
    chain: TaskChain
    sync: TaskSync
    consensus: TaskConsensus
    expert: TaskExpert
    model: TaskModel
    data: TaskData
    train: TaskTrain
    tile: TaskTile
    pin: TaskPin
    ledger: TaskLedger
    supply: TaskSupply
    reward: TaskReward
    validator: TaskValidator
    slash: TaskSlash
    key: TaskKey
    infer: TaskInfer
    def invoke(self, method: Method, params: JsonObject) -> Any: ...

class Node:
    def status(self) -> node.Status:
        """Tell how this node is doing."""

    def stop(self) -> node.Stopping:
        """Stop the daemon cleanly."""

    def config(self) -> node.Config:
        """Tell every option with its value and where the value comes from."""

    def traffic(self) -> node.Traffic:
        """Tell how many bytes went over the network, by protocol."""

    def backup(self, directory: str) -> Answer[parts.Progress, node.BackedUp]:
        """Save this node into a folder while it runs; `blyand restore` makes a home of it. The folder holds the key and its passphrase: keep it as safe as the home."""

    def page(self) -> node.Page:
        """Tell the address of the chat page, with the token that opens it."""

    def metrics(self) -> node.Metrics:
        """Tell every metric, as Prometheus reads it."""

    def resources(self) -> node.Resources:
        """Tell what the daemon itself takes: a number that only grows is a leak."""

class TaskNode:
    async def status(self) -> node.Status:
        """Tell how this node is doing."""

    async def stop(self) -> node.Stopping:
        """Stop the daemon cleanly."""

    async def config(self) -> node.Config:
        """Tell every option with its value and where the value comes from."""

    async def traffic(self) -> node.Traffic:
        """Tell how many bytes went over the network, by protocol."""

    def backup(self, directory: str) -> TaskAnswer[parts.Progress, node.BackedUp]:
        """Save this node into a folder while it runs; `blyand restore` makes a home of it. The folder holds the key and its passphrase: keep it as safe as the home."""

    async def page(self) -> node.Page:
        """Tell the address of the chat page, with the token that opens it."""

    async def metrics(self) -> node.Metrics:
        """Tell every metric, as Prometheus reads it."""

    async def resources(self) -> node.Resources:
        """Tell what the daemon itself takes: a number that only grows is a leak."""

class Net:
    def status(self) -> net.Status:
        """Tell how this node is connected, and what goes over it."""

class TaskNet:
    async def status(self) -> net.Status:
        """Tell how this node is connected, and what goes over it."""

class Peer:
    def list(self) -> peer.Peers:
        """List the peers connected now."""

    def connect(self, address: str) -> peer.Connected:
        """Connect to a peer."""

    def show(self, peer_id: str) -> peer.PeerDetails:
        """Show one peer: its connection, what it says of itself, how it behaved."""

    def bans(self) -> peer.Bans:
        """List the peers that this node refuses."""

    def ban(
        self, peer_id: str, *, minutes: int = ..., reason: str = ...
    ) -> peer.Banned:
        """Disconnect a peer and refuse it for a while."""

    def unban(self, peer_id: str) -> peer.Unbanned:
        """Forget a peer's ban, points and faults: it may come back and starts anew."""

    def disconnect(self, peer_id: str) -> peer.Disconnected:
        """Close the connections with a peer; it may come back."""

class TaskPeer:
    async def list(self) -> peer.Peers:
        """List the peers connected now."""

    async def connect(self, address: str) -> peer.Connected:
        """Connect to a peer."""

    async def show(self, peer_id: str) -> peer.PeerDetails:
        """Show one peer: its connection, what it says of itself, how it behaved."""

    async def bans(self) -> peer.Bans:
        """List the peers that this node refuses."""

    async def ban(
        self, peer_id: str, *, minutes: int = ..., reason: str = ...
    ) -> peer.Banned:
        """Disconnect a peer and refuse it for a while."""

    async def unban(self, peer_id: str) -> peer.Unbanned:
        """Forget a peer's ban, points and faults: it may come back and starts anew."""

    async def disconnect(self, peer_id: str) -> peer.Disconnected:
        """Close the connections with a peer; it may come back."""

class Chain:
    def tips(self) -> chain.Tips:
        """Tell the tips of the four chains and the newest finalised checkpoint."""

    def log(self, *, limit: int = ..., chain: str | None = ...) -> chain.Log:
        """List the newest blocks, newest first."""

    def stats(self) -> chain.Stats:
        """Count what the chains hold: blocks, bytes, authors, and what disagrees."""

    def export(
        self, *, dot: bool = ..., limit: int = ..., chain: str | None = ...
    ) -> Answer[chain.ExportedLine, chain.Exported]:
        """Write the block DAG, oldest block first: a line of JSON a block, or Graphviz text."""

    def block(self, id: bytes, *, payload: bool = ...) -> chain.Block:
        """Look up one block by its id."""

    def evidence(self, account: str = ..., *, limit: int = ...) -> chain.Evidence:
        """List the proofs that an author made two blocks under one sequence of a chain."""

    def checkpoint(self, height: int | None = ...) -> chain.Checkpoint:
        """Look up one finalised checkpoint."""

    def prove(
        self, what: str, name: str, *, model: str | None = ..., purse: str = ...
    ) -> proving.Proved:
        """Prove what stands under one key of the executed state, from its checkpoint's votes. `blyanctl verify` checks the printed JSON (`--json`) without a daemon."""

    def verify(self, *, blobs: bool = ...) -> Answer[parts.Progress, chain.Verified]:
        """Check everything on this disk again: blocks, checkpoints, state, and blobs."""

    def sync(self) -> Answer[chain.SyncProgress, chain.Synced]:
        """Wait until this node is level with its peers, and tell how far it has come."""

class TaskChain:
    async def tips(self) -> chain.Tips:
        """Tell the tips of the four chains and the newest finalised checkpoint."""

    async def log(self, *, limit: int = ..., chain: str | None = ...) -> chain.Log:
        """List the newest blocks, newest first."""

    async def stats(self) -> chain.Stats:
        """Count what the chains hold: blocks, bytes, authors, and what disagrees."""

    def export(
        self, *, dot: bool = ..., limit: int = ..., chain: str | None = ...
    ) -> TaskAnswer[chain.ExportedLine, chain.Exported]:
        """Write the block DAG, oldest block first: a line of JSON a block, or Graphviz text."""

    async def block(self, id: bytes, *, payload: bool = ...) -> chain.Block:
        """Look up one block by its id."""

    async def evidence(self, account: str = ..., *, limit: int = ...) -> chain.Evidence:
        """List the proofs that an author made two blocks under one sequence of a chain."""

    async def checkpoint(self, height: int | None = ...) -> chain.Checkpoint:
        """Look up one finalised checkpoint."""

    async def prove(
        self, what: str, name: str, *, model: str | None = ..., purse: str = ...
    ) -> proving.Proved:
        """Prove what stands under one key of the executed state, from its checkpoint's votes. `blyanctl verify` checks the printed JSON (`--json`) without a daemon."""

    def verify(
        self, *, blobs: bool = ...
    ) -> TaskAnswer[parts.Progress, chain.Verified]:
        """Check everything on this disk again: blocks, checkpoints, state, and blobs."""

    def sync(self) -> TaskAnswer[chain.SyncProgress, chain.Synced]:
        """Wait until this node is level with its peers, and tell how far it has come."""

class Sync:
    def status(self) -> sync.SyncStatus:
        """How this node joined, or is joining, and how far back its history goes."""

    def watch(self, *, history: bool = ...) -> Answer[sync.SyncStatus, sync.SyncStatus]:
        """Wait until this node has joined; with --history, until its history is whole."""

    def checkpoint(self) -> sync.CheckpointPin:
        """The newest final checkpoint, as `blyand run --checkpoint` takes it."""

    def providers(self) -> sync.Providers:
        """The peers that this node joined by, or could."""

class TaskSync:
    async def status(self) -> sync.SyncStatus:
        """How this node joined, or is joining, and how far back its history goes."""

    def watch(
        self, *, history: bool = ...
    ) -> TaskAnswer[sync.SyncStatus, sync.SyncStatus]:
        """Wait until this node has joined; with --history, until its history is whole."""

    async def checkpoint(self) -> sync.CheckpointPin:
        """The newest final checkpoint, as `blyand run --checkpoint` takes it."""

    async def providers(self) -> sync.Providers:
        """The peers that this node joined by, or could."""

class Consensus:
    def status(self) -> consensus.Consensus:
        """Tell how the validators stand with the next checkpoint, as this node sees it."""

class TaskConsensus:
    async def status(self) -> consensus.Consensus:
        """Tell how the validators stand with the next checkpoint, as this node sees it."""

class Expert:
    def list(self, *, model: str | None = ...) -> expert.Experts:
        """List the experts of a model."""

    def show(self, name: str, *, model: str | None = ...) -> expert.Expert:
        """Show one expert."""

    def history(
        self, name: str, *, model: str | None = ..., limit: int = ...
    ) -> expert.History:
        """List the finalised versions of an expert, newest first: who made them from what. Any group has a history: layer0.trunk, layer0.router and embed too."""

    def cache(self) -> expert.Cache:
        """List the experts that are ready to compute on this node."""

    def usage(self, *, model: str | None = ...) -> demand.Usage:
        """Show which experts were visited in the last hour, as far as this node saw it."""

    def groups(self, *, model: str | None = ...) -> demand.Groups:
        """List the experts that are used together more often than by chance."""

    def suggestions(self, *, model: str | None = ...) -> demand.Suggestions:
        """Suggest which experts to copy, which copies to drop, what to move where."""

class TaskExpert:
    async def list(self, *, model: str | None = ...) -> expert.Experts:
        """List the experts of a model."""

    async def show(self, name: str, *, model: str | None = ...) -> expert.Expert:
        """Show one expert."""

    async def history(
        self, name: str, *, model: str | None = ..., limit: int = ...
    ) -> expert.History:
        """List the finalised versions of an expert, newest first: who made them from what. Any group has a history: layer0.trunk, layer0.router and embed too."""

    async def cache(self) -> expert.Cache:
        """List the experts that are ready to compute on this node."""

    async def usage(self, *, model: str | None = ...) -> demand.Usage:
        """Show which experts were visited in the last hour, as far as this node saw it."""

    async def groups(self, *, model: str | None = ...) -> demand.Groups:
        """List the experts that are used together more often than by chance."""

    async def suggestions(self, *, model: str | None = ...) -> demand.Suggestions:
        """Suggest which experts to copy, which copies to drop, what to move where."""

class Model:
    def create(
        self,
        preset: str = ...,
        *,
        name: str | None = ...,
        seed: int = ...,
        weights: str | None = ...
    ) -> Answer[parts.Progress, model.Created]:
        """Create a model with random or with packed weights and publish it."""

    def import_(
        self, directory: str, *, name: str | None = ...
    ) -> Answer[parts.Progress, model.Imported]:
        """Publish a Hugging Face checkpoint of safetensors; goes on where it was stopped."""

    def export(
        self,
        model: str,
        directory: str,
        *,
        dtype: str | None = ...,
        shard_mib: int = ...
    ) -> Answer[parts.Progress, model.Exported]:
        """Write a model's adopted weights as a Hugging Face checkpoint of safetensors."""

    def list(self) -> model.Models:
        """List the models of this network."""

    def show(self, model: str | None = ...) -> model.Model:
        """Show one model."""

    def plan(
        self,
        model: str | None = ...,
        *,
        directory: str | None = ...,
        context: int = ...
    ) -> planning.Plan:
        """Tell what fits where, how many hops a token takes, and how fast it may be. Nothing is fetched. Give a model of the network, or the folder of a checkpoint."""

    def pack(
        self, model: str, file: str
    ) -> Answer[parts.Progress, packing.PackedModel]:
        """Write a model's adopted weights into one file, its matrices as 8-bit integers. The same versions give the same file, byte for byte. `model create --weights` reads it."""

class TaskModel:
    def create(
        self,
        preset: str = ...,
        *,
        name: str | None = ...,
        seed: int = ...,
        weights: str | None = ...
    ) -> TaskAnswer[parts.Progress, model.Created]:
        """Create a model with random or with packed weights and publish it."""

    def import_(
        self, directory: str, *, name: str | None = ...
    ) -> TaskAnswer[parts.Progress, model.Imported]:
        """Publish a Hugging Face checkpoint of safetensors; goes on where it was stopped."""

    def export(
        self,
        model: str,
        directory: str,
        *,
        dtype: str | None = ...,
        shard_mib: int = ...
    ) -> TaskAnswer[parts.Progress, model.Exported]:
        """Write a model's adopted weights as a Hugging Face checkpoint of safetensors."""

    async def list(self) -> model.Models:
        """List the models of this network."""

    async def show(self, model: str | None = ...) -> model.Model:
        """Show one model."""

    async def plan(
        self,
        model: str | None = ...,
        *,
        directory: str | None = ...,
        context: int = ...
    ) -> planning.Plan:
        """Tell what fits where, how many hops a token takes, and how fast it may be. Nothing is fetched. Give a model of the network, or the folder of a checkpoint."""

    def pack(
        self, model: str, file: str
    ) -> TaskAnswer[parts.Progress, packing.PackedModel]:
        """Write a model's adopted weights into one file, its matrices as 8-bit integers. The same versions give the same file, byte for byte. `model create --weights` reads it."""

class Data:
    def add(
        self,
        directory: str | None = ...,
        *,
        max_mb: int = ...,
        name: str | None = ...,
        license: str = ...
    ) -> Answer[parts.Progress, data.Added]:
        """Make a dataset of text files and publish it."""

    def list(self) -> data.Datasets:
        """List the datasets of this network."""

    def show(self, dataset: str | None = ...) -> data.Dataset:
        """Show one dataset."""

class TaskData:
    def add(
        self,
        directory: str | None = ...,
        *,
        max_mb: int = ...,
        name: str | None = ...,
        license: str = ...
    ) -> TaskAnswer[parts.Progress, data.Added]:
        """Make a dataset of text files and publish it."""

    async def list(self) -> data.Datasets:
        """List the datasets of this network."""

    async def show(self, dataset: str | None = ...) -> data.Dataset:
        """Show one dataset."""

class Train:
    def start(
        self,
        *,
        model: str | None = ...,
        dataset: str | None = ...,
        rounds: int | None = ...,
        preset: str = ...,
        run: bytes | None = ...,
        codec: list[str] | None = ...,
        inner_steps: int | None = ...,
        batch: int | None = ...,
        sequence: int | None = ...,
        inner: str | None = ...,
        inner_rate: float | None = ...,
        outer_rate: float | None = ...,
        outer_momentum: float | None = ...,
        from_residual: bool | None = ...,
        quorum: float | None = ...,
        deadline_s: float | None = ...,
        adopt_every: int | None = ...,
        snapshot_every: int | None = ...,
        seed: int | None = ...,
        gate: int | None = ...,
        gate_margin: float | None = ...,
        gate_windows: int | None = ...
    ) -> train.Started:
        """Start a training run, or join the one under way."""

    def stop(self) -> train.Stopped:
        """Stop learning on this node; the run goes on elsewhere."""

    def status(self) -> train.Learning:
        """Tell where the run stands and what this node does in it."""

    def watch(
        self, *, run: bytes | None = ..., live: bool = ...
    ) -> Answer[train.RoundReport, train.Watched]:
        """Follow a run, one row per round, until it ends; on a terminal, as a dashboard."""

    def audit(
        self,
        learner: str,
        round: int | None = ...,
        *,
        run: bytes | None = ...,
        steps: int | None = ...,
        repeat: int = ...
    ) -> Answer[auditing.AuditStep, auditing.Audited]:
        """Look at the log of a learner's round: batches derived again, steps repeated."""

    def explain(
        self, peer: str, round: int, *, run: bytes | None = ...
    ) -> explaining.RoundExplained:
        """Explain a learner's round: received, weighted, clipped, refused, and why. What a node knows: the updates of the chain, what was handed in to it as a rank, and the receipts that it got itself."""

    def gate(self, *, run: bytes | None = ...) -> gating.GateStand:
        """Tell how drawn validators judged a run's newest version before its adoption."""

    def report(self, *, run: bytes | None = ...) -> train.Reported:
        """Report a whole run: every round, who took part, its settings; as an HTML page."""

class TaskTrain:
    async def start(
        self,
        *,
        model: str | None = ...,
        dataset: str | None = ...,
        rounds: int | None = ...,
        preset: str = ...,
        run: bytes | None = ...,
        codec: list[str] | None = ...,
        inner_steps: int | None = ...,
        batch: int | None = ...,
        sequence: int | None = ...,
        inner: str | None = ...,
        inner_rate: float | None = ...,
        outer_rate: float | None = ...,
        outer_momentum: float | None = ...,
        from_residual: bool | None = ...,
        quorum: float | None = ...,
        deadline_s: float | None = ...,
        adopt_every: int | None = ...,
        snapshot_every: int | None = ...,
        seed: int | None = ...,
        gate: int | None = ...,
        gate_margin: float | None = ...,
        gate_windows: int | None = ...
    ) -> train.Started:
        """Start a training run, or join the one under way."""

    async def stop(self) -> train.Stopped:
        """Stop learning on this node; the run goes on elsewhere."""

    async def status(self) -> train.Learning:
        """Tell where the run stands and what this node does in it."""

    def watch(
        self, *, run: bytes | None = ..., live: bool = ...
    ) -> TaskAnswer[train.RoundReport, train.Watched]:
        """Follow a run, one row per round, until it ends; on a terminal, as a dashboard."""

    def audit(
        self,
        learner: str,
        round: int | None = ...,
        *,
        run: bytes | None = ...,
        steps: int | None = ...,
        repeat: int = ...
    ) -> TaskAnswer[auditing.AuditStep, auditing.Audited]:
        """Look at the log of a learner's round: batches derived again, steps repeated."""

    async def explain(
        self, peer: str, round: int, *, run: bytes | None = ...
    ) -> explaining.RoundExplained:
        """Explain a learner's round: received, weighted, clipped, refused, and why. What a node knows: the updates of the chain, what was handed in to it as a rank, and the receipts that it got itself."""

    async def gate(self, *, run: bytes | None = ...) -> gating.GateStand:
        """Tell how drawn validators judged a run's newest version before its adoption."""

    async def report(self, *, run: bytes | None = ...) -> train.Reported:
        """Report a whole run: every round, who took part, its settings; as an HTML page."""

class Tile:
    def list(self, *, model: str | None = ..., group: str | None = ...) -> tile.Tiles:
        """List the tiles that this node holds, with the roots of their state."""

    def show(self, group: str, index: int, *, model: str | None = ...) -> tile.Tile:
        """Show one tile."""

    def roots(self, *, model: str | None = ..., round: int | None = ...) -> tile.Roots:
        """Tell one digest over all tiles held, and one root per group, at a finalised round. Two nodes that hold the same groups at the same round answer the same digest."""

    def replay(
        self,
        group: str,
        *,
        model: str | None = ...,
        from_genesis: bool = ...,
        version: bytes | None = ...
    ) -> Answer[parts.Progress, tile.Replayed]:
        """Prove a version of a group: compute it again from the oldest snapshot held here. Every update is made again from its base and its deltas, and must give its roots."""

    def history(
        self, group: str, *, model: str | None = ..., limit: int = ...
    ) -> tile.History:
        """Tell every version of a group that the chain knows, newest first."""

class TaskTile:
    async def list(
        self, *, model: str | None = ..., group: str | None = ...
    ) -> tile.Tiles:
        """List the tiles that this node holds, with the roots of their state."""

    async def show(
        self, group: str, index: int, *, model: str | None = ...
    ) -> tile.Tile:
        """Show one tile."""

    async def roots(
        self, *, model: str | None = ..., round: int | None = ...
    ) -> tile.Roots:
        """Tell one digest over all tiles held, and one root per group, at a finalised round. Two nodes that hold the same groups at the same round answer the same digest."""

    def replay(
        self,
        group: str,
        *,
        model: str | None = ...,
        from_genesis: bool = ...,
        version: bytes | None = ...
    ) -> TaskAnswer[parts.Progress, tile.Replayed]:
        """Prove a version of a group: compute it again from the oldest snapshot held here. Every update is made again from its base and its deltas, and must give its roots."""

    async def history(
        self, group: str, *, model: str | None = ..., limit: int = ...
    ) -> tile.History:
        """Tell every version of a group that the chain knows, newest first."""

class Pin:
    def add(self, kind: str, name: str) -> pin.Pin:
        """Keep a model, dataset, block or blob on this node, from now on until unpinned. A dataset or blob that is not here is fetched. Of a model all weights, updates and snapshots stay that are here or come."""

    def list(self) -> pin.Pins:
        """List what is pinned here, the newest first."""

    def remove(self, kind: str, name: str) -> pin.Unpinned:
        """Let retention judge something like everything else again."""

class TaskPin:
    async def add(self, kind: str, name: str) -> pin.Pin:
        """Keep a model, dataset, block or blob on this node, from now on until unpinned. A dataset or blob that is not here is fetched. Of a model all weights, updates and snapshots stay that are here or come."""

    async def list(self) -> pin.Pins:
        """List what is pinned here, the newest first."""

    async def remove(self, kind: str, name: str) -> pin.Unpinned:
        """Let retention judge something like everything else again."""

class Ledger:
    def accept(
        self,
        session: bytes,
        *,
        tokens: int,
        amount_micro: int | None = ...,
        groups: list[int] = ...,
        calls: list[int] = ...,
        response_ms: int = ...,
        quality_ppm: int = ...
    ) -> payment.Accepted:
        """Sign for what was delivered; the receipt lets the payee capture it."""

    def authorize(self, quote: bytes, *, fee_micro: int = ...) -> payment.Session:
        """Reserve what a quote asks for, and wait until that is final. The same quote again has the same result."""

    def capture(self, receipt: bytes) -> payment.Session:
        """Take what a payer signed for, and wait until it is credited, finally. The same receipt again has the same result. A delivery more than 10 % off the quote is refused, and the payer's money released."""

    def credit(self, session: bytes) -> payment.Session:
        """Wait until a captured payment is credited, finally."""

    def metrics(self, *, period: str = ...) -> payment.Metrics:
        """Tell how payments went of late: success, delays, reasons of failure."""

    def quote(
        self,
        payer: str,
        *,
        tokens: int,
        amount_micro: int | None = ...,
        span_s: int = ...,
        model: bytes | None = ...
    ) -> payment.Quoted:
        """Offer a service to a payer at a price that holds for a while."""

    def reverse(
        self,
        session: bytes,
        *,
        amount_micro: int | None = ...,
        key: str = ...,
        failure: str | None = ...
    ) -> payment.Session:
        """Give back: a whole reserve before it is captured, or some of what was credited."""

    def sessions(
        self, *, state: str | None = ..., limit: int = ...
    ) -> payment.Sessions:
        """List the payments for services that this node takes part in, the newest first."""

    def balance(self, account: str = ...) -> ledger.Balance:
        """Tell what an account owns, purse by purse."""

    def send(
        self,
        to: str,
        amount_micro: int,
        *,
        fee_micro: int | None = ...,
        memo: str = ...,
        key: str = ...
    ) -> ledger.Sent:
        """Send money from this node's account, and wait until that is final."""

    def stake(
        self, *, lock_micro: int = ..., unlock_micro: int = ..., key: str = ...
    ) -> ledger.Balance:
        """Lock money for priority in queues, or begin to unlock some; wait until final."""

    def history(
        self, account: str = ..., *, limit: int = ..., before: str = ...
    ) -> ledger.History:
        """List what moved on an account, the newest first."""

    def explain(self, transaction: str) -> ledger.Explained:
        """Tell all about a transaction: who signed it, where it stands, what it moved, why."""

    def audit(self) -> Answer[parts.Progress, ledger.Audited]:
        """Add up every purse; hold it against the supply and against all that moved."""

class TaskLedger:
    async def accept(
        self,
        session: bytes,
        *,
        tokens: int,
        amount_micro: int | None = ...,
        groups: list[int] = ...,
        calls: list[int] = ...,
        response_ms: int = ...,
        quality_ppm: int = ...
    ) -> payment.Accepted:
        """Sign for what was delivered; the receipt lets the payee capture it."""

    async def authorize(self, quote: bytes, *, fee_micro: int = ...) -> payment.Session:
        """Reserve what a quote asks for, and wait until that is final. The same quote again has the same result."""

    async def capture(self, receipt: bytes) -> payment.Session:
        """Take what a payer signed for, and wait until it is credited, finally. The same receipt again has the same result. A delivery more than 10 % off the quote is refused, and the payer's money released."""

    async def credit(self, session: bytes) -> payment.Session:
        """Wait until a captured payment is credited, finally."""

    async def metrics(self, *, period: str = ...) -> payment.Metrics:
        """Tell how payments went of late: success, delays, reasons of failure."""

    async def quote(
        self,
        payer: str,
        *,
        tokens: int,
        amount_micro: int | None = ...,
        span_s: int = ...,
        model: bytes | None = ...
    ) -> payment.Quoted:
        """Offer a service to a payer at a price that holds for a while."""

    async def reverse(
        self,
        session: bytes,
        *,
        amount_micro: int | None = ...,
        key: str = ...,
        failure: str | None = ...
    ) -> payment.Session:
        """Give back: a whole reserve before it is captured, or some of what was credited."""

    async def sessions(
        self, *, state: str | None = ..., limit: int = ...
    ) -> payment.Sessions:
        """List the payments for services that this node takes part in, the newest first."""

    async def balance(self, account: str = ...) -> ledger.Balance:
        """Tell what an account owns, purse by purse."""

    async def send(
        self,
        to: str,
        amount_micro: int,
        *,
        fee_micro: int | None = ...,
        memo: str = ...,
        key: str = ...
    ) -> ledger.Sent:
        """Send money from this node's account, and wait until that is final."""

    async def stake(
        self, *, lock_micro: int = ..., unlock_micro: int = ..., key: str = ...
    ) -> ledger.Balance:
        """Lock money for priority in queues, or begin to unlock some; wait until final."""

    async def history(
        self, account: str = ..., *, limit: int = ..., before: str = ...
    ) -> ledger.History:
        """List what moved on an account, the newest first."""

    async def explain(self, transaction: str) -> ledger.Explained:
        """Tell all about a transaction: who signed it, where it stands, what it moved, why."""

    def audit(self) -> TaskAnswer[parts.Progress, ledger.Audited]:
        """Add up every purse; hold it against the supply and against all that moved."""

class Supply:
    def show(self) -> supply.Supply:
        """Tell what was issued and burnt, what this year may bring, what the pools hold."""

class TaskSupply:
    async def show(self) -> supply.Supply:
        """Tell what was issued and burnt, what this year may bring, what the pools hold."""

class Reward:
    def epoch(self, number: int | None = ..., *, limit: int = ...) -> reward.Epoch:
        """Show what an epoch that is over paid, and how its budgets scaled it."""

    def preview(self, *, limit: int = ...) -> reward.Epoch:
        """Show what the running epoch would pay if it ended now. Only its end pays."""

    def explain(self, who: str, epoch: int, *, limit: int = ...) -> reward.Explained:
        """Say why an account got what it got in an epoch, down to blocks and signatures."""

    def stats(self, *, who: str = ...) -> reward.Stats:
        """Show what was paid in the last day, week and month of chain time."""

    def leaderboard(self, *, limit: int = ...) -> reward.Leaderboard:
        """List who was rewarded most, since the genesis."""

class TaskReward:
    async def epoch(
        self, number: int | None = ..., *, limit: int = ...
    ) -> reward.Epoch:
        """Show what an epoch that is over paid, and how its budgets scaled it."""

    async def preview(self, *, limit: int = ...) -> reward.Epoch:
        """Show what the running epoch would pay if it ended now. Only its end pays."""

    async def explain(
        self, who: str, epoch: int, *, limit: int = ...
    ) -> reward.Explained:
        """Say why an account got what it got in an epoch, down to blocks and signatures."""

    async def stats(self, *, who: str = ...) -> reward.Stats:
        """Show what was paid in the last day, week and month of chain time."""

    async def leaderboard(self, *, limit: int = ...) -> reward.Leaderboard:
        """List who was rewarded most, since the genesis."""

class Validator:
    def list(self) -> validator.Validators:
        """Tell who signs checkpoints, who will, and who waits to."""

    def show(self, account: str = ...) -> validator.Validator:
        """Tell everything about one validator."""

    def register(self, *, bond_micro: int | None = ...) -> validator.Registered:
        """Register this node as a validator, also after a ban, and wait until it is final. It enters at the end of the next epoch at the earliest; `validator list` shows when."""

    def retire(self) -> validator.Registered:
        """Register this node without the role; it signs until the epoch's end."""

    def bond(
        self, *, lock_micro: int = ..., release_micro: int = ...
    ) -> validator.Bonded:
        """Lock some of this node's money, or begin to release some of its bond."""

class TaskValidator:
    async def list(self) -> validator.Validators:
        """Tell who signs checkpoints, who will, and who waits to."""

    async def show(self, account: str = ...) -> validator.Validator:
        """Tell everything about one validator."""

    async def register(self, *, bond_micro: int | None = ...) -> validator.Registered:
        """Register this node as a validator, also after a ban, and wait until it is final. It enters at the end of the next epoch at the earliest; `validator list` shows when."""

    async def retire(self) -> validator.Registered:
        """Register this node without the role; it signs until the epoch's end."""

    async def bond(
        self, *, lock_micro: int = ..., release_micro: int = ...
    ) -> validator.Bonded:
        """Lock some of this node's money, or begin to release some of its bond."""

class Slash:
    def list(
        self, *, account: str = ..., limit: int = ..., before: bytes | None = ...
    ) -> slash.Slashes:
        """Tell every penalty, newest first."""

    def show(self, id: bytes) -> slash.Slash:
        """Explain one penalty, down to the signatures that prove it."""

    def submit(self, file: str) -> slash.Submitted:
        """Check evidence from a file and make a block of it; wait until it is final. Evidence that proves nothing is refused here: on the chain it would cost this node."""

    def censure(self, account: str, reason: str) -> slash.Censured:
        """Vote, as a validator, that another one leaves out valid blocks (never automatic)."""

class TaskSlash:
    async def list(
        self, *, account: str = ..., limit: int = ..., before: bytes | None = ...
    ) -> slash.Slashes:
        """Tell every penalty, newest first."""

    async def show(self, id: bytes) -> slash.Slash:
        """Explain one penalty, down to the signatures that prove it."""

    async def submit(self, file: str) -> slash.Submitted:
        """Check evidence from a file and make a block of it; wait until it is final. Evidence that proves nothing is refused here: on the chain it would cost this node."""

    async def censure(self, account: str, reason: str) -> slash.Censured:
        """Vote, as a validator, that another one leaves out valid blocks (never automatic)."""

class Key:
    def show(self) -> key.Held:
        """Tell which key signs for this node, and which did."""

    def rotate(self) -> key.Rotated:
        """Change this node's key; the account, its money and its bond stay. The new key is on disk before the block is made. When it is final the node starts again by itself with the new key, and with another peer id."""

class TaskKey:
    async def show(self) -> key.Held:
        """Tell which key signs for this node, and which did."""

    async def rotate(self) -> key.Rotated:
        """Change this node's key; the account, its money and its bond stay. The new key is on disk before the block is made. When it is final the node starts again by itself with the new key, and with another peer id."""

class Infer:
    def generate(
        self,
        prompt: str | None = ...,
        *,
        token_ids: list[int] | None = ...,
        special: bool = ...,
        model: str | None = ...,
        max_tokens: int = ...,
        temperature: float = ...,
        seed: int = ...,
        top_k: int = ...,
        top_p: float = ...,
        min_p: float = ...,
        presence_penalty: float = ...,
        frequency_penalty: float = ...,
        repetition_penalty: float = ...,
        logit_bias: dict[str, Any] | None = ...,
        stop: list[str] | None = ...,
        stop_token_ids: list[int] | None = ...,
        ignore_eos: bool = ...,
        logprobs: int | None = ...,
        schema: dict[str, Any] | None = ...,
        numerics: str | None = ...,
        route: str = ...,
        lookup: int | None = ...,
        request: str | None = ...
    ) -> Answer[infer.Token, infer.Generated]:
        """Continue a prompt, token by token."""

    def cancel(self, request: str) -> infer.Cancelled:
        """End a request that is being answered; it keeps the tokens made so far."""

    def list(self) -> infer.Listed:
        """Show the requests that are being answered, whoever asked."""

    def evaluate(
        self, *, dataset: str | None = ..., model: str | None = ..., tokens: int = ...
    ) -> infer.Evaluation:
        """Measure the held-out loss of the adopted versions through the serving path."""

class TaskInfer:
    def generate(
        self,
        prompt: str | None = ...,
        *,
        token_ids: list[int] | None = ...,
        special: bool = ...,
        model: str | None = ...,
        max_tokens: int = ...,
        temperature: float = ...,
        seed: int = ...,
        top_k: int = ...,
        top_p: float = ...,
        min_p: float = ...,
        presence_penalty: float = ...,
        frequency_penalty: float = ...,
        repetition_penalty: float = ...,
        logit_bias: dict[str, Any] | None = ...,
        stop: list[str] | None = ...,
        stop_token_ids: list[int] | None = ...,
        ignore_eos: bool = ...,
        logprobs: int | None = ...,
        schema: dict[str, Any] | None = ...,
        numerics: str | None = ...,
        route: str = ...,
        lookup: int | None = ...,
        request: str | None = ...
    ) -> TaskAnswer[infer.Token, infer.Generated]:
        """Continue a prompt, token by token."""

    async def cancel(self, request: str) -> infer.Cancelled:
        """End a request that is being answered; it keeps the tokens made so far."""

    async def list(self) -> infer.Listed:
        """Show the requests that are being answered, whoever asked."""

    async def evaluate(
        self, *, dataset: str | None = ..., model: str | None = ..., tokens: int = ...
    ) -> infer.Evaluation:
        """Measure the held-out loss of the adopted versions through the serving path."""
