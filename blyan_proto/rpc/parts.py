"""Records and help texts that several nouns share, so that no noun imports another."""

from __future__ import annotations

from blyan_proto.rpc.records import arg, record

MODEL_HELP = "model name or block id; default: the only one"
DATASET_HELP = "dataset name or block id; default: the only one"


@record
class Hosted:
    """The groups of one model that a node holds."""

    model: str = arg("model name")
    groups: list[str] = arg("group names, as layer0.expert3")


@record
class Progress:
    """How far long work has come."""

    stage: str = arg("what is being done")
    done: int = arg("units done")
    total: int | None = arg("units in all; null while unknown")
    unit: str = arg("what is counted: bytes, files, groups")
