"""Metrics as Prometheus reads them, held against its format by a reader of our own."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blyand.exposition import exposition
from blyand.metrics import Histogram, Metrics

NAME = r"[a-zA-Z_:][a-zA-Z0-9_:]*"
LABEL = r'([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\\n]|\\["\\n])*)"'
SAMPLE = re.compile(rf"({NAME})(?:\{{((?:{LABEL},?)+)\}})? (\S+)")


def read(text: str) -> dict[str, tuple[str, list[tuple[str, dict[str, str], float]]]]:
    """Return {family: (type, samples)}; AssertionError for what Prometheus refuses."""
    families: dict[str, tuple[str, list]] = {}
    current, helped = "", ""
    assert not text or text.endswith("\n")
    for line in text.split("\n")[:-1]:
        if line.startswith("# HELP "):
            helped = line.split(" ")[2]
            assert len(line.split(" ", 3)) == 4
        elif line.startswith("# TYPE "):
            _, _, current, kind = line.split(" ")
            assert current == helped and current not in families
            assert kind in ("counter", "gauge", "histogram")
            families[current] = kind, []
        else:
            found = SAMPLE.fullmatch(line)
            assert found, line
            kind, samples = families[current]
            name = found.group(1)
            if kind == "histogram":
                assert name.removeprefix(current) in ("_bucket", "_sum", "_count")
            else:
                assert name == current
            labels = {
                key: value.replace("\\n", "\n")
                .replace('\\"', '"')
                .replace("\\\\", "\\")
                for key, value in re.findall(LABEL, found.group(2) or "")
            }
            samples.append((name, labels, float(found.group(5))))
    return families


def test_every_kind_is_shown_with_its_name_type_and_help() -> None:
    made = Metrics()
    made.counter("blyan_net_bytes", protocol="/a", link="loopback", way="up").add(5)
    made.counter("blyan_net_bytes", protocol="/b", link="public", way="up").add(7)
    made.counter("expert_hits").add()
    made.counter("blyan_net_gossip_drops_total", topic="block").add(3)
    made.gauge("blyan_resident_bytes").set(1.5)
    for seconds in (0.0005, 0.001, 0.2, 100.0):
        made.histogram("blyan_net_call_seconds", protocol="/a").observe(seconds)
    families = read(exposition(made))
    kind, samples = families["blyan_net_bytes_total"]
    assert kind == "counter" and [value for *_, value in samples] == [5, 7]
    assert samples[0][1] == {"protocol": "/a", "link": "loopback", "way": "up"}
    assert families["blyan_expert_hits_total"][1] == [
        ("blyan_expert_hits_total", {}, 1)
    ]
    assert "blyan_net_gossip_drops_total" in families
    assert families["blyan_resident_bytes"][1][0][2] == 1.5
    kind, samples = families["blyan_net_call_seconds"]
    buckets = {labels["le"]: v for name, labels, v in samples if "bucket" in name}
    assert kind == "histogram" and list(buckets)[-1] == "+Inf"
    assert buckets["0.001"] == 2 and buckets["0.3"] == 3 and buckets["+Inf"] == 4
    assert list(buckets.values()) == sorted(buckets.values())
    assert samples[-1][0].endswith("_count") and samples[-1][2] == 4
    assert samples[-2][2] == pytest.approx(100.2015)


def test_nothing_counted_is_nothing_shown() -> None:
    assert exposition(Metrics()) == ""


@settings(max_examples=50)
@given(st.dictionaries(st.text(max_size=20), st.integers(0, 2**63), max_size=5))
def test_no_label_breaks_the_format(counts) -> None:
    made = Metrics()
    for value, count in counts.items():
        made.counter("blyan_a", label=value).add(count)
    lines = exposition(made).split("\n")
    assert len(lines) == (3 + len(counts) if counts else 1)
    for value, count in counts.items():
        if value.isprintable() or value in ("\n", '"', "\\"):
            found = {
                s[1]["label"]: s[2] for s in read(exposition(made))["blyan_a_total"][1]
            }
            assert found[value] == float(count)


def test_histograms_are_bounded() -> None:
    made = Histogram()
    for number in range(1000):
        made.observe(number)
    counts, total = made.read()
    assert len(counts) == len(Histogram.BOUNDS_S) + 1
    assert counts[-1] == 1000 and total == sum(range(1000))
