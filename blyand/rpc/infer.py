"""Answers to infer.*: text through the network, and how good the model is."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import aclosing
from typing import TYPE_CHECKING

import numpy as np
import trio

from blyan_proto.errors import DecodeError, LimitExceeded
from blyan_proto.rpc import infer as spec
from blyan_proto.rpc.errors import PROMPT_INVALID, PROMPT_TOO_LONG, RpcError
from blyan_proto.rpc.spec import LONG_DEADLINE_S
from blyan_tile.model.sampling import Sampling
from blyan_tile.tokenizer import tokenizer_named
from blyand.errors import NotHere
from blyand.rpc.bind import Answers, Emit
from blyand.rules.model.heads import Which
from blyand.rules.records import ModelRecord

if TYPE_CHECKING:  # torch is imported when the first part of inference is made
    from blyand.inference.evaluate import Evaluation
    from blyand.inference.generate import Generation

DEADLINE_S = LONG_DEADLINE_S - 5  # so that our sentence comes before the server's

HeldOut = Callable[[str | None], Awaitable[tuple[str, np.ndarray]]]


def bind(
    answers: Answers,
    generation: Generation,
    evaluation: Evaluation,
    model: Callable[[str | None], ModelRecord],
    held_out: HeldOut,
    checkpoint: Callable[[int], bytes],
) -> None:
    """Bind generate and evaluate.

    `model` finds a record by name, id or None (RpcError MODEL_UNKNOWN,
    MODEL_AMBIGUOUS); `held_out` a dataset's name and held-out bytes (n,) uint8 (RpcError
    DATASET_UNKNOWN, DATASET_AMBIGUOUS); `checkpoint` gives a finalised checkpoint's id
    by height.
    """

    @answers(spec.generate)
    async def generate(params: spec.Generate, emit: Emit) -> spec.Generated:
        from blyand.inference.generate import Result, Wanted

        record = model(params.model)
        result = Result()
        tokens = _prompt(params, record)
        wanted = Wanted(
            model=record.id,
            tokens=tokens,
            max_tokens=params.max_tokens,
            sampling=Sampling(params.temperature, params.seed),
            stop=tuple(params.stop or ()),
            deadline_s=trio.current_time() + DEADLINE_S,
        )
        async with aclosing(generation.run(wanted, result)) as made:
            async for token in made:
                await emit(spec.Token(token.text, token.token_id, token.position))
        return spec.Generated(
            text=result.text,
            token_ids=result.token_ids,
            prompt_tokens=len(tokens),
            finish_reason=result.finish_reason,
            timings=spec.Timings(
                time_to_first_token_s=result.time_to_first_token_s,
                tokens_per_s=result.tokens_per_s,
                total_s=trio.current_time() - result.began_s,
            ),
            peers=[
                spec.PeerCalls(peer_id, calls)
                for peer_id, calls in sorted(result.calls.items())
            ],
            checkpoint=checkpoint(result.height),
            retries=result.retries,
            repinned=result.repinned,
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


def _prompt(params: spec.Generate, record: ModelRecord) -> tuple[int, ...]:
    """Return the prompt's ids. RpcError PROMPT_INVALID, PROMPT_TOO_LONG."""
    architecture = record.model.architecture
    if (params.prompt is None) == (params.token_ids is None):
        raise RpcError(PROMPT_INVALID, "give a prompt or token ids, one of the two")
    if params.token_ids is not None:
        tokens = tuple(params.token_ids)
    else:
        try:
            tokenizer = tokenizer_named(record.model.tokenizer)
        except DecodeError as error:
            raise NotHere(str(error)) from error
        assert params.prompt is not None
        tokens = tuple(tokenizer.encode(params.prompt))
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
