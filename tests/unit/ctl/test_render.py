"""Results and streams for people."""

from __future__ import annotations

import io

import pytest

from blyanctl import live
from blyanctl.render import cell, duration, label, render, size


def test_plain_fields_then_tables() -> None:
    result = {
        "peer_id": "abc",
        "total_bytes": 3 * 1024 * 1024,
        "uptime_s": 65.0,
        "fine": True,
        "head": None,
        "roles": ["learn", "serve"],
        "timings": {"total_s": 0.5},
        "tiles": [
            {"group": "embed", "index": 0, "shape": [4, 2], "root": None},
            {"group": "layer0.trunk", "index": 10, "shape": [8], "root": "ff"},
        ],
    }
    assert render(result) == (
        "peer id        abc\n"
        "total          3.0 MiB\n"
        "uptime         1m 05s\n"
        "fine           yes\n"
        "head           -\n"
        "roles          learn, serve\n"
        "timings total  0.50 s\n"
        "\n"
        "tiles\n"
        "group         index  shape  root\n"
        "embed             0  4, 2   -\n"
        "layer0.trunk     10  8      ff"
    )


def test_a_list_alone_has_no_title_and_an_empty_one_says_so() -> None:
    assert render({"peers": []}) == render({"requests": []}) == "none"
    assert render({"peers": [{"a": 1}]}) == "a\n1"
    assert render({"peer_id": "x", "holders": []}) == "peer id  x\nholders  -"


def test_a_record_that_is_only_added_to_gives_its_fields_no_prefix() -> None:
    assert render({"line": {"weight": 1}, "needed": 2}) == "weight  1\nneeded  2"


def test_records_with_sentences_stand_one_below_the_other() -> None:
    why = "because " * 20
    parts = [{"source": "a", "why": why}, {"source": "b", "why": ""}]
    shown = f"source  a\nwhy     {why}\n\nsource  b\nwhy     -"
    assert render({"parts": parts}) == shown


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("bytes", 1023, "1023 B"),
        ("bytes_up", 2048, "2.0 KiB"),
        ("year_began_ms", 1_795_887_048_125, "2026-11-28 17:30:48Z"),
        ("latency_ms", 1.234, "1.2 ms"),
        ("held_out_ppm", 125_000, "12.5 %"),
        ("paid_micro", 1_234_500_000, "1,234.5 BLY"),
        ("paid_micro", 10_000_000, "10 BLY"),
        ("paid_micro", 1, "0.000001 BLY"),
        ("paid_micro", 0, "0 BLY"),
        ("banned_until_ms", 2**63, "never"),
        ("silent_ms", 90_000, "1m 30s"),
        ("micro", 400_000_000, "400 BLY"),
        ("other", b"blyan treasury".hex() + "00" * 6, "treasury"),
        ("other", "00" * 20, "-"),
        ("ban", "", "-"),
        ("loss", 1.23456, "1.2346"),
        ("height", 7, "7"),
        ("note", "a\x1b[31m", "a\N{REPLACEMENT CHARACTER}[31m"),
    ],
)
def test_units(name: str, value: object, text: str) -> None:
    assert cell(name, value) == text


def test_spans_sizes_and_labels() -> None:
    spans = [0.25, 12.5, 185, 7380, 450_000]
    assert [duration(span) for span in spans] == [
        "0.25 s",
        "12.5 s",
        "3m 05s",
        "2h 03m",
        "5d 05h",
    ]
    assert size(5 * 1024**4) == "5120.0 GiB"
    assert label("up_bytes") == "up" and label("tokens_per_s") == "tokens/s"
    assert label("peer_id") == "peer id"


def report(round: int, **more: object) -> dict[str, object]:
    return {
        "round": round,
        "rounds": 9,
        "train_loss": 2.5,
        "held_out_loss": None,
        "tokens": 20480,
        "bytes_up": 1024,
        "bytes_down": 2048,
        "compression_ratio": 63.7,
        "primaries": [{"peer_id": "p", "groups": 3}],
        "contributions": 12,
        "blocks": 11,
        "peers": 3,
        "seconds": 4.5,
        "baselines": None,
        "under_way": None,
        **more,
    }


def test_the_round_table() -> None:
    out = io.StringIO()
    baselines = {"unigram": 3.3, "bigram": 2.5, "trigram": 2.0, "lzma": 1.5}
    live.rounds([report(0, baselines=baselines), report(1)], out)
    first, heads, *rows = out.getvalue().splitlines()
    assert first == (
        "baselines, nats per byte: unigram 3.300, bigram 2.500, trigram 2.000, lzma 1.500"
    )
    assert (
        heads.split()
        == (
            "round train held out tokens up down ratio deltas blocks primaries peers time"
        ).split()
    )
    assert (
        rows[1].split()
        == ("1/9 2.5000 - 20,480 1.0 KiB 2.0 KiB 64x 12 11 1 3 4.50 s").split()
    )
    assert len({len(line) for line in (heads, *rows)}) == 1


def test_a_sync_shows_checkpoints_and_what_they_bring() -> None:
    item = {
        "stage": "catching up",
        "checkpoint": 120,
        "known": 480,
        "blocks": 12_034,
        "fetched_bytes": 4 << 20,
        "peers": 3,
        "blocks_per_s": 2034.4,
        "left_s": 75.0,
    }
    lonely = {**item, "stage": "waiting for a peer", "known": 0, "left_s": None}
    lonely |= {"checkpoint": 0, "peers": 0}
    out = io.StringIO()
    live.syncing([item, item, lonely], out)
    assert out.getvalue() == "catching up\nwaiting for a peer\n"
    out.isatty = lambda: True  # type: ignore[method-assign]
    live.syncing([item, lonely], out)
    first = out.getvalue().split("\r")[1]
    assert first == (
        "catching up [######..................]  25 %  checkpoint 120 of 480, "
        "12,034 blocks, 4.0 MiB, 2034 blocks/s, 3 peers, about 1m 15s left"
    )
    assert "waiting for a peer: checkpoint 0 of 0, 12,034" in out.getvalue()
    assert out.getvalue().endswith("\r" + " " * len(first) + "\r")


def test_progress_on_a_pipe_and_on_a_terminal() -> None:
    items = [
        {"stage": "read", "done": 0, "total": None, "unit": "files"},
        {"stage": "read", "done": 5, "total": None, "unit": "files"},
        {"stage": "write", "done": 1024, "total": 2048, "unit": "bytes"},
    ]
    out = io.StringIO()
    live.progress(items, out)
    assert out.getvalue() == "read\nwrite\n"
    assert live.bar(items[1]) == "read: 5 files"
    assert live.bar(items[2]) == "write [############............]  50 %  1.0 KiB"
