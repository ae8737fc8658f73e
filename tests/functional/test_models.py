"""A checkpoint of transformers comes in on one node, is used on another, and goes out."""

from __future__ import annotations

import json
import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from blyan_proto.rpc import errors
from blyan_proto.rpc.errors import RpcError
from blyanctl.client import NoAnswer, NoDaemon
from tests.bench import made_checkpoint as made
from tests.functional.harness import Daemon, Network, network, wait_for
from tests.long import long
from tests.unit.tile.test_import_hf import tensors_in

pytestmark = pytest.mark.functional
SINGLE = "model.safetensors"
PROMPT = "def main():\n    return self."


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Network]:
    with network(tmp_path_factory.mktemp("models") / "d", 3) as opened:
        yield opened


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Mixtral that transformers made, in shards, with a tokenizer of its own."""
    transformers = pytest.importorskip("transformers")
    import torch

    torch.manual_seed(1)
    path = tmp_path_factory.mktemp("checkpoint") / "stranger"
    config = transformers.MixtralConfig(
        **made.TINY, sliding_window=None, initializer_range=0.2
    )
    model = transformers.MixtralForCausalLM(config).float()
    model.save_pretrained(path, max_shard_size="300KB")
    made.make_tokenizer(path, made.TINY["vocab_size"])
    assert (path / "model.safetensors.index.json").exists()
    return path


@pytest.fixture(scope="module")
def model(net: Network, folder: Path) -> str:
    """The id of the imported model, as the command line prints it."""
    told = json.loads(blyanctl(net[0], "model", "import", folder, "--json").stdout)
    assert told["name"] == "stranger" and told["family"] == "mixtral"
    assert told["bytes"] == 4 * told["parameters"] and told["dtype"] == "f32"
    return str(told["model"])


def blyanctl(node: Daemon, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "blyanctl", "--home", str(node.home)]
    return subprocess.run(
        [*command, *map(str, arguments)], capture_output=True, text=True
    )


def reference(folder: Path, count: int) -> tuple[list[int], list[int]]:
    """Return the prompt's ids and what transformers makes of them."""
    import torch
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder).float()
    ids = tokenizer(PROMPT, add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        whole = model.generate(
            torch.tensor([ids]),
            max_new_tokens=count,
            min_new_tokens=count,
            do_sample=False,
        )
    return ids, whole[0, len(ids) :].tolist()


def test_what_one_node_imports_another_answers_with(net, folder, model):
    ids, expected = reference(folder, 12)
    told = {}
    for node in (net[2], net[1]):
        told = wait_for(
            lambda: node.call(
                "infer.generate",
                model=model,
                prompt=PROMPT,
                max_tokens=12,
                ignore_eos=True,
            ),
            "it answers",
        )
        assert told["token_ids"] == expected and told["prompt_tokens"] == len(ids)
        assert told["text"]
    by_ids = net[0].call(
        "infer.generate", model=model, token_ids=ids, max_tokens=12, ignore_eos=True
    )
    assert by_ids["text"] == told["text"]


def test_an_export_is_what_came_in_and_loads_in_transformers(
    net, folder, model, tmp_path
):
    target = tmp_path / "out"
    wrote = blyanctl(net[1], "model", "export", "stranger", target)
    assert wrote.returncode == 0, wrote.stderr
    before = tensors_in(folder)
    assert tensors_in(target) == before
    for beside in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        assert (target / beside).read_bytes() == (folder / beside).read_bytes()
    assert reference(target, 4) == reference(folder, 4)
    halves = tmp_path / "halves"
    settings = dict(model=model, directory=str(halves), dtype="bf16", shard_mib=1)
    told = net[1].call("model.export", **settings)
    assert 2 * told["bytes"] == sum(len(raw) for _, raw in before.values())
    assert {kind.split()[0] for kind, _ in tensors_in(halves).values()} == {"BF16"}
    refused = blyanctl(net[1], "model", "export", "stranger", target)
    assert refused.returncode == 1 and "with something in it" in refused.stderr
    assert refused.stderr.count("\n") == 1


def test_a_checkpoint_that_is_none_is_refused_in_one_sentence(net, tmp_path):
    whole = tmp_path / "whole"
    made.make(whole, made.TINY | {"num_hidden_layers": 1})
    tensors = load_file(whole / SINGLE)
    norm, expert = "model.norm.weight", "model.layers.0.block_sparse_moe.experts.3.w1"

    def cut_off(folder):
        os.truncate(folder / SINGLE, (folder / SINGLE).stat().st_size - 100)

    def changed(**more):
        def how(folder):
            save_file(
                {k: v for k, v in (tensors | more).items() if v is not None},
                folder / SINGLE,
            )

        return how

    def config(**more):
        def how(folder):
            text = json.loads((folder / "config.json").read_text())
            made.write_json(folder / "config.json", text | more)

        return how

    def huge_header(folder):
        (folder / SINGLE).write_bytes(struct.pack("<Q", 1 << 60) + bytes(100))

    cases = [
        (cut_off, "it is truncated, copy it again"),
        (changed(**{norm: np.full(64, np.nan, np.float32)}), f"'{norm}' has NaN"),
        (changed(**{norm: np.ones(65, np.float32)}), f"'{norm}' has shape [65]"),
        (changed(**{f"{expert}.weight": None}), f"no tensor '{expert}.weight'"),
        (changed(extra=np.ones(2, np.float32)), "no place for tensor 'extra'"),
        (config(model_type="gpt_neo"), "gpt_neo"),
        (config(hidden_act="gelu"), "hidden_act"),
        (config(hidden_size=128), "has shape"),
        (huge_header, "claims a header of"),
        (lambda folder: (folder / "config.json").unlink(), "no config.json"),
        (lambda folder: (folder / SINGLE).unlink(), "there is neither"),
        (shutil.rmtree, "No such file"),
    ]
    for number, (spoil, said) in enumerate(cases):
        bad = tmp_path / f"bad{number}"
        shutil.copytree(whole, bad)
        spoil(bad)
        with pytest.raises(RpcError) as caught:
            net[0].call("model.import", directory=str(bad))
        assert caught.value.code == errors.CHECKPOINT_INVALID.code
        assert said in caught.value.message and "\n" not in caught.value.message
    told = blyanctl(net[0], "model", "import", tmp_path / "bad0")
    assert told.returncode == 1 and SINGLE in told.stderr
    assert told.stderr.splitlines()[-1].endswith("(error 514)")
    with pytest.raises(RpcError, match="not an absolute path"):
        net[0].call("model.import", directory="here")
    assert [one["name"] for one in net[0].call("model.list")["models"]] == ["stranger"]


def test_a_newer_model_leaves_the_older_one_answering(net, folder, model):
    net[1].call("model.create", preset="tiny")

    def told_by_all():
        experts = net[2].call("expert.list", model="tiny")["experts"]
        return all(expert["holders"] >= 2 for expert in experts)

    wait_for(told_by_all, "nodes tell of the newer model")
    ids, expected = reference(folder, 12)
    asked = {"token_ids": ids, "max_tokens": 12, "ignore_eos": True}
    for node in net.nodes:
        told = node.call("infer.generate", model=model, **asked)
        assert told["token_ids"] == expected
        node.call("infer.generate", model="tiny", prompt=PROMPT, max_tokens=4)


@long
def test_a_killed_import_goes_on_where_it_was(net, tmp_path):
    """The same command after a kill of the daemon: what is a blob is not written again."""
    folder = tmp_path / "killed"
    made.make(folder, made.TINY | {"num_local_experts": 24}, "bf16")
    node = net[0]
    with node.client() as client:
        seen = 0
        try:
            for item in client.stream("model.import", {"directory": str(folder)}):
                if item["stage"] == "cutting" and item["done"] >= 20:
                    seen = item["done"]
                    os.kill(node.pid, 9)
                    break
        except (NoAnswer, NoDaemon):
            pass
    assert seen
    node.kill()
    before = blobs_of(node)
    node.start()
    with node.client() as client:
        stream = client.stream("model.import", {"directory": str(folder)})
        items = list(stream)
        made_of = stream.result
    assert items[0]["stage"] == "checking the files"
    groups = made_of["groups"]
    assert {
        "stage": "publishing",
        "done": groups,
        "total": groups,
        "unit": "groups",
    } in items
    after = blobs_of(node)
    assert len(before) > 20 and before.items() <= after.items()  # the same inodes
    again = node.call("model.import", directory=str(folder))
    assert again == made_of and blobs_of(node).items() >= after.items()
    with pytest.raises(RpcError) as caught:
        net[1].call("model.import", directory=str(folder))
    assert caught.value.code == errors.MODEL_EXISTS.code
    target = tmp_path / "out"
    node.call("model.export", model="killed", directory=str(target))
    assert tensors_in(target) == tensors_in(folder)


def blobs_of(node: Daemon) -> dict[str, tuple[int, int]]:
    """Return inode and time of the last change of every durable blob."""
    found = {}
    for path in (node.home / "blobs").rglob("*.tblk"):
        status = path.stat()
        found[path.parent.name + path.name] = status.st_ino, status.st_mtime_ns
    return found
