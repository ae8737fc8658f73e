"""Answers about the experts that are ready to compute on this node."""

from __future__ import annotations

from typing import TYPE_CHECKING

from blyan_proto.rpc import expert as spec
from blyand.rpc.bind import Answers

if TYPE_CHECKING:
    from blyand.inference.experts import Experts


def bind(answers: Answers, experts: Experts) -> None:
    """Bind expert.cache."""

    @answers(spec.cache)
    async def cache(params: spec.GetCache) -> spec.Cache:
        counts = experts.counts()
        return spec.Cache(
            budget_bytes=experts.budget_bytes,
            resident_bytes=experts.resident_bytes,
            hits=counts.hits,
            misses=counts.misses,
            evictions=counts.evictions,
            streamed=counts.streamed,
            experts=[
                spec.ReadyExpert(
                    name=one.name,
                    root=one.root,
                    recipe=one.recipe.label,
                    bytes=one.bytes,
                    hits=one.hits,
                    idle_s=one.idle_s,
                    in_use=one.in_use,
                )
                for one in reversed(experts.residents())
            ],
        )
