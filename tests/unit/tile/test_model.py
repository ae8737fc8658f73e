"""The model in stages: equal paths, isolated rows, positions, ties."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from blyan_proto.block.model import Architecture, BiasKind, QueryKeyNorm
from blyan_proto.errors import LimitExceeded
from blyan_tile.create import architecture_of, initial_parameters
from blyan_tile.model.attention import attention, projected, rotate
from blyan_tile.model.expert import (
    Expert,
    dense_of,
    expert_forward,
    expert_of,
    shared_of,
    shared_share,
    silu,
    unrouted_of,
)
from blyan_tile.model.linear import linear
from blyan_tile.model.mixture import mixture
from blyan_tile.model.rope import ROWS_AT_ONCE, rope_tables
from blyan_tile.model.router import choose
from blyan_tile.model.sampling import Sampling, choose_token
from blyan_tile.model.training import Trainable, held_out_loss
from blyan_tile.model.transformer import LocalModel, Trunk, generate_local

TINY = architecture_of("tiny")
GROUPED = replace(TINY, kv_heads=2, normalise_top_k=False, tied_embeddings=True)
NORMED = replace(TINY, query_key_norm=QueryKeyNorm.HEAD, shared_width=48)
WIDE = replace(GROUPED, query_key_norm=QueryKeyNorm.WIDTH)
ODD = replace(
    TINY,
    head_width=24,
    kv_heads=1,
    query_key_norm=QueryKeyNorm.WIDTH,
    attention_bias=BiasKind.ALL,
    clip_qkv_micro=1_200_000,
    attention_window=5,
    dense_layers=(0,),
    dense_width=80,
    shared_width=48,
    shared_gate=True,
)
PROMPT = list(b"def main(argv):")


def parameters_of(architecture: Architecture, seed: int = 7) -> dict[str, Tensor]:
    drawn = initial_parameters(architecture, seed)
    made = {name: torch.from_numpy(array) for name, array in drawn.items()}
    for name, tensor in made.items():
        if tensor.dim() == 1:
            tensor += torch.arange(len(tensor)) / len(tensor)  # no norm is all ones
    return made


@pytest.fixture(params=[1, 2])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.parametrize("out, width", [(384, 256), (64, 96)])
def test_a_row_does_not_depend_on_how_many_there_are(
    out: int, width: int, threads: int
) -> None:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(64, width, generator=generator)
    weight = torch.randn(out, width, generator=generator)
    alone = torch.cat([linear(x[row : row + 1], weight) for row in range(64)])
    for rows in range(1, 65):
        assert torch.equal(linear(x[:rows], weight), alone[:rows])


@pytest.mark.parametrize("preset", ["demo", "tiny"])
def test_an_expert_row_ignores_its_batch_mates(preset: str, threads: int) -> None:
    architecture = architecture_of(preset)
    expert = expert_of(parameters_of(architecture), 0, 1)
    x = torch.randn(64, architecture.width, generator=torch.Generator().manual_seed(2))
    alone = torch.cat([expert(x[row : row + 1]) for row in range(64)])
    for rows in range(1, 65):
        assert torch.equal(expert(x[:rows]), alone[:rows])
    x[5] *= 1000  # an outlier changes its own row only
    assert torch.equal(expert(x)[6:], alone[6:])
    assert expert(x[:0]).shape == (0, architecture.width)


def test_what_every_token_passes_ignores_its_batch_mates(threads: int) -> None:
    parameters = parameters_of(ODD)
    x = torch.randn(64, ODD.width, generator=torch.Generator().manual_seed(2))
    x[5] *= 1000

    def dense(rows: Tensor) -> Tensor:
        return dense_of(parameters, 0)(rows)

    def gated(rows: Tensor) -> Tensor:
        return shared_share(parameters, 1, rows) * shared_of(parameters, 1)(rows)

    def queries(rows: Tensor) -> Tensor:
        return projected(ODD, parameters, 0, "q", rows)

    for computed in (dense, gated, queries):
        alone = torch.cat([computed(x[row : row + 1]) for row in range(64)])
        for rows in range(1, 65):
            assert torch.equal(computed(x[:rows]), alone[:rows])
    assert unrouted_of(TINY, parameters_of(TINY), 0) is None


def test_rope_turns_pairs_and_sees_only_distance() -> None:
    cosine, sine = (table[:40] for table in rope_tables(TINY))
    generator = torch.Generator().manual_seed(3)
    query, key = torch.randn(2, 1, 16, generator=generator)
    turned = rotate(query.expand(40, 16), cosine, sine)
    other = rotate(key.expand(40, 16), cosine, sine)
    assert torch.equal(turned[0], query[0])
    assert torch.allclose(turned.norm(dim=1), query.norm().expand(40), atol=1e-5)
    scores = turned @ other.T
    assert torch.allclose(scores[5, 2], scores[37, 34], atol=1e-4)
    half = cosine[3, 0] * query[0, 0] - sine[3, 0] * query[0, 8]
    assert torch.allclose(turned[3, 0], half)  # NeoX order: i with i + w/2


def test_positions_are_made_when_they_are_asked_for() -> None:
    endless = replace(TINY, context=2**32 - 1)
    table, _ = rope_tables(endless)
    late = table[3000:3001]
    fresh, _ = rope_tables(endless)
    assert torch.equal(fresh[:1], torch.ones(1, 8))
    fresh[: ROWS_AT_ONCE + 1]
    assert torch.equal(fresh[3000:3001], late)
    grow, in_between = fresh._grown, []

    def overtaken(rows: Tensor, wanted: int) -> Tensor:
        fresh._grown = grow  # type: ignore[method-assign]
        in_between.append(fresh[9000:9001])  # by another thread
        return grow(rows, wanted)

    fresh._grown = overtaken  # type: ignore[method-assign]
    assert torch.equal(fresh[8200:8201], table[8200:8201])
    assert torch.equal(fresh[9000:9001], table[9000:9001])
    assert torch.equal(in_between[0], table[9000:9001])


def test_attention_is_causal_softmax_over_shared_heads() -> None:
    generator = torch.Generator().manual_seed(4)
    query = torch.randn(1, 4, 3, 8, generator=generator)
    keys = torch.randn(1, 2, 5, 8, generator=generator)
    values = torch.randn(1, 2, 5, 8, generator=generator)
    for window in (0, 1, 2, 4, 5, 9):
        wanted = torch.empty(3, 4, 8)
        for head in range(4):
            for row in range(3):
                end = 5 - 3 + row + 1
                seen = slice(max(0, end - window) if window else 0, end)
                scores = keys[0, head // 2, seen] @ query[0, head, row] / 8**0.5
                wanted[row, head] = scores.softmax(0) @ values[0, head // 2, seen]
        got = attention(query, keys, values, window)
        assert torch.allclose(got[0], wanted.flatten(1), atol=1e-5), window
        last = attention(query[:, :, 2:], keys, values, window)
        assert torch.allclose(last[0], wanted[2:].flatten(1), atol=1e-5), window


def test_equal_probabilities_go_to_the_lowest_expert() -> None:
    routing = choose(torch.tensor([[0.2, 0.3, 0.3, 0.2], [0.25] * 4]), 2, True)
    assert routing.experts.tolist() == [[1, 2], [0, 1]]
    assert routing.weights.tolist() == [[0.5, 0.5], [0.5, 0.5]]
    rows = routing.rows()
    assert sorted(rows) == [0, 1, 2]
    assert rows[1].tolist() == [0, 1]
    assert routing.shares[2][1].tolist() == [[0.5]]


def reference(architecture: Architecture, parameters: dict[str, Tensor]) -> Tensor:
    """The same model once more, written plainly, without cache, stages or padding."""
    length = len(PROMPT)
    cosine, sine = (table[:length] for table in rope_tables(architecture))  # (T, w/2)
    hidden = parameters["embed.weight"][torch.tensor(PROMPT)]  # (T, d)

    def norm(x: Tensor, name: str) -> Tensor:
        scale = (x.pow(2).mean(-1, keepdim=True) + 1e-5).rsqrt()
        return x * scale * parameters[name]

    def times(x: Tensor, name: str) -> Tensor:
        made = x @ parameters[f"{name}.weight"].T
        return made + parameters.get(f"{name}.bias", torch.zeros(1))

    bound = architecture.clip_qkv_micro / 1e6
    for layer in range(architecture.layers):
        at = f"layer{layer}."
        x = norm(hidden, at + "attention_norm.weight")
        flat = {name: times(x, f"{at}attention.{name}") for name in "qkv"}
        for name in "qk" if architecture.query_key_norm else "":
            key = f"{at}attention.{name}_norm.weight"
            groups = flat[name].view(length, -1, len(parameters[key]))
            flat[name] = norm(groups, key).view(length, -1)
        q, k, v = (
            (flat[name].clamp(-bound, bound) if bound else flat[name])
            .view(length, -1, architecture.head_width)
            .transpose(0, 1)
            for name in "qkv"
        )
        mixed = attention(
            rotate(q, cosine, sine)[None],
            rotate(k, cosine, sine)[None],
            v[None],
            architecture.attention_window,
        )[0]
        hidden = hidden + times(mixed, at + "attention.o")
        x = norm(hidden, at + "expert_norm.weight")
        if layer in architecture.dense_layers:
            own = dense_of(parameters, layer)
            hidden = hidden + (F.silu(x @ own.gate.T) * (x @ own.up.T)) @ own.down.T
            continue
        scores = (x @ parameters[at + "router.weight"].T).softmax(-1)
        weights, chosen = scores.topk(architecture.experts_per_token)
        if architecture.normalise_top_k:
            weights = weights / weights.sum(-1, keepdim=True)
        if architecture.shared_width:
            own = shared_of(parameters, layer)
            output = (F.silu(x @ own.gate.T) * (x @ own.up.T)) @ own.down.T
            if architecture.shared_gate:
                row = parameters[f"{at}shared_gate.weight"][0]
                output = output * (x @ row).sigmoid()[:, None]
            hidden = hidden + output
        for row in range(length):
            for weight, expert in zip(weights[row], chosen[row].tolist()):
                own = expert_of(parameters, layer, expert)
                inner = F.silu(own.gate @ x[row]) * (own.up @ x[row])
                hidden[row] = hidden[row] + weight * (own.down @ inner)
    tied = architecture.tied_embeddings
    head = parameters["embed.weight" if tied else "head.weight"]
    return norm(hidden, "final_norm.weight") @ head.T


@pytest.mark.parametrize("architecture", [TINY, GROUPED, NORMED, WIDE, ODD])
def test_stages_prefill_decode_and_training_compute_the_same_model(
    architecture: Architecture,
) -> None:
    parameters = parameters_of(architecture)
    wanted = reference(architecture, parameters)  # (T, V)
    tokens = torch.tensor(PROMPT)
    model = LocalModel(architecture, parameters)
    whole = model.trunk.logits(model.forward(tokens))
    assert torch.allclose(whole, wanted, atol=1e-4)
    batch = model.trunk.logits(model.forward(tokens.repeat(2, 1)))
    assert torch.allclose(batch, wanted.repeat(2, 1, 1), atol=1e-4)
    for sizes in ([1] * 15, [7, 8], [15], [4, 1, 10]):
        cache = model.trunk.new_cache(15)
        parts = [model.forward(chunk, cache) for chunk in tokens.split(sizes)]
        assert torch.allclose(model.trunk.logits(torch.cat(parts)), wanted, atol=1e-4)
        assert cache.tokens == 15
    windows = torch.tensor([PROMPT])
    loss = F.cross_entropy(wanted[:-1], windows[0, 1:])
    assert held_out_loss(architecture, parameters, windows) == pytest.approx(
        float(loss), abs=1e-4
    )


def test_experts_elsewhere_give_the_same_bits() -> None:
    """Any split of the experts over servers, in any order of arrival: DEC-S1."""
    parameters = parameters_of(TINY)
    local = list(generate_local(parameters, TINY, PROMPT, 20))
    own = {name: t for name, t in parameters.items() if ".expert" not in name}
    norms = {name: t for name, t in parameters.items() if "_norm" in name}
    trunk = Trunk(TINY, {**own, **norms})
    servers = [{0, 3}, {1, 2}]
    cache = trunk.new_cache()
    chunk, answer = torch.tensor(PROMPT), []
    while len(answer) < 20:
        hidden = trunk.embed(chunk)
        for layer in range(TINY.layers):
            hidden, x, routing = trunk.attend(layer, hidden, cache)
            outputs = {}
            for server in reversed(servers):
                for expert, rows in reversed(routing.rows().items()):
                    if expert in server:
                        there = expert_of(parameters, layer, expert)
                        sent = x[rows].numpy().tobytes()
                        got = torch.frombuffer(bytearray(sent), dtype=torch.float32)
                        output = there(got.view(-1, TINY.width))
                        outputs[expert] = rows, output
            hidden = trunk.combine(hidden, routing, outputs)
        logits = trunk.logits(hidden[-1]).numpy()
        answer.append(choose_token(logits, Sampling(), cache.tokens))
        chunk = torch.tensor(answer[-1:])
    assert answer == local


def test_a_step_can_be_redone_after_a_failure() -> None:
    model = LocalModel(TINY, parameters_of(TINY))
    cache = model.trunk.new_cache(16)
    model.prefill(torch.tensor(PROMPT), cache)
    token = torch.tensor([65])
    model.trunk.attend(0, model.trunk.embed(token), cache)  # layer 0 only, then a loss
    cache.rewind(15)
    once = model.prefill(token, cache)
    cache.rewind(15)
    assert torch.equal(once, model.prefill(token, cache))


def test_nothing_runs_beyond_the_context() -> None:
    parameters = parameters_of(TINY)
    model = LocalModel(TINY, parameters)
    with pytest.raises(LimitExceeded):
        model.trunk.new_cache(TINY.context + 1)
    cache = model.trunk.new_cache(4)
    with pytest.raises(LimitExceeded):
        model.forward(torch.zeros(5, dtype=torch.int64), cache)
    assert cache.tokens == 0
    with pytest.raises(LimitExceeded):
        list(generate_local(parameters, TINY, [1] * (TINY.context + 1), 1))
    full = list(generate_local(parameters, TINY, [1] * (TINY.context - 2), 9))
    assert len(full) == 2


@pytest.mark.parametrize("width", [3, 12, 48, 384])
@pytest.mark.parametrize("rows", [1, 2, 7, 64, 800])
def test_an_element_of_silu_does_not_depend_on_its_place(rows, width):
    x = 3 * torch.randn(rows, width, generator=torch.Generator().manual_seed(1))
    alone = torch.cat([silu(row[None]) for row in x])
    assert torch.equal(silu(x), alone)
    assert torch.allclose(alone, F.silu(x))


def test_an_element_of_silu_does_not_depend_on_the_threads():
    x = 3 * torch.randn(1601, 64, generator=torch.Generator().manual_seed(1))
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)  # whose shares would end inside a vector
        shared = silu(x)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(shared, torch.cat([silu(row[None]) for row in x]))


def test_the_mixture_has_the_gradients_of_its_formula() -> None:
    generator = torch.Generator().manual_seed(5)

    def draw(*shape: int) -> Tensor:
        made = torch.randn(*shape, dtype=torch.float64, generator=generator)
        return made.requires_grad_()

    x, weights = draw(9, 4), draw(9, 2)
    chosen = torch.stack(
        [torch.randperm(3, generator=generator)[:2] for _ in range(9)]
    )  # expert 3 of 4 sees nothing
    matrices = [draw(*s) for _ in range(4) for s in ((5, 4), (5, 4), (4, 5))]

    def run(x: Tensor, weights: Tensor, *matrices: Tensor) -> Tensor:
        experts = [Expert(*matrices[3 * i : 3 * i + 3]) for i in range(4)]
        return mixture(x, weights, chosen, experts)

    assert torch.autograd.gradcheck(run, (x, weights, *matrices))
    plain = torch.stack(
        [
            sum(
                weights[row, slot]
                * expert_forward(*matrices[3 * e : 3 * e + 3], x[row : row + 1])[0]
                for slot, e in enumerate(chosen[row].tolist())
            )
            for row in range(9)
        ]
    )
    assert torch.allclose(run(x, weights, *matrices), plain)


def test_a_partial_learner_routes_among_its_own_experts() -> None:
    parameters = parameters_of(TINY)
    held = [[1, 3], []]
    own = {
        name: t.requires_grad_()
        for name, t in parameters.items()
        if ".expert" not in name
        or ".expert_" in name
        or name.startswith(("layer0.expert1.", "layer0.expert3."))
    }
    tokens = torch.arange(66)
    passed = Trainable(TINY, own, held).run(tokens.view(2, 33))
    assert passed.routed.tolist() == [[0, 64, 0, 64], [0, 0, 0, 0]]
    (passed.loss + passed.auxiliary).backward()
    router = own["layer0.router.weight"].grad
    assert router is not None
    assert router.abs().sum(dim=1).bool().tolist() == [False, True, False, True]
    assert own["layer1.router.weight"].grad is None
