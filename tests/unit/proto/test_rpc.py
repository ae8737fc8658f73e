"""Declarations, envelopes and generated docs of the control interface."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blyan_proto.errors import LimitExceeded
from blyan_proto.rpc import chain, jsonrpc, node, schema
from blyan_proto.rpc.errors import (
    GENERAL,
    INVALID_PARAMS,
    INVALID_REQUEST,
    NOUN_BASES,
    NOUN_ERRORS,
    PARSE_ERROR,
    SHARED,
    RpcError,
    shared_code,
)
from blyan_proto.rpc.jsonrpc import Batch, Item, LineReader, Malformed, Reply, Request
from blyan_proto.rpc.methods import NOUNS, all_methods, find
from blyan_proto.rpc.records import arg, fields_of, read_record, record, write_record
from blyan_proto.rpc.spec import Id, Method, Mismatch, check_declaration, declare
from blyan_proto.rpc.values import JsonObject

ROOT = Path(__file__).parents[3]


@record
class Inner:
    """Inside."""

    name: str = arg("name")
    size: int | None = arg("size")


@record
class Everything:
    """One of each type."""

    text: str = arg("text")
    count: int = arg("count", low=1, high=9)
    ratio: float = arg("ratio")
    flag: bool = arg("flag")
    id: Id = arg("id")
    inner: Inner = arg("inner")
    inners: list[Inner] = arg("inners", high=2)
    free: JsonObject | None = arg("free")
    value: object = arg("value")
    kind: str | None = arg("kind", default=None, choices=("a", "b"))
    numbers: list[int] | None = arg("numbers", default=None)


VALUE = Everything(
    text="é",
    count=3,
    ratio=0.5,
    flag=True,
    id=bytes(range(32)),
    inner=Inner("x", None),
    inners=[Inner("y", 1)],
    free={"k": [1, None]},
    value=[1, "two"],
    numbers=[1, 2],
)


def plain() -> JsonObject:
    return write_record(Everything, VALUE)


def test_a_record_survives_json() -> None:
    text = json.dumps(plain())
    assert read_record(Everything, json.loads(text), complete=True) == VALUE


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("text", 1, "text: expected text"),
        ("text", "\ud800", "text: expected text of Unicode scalar values"),
        ("text", None, "text: expected text"),
        ("count", True, "count: expected an integer"),
        ("count", 1.0, "count: expected an integer"),
        ("count", "1", "count: expected an integer"),
        ("count", 0, "count: expected 1 to 9"),
        ("count", 10, "count: expected 1 to 9"),
        ("ratio", "1", "ratio: expected a number"),
        ("ratio", True, "ratio: expected a number"),
        ("ratio", float("inf"), "ratio: expected a finite number"),
        ("ratio", 10**400, "ratio: expected a finite number"),
        ("flag", 1, "flag: expected true or false"),
        ("id", "00", "id: expected hex of 32 bytes"),
        ("id", "zz" * 32, "id: expected hex of 32 bytes"),
        ("id", " " + "00" * 32, "id: expected hex of 32 bytes"),
        ("inner", [], "inner: expected an object"),
        ("inner", {"name": "x"}, "inner: 'size' is missing (size)"),
        ("inners", {}, "inners: expected a list"),
        ("inners", [{"name": 1, "size": 1}], "inners[0]: name: expected text"),
        ("inners", [{"name": "", "size": 1}] * 3, "inners: expected at most 2 items"),
        ("free", [], "free: expected an object"),
        ("kind", "c", "kind: expected one of a, b"),
        ("numbers", [1, "2"], "numbers[1]: expected an integer"),
        ("txet", 1, "no field is called 'txet'; did you mean 'text'?"),
    ],
)
def test_reading_refuses_and_says_where(name: str, value: Any, says: str) -> None:
    with pytest.raises(Mismatch) as caught:
        read_record(Everything, {**plain(), name: value}, complete=True)
    assert str(caught.value) == says


def test_a_reply_needs_every_field_and_params_only_the_required() -> None:
    short = plain()
    del short["kind"]
    with pytest.raises(Mismatch, match="'kind' is missing"):
        read_record(Everything, short, complete=True)
    assert read_record(Everything, short, complete=False).kind is None
    del short["count"]
    with pytest.raises(Mismatch, match=r"'count' is missing \(count\)"):
        read_record(Everything, short, complete=False)


def test_missing_and_null_both_mean_the_default() -> None:
    assert chain.log.read_params({"limit": None}) == chain.log.read_params({})
    assert chain.log.read_params({}).limit == 20


def test_params_errors_are_rpc_errors() -> None:
    with pytest.raises(RpcError) as caught:
        chain.block.read_params({"payloads": True})
    assert caught.value.code == INVALID_PARAMS.code
    assert "did you mean 'payload'" in caught.value.message


def test_writing_refuses_what_breaks_the_declaration() -> None:
    with pytest.raises(Mismatch, match="pid: expected an integer"):
        node.stop.write_result(node.Stopping(pid="1"))  # type: ignore[arg-type]
    with pytest.raises(Mismatch, match="expected a Stopping, got Config"):
        node.stop.write_result(node.Config([]))
    with pytest.raises(Mismatch, match="streams nothing"):
        node.stop.write_item(node.Stopping(1))


# Declarations


@pytest.mark.parametrize("method", all_methods().values(), ids=list(all_methods()))
def test_every_declaration_is_complete(method: Method) -> None:
    check_declaration(method)
    assert find(method.name) is method
    for cls in (method.params, method.result, method.streams):
        if cls is not None:
            assert cls.__doc__ and all(field.about.help for field in fields_of(cls))
    assert all(error in NOUN_ERRORS for error in method.errors)
    json.dumps(schema.method_schema(method))


def test_the_spine_s_methods_are_declared() -> None:
    wanted = """node.status node.stop node.config node.traffic peer.list peer.connect
        chain.tips chain.log chain.block chain.checkpoint expert.list expert.show
        model.create model.list model.show data.add data.list data.show train.start
        train.stop train.status train.watch tile.list tile.show tile.roots
        infer.generate infer.evaluate"""
    assert set(wanted.split()) <= all_methods().keys()
    status = {field.name for field in fields_of(node.Status)}
    contract = """peer_id pid network version listen peers roles hosted height
        finalised uptime_s"""
    assert set(contract.split()) <= status  # DEC-E4


def test_declare_refuses_bad_names() -> None:
    for name in ("status", "nothing.status", "node.", "node.two words"):
        with pytest.raises(ValueError):
            declare(Method(name, node.GetStatus, node.Status))


def test_codes_are_distinct_and_in_their_noun_s_hundred() -> None:
    codes = [error.code for error in GENERAL + NOUN_ERRORS]
    assert len(set(codes)) == len(codes)
    bases = set(NOUN_BASES.values())
    for error in NOUN_ERRORS:
        assert error.code // 100 * 100 in bases
        assert error.code % 100 >= len(SHARED)
    assert NOUN_BASES.keys() == NOUNS.keys()
    assert shared_code("infer", "no route") == 905
    assert shared_code("infer", "anything else") == 900


# Envelopes


def test_requests_and_notifications() -> None:
    line = jsonrpc.line(jsonrpc.request(7, "node.status", {"a": 1}))
    assert line.endswith(b"\n") and line.count(b"\n") == 1
    assert jsonrpc.parse_requests(line) == Request(7, "node.status", {"a": 1})
    assert jsonrpc.parse_requests(b'{"jsonrpc":"2.0","method":"node.stop"}') == Request(
        None, "node.stop", {}, notification=True
    )
    assert jsonrpc.parse_requests(
        b'{"jsonrpc":"2.0","method":"node.stop","id":null,"params":null}'
    ) == Request(None, "node.stop", {})


@pytest.mark.parametrize(
    ("line", "code", "id"),
    [
        (b"{", PARSE_ERROR, None),
        (b"\xff", PARSE_ERROR, None),
        (b"NaN", PARSE_ERROR, None),
        (b"[" * 100_000, PARSE_ERROR, None),
        (b"9" * 10_000, PARSE_ERROR, None),
        (b"1", INVALID_REQUEST, None),
        (b"[]", INVALID_REQUEST, None),
        (b"{}", INVALID_REQUEST, None),
        (b'{"jsonrpc":"1.0","id":1,"method":"m"}', INVALID_REQUEST, 1),
        (b'{"jsonrpc":"2.0","id":1}', INVALID_REQUEST, 1),
        (b'{"jsonrpc":"2.0","id":1,"method":5}', INVALID_REQUEST, 1),
        (b'{"jsonrpc":"2.0","id":1.5,"method":"m"}', INVALID_REQUEST, None),
        (b'{"jsonrpc":"2.0","id":true,"method":"m"}', INVALID_REQUEST, None),
        (
            b'{"jsonrpc":"2.0","id":"%s","method":"m"}' % (b"x" * 129),
            INVALID_REQUEST,
            None,
        ),
        (b'{"jsonrpc":"2.0","id":1,"method":"m","params":5}', INVALID_REQUEST, 1),
        (b'{"jsonrpc":"2.0","id":1,"method":"m","params":[5]}', INVALID_PARAMS, 1),
        (b'{"jsonrpc":"2.0","id":1,"method":"m","extra":5}', INVALID_REQUEST, 1),
    ],
)
def test_malformed_requests(line: bytes, code: Any, id: int | None) -> None:
    asked = jsonrpc.parse_requests(line)
    assert isinstance(asked, Malformed)
    assert (asked.error.code, asked.id) == (code.code, id)


def test_batches_are_bounded() -> None:
    one = {"jsonrpc": "2.0", "method": "m"}
    full = jsonrpc.parse_requests(json.dumps([one] * 100).encode())
    assert isinstance(full, Batch) and len(full.items) == 100
    assert isinstance(
        jsonrpc.parse_requests(json.dumps([one] * 101).encode()), Malformed
    )
    mixed = jsonrpc.parse_requests(json.dumps([one, 5]).encode())
    assert isinstance(mixed, Batch) and isinstance(mixed.items[1], Malformed)


def test_replies_and_items() -> None:
    assert jsonrpc.parse_reply(jsonrpc.line(jsonrpc.result(1, {"a": 1}))) == Reply(
        1, {"a": 1}, None
    )
    failed = jsonrpc.failure("x", RpcError(310, "no such block", {"near": 1}))
    reply = jsonrpc.parse_reply(jsonrpc.line(failed))
    assert isinstance(reply, Reply) and reply.error is not None
    assert (reply.error.code, reply.error.data) == (310, {"near": 1})
    assert jsonrpc.parse_reply(jsonrpc.line(jsonrpc.item(1, {"t": 1}))) == Item(
        1, {"t": 1}
    )
    for line in (b"{}", b"[5]", b"5", b'{"jsonrpc":"2.0","error":{}}'):
        with pytest.raises(ValueError):
            jsonrpc.parse_reply(line)


@settings(max_examples=30)
@given(st.lists(st.binary(max_size=40).filter(lambda b: b"\n" not in b)), st.data())
def test_lines_survive_any_cutting(lines: list[bytes], data: st.DataObject) -> None:
    raw = b"".join(line + b"\n" for line in lines)
    reader, taken = LineReader(40), []
    while raw:
        count = data.draw(st.integers(1, len(raw)))
        reader.feed(raw[:count])
        raw = raw[count:]
        while (line := reader.take()) is not None:
            taken.append(line)
    assert taken == lines


def test_a_long_line_is_refused_before_it_is_whole() -> None:
    reader = LineReader(10)
    reader.feed(b"0123456789\n0123456789")
    assert reader.take() == b"0123456789"
    assert reader.take() is None
    reader.feed(b"x")
    with pytest.raises(LimitExceeded):
        reader.take()


# Generated docs


def test_docs_are_fresh() -> None:
    assert (
        ROOT / "docs" / "rpc.md"
    ).read_text() == schema.markdown(), (
        "run: python -m blyan_proto.rpc.schema --markdown > docs/rpc.md"
    )


def test_the_interface_loads_without_cryptography() -> None:
    code = (
        "import sys, blyanctl.__main__, blyan_proto.rpc.schema as s; s.document();"
        "print([m for m in ('blake3','coincurve','msgpack','numpy','trio','torch')"
        " if m in sys.modules])"
    )
    said = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert said.stdout.strip() == "[]"
