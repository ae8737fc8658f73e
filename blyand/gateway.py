"""Building the HTTP gateway from the parts of a node, and running it."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import trio

from blyand.errors import Pruned
from blyand.foundation import Base
from blyand.http.answering import Means
from blyand.http.app import App, Route
from blyand.http.chat import Chat
from blyand.http.completions import Completions
from blyand.http.control import Control
from blyand.http.door import Door
from blyand.http.models import Models as HttpModels
from blyand.http.page import page_routes
from blyand.http.place import Place, is_loopback, read_token, write_place
from blyand.http.server import Server, bound, url_of
from blyand.parts import Models
from blyand.replica import Replica
from blyand.rpc.bind import Answers
from blyand.rpc.resolve import model_called
from blyand.rpc.server import dispatch
from blyand.rules.economy.price import micro_of_tokens
from blyand.rules.records import MODELS, ModelRecord


async def serve(
    base: Base,
    replica: Replica,
    models: Models,
    answers: Answers,
    place: Place,
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve HTTP at http.listen until cancelled; `place` says where, from then on.

    ConfigFault when the address or the token file cannot be used.
    """
    options = base.config.http
    sock = bound(options.listen)
    place.token = read_token(base.home)
    place.url = url_of(sock)
    place.is_public = not is_loopback(sock.getsockname()[0])
    app = App(
        Door(place, tuple(name.lower() for name in options.names)),
        _routes(base, replica, models, answers, place),
        options.max_requests,
        base.metrics,
    )
    server = Server(app, sock, options.max_connections)
    told = write_place(base.home, place.url)
    try:
        await server.serve(task_status=task_status)
    finally:
        place.url = None
        told.unlink(missing_ok=True)


def _routes(
    base: Base, replica: Replica, models: Models, answers: Answers, place: Place
) -> dict[str, Route]:
    control = Control(
        answers.methods,
        partial(dispatch, answers),
        lambda: list(_troubles(replica)),
    )
    offered = HttpModels(
        lambda: _whole(replica),
        lambda name: model_called(replica.view, name),
        partial(_made_s, base),
    )
    means = Means(
        models=offered,
        generation=models.serving.generation,
        render=models.language.templates.render,
        cost=partial(
            micro_of_tokens,
            token_price_micro=base.genesis.setting("token_price_micro"),
        ),
        owner=place.owner,
        me=base.host.peer_id,
    )
    return {
        **page_routes(),
        "/health": Route("GET", control.health, is_open=True),
        "/ready": Route("GET", control.ready, is_open=True),
        "/metrics": Route("GET", control.metrics, is_open=True),
        "/rpc": Route("POST", control.rpc),
        "/v1/models": Route("GET", offered.every),
        "/v1/models/*": Route("GET", offered.one),
        "/v1/completions": Route("POST", Completions(means)),
        "/v1/chat/completions": Route("POST", Chat(means)),
    }


def _whole(replica: Replica) -> list[ModelRecord]:
    """Return the models that have all their first weights."""
    records = MODELS.scan(replica.view)
    return [record for record in records if record.weights == record.groups]


def _troubles(replica: Replica) -> Iterator[str]:
    """Yield why no prompt can be answered now."""
    if replica.machine.halted:
        yield replica.machine.halted
    if not _whole(replica):
        yield "no model has all its weights yet"


def _made_s(base: Base, record: ModelRecord) -> int:
    """Return when a model was created, in Unix time; 0 where its block is gone."""
    try:
        block = base.stores.blocks.get(record.id)
    except Pruned:
        return 0
    return block.header.time_ms // 1000 if block else 0
