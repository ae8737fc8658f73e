"""A model's weights as one small file to begin another model with (noun: model)."""

from __future__ import annotations

from blyan_proto.rpc.errors import EXPORT_REFUSED, MODEL_AMBIGUOUS, MODEL_UNKNOWN
from blyan_proto.rpc.parts import Progress
from blyan_proto.rpc.spec import Id, Method, arg, declare, record


@record
class PackModel:
    """Write a model's adopted weights into one file, its matrices as 8-bit integers.

    The same versions give the same file, byte for byte. `model create --weights` reads it.
    """

    model: str = arg("model name or block id", positional=True)
    file: str = arg("new file on the daemon's machine", positional=True, path=True)


@record
class PackedModel:
    """Weights that were packed."""

    model: Id = arg("model block id")
    file: str = arg("where they are")
    bytes: int = arg("bytes of the packed weights")
    root: Id = arg("root of the file: the same weights give the same")
    run: Id | None = arg("run that trained them; null: first weights")
    round: int = arg("rounds of that run")


pack = declare(
    Method(
        "model.pack",
        PackModel,
        PackedModel,
        errors=(MODEL_UNKNOWN, MODEL_AMBIGUOUS, EXPORT_REFUSED),
        streams=Progress,
        deadline_s=None,
    )
)
