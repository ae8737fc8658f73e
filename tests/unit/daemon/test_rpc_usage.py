"""Answers of expert.usage, expert.groups, expert.suggestions and model.plan."""

import json
from types import SimpleNamespace

import pytest
import torch
import trio

from blyan_proto.rpc.errors import CHECKPOINT_INVALID, INVALID_PARAMS, RpcError
from blyand.inference.hardware import Speed
from blyand.inference.usage import Usage
from blyand.net.identity import peer_id_of
from blyand.rpc import plan, usage
from blyand.rules.model import placement
from blyand.rules.records import NODES
from tests.unit.daemon.test_rpc_answers import KEY, OTHER, World, with_model

SPEED = Speed("a processor", False, 1 << 34, 0.1, 10.0, 0.0)
ME, PEER = peer_id_of(KEY.public), peer_id_of(OTHER.public)
MIXTRAL = {
    "model_type": "mixtral",
    "hidden_act": "silu",
    "vocab_size": 32000,
    "hidden_size": 4096,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_local_experts": 8,
    "num_experts_per_tok": 2,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 32768,
    "rope_theta": 1e6,
    "torch_dtype": "bfloat16",
    "tie_word_embeddings": False,
    "sliding_window": None,
}


class Stand:
    def __init__(self, path, speed=SPEED, memory_bytes=1 << 33, rtt_ms=2.0):
        self.world = World(path)
        self.record = with_model(self.world)
        self.shape = self.record.model.architecture
        self.usage = Usage(lambda: 0.0)
        self.copied = frozenset()
        self.hosts = {}
        usage.bind(
            self.world.answers,
            holders=self.world.holders,
            usage=self.usage,
            replication=SimpleNamespace(
                chosen=lambda record: self.copied,
                sight=SimpleNamespace(most_experts=lambda size: 4),
            ),
            lane=self.world.lane,
        )
        around = plan.Around(
            account=KEY.account,
            me=ME,
            view=lambda: self.world.view,
            held=lambda model: self.world.held,
            hosts=lambda model: self.hosts,
            rtt_ms=lambda peer: rtt_ms,
            is_connected=lambda peer: True,
            speed=lambda: speed,
            memory_bytes=memory_bytes,
            recipe="f32",
            replication=2,
            disk_bytes=lambda: 1 << 33,
        )
        plan.bind(self.world.answers, around=around, lane=self.world.lane)

    def ask(self, name, **params):
        async def main():
            return await self.world.ask(name, **params)

        return trio.run(main)

    def visit(self, layer, *tokens):
        chosen = torch.tensor(tokens, dtype=torch.int64)
        self.usage.note(self.record.id, self.shape, {layer: [chosen]})


def test_nothing_seen_is_said_so(tmp_path):
    stand = Stand(tmp_path)
    used = stand.ask("expert.usage")
    assert used.tokens == 0 and not any(one.visits for one in used.experts)
    assert stand.ask("expert.groups").groups == []
    made = stand.ask("expert.suggestions")
    assert made.hot == made.cold == made.moves == []


def test_use_is_shown_by_expert_and_by_window(tmp_path):
    stand = Stand(tmp_path)
    assert stand.shape.experts == 4 and stand.shape.experts_per_token == 2
    stand.visit(1, *[[0, 3]] * 30, *[[1, 2]] * 30, [0, 1])
    used = stand.ask("expert.usage", model="tiny")
    counts = {one.name: (one.visits, one.served) for one in used.experts}
    assert counts["layer1.expert0"] == (31, 0) and counts["layer0.expert0"] == (0, 0)
    assert used.tokens == 61 and used.experts[4].windows == [31]
    found = stand.ask("expert.groups").groups
    assert [(g.layer, g.experts) for g in found] == [(1, [0, 3]), (1, [1, 2])]
    assert found[0].affinity > 2 and found[0].visits == 61 and found[0].whole == [ME]


def test_suggestions_name_what_is_hot_cold_and_uneven(tmp_path):
    stand = Stand(tmp_path)
    groups = {g.index for g in placement.layout_for(stand.record.model).expert_groups}
    stand.world.held = frozenset(groups)
    stand.copied = frozenset([min(groups)])
    stand.visit(0, *[[0, 1]] * 50)
    made = stand.ask("expert.suggestions")
    assert [one.name for one in made.hot] == ["layer0.expert0"]
    assert made.hot[0].local and made.hot[0].holders == 1 and made.hot[0].visits == 50
    assert made.hot[0].copied == (min(groups) in stand.copied)
    assert "layer1.expert0" in made.cold and "layer0.expert0" not in made.cold
    assert [(one.peer_id, one.share_ppm) for one in made.loads] == [(ME, 10**6)]


def test_a_plan_of_a_model_of_the_network(tmp_path):
    stand = Stand(tmp_path)
    nodes = [node.account for node in NODES.scan(stand.world.view)]
    assert len(nodes) == 2 and stand.record.model.replication == 2  # all hold all
    made = stand.ask("model.plan")
    assert made.nodes[0].node == ME and made.nodes[0].local
    assert made.nodes[1].node == PEER and made.nodes[1].round_trip_ms == 2.0
    assert made.nodes[0].experts == made.layers * made.experts
    local, experts, spans = made.ways
    assert local.tokens_per_s > 0 and local.hops == 0 and experts.hops == 0
    assert spans.tokens_per_s is not None
    assert made.verdict.startswith("this node holds 8 of 8 experts; as f32 that fits")
    assert made.disk_fits and made.bytes == 4 * made.parameters
    sizes = [one.all_bytes for one in made.recipes]
    assert [one.recipe for one in made.recipes] == ["f32", "bf16", "int8", "int4"]
    assert sizes == sorted(sizes, reverse=True) and sizes[0] == 2 * sizes[1]


def test_what_cannot_be_said_is_said_so(tmp_path):
    stand = Stand(tmp_path / "a", speed=None)
    made = stand.ask("model.plan")
    assert "cannot be said: this machine's speed" in made.verdict
    small = Stand(tmp_path / "b", memory_bytes=1000).ask("model.plan")
    assert "does not fit" in small.verdict and "exceed the memory" in small.verdict
    assert all(way.tokens_per_s is None for way in small.ways)
    assert not small.recipes[0].fits and small.recipes[0].tokens_per_s is None


def test_a_plan_of_a_checkpoint_that_is_not_imported(tmp_path):
    folder = tmp_path / "mix"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(MIXTRAL))
    stand = Stand(tmp_path / "home", memory_bytes=1 << 50)
    made = stand.ask("model.plan", directory=str(folder))
    assert made.model == "mix" and made.parameters == 46_702_792_704
    assert made.bytes == 2 * made.parameters and not made.disk_fits  # 8 GiB are left
    assert made.cache_bytes == 2 * 32 * 2048 * 8 * 128 * 4
    assert made.ways[0].tokens_per_s == pytest.approx(0.2, rel=0.2)  # 48 GB at 10 GB/s
    assert ", which the disk has no room for" in made.verdict


@pytest.mark.parametrize(
    "text, why",
    [
        (None, "No such file"),
        ("", "Expecting value"),
        ("[]", "no JSON object"),
        ("[" * 100_000, "recursion"),
        ('{"model_type": "gpt2"}', "model_type"),
        (" " * (1 << 20) + "{}", "larger than 1 MiB"),
    ],
)
def test_a_folder_without_a_model_is_refused_in_a_sentence(tmp_path, text, why):
    stand = Stand(tmp_path / "home")
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    with pytest.raises(RpcError, match=f"config.json: .*{why}") as refused:
        stand.ask("model.plan", directory=str(tmp_path))
    assert refused.value.code == CHECKPOINT_INVALID.code


def test_a_model_and_a_folder_at_once_are_refused(tmp_path):
    with pytest.raises(RpcError) as refused:
        Stand(tmp_path).ask("model.plan", model="tiny", directory="/x")
    assert refused.value.code == INVALID_PARAMS.code
