"""The command line of every declared method."""

from __future__ import annotations

import json

import pytest

from blyan_proto.rpc.methods import NOUNS, all_methods, methods_of
from blyan_proto.rpc.records import Field, fields_of, word_of
from blyan_proto.rpc.spec import JsonObject, Method
from blyanctl import parser


def parse(*argv: str) -> JsonObject:
    arguments = parser.build(argv).parse_args(argv)
    return parser.params_of(arguments, arguments.method)


def sample(field: Field) -> object:
    """A JSON value that fits a field."""
    schema = field.shape.schema
    if field.about.choices:
        return field.about.choices[0]
    many = "items" in schema
    kind = schema["items"]["type"] if many else schema["type"]
    kind = kind[0] if isinstance(kind, list) else kind
    if kind == "string" and "pattern" in schema:
        return "ab" * (20 if "{40}" in schema["pattern"] else 32)
    number = 1 if many or field.about.low is None else field.about.low
    value: object = {"string": "word", "integer": int(number), "number": 0.5}.get(kind)
    if kind == "boolean":
        value = True
    if kind == "object":
        value = {"a": 1}
    if field.about.path:
        value = "/a/word"
    if kind == "number" and field.about.low is not None:
        value = max(0.5, float(field.about.low))
    return [value, value] if many else value


def words(name: str, value: object) -> list[str]:
    if name.endswith("_micro"):
        assert isinstance(value, int)
        return [f"{value // 10**6}.{value % 10**6:06}"]
    if isinstance(value, dict):
        return [json.dumps(value)]
    return [str(item) for item in value] if isinstance(value, list) else [str(value)]


@pytest.mark.parametrize("method", all_methods().values(), ids=list(all_methods()))
def test_every_param_as_a_flag_and_by_place(method: Method) -> None:
    values = {field.name: sample(field) for field in fields_of(method.params)}
    flags: list[str] = []
    for name, value in values.items():
        flags.append("--" + word_of(name))
        flags += [] if value is True else words(name, value)
    assert parse(method.noun, method.verb, *flags) == values

    placed = {
        f.name: values[f.name] for f in fields_of(method.params) if f.about.positional
    }
    if all(f.name in placed for f in fields_of(method.params) if f.required):
        argv = [word for item in placed.items() for word in words(*item)]
        assert parse(method.noun, method.verb, *argv) == placed


@pytest.mark.parametrize("method", all_methods().values(), ids=list(all_methods()))
def test_no_param_hides_a_general_option(method: Method) -> None:
    names = {field.name for field in fields_of(method.params)}
    assert not names & {"home", "json", "timeout", "stream", "help"}


@pytest.mark.parametrize("method", all_methods().values(), ids=list(all_methods()))
def test_help_prints(method: Method, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parse(method.noun, method.verb, "--help")
    assert caught.value.code == 0
    assert method.summary.split()[0] in capsys.readouterr().out


@pytest.mark.parametrize("noun", NOUNS)
def test_a_nouns_help_lists_its_verbs(
    noun: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        parser.build((noun, "--help")).parse_args((noun, "--help"))
    assert caught.value.code == 0
    said = capsys.readouterr().out
    assert all(method.verb in said for method in methods_of(noun).values())


def test_what_is_not_given_is_not_sent() -> None:
    assert parse("chain", "log") == {}
    assert parse("infer", "generate", "Once upon") == {"prompt": "Once upon"}
    assert parse("infer", "generate", "--", "-1") == {"prompt": "-1"}
    assert parse("chain", "block", "ab" * 32, "--no-payload")["payload"] is False


def test_a_path_is_made_absolute(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/")
    assert parse("data", "add", "usr/../etc") == {"directory": "/etc"}
    assert parse("slash", "submit", "--file", "found") == {"file": "/found"}
    assert parse("data", "add", "") == {"directory": ""}


def test_what_the_daemon_says_of_params_is_told_in_words_of_the_command_line() -> None:
    stake = methods_of("ledger")["ledger.stake"]
    said = "ledger.stake: give either lock_micro or unlock_micro"
    assert parser.told(stake, said) == "give either --lock or --unlock"


@pytest.mark.parametrize("tail", ["me", "--nope"])
def test_what_is_unknown_is_refused_by_the_command_that_does_not_know_it(
    tail: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        parse("key", "show", tail)
    assert caught.value.code == 2
    said = capsys.readouterr().err
    assert said == (
        f"blyanctl key show: unrecognized arguments: {tail}; "
        "see `blyanctl key show --help`.\n"
    )


def test_general_options_stand_before_and_after() -> None:
    for argv in (
        ["--home", "/h", "--json", "node", "status"],
        ["node", "status", "--json", "--home", "/h"],
        ["--json", "node", "status", "--home", "/h"],
    ):
        arguments = parser.build(argv).parse_args(argv)
        assert (arguments.home, arguments.json) == ("/h", True)


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["chain", "block"], "ID is missing"),
        (["chain", "block", "xyz"], "ID: expected hex of 32 bytes"),
        (["chain", "log", "--limit", "0"], "limit: expected 1 to 1000"),
        (["chain", "log", "--chain", "E"], "chain: expected one of A, B, C, D"),
        (["chain", "block", "00", "--id", "00"], "id is given twice"),
        (["ledger", "send", "me"], "AMOUNT is missing"),
    ],
)
def test_wrong_values(argv: list[str], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        parse(*argv)


@pytest.mark.parametrize(
    "argv",
    [
        [],
        ["node"],
        ["node", "fly"],
        ["chain", "log", "--limit", "x"],
        ["chain", "log", "--lim", "5"],
        ["rpc", "node.status", "[1]"],
        ["rpc", "node.status", "{"],
    ],
)
def test_wrong_usage_is_one_sentence(
    argv: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        parse(*argv)
    assert caught.value.code == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "--help" in said


@pytest.mark.parametrize(
    "word, micro",
    [("1", 1_000_000), ("0.000001", 1), ("12.5", 12_500_000), ("007.10", 7_100_000)],
)
def test_amounts_are_given_in_bly_and_travel_as_micro(word: str, micro: int) -> None:
    to = "ab" * 20
    for given in ([word], ["--amount", word]):
        parsed = parse("ledger", "send", to, *given)
        assert parsed == {"to": to, "amount_micro": micro}


@pytest.mark.parametrize("word", ["-1", "1e3", "0.0000001", "1,5", "", ".5", "1.", "x"])
def test_amounts_that_are_none(word: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse("ledger", "send", "me", f"--amount={word}")
    assert "is not an amount of BLY" in capsys.readouterr().err
