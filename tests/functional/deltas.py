"""Bundles that a member of a run should not send, and one that it may."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from blyan_proto.block.model import Codec
from blyan_proto.constants import FORMAT_VERSION
from blyan_proto.protocols.delta import (
    ANSWER,
    PROTOCOL_ID,
    REQUEST,
    Bundle,
    Delta,
    Entry,
    Manifest,
    Verdict,
)
from blyan_proto.protocols.result import ResultCode
from blyan_proto.signing import Purpose
from blyan_tile import delta as deltas
from blyan_tile.create import model_of, run_preset
from blyan_tile.layout import layout_of
from tests.functional.harness import Daemon
from tests.functional.hostile import Hostile

GROUP = "layer0.trunk"  # everybody holds it; it has a dense tile and low-rank ones
TOKENS = 640  # what a round of the tiny preset assigns

Send = Callable[[Daemon], Verdict | ResultCode]


def bundles(peer: Hostile, run: bytes, model: bytes) -> dict[str, Send]:
    """Return senders by name; each sends to a node and returns its judgement."""

    def sender(change: Callable[[Delta], Delta], break_signature: bool = False) -> Send:
        def send(node: Daemon) -> Verdict | ResultCode:
            made = change(_delta(peer, run, model, node))
            bundle = _bundle(peer, made)
            if break_signature:
                bundle = replace(bundle, signature=bytes(63) + b"\x01")
            receipt = peer.request(node, PROTOCOL_ID, bundle, REQUEST, ANSWER)
            if isinstance(receipt, ResultCode):
                return receipt
            verdict: Verdict = receipt.verdicts[0].verdict
            return verdict

        return send

    def not_finite(delta: Delta) -> Delta:
        tiles = list(delta.tiles)
        place = next(i for i, raw in enumerate(tiles) if raw[0] == Codec.DENSE)
        tiles[place] = tiles[place][:-2] + b"\x00\x7e"  # float16 NaN, little-endian
        return replace(delta, tiles=tuple(tiles))

    return {
        "shape": sender(lambda d: replace(d, tiles=(d.tiles[0] + b"\0", *d.tiles[1:]))),
        "not finite": sender(not_finite),
        "stale": sender(lambda d: replace(d, base=tuple(bytes(32) for _ in d.base))),
        "in another's name": sender(lambda d: replace(d, learner=bytes(20))),
        "signature": sender(lambda d: d, break_signature=True),
        "good": sender(lambda d: d),
    }


def _delta(peer: Hostile, run: bytes, model: bytes, node: Daemon) -> Delta:
    """Return a delta of zeros for the version that `node` holds now."""
    lines = node.call("tile.list", group=GROUP)["tiles"]
    group = layout_of(model_of("tiny", "tiny")).group_named(GROUP)
    settings = run_preset("tiny", model, (bytes(32),), 4, 0)
    status = node.call("train.status")
    round = lines[0]["round"] if status["run"] == run.hex() else 0
    zeros = [np.zeros(tile.shape, np.float32) for tile in group.tiles]
    encoded, _ = deltas.encode_group(group, zeros, settings, round, [None] * len(zeros))
    return Delta(
        version=FORMAT_VERSION,
        run=run,
        group=group.index,
        round=round,
        learner=peer.key.account,
        base=tuple(bytes.fromhex(line["weights_root"]) for line in lines),
        tokens=TOKENS,
        tiles=tuple(encoded),
    )


def _bundle(peer: Hostile, delta: Delta) -> Bundle:
    manifest = Manifest(
        run=delta.run,
        round=delta.round,
        learner=delta.learner,
        entries=(Entry(delta.group, delta.digest),),
        residual=bytes(32),
        change=bytes(32),
    )
    signature = peer.key.sign(Purpose.DELTA_BUNDLE, peer.genesis.id, manifest)
    return Bundle(manifest, peer.key.public, signature, (delta,))
