"""The stream protocols that a node serves: one call each."""

from __future__ import annotations

from blyan_proto.protocols import audit as audit_proto
from blyan_proto.protocols import blobs as blobs_proto
from blyan_proto.protocols import blocks as blocks_proto
from blyan_proto.protocols import cosign as cosign_proto
from blyan_proto.protocols import delta as delta_proto
from blyan_proto.protocols import edge as edge_proto
from blyan_proto.protocols import expert as expert_proto
from blyan_proto.protocols import providers as providers_proto
from blyan_proto.protocols import span as span_proto
from blyan_proto.protocols import sync as sync_proto
from blyan_proto.protocols import votes as votes_proto
from blyand.finality.voter import Voter
from blyand.foundation import Base
from blyand.newcomer import Newcomer
from blyand.parts import Models, build_uploads
from blyand.protocols import audit as audit_ends
from blyand.protocols import blobs as blobs_ends
from blyand.protocols import blocks as blocks_ends
from blyand.protocols import cosign as cosign_ends
from blyand.protocols import delta as delta_ends
from blyand.protocols import edge as edge_ends
from blyand.protocols import expert as expert_ends
from blyand.protocols import providers as providers_ends
from blyand.protocols import span as span_ends
from blyand.protocols import sync as sync_ends
from blyand.protocols import votes as votes_ends
from blyand.replica import Replica
from blyand.training.inspector import Inspector


def serve_streams(
    base: Base,
    replica: Replica,
    models: Models,
    voter: Voter | None,
    newcomer: Newcomer,
    inspector: Inspector,
    *,
    serves_experts: bool,
) -> None:
    """Answer what peers ask on streams, from now on."""
    host, stores = base.host, base.stores
    uploads = build_uploads(base)
    host.handle(
        blocks_proto.PROTOCOL_ID,
        blocks_ends.serve(stores.blocks.get, replica.pool.ids, base.disk_lane),
        deadline_s=blocks_proto.DEADLINE_S,
    )
    host.handle(
        sync_proto.PROTOCOL_ID,
        sync_ends.serve(
            lambda: replica.machine.clock.height,
            newcomer.records,
            newcomer.donor,
            base.disk_lane,
            uploads,
        ),
        deadline_s=sync_proto.DEADLINE_S,
    )
    host.handle(
        blobs_proto.PROTOCOL_ID,
        blobs_ends.serve(stores.blobs, base.disk_lane, uploads),
        concurrency=16,
        total=blobs_proto.MAX_STREAMS,
        deadline_s=None,
        bulk=True,
    )
    take = inspector.admitting(models.primary.take)
    host.handle(
        delta_proto.PROTOCOL_ID,
        delta_ends.serve(base.genesis.id, take),
        deadline_s=delta_proto.DEADLINE_S,
        bulk=True,
    )
    host.handle(
        edge_proto.PROTOCOL_ID,
        edge_ends.serve(
            base.genesis.id,
            base.key.account,
            edge_ends.Ends(take, models.carriage.edge.forward, stores.blobs.open_array),
            base.disk_lane,
            uploads,
        ),
        deadline_s=edge_proto.DEADLINE_S,
        bulk=True,
    )
    host.handle(
        audit_proto.PROTOCOL_ID,
        audit_ends.serve(models.learner.logbook.show),
        concurrency=audit_proto.MAX_AT_ONCE,
        deadline_s=audit_proto.DEADLINE_S,
        bulk=True,
    )
    host.handle(
        cosign_proto.PROTOCOL_ID,
        cosign_ends.serve(base.genesis.id, models.cosigner.sign),
        concurrency=cosign_proto.MAX_AT_ONCE,
        deadline_s=cosign_proto.DEADLINE_S,
    )
    host.handle(
        providers_proto.PROTOCOL_ID,
        providers_ends.serve(base.directory.take, base.directory.find),
        deadline_s=providers_proto.DEADLINE_S,
    )
    if voter is not None:
        host.handle(
            votes_proto.PROTOCOL_ID,
            votes_ends.serve(voter.hear, voter.admits),
            concurrency=2,  # one may be of a connection that is gone
            deadline_s=None,
        )
    if serves_experts:
        host.handle(
            expert_proto.PROTOCOL_ID,
            expert_ends.serve(models.serving.experts.answer),
            deadline_s=None,
        )
        host.handle(
            span_proto.PROTOCOL_ID,
            span_ends.serve(models.serving.spans.answer),
            deadline_s=None,
        )
