"""`chain prove` on a chain with money, and `verify` of what it printed, without a daemon."""

import json

import pytest
import trio

from blyan_proto.block.economy import Transfer
from blyan_proto.codec import to_plain
from blyan_proto.rpc import chain as spec
from blyan_proto.rpc import proving
from blyan_proto.rpc.errors import RpcError
from blyanctl.__main__ import main
from blyand.compute import Threads
from blyand.rpc import prove
from blyand.rpc.bind import Answers
from blyand.rules.economy.book import Purse, amount
from tests.second import light
from tests.second.canonical import decode
from tests.unit.daemon.chain_node import Node
from tests.unit.daemon.chain_world import sign_block


@pytest.fixture
def node(tmp_path, monkeypatch):
    monkeypatch.setattr("blyand.finality.beacon.LINKS", 1024)
    return Node(tmp_path)


def bound(node):
    answers = Answers({spec.prove.name: spec.prove})
    prove.bind(
        answers,
        genesis=node.genesis,
        account=node.keys[0].account,
        state=node.machine.view,
        checkpoints=node.checkpoints,
        lane=Threads("test", 1),
    )
    return answers[spec.prove.name]


async def paid(node):
    """Order a transfer of 30 micro-BLY."""
    rich, poor = node.keys[0], node.keys[1]
    async with node.running():
        transfer = Transfer(1, poor.account, 30, 0, "")
        return await node.order(sign_block(node.genesis, rich, transfer))


def ask(node, what, name, **more):
    async def run():
        return await bound(node)(proving.ProveState(what=what, name=name, **more))

    return trio.run(run)


def test_an_account_is_called_as_everywhere(node):
    trio.run(paid, node)
    own, free = node.keys[0].account.hex(), "00"
    assert ask(node, "balance", "me").key.hex().endswith(own + free)
    assert ask(node, "balance", "0x" + own).key == ask(node, "balance", "me").key
    assert ask(node, "balance", "me", purse="staked").value is None
    with pytest.raises(RpcError, match="is not an account"):
        ask(node, "balance", "nobody")


def test_a_balance_is_proved_and_checked_without_a_daemon(node, tmp_path, capsys):
    final = trio.run(paid, node)
    account = node.keys[1].account
    told = ask(node, "balance", account.hex())
    held = amount(node.machine.view, account, Purse.FREE)
    assert told.record == {"account": account.hex(), "purse": "free", "micro": held}
    assert told.height == 1 and told.checkpoint == final.checkpoint.id
    assert told.proof_bytes == len(told.proof) < 4000
    file, genesis = tmp_path / "proof.json", tmp_path / "genesis.json"
    file.write_text(json.dumps(spec.prove.write_result(told)))
    genesis.write_text(json.dumps(to_plain(node.genesis)))
    network, root = node.genesis.id.hex(), node.genesis.founders.root.hex()
    for believed in (
        ["--genesis", str(genesis)],
        ["--checkpoint", final.checkpoint.id.hex()],
        ["--network", network, "--validators", root],
    ):
        assert main(["--json", "verify", str(file), *believed]) == 0
        shown = json.loads(capsys.readouterr().out)
        assert shown["balance_micro"] == held and shown["account"] == account.hex()
        assert shown["height"] == 1 and shown["signers"] == [node.keys[0].public.hex()]
    assert main(["verify", str(file), *believed]) == 0
    assert account.hex() in capsys.readouterr().out
    assert (
        light.check_attested(
            decode("Attested", told.proof), node.genesis.id, node.genesis.founders.root
        )
        == told.value
    )

    for wrong, said in (
        (["--checkpoint", "00" * 32], "does not hold: the proof is of another"),
        (["--network", "00" * 32, "--validators", root], "does not hold"),
        (["--network", network], "name what you believe"),
        (["--genesis", str(file)], "is no genesis"),
        ([], "name what you believe"),
    ):
        assert main(["verify", str(file), *wrong]) in (1, 2)
        assert said in capsys.readouterr().err
    bent = told.proof[:-3] + bytes([told.proof[-3] ^ 1]) + told.proof[-2:]
    for text in ("", "[]", "[" * 5000, '{"proof": 1}', '{"proof": "zz"}'):
        file.write_text(text)
        assert main(["verify", str(file), *believed]) == 2
        assert capsys.readouterr().err.count("\n") == 1
    file.write_text(json.dumps({"proof": bent.hex()}))
    assert main(["verify", str(file), *believed]) == 1
    assert "does not hold" in capsys.readouterr().err
    assert main(["verify", str(tmp_path / "absent"), *believed]) == 2


def test_what_is_absent_is_proved_as_well(node, tmp_path, capsys):
    trio.run(paid, node)
    told = ask(node, "balance", "0x" + "ee" * 20, purse="bond")
    assert told.value is None and told.record is None
    (tmp_path / "proof").write_text(json.dumps(spec.prove.write_result(told)))
    argv = ["--json", "verify", str(tmp_path / "proof"), "--checkpoint"]
    assert main([*argv, told.checkpoint.hex()]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["present"] is False and shown["balance_micro"] == 0


def test_any_record_by_its_key(node):
    trio.run(paid, node)
    told = ask(node, "record", "clock/")
    assert told.key == b"clock/" and told.record["fields"][0] == 1
    with pytest.raises(RpcError, match="in hex"):
        ask(node, "record", "clock/zz")
    with pytest.raises(RpcError, match="at most 256 bytes"):
        ask(node, "record", "clock/" + "00" * 300)
    with pytest.raises(RpcError, match="is not an account"):
        ask(node, "balance", "00")
    with pytest.raises(RpcError, match="there is no model yet"):
        ask(node, "expert", "layer0.expert0")


def test_before_the_first_checkpoint_nothing_vouches_for_the_state(node):
    with pytest.raises(RpcError, match="no checkpoint is final yet"):
        ask(node, "record", "clock/")
