"""Datasets on the chain. Governance (audit, votes, tiers) builds on this record."""

from __future__ import annotations

from blyan_proto.block.block import Block
from blyan_proto.block.data import Dataset, Tier
from blyan_proto.constants import MAX_BLOB_BYTES, PPM
from blyand.rules.records import DATASETS, DatasetRecord
from blyand.rules.verdict import Reject
from blyand.rules.view import Overlay


def register(view: Overlay, block: Block, payload: Dataset) -> None:
    """Execute a dataset block; the dataset begins as pending."""
    if not payload.bytes or payload.bytes > MAX_BLOB_BYTES:
        raise Reject("a dataset has 1 byte to 4 GiB")
    if payload.held_out_ppm > PPM // 2:
        raise Reject("at most half of a dataset is held out")
    if payload.parent is not None and DATASETS.get(view, payload.parent) is None:
        raise Reject("the dataset that this one replaces is unknown")
    DATASETS.put(
        view,
        DatasetRecord(block.id, payload, block.header.account, Tier.PENDING),
        block.id,
    )
