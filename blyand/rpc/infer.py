"""Answers to infer.*: text through the network, and how good the model is."""

from __future__ import annotations

import json
import re
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import trio

from blyan_proto.errors import DecodeError, LimitExceeded
from blyan_proto.protocols.expert import Numerics
from blyan_proto.rpc import infer as spec
from blyan_proto.rpc.errors import (
    PROMPT_INVALID,
    PROMPT_TOO_LONG,
    REQUEST_INVALID,
    REQUEST_UNKNOWN,
    RpcError,
)
from blyan_proto.rpc.spec import LONG_DEADLINE_S
from blyan_tile.model.sampling import Sampling
from blyand.errors import NotHere
from blyand.rpc.bind import Answers, Emit
from blyand.rules.economy.price import micro_of_tokens
from blyand.rules.model.heads import Which
from blyand.rules.net.path import Route
from blyand.rules.records import ModelRecord

if TYPE_CHECKING:  # torch is imported when the first part of inference is made
    from blyand.inference.evaluate import Evaluation
    from blyand.inference.generate import Generation, Made, Result
    from blyand.inference.vocabularies import Vocabulary

DEADLINE_S = LONG_DEADLINE_S - 5  # so that our sentence comes before the server's
MAX_STOP_CHARACTERS = 1024  # of one stop text
MAX_NAME_CHARACTERS = 64  # of a request
MAX_BIAS, MAX_BIASES = 100, 1024
LOCAL = b"local"  # whose prompts those are that come by the control socket (DEC-S2)

HeldOut = Callable[[str | None], Awaitable[tuple[str, np.ndarray]]]


def bind(
    answers: Answers,
    generation: Generation,
    evaluation: Evaluation,
    model: Callable[[str | None], ModelRecord],
    held_out: HeldOut,
    checkpoint: Callable[[int], bytes],
    token_price_micro: int,
) -> None:
    """Bind the methods of infer.*.

    `model` finds a record by name, id or None (RpcError MODEL_UNKNOWN,
    MODEL_AMBIGUOUS); `held_out` a dataset's name and held-out bytes (n,) uint8 (RpcError
    DATASET_UNKNOWN, DATASET_AMBIGUOUS); `checkpoint` gives a finalised checkpoint's id
    by height.
    """

    cost = partial(micro_of_tokens, token_price_micro=token_price_micro)

    @answers(spec.generate)
    async def generate(params: spec.Generate, emit: Emit) -> spec.Generated:
        from blyand.inference.generate import Result, Wanted

        record = model(params.model)
        _check(params, record)
        generation.check_room()
        vocabulary = await generation.vocabularies.of(record.model)
        tokens = await _prompt(params, record, vocabulary)
        result = Result()
        wanted = Wanted(
            model=record.id,
            tokens=tokens,
            max_tokens=params.max_tokens,
            sampling=_sampling(params),
            stop=tuple(params.stop or ()),
            stop_tokens=frozenset(params.stop_token_ids or ()),
            ignore_eos=params.ignore_eos,
            logprobs=params.logprobs,
            schema=None if params.schema is None else json.dumps(params.schema),
            numerics=Numerics[params.numerics.upper()] if params.numerics else None,
            route=Route(params.route),
            lookup=params.lookup,
            owner=LOCAL,
            request=params.request or "",
            deadline_s=trio.current_time() + DEADLINE_S,
        )
        try:
            async with aclosing(generation.run(wanted, result)) as made:
                async for token in made:
                    await emit(_token(token, result, vocabulary, cost))
        except (DecodeError, LimitExceeded) as error:
            raise RpcError(REQUEST_INVALID, str(error)) from error
        return _generated(result, len(tokens), checkpoint, cost)

    @answers(spec.cancel)
    async def cancel(params: spec.Cancel) -> spec.Cancelled:
        if not generation.cancel(params.request):
            text = (
                f"no request {params.request!r} is under way; see `blyanctl infer list`"
            )
            raise RpcError(REQUEST_UNKNOWN, text)
        return spec.Cancelled(params.request)

    @answers(spec.list_requests)
    async def list_requests(params: spec.List) -> spec.Listed:
        now_s = trio.current_time()
        return spec.Listed(
            [
                spec.UnderWay(
                    request=one.result.request,
                    model=model(one.wanted.model.hex()).model.name,
                    model_id=one.wanted.model,
                    prompt_tokens=len(one.wanted.tokens),
                    made_tokens=len(one.result.token_ids),
                    max_tokens=one.wanted.max_tokens,
                    tokens_per_s=one.result.tokens_per_s,
                    cost_micro=cost(len(one.result.token_ids)),
                    age_s=now_s - one.result.began_s,
                )
                for one in generation.under_way
            ]
        )

    @answers(spec.evaluate)
    async def evaluate(params: spec.Evaluate) -> spec.Evaluation:
        record = model(params.model)
        began_s = trio.current_time()
        name, tokens = await held_out(params.dataset)
        try:
            measured = await evaluation.newest(
                record.id,
                Which.ADOPTED,
                tokens,
                params.tokens,
                deadline_s=began_s + DEADLINE_S,
            )
        except LimitExceeded as error:
            raise NotHere(f"dataset {name}: {error}") from error
        return spec.Evaluation(
            loss=measured.loss,
            tokens=measured.tokens,
            dataset=name,
            checkpoint=checkpoint(measured.height),
            adopted_round=model(params.model).adopted_round,
            total_s=trio.current_time() - began_s,
        )


def _check(params: spec.Generate, record: ModelRecord) -> None:
    """RpcError REQUEST_INVALID for what a declaration cannot say."""
    if any(not 0 < len(text) <= MAX_STOP_CHARACTERS for text in params.stop or ()):
        text = f"a stop text has 1 to {MAX_STOP_CHARACTERS} characters"
        raise RpcError(REQUEST_INVALID, text)
    name = params.request
    if name is not None and not 0 < len(name) <= MAX_NAME_CHARACTERS:
        text = f"the name of a request has 1 to {MAX_NAME_CHARACTERS} characters"
        raise RpcError(REQUEST_INVALID, text)
    limit = record.model.architecture.vocabulary
    named = [*(params.stop_token_ids or ()), *(token for token, _ in _biases(params))]
    if not all(0 <= token < limit for token in named):
        text = f"token ids of this model are below {limit}"
        raise RpcError(REQUEST_INVALID, text)


def _sampling(params: spec.Generate) -> Sampling:
    return Sampling(
        temperature=params.temperature,
        seed=params.seed,
        top_k=params.top_k,
        top_p=params.top_p,
        min_p=params.min_p,
        presence_penalty=params.presence_penalty,
        frequency_penalty=params.frequency_penalty,
        repetition_penalty=params.repetition_penalty,
        logit_bias=_biases(params),
    )


def _biases(params: spec.Generate) -> tuple[tuple[int, float], ...]:
    """RpcError REQUEST_INVALID for anything but token ids and small numbers."""
    biases = params.logit_bias or {}
    for token, bias in biases.items():
        is_number = isinstance(bias, (int, float)) and not isinstance(bias, bool)
        if not re.fullmatch(r"\d{1,10}", token, re.ASCII) or not is_number:
            text = f"logit_bias: {token[:20]!r} must be a token id with a number"
            raise RpcError(REQUEST_INVALID, text)
        if not -MAX_BIAS <= bias <= MAX_BIAS:
            text = f"logit_bias of {token} is {bias}; -{MAX_BIAS} to {MAX_BIAS} are allowed"
            raise RpcError(REQUEST_INVALID, text)
    if len(biases) > MAX_BIASES:
        text = f"logit_bias names {len(biases)} tokens, at most {MAX_BIASES}"
        raise RpcError(REQUEST_INVALID, text)
    return tuple((int(token), float(bias)) for token, bias in biases.items())


async def _prompt(
    params: spec.Generate, record: ModelRecord, vocabulary: Vocabulary
) -> tuple[int, ...]:
    """Return the prompt's ids. RpcError PROMPT_INVALID, PROMPT_TOO_LONG."""
    architecture = record.model.architecture
    if (params.prompt is None) == (params.token_ids is None):
        raise RpcError(PROMPT_INVALID, "give a prompt or token ids, one of the two")
    if params.token_ids is not None:
        tokens = tuple(params.token_ids)
    else:
        assert params.prompt is not None
        try:
            tokens = tuple(
                await vocabulary.encode(params.prompt, special=params.special)
            )
        except DecodeError as error:
            raise RpcError(PROMPT_INVALID, str(error)) from error
        except LimitExceeded as error:
            raise RpcError(PROMPT_TOO_LONG, str(error)) from error
    if not tokens:
        raise RpcError(PROMPT_INVALID, "the prompt is empty")
    if not all(0 <= token < architecture.vocabulary for token in tokens):
        text = f"token ids of this model are below {architecture.vocabulary}"
        raise RpcError(PROMPT_INVALID, text)
    if len(tokens) >= architecture.context:
        raise RpcError(
            PROMPT_TOO_LONG,
            f"the prompt has {len(tokens)} tokens, "
            f"the model's context is {architecture.context}",
        )
    return tokens


def _token(
    made: Made, result: Result, vocabulary: Vocabulary, cost: Callable[[int], int]
) -> spec.Token:
    return spec.Token(
        text=made.text,
        token_id=made.token_id,
        position=made.position,
        logprob=made.logprob,
        top=[
            spec.Chance(token, vocabulary.decode([token]), logprob)
            for token, logprob in made.top
        ],
        cost_micro=cost(len(result.token_ids)),
        tokens_per_s=result.tokens_per_s,
        request=result.request,
    )


def _generated(
    result: Result,
    prompt_tokens: int,
    checkpoint: Callable[[int], bytes],
    cost: Callable[[int], int],
) -> spec.Generated:
    return spec.Generated(
        text=result.text,
        token_ids=result.token_ids,
        logprobs=result.logprobs,
        prompt_tokens=prompt_tokens,
        finish_reason=result.finish_reason,
        cost_micro=cost(len(result.token_ids)),
        timings=spec.Timings(
            time_to_first_token_s=result.time_to_first_token_s,
            tokens_per_s=result.tokens_per_s,
            total_s=trio.current_time() - result.began_s,
        ),
        peers=[
            spec.PeerCalls(
                peer, result.calls[peer], result.failed[peer], result.wrong[peer]
            )
            for peer in sorted({*result.calls, *result.failed})
        ],
        checkpoint=checkpoint(result.height),
        retries=result.retries,
        hedges=result.hedges,
        repinned=result.repinned,
        drafted=result.drafted,
        accepted=result.accepted,
        request=result.request,
    )
