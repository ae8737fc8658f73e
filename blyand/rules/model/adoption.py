"""The heads of a round become what inference answers with (DEC-B8)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from blyan_proto.block.block import Block
from blyan_proto.block.model import Adoption
from blyand.rules.model.dispute import is_doubted
from blyand.rules.model.model import heads_root, require_model
from blyand.rules.model.run import is_adoptable
from blyand.rules.model.standing import credit
from blyand.rules.records import (
    GROUPS,
    MODELS,
    RUNS,
    VERSIONS,
    ModelRecord,
    Version,
)
from blyand.rules.verdict import Reject
from blyand.rules.view import Overlay, View


def adopt(
    view: Overlay, block: Block, payload: Adoption, height: int, adopters: set[bytes]
) -> None:
    """Execute an adoption block. `adopters`: the accounts of the validators."""
    if block.header.account not in adopters:
        raise Reject("only a validator adopts in this version")
    record = require_model(view, payload.model)
    run = RUNS.get(view, payload.run)
    if run is None or run.run.model != payload.model:
        raise Reject("unknown run")
    if run.run.gate is not None:
        raise Reject("heads of this run are adopted by its gate alone")
    newest = record.adopted_run == payload.run and record.adopted_round
    if payload.round < newest:
        raise Reject(f"round {payload.round} or a later one is adopted")
    if payload.round >= run.closed or not is_adoptable(run.run, payload.round):
        raise Reject(f"round {payload.round} is not up for adoption")
    if is_doubted(view, payload.run, payload.round):
        raise Reject(f"an update before the end of round {payload.round} is disputed")
    versions = versions_of(view, payload.run, payload.round, record.groups)
    if versions is None:
        raise Reject(f"the versions of round {payload.round} are no longer held")
    if heads_root([version.tiles for version in versions]) != payload.heads_root:
        raise Reject("the adoption names other heads")
    if any(group.run != payload.run for group in GROUPS.scan(view, payload.model)):
        raise Reject("a later run has moved the model's heads")
    move_heads(view, record, payload.run, payload.round, versions, height)


def move_heads(
    view: Overlay,
    record: ModelRecord,
    run: bytes,
    round: int,
    versions: Sequence[Version],
    height: int,
) -> None:
    """Let every group's version after a round be the adopted one."""
    for index, version in enumerate(versions):
        group = GROUPS.get(view, record.id, index)
        assert group is not None
        adopted = replace(group, adopted=version.tiles, adopted_head=version.update)
        GROUPS.put(view, adopted, record.id, index)
    credit(view, versions[0].learners)
    MODELS.put(
        view,
        replace(
            record,
            adopted_run=run,
            adopted_round=round + 1,
            adopted_height=height,
            heads_root=heads_root([version.tiles for version in versions]),
        ),
        record.id,
    )


def versions_of(
    view: View, run: bytes, round: int, groups: int
) -> list[Version] | None:
    """Return every group's version after `round`, or None when state forgot one."""
    found = [VERSIONS.get(view, run, round, group) for group in range(groups)]
    versions = [version for version in found if version is not None]
    return versions if len(versions) == groups else None
