"""infer.generate and infer.evaluate, as a client of the control socket sees them."""

from __future__ import annotations

import numpy as np
import pytest
import trio

from blyan_proto.rpc import infer as spec
from blyan_proto.rpc.errors import (
    MODEL_UNKNOWN,
    PROMPT_INVALID,
    PROMPT_TOO_LONG,
    RpcError,
    shared_code,
)
from blyan_proto.rpc.jsonrpc import Request
from blyand.inference.evaluate import Evaluation
from blyand.inference.generate import Generation
from blyand.rpc import infer
from blyand.rpc.bind import Answers
from blyand.rpc.server import dispatch
from tests.unit.daemon.inference_world import Net, Node, World, prompt, running


def answers_of(node):
    text = np.frombuffer(np.random.default_rng(0).bytes(2000), np.uint8)

    def model(name):
        if name not in (None, "tiny"):
            raise RpcError(MODEL_UNKNOWN, "no such model")
        return node.world.record

    async def held_out(name):
        return "text", text[:8] if name == "short" else text

    answers = Answers({m.name: m for m in (spec.generate, spec.evaluate)})
    infer.bind(
        answers,
        Generation(node.parts),
        Evaluation(node.parts),
        model,
        held_out,
        lambda height: bytes([height]) * 32,
    )
    answers.check()
    return answers


def test_generate_streams_tokens_and_sums_up():
    async def main():
        world, items = World(), []
        node = Node(world, Net(), "a", world.all_experts())
        answers = answers_of(node)

        async def emit(item):
            items.append(spec.generate.read_item(item))

        async def call(method="infer.generate", **params):
            request = Request(id=1, method=method, params=params, notification=False)
            return await dispatch(answers, request, emit)

        async def code(**params):
            with pytest.raises(RpcError) as caught:
                await call(**params)
            return caught.value.code

        async with running(node):
            ids = prompt(5)
            result = spec.generate.read_result(
                await call(token_ids=ids, model="tiny", max_tokens=6)
            )
            assert result.token_ids == world.locally(ids, 6)
            assert [item.token_id for item in items] == result.token_ids
            assert [item.position for item in items] == list(range(5, 11))
            assert "".join(item.text for item in items) == result.text
            assert (result.prompt_tokens, result.finish_reason) == (5, "length")
            assert result.checkpoint == b"\1" * 32
            assert [peer.peer_id for peer in result.peers] == ["a"]
            assert result.timings.time_to_first_token_s is not None
            items.clear()
            first = await call(prompt="é", max_tokens=3)
            assert first["prompt_tokens"] == 2 and len(items) == 3

            assert await code() == PROMPT_INVALID.code
            assert await code(prompt="a", token_ids=[1]) == PROMPT_INVALID.code
            assert await code(prompt="") == PROMPT_INVALID.code
            assert await code(token_ids=[256]) == PROMPT_INVALID.code
            assert await code(token_ids=[-1]) == PROMPT_INVALID.code
            assert await code(prompt="x" * 96) == PROMPT_TOO_LONG.code
            assert await code(prompt="a", model="other") == MODEL_UNKNOWN.code

            measured = spec.evaluate.read_result(
                await call("infer.evaluate", tokens=960)
            )
            assert measured.tokens == 960 and measured.dataset == "text"
            assert 4 < measured.loss < 8
            not_here = shared_code("infer", "not here")
            assert await code(method="infer.evaluate", dataset="short") == not_here

    trio.run(main)
