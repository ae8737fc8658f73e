"""infer.generate and infer.evaluate, as a client of the control socket sees them."""

from __future__ import annotations

import numpy as np
import pytest
import trio

from blyan_proto.rpc import infer as spec
from blyan_proto.rpc.errors import (
    INVALID_PARAMS,
    MODEL_UNKNOWN,
    PROMPT_INVALID,
    PROMPT_TOO_LONG,
    REQUEST_INVALID,
    REQUEST_UNKNOWN,
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
        if name not in (None, "tiny", node.world.record.id.hex()):
            raise RpcError(MODEL_UNKNOWN, "no such model")
        return node.world.record

    async def held_out(name):
        return "text", text[:8] if name == "short" else text

    methods = (spec.generate, spec.evaluate, spec.cancel, spec.list_requests)
    answers = Answers({method.name: method for method in methods})
    infer.bind(
        answers,
        Generation(node.parts),
        Evaluation(node.parts, node.lane),
        model,
        held_out,
        lambda height: bytes([height]) * 32,
        7,
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


def test_a_request_is_listed_and_cancelled_by_its_name():
    async def main():
        world = World()
        node = Node(world, Net(), "a", world.all_experts())
        answers = answers_of(node)
        seen = []

        async def call(method, emit=None, **params):
            request = Request(id=1, method=method, params=params, notification=False)
            return await dispatch(answers, request, emit)

        async def emit(item):
            seen.append(item)
            if len(seen) == 3:
                (listed,) = (await call("infer.list"))["requests"]
                assert listed["request"] == item["request"] == "mine"
                assert listed["model"] == node.world.record.model.name
                assert listed["prompt_tokens"] == 5 and listed["made_tokens"] == 3
                assert listed["cost_micro"] == item["cost_micro"] == 21
                with pytest.raises(RpcError) as caught:
                    await call("infer.generate", emit, prompt="x", request="mine")
                assert caught.value.code == shared_code("infer", "busy")
                assert await call("infer.cancel", request="mine") == {"request": "mine"}

        async with running(node):
            result = await call(
                "infer.generate", emit, token_ids=prompt(5), request="mine"
            )
            assert result["finish_reason"] == "cancelled"
            assert result["token_ids"] == world.locally(prompt(5), 3)
            assert result["cost_micro"] == 21 and len(seen) == 3
            assert (await call("infer.list"))["requests"] == []
            with pytest.raises(RpcError, match="blyanctl infer list") as caught:
                await call("infer.cancel", request="mine")
            assert caught.value.code == REQUEST_UNKNOWN.code

    trio.run(main)


def test_what_a_request_says_wrong_is_one_sentence():
    async def main():
        world = World()
        answers = answers_of(Node(world, Net(), "a", world.all_experts()))

        async def refused(**params):
            request = Request(id=1, method="infer.generate", params=params)
            with pytest.raises(RpcError) as caught:
                await dispatch(answers, request, None)
            assert "\n" not in caught.value.message
            return caught.value.code

        for params in (
            {"max_tokens": 0},
            {"max_tokens": -1},
            {"max_tokens": 2**40},
            {"temperature": float("nan")},
            {"temperature": float("inf")},
            {"top_p": 1.5},
            {"min_p": -0.1},
            {"top_k": -1},
            {"seed": -1},
            {"logprobs": 21},
            {"numerics": "int3"},
            {"presence_penalty": 3},
            {"repetition_penalty": 0},
            {"logit_bias": [1]},
            {"prompt": "\ud800"},
            {"prompt": 5},
        ):
            params = {"prompt": "a", **params}
            assert await refused(**params) == INVALID_PARAMS.code, params
        for params in (
            {"stop": [""]},
            {"stop_token_ids": [256]},
            {"logit_bias": {"256": 1}},
            {"logit_bias": {"x": 1}},
            {"logit_bias": {"1": "x"}},
            {"logit_bias": {"1": 1000}},
            {"logit_bias": {str(token): 1 for token in range(1025)}},
            {"request": ""},
        ):
            assert await refused(prompt="a", **params) == REQUEST_INVALID.code, params

    trio.run(main)


def test_likeliest_tokens_and_stop_tokens():
    async def main():
        world, items = World(), []
        node = Node(world, Net(), "a", world.all_experts())
        answers = answers_of(node)

        async def emit(item):
            items.append(item)

        async def call(**params):
            request = Request(id=1, method="infer.generate", params=params)
            return await dispatch(answers, request, emit)

        async with running(node):
            plain = await call(token_ids=prompt(5), max_tokens=8, logprobs=3)
            for item, logprob in zip(items, plain["logprobs"], strict=True):
                assert item["logprob"] == logprob < 0
                assert item["top"][0]["token_id"] == item["token_id"]
                assert item["top"][0]["logprob"] == logprob and len(item["top"]) == 3
            last = plain["token_ids"][4]
            first = plain["token_ids"].index(last)
            ended = await call(token_ids=prompt(5), stop_token_ids=[last])
            assert ended["finish_reason"] == "stop"
            assert ended["token_ids"] == plain["token_ids"][: first + 1]
            biased = await call(
                token_ids=prompt(5),
                max_tokens=3,
                logit_bias={"7": 100},
            )
            assert biased["token_ids"] == [7, 7, 7]

    trio.run(main)
