"""Reports of rounds, as the journal keeps them, in the words of the interface."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from blyan_proto.rpc import train as spec
from blyand.net.identity import peer_id_of
from blyand.rules.model.model import layout_for
from blyand.rules.records import MODELS, NODES, RunRecord
from blyand.rules.view import View
from blyand.store.rounds import Report


@dataclass(frozen=True)
class Names:
    """What peers and groups are called."""

    peers: dict[bytes, str]  # by account
    groups: tuple[str, ...]

    def peer(self, account: bytes) -> str:
        """Return an account's peer id; of one that is no node, the account."""
        return self.peers.get(account, account.hex())

    def group(self, index: int) -> str:
        return self.groups[index] if index < len(self.groups) else str(index)


def names_of(view: View, record: RunRecord) -> Names:
    """Return the names of those who may take part in a run."""
    model = MODELS.get(view, record.run.model)
    groups = layout_for(model.model).groups if model else ()
    peers = {node.account: peer_id_of(node.key) for node in NODES.scan(view)}
    return Names(peers, tuple(group.name for group in groups))


def report_of(names: Names, report: Report, peers: int) -> spec.RoundReport:
    """Return a closed round as declared; callers count rounds from 1."""
    up, whole, seconds = report.bytes_up, report.float32_bytes, report.seconds
    blank = before_first(report.run, report.rounds, peers)
    return replace(
        blank,
        round=report.round + 1,
        train_loss=finite(report.train_loss),
        held_out_loss=finite(report.held_out_loss),
        tokens=report.tokens,
        bytes_up=up,
        bytes_down=report.bytes_down,
        compression_ratio=whole / up if whole and up else None,
        primaries=[
            spec.PrimaryCount(peer_id=names.peer(one.account), groups=one.groups)
            for one in report.primaries
        ],
        contributions=report.contributions,
        blocks=report.blocks,
        seconds=seconds,
        learners=report.learners,
        parts=[
            spec.LearnerPart(
                peer_id=names.peer(part.account),
                tokens=part.tokens,
                listed=part.listed,
                missed=part.missed,
                clipped=part.clipped,
            )
            for part in report.parts
        ],
        takeovers=[
            spec.Takeover(
                group=names.group(one.group),
                rank=one.rank,
                peer_id=names.peer(one.account),
            )
            for one in report.takeovers
        ],
        tokens_per_s=report.tokens / seconds if seconds else None,
    )


def before_first(run: bytes, rounds: int, peers: int) -> spec.RoundReport:
    """Return round 0, of which nothing is known yet."""
    return spec.RoundReport(
        round=0,
        rounds=rounds,
        train_loss=None,
        held_out_loss=None,
        tokens=0,
        bytes_up=0,
        bytes_down=0,
        compression_ratio=None,
        primaries=[],
        contributions=0,
        blocks=0,
        peers=peers,
        seconds=0.0,
        baselines=None,
        run=run,
        learners=0,
        parts=[],
        takeovers=[],
        tokens_per_s=None,
        under_way=None,
    )


def finite(value: float | None) -> float | None:
    """Return what JSON can carry."""
    return value if value is not None and math.isfinite(value) else None
