"""The genesis tool: made of what founders hand over, shown, and checked (GEN-01, GEN-04)."""

import json
from dataclasses import fields, replace
from random import Random
from types import SimpleNamespace

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

from blyan_proto.codec import to_plain
from blyan_proto.genesis import DEVNET, Parameters
from blyan_proto.settings import SETTINGS
from blyan_proto.signing import account_of
from blyan_proto.types import Role
from blyand import __main__ as blyand
from blyand import genesis as genesis_file
from blyand.bindings import _troubles
from blyand.errors import ConfigFault
from blyand.events import Broadcast
from blyand.founding import Plan, found, problems_of, read_founder, read_plan
from blyand.protocols.meeting import STRANGERS_S, Meeting
from blyand.rules.chain.execute import begin
from blyand.store.state import State
from tests.unit.daemon.chain_world import key, registration, some

VALIDATES = int(Role.SERVE | Role.VALIDATE)


def founders(count=3):
    return [
        registration(key(n), roles=VALIDATES, beacon_tail=some(n).randbytes(32))
        for n in range(count)
    ]


def plan(**changed):
    return Plan(salt=bytes(32), time_ms=5, balances={key(0).account: 77}, **changed)


def test_the_order_in_which_founders_are_named_does_not_count():
    made = found(plan(), founders())
    assert found(plan(), founders()[::-1]) == made
    assert [one.weight for one in made.validators] == [1, 1, 1]
    assert not list(problems_of(made))


def test_weights_say_who_validates():
    made = found(plan(weights={key(0).public: 5, key(1).public: 0}), founders())
    assert made.founders.weights == {key(0).public: 5, key(2).public: 1}
    with pytest.raises(ConfigFault, match="is no founder"):
        found(plan(weights={key(9).public: 1}), founders())
    lame = [replace(founders()[0], beacon_tail=None)]
    with pytest.raises(ConfigFault, match="no beacon tail"):
        found(plan(), lame)


@given(st.sampled_from([one.name for one in fields(Parameters)]), st.integers(1, 60))
def test_changing_any_parameter_changes_the_id(name, value):
    made = found(plan(), founders(1))
    changed = replace(made.parameters, **{name: value})
    if changed != made.parameters:
        assert replace(made, parameters=changed).id != made.id


@given(st.sampled_from(sorted(SETTINGS)), st.data())
def test_changing_any_setting_changes_the_id(name, data):
    known = SETTINGS[name]
    low = known.low
    if name == "unbond_span_ms":  # bonds outlive the trust span (DEC-A11)
        low = DEVNET.trust_span_ms + 1
    value = data.draw(st.integers(low, known.high))
    made = found(plan(settings={name: value}), founders(1))
    assert made.setting(name) == value
    assert made.id != found(plan(), founders(1)).id


def test_unsound_ones_are_not_made():
    for wrong in (
        plan(parameters={"speed": 1}),
        plan(parameters={"work_bits": 1000}),
        plan(parameters={"checkpoint_blocks": 0}),
        plan(settings={"speed": 1}),
        replace(plan(), balances={key(0).account: 2**63}),
        replace(plan(), name=""),
    ):
        with pytest.raises(ConfigFault):
            found(wrong, founders())
    with pytest.raises(ConfigFault):
        found(plan(), [])


def test_verify_names_every_lie():
    made = found(plan(), founders())
    first = made.validators[0]
    stranger = replace(first, key=key("stranger").public)
    no_point = replace(made.participants[0], key=b"\x02" + b"\xff" * 32)
    for wrong, says in (
        (replace(made, validators=(first, first)), "named twice"),
        (replace(made, validators=(replace(first, weight=0),)), "no weight"),
        (replace(made, validators=(stranger,)), "takes no part"),
        (replace(made, participants=(no_point,)), "no point of the curve"),
        (
            replace(made, participants=(replace(founders()[1], bond_micro=1),)),
            "the bond is more",
        ),
    ):
        assert any(says in problem for problem in problems_of(wrong)), says


def test_a_plan_is_read_whole_or_not_at_all(tmp_path):
    file = tmp_path / "plan.toml"
    account, public = key(0).account.hex(), key(0).public.hex()
    file.write_text(
        f'name = "ours"\nsalt = "{"07" * 32}"\ntime_ms = 9\n'
        f"[parameters]\nwork_bits = 3\n[settings]\nclock_bound_ms = 50\n"
        f"[balances]\n0x{account} = 12\n[weights]\n{public} = 4\n"
    )
    assert read_plan(file) == Plan(
        "ours",
        {"work_bits": 3},
        {"clock_bound_ms": 50},
        {key(0).account: 12},
        {key(0).public: 4},
        b"\x07" * 32,
        9,
    )
    for wrong in ('nmae = "x"', "[balances]\nx = 1", "time_ms = 1.5", "[", "salt = 3"):
        file.write_text(wrong)
        with pytest.raises(ConfigFault, match="plan.toml"):
            read_plan(file)
    with pytest.raises(ConfigFault, match="cannot read"):
        read_plan(tmp_path / "none.toml")


def test_the_commands_from_the_homes_to_a_common_genesis(tmp_path, capsys):
    def call(*args):
        code = blyand.main([str(arg) for arg in args])
        return code, capsys.readouterr().out

    files = []
    for n in range(2):
        _, out = call(
            *("init", "--home", tmp_path / f"h{n}", "--json"),
            *("--roles", "serve,validate", "--region", "eu"),
        )
        file = tmp_path / f"f{n}.json"
        file.write_text(out)
        files.append(file)
    _, out = call("init", "--home", tmp_path / "learner", "--json", "--roles", "learn")
    learner = json.loads(out)["registration"]
    assert learner["roles"] == int(Role.LEARN) and learner["beacon_tail"] is None
    founder = read_founder(files[0])
    assert founder.roles == VALIDATES and founder.region == "eu"
    made = tmp_path / "genesis.json"
    named = [part for file in files for part in ("--founder", file)]
    named += ["--balance", f"{account_of(founder.key).hex()}=5"]
    code, out = call("genesis", "create", made, *named, "--name", "two", "--json")
    id = json.loads(out)["network"]
    assert code == 0 and genesis_file.load(made).id.hex() == id
    assert blyand.main(["genesis", "create", str(made), *map(str, named)]) == 1

    assert call("genesis", "verify", made, id)[0] == 0
    assert call("genesis", "verify", made, "00" * 32)[0] == 1
    shown = json.loads(call("genesis", "show", made, "--json")[1])
    assert shown["network"] == id
    assert shown["genesis"] == to_plain(genesis_file.load(made))
    call("init", "--home", tmp_path / "h0", "--genesis", made, "--force")
    code, out = call("genesis", "show", "--home", tmp_path / "h0")
    assert code == 0 and id in out and founder.key.hex() in out
    assert genesis_file.load(made).parameters == DEVNET


def test_wrong_usage_is_one_sentence_and_code_2(capsys):
    for argv in (["genesis", "create", "g.json"], ["walk"], ["run", "--nope"]):
        with pytest.raises(SystemExit) as caught:
            blyand.main(argv)
        assert caught.value.code == 2
        said = capsys.readouterr().err
        assert said.startswith("blyand") and said.count("\n") == 1 and "--help" in said


def test_a_genesis_that_gives_nobody_anything_says_what_to_add():
    with pytest.raises(ConfigFault, match="--balance"):
        found(Plan(), founders(1))


def test_what_is_no_registration_is_refused_in_a_sentence(tmp_path):
    file = tmp_path / "founder.json"
    for wrong in ("[]", '{"registration": {"version": 1}}', "nothing"):
        file.write_text(wrong)
        with pytest.raises(ConfigFault, match="founder.json"):
            read_founder(file)


def test_many_peers_of_another_network_are_told_and_nothing_else(monkeypatch):
    """GEN-02, GEN-03: an alarm only; the own genesis is law."""

    async def main():
        meeting = Meeting(None, Broadcast(), None, Random(0))  # type: ignore[arg-type]
        disk = SimpleNamespace(
            database=SimpleNamespace(full=None), blobs=SimpleNamespace(lost=())
        )
        base = SimpleNamespace(stores=disk, meeting=meeting)
        view = State()
        view.apply(begin(found(plan(), founders(1))).changes)
        machine = SimpleNamespace(clock=SimpleNamespace(height=0))
        replica = SimpleNamespace(
            mender=SimpleNamespace(missing=None), machine=machine, view=view
        )
        monkeypatch.setattr(Meeting, "peers", {n: None for n in range(7)})
        told = []
        for n in (0, 1, 2, 2, 3):  # three of ten are no more than 30 %
            meeting.strange(f"stranger {n}")
            told.append(list(_troubles(base, replica, None)))
        assert told[:4] == [[]] * 4
        assert told[4][0].startswith("4 of 11 peers that greeted")
        await trio.sleep(STRANGERS_S + 1)
        assert not list(_troubles(base, replica, None))

    trio.run(main, clock=MockClock(autojump_threshold=0))
