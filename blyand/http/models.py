"""/v1/models: what can be asked here."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from blyan_tile.tokenizer import BYTES
from blyand.http.refusal import Refusal
from blyand.http.reply import Reply
from blyand.http.request import Request
from blyand.rules.records import ModelRecord

PREFIX = "/v1/models/"


class Models:
    """`records` are the models whose first weights are complete; `called` finds one by
    name or id (RpcError); `made_s` says when a model was created, in Unix time."""

    def __init__(
        self,
        records: Callable[[], Iterable[ModelRecord]],
        called: Callable[[str | None], ModelRecord],
        made_s: Callable[[ModelRecord], int],
    ) -> None:
        self._records = records
        self._called = called
        self._made_s = made_s

    def called(self, name: str | None) -> ModelRecord:
        """Return a model that can be asked. Refusal 404, RpcError for an unknown name."""
        record = self._called(name)
        if record.weights < record.groups:
            text = f"the first weights of {record.model.name} are not complete yet"
            raise Refusal(404, text, param="model", code="model_not_found")
        return record

    async def every(self, request: Request, reply: Reply) -> None:
        """List them, first the one whose experts nodes tell of: clients take the first."""
        told_first = sorted(
            self._records(),
            key=lambda record: (record.run is not None, record.adopted_height),
            reverse=True,
        )
        data = [self._shown(record) for record in told_first]
        await reply.json({"object": "list", "data": data})

    async def one(self, request: Request, reply: Reply) -> None:
        """Show one."""
        record = self.called(request.path.removeprefix(PREFIX))
        await reply.json(self._shown(record))

    def _shown(self, record: ModelRecord) -> dict[str, Any]:
        return {
            "id": record.model.name,
            "object": "model",
            "created": self._made_s(record),
            "owned_by": "0x" + record.creator.hex(),
            "max_model_len": record.model.architecture.context,
            "blyan": {
                "model_id": record.id.hex(),
                "layers": record.model.architecture.layers,
                "experts": record.model.architecture.experts,
                "chat_template": "plain" if record.model.tokenizer == BYTES else "own",
            },
        }
