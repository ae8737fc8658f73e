"""Spans between real daemons: one hop for all layers, and a server killed in mid-answer."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.functional.harness import Daemon, Network, wait_for
from tests.functional.processes import is_running

pytestmark = pytest.mark.functional

PROMPT, TOKENS = "def span():", 40
OFF, ALL = '# spans = "off"', 'spans = "0-1"'


@pytest.fixture(scope="module")
def hosts(unspared: Network) -> Iterator[tuple[Daemon, Daemon]]:
    """Two nodes that hold all layers, beyond their placement."""
    before = answer_of(unspared[3])
    made = unspared[1], unspared[2]
    for node in made:
        restart(node, OFF, ALL)
    wait_for(lambda: all(is_host(unspared[3], node) for node in made), "two hosts")
    yield made
    assert answer_of(unspared[3])["token_ids"] == before["token_ids"]
    for node in made:
        restart(node, ALL, OFF)


def restart(node: Daemon, before: str, after: str) -> None:
    """Start a node again with another option."""
    file = node.home / "config.toml"
    text = file.read_text()
    assert before in text
    file.write_text(text.replace(before, after))
    if is_running(node.pid):
        node.kill()
    node.start()


def is_host(asker: Daemon, node: Daemon) -> bool:
    """True when `asker` knows that `node` holds every expert."""
    names = [one["name"] for one in asker.call("expert.list")["experts"]]
    return all(
        node.peer_id
        in {h["peer_id"] for h in asker.call("expert.show", name=n)["holders"]}
        for n in names
    )


def answer_of(node: Daemon, **more: object) -> dict:
    asked = {"prompt": PROMPT, "max_tokens": TOKENS, "lookup": 0, **more}
    return node.call("infer.generate", **asked)


def calls_of(answer: dict) -> dict[str, int]:
    return {peer["peer_id"]: peer["calls"] for peer in answer["peers"]}


def test_an_answer_takes_one_hop_for_all_layers(unspared, hosts):
    asker, alone = unspared[3], hosts[0]
    wait_for(lambda: asker.status()["peers"] == 3, "everybody meets everybody")
    whole = answer_of(alone)
    assert calls_of(whole) == {alone.peer_id: TOKENS}
    through = answer_of(asker, route="spans")
    assert through["token_ids"] == whole["token_ids"]
    ((peer, calls),) = calls_of(through).items()
    assert peer in {host.peer_id for host in hosts} and calls == TOKENS
    assert not through["retries"]


def test_a_server_killed_in_the_middle_is_replaced_and_the_answer_stays(
    unspared, hosts
):
    asker = unspared[3]
    wait_for(lambda: asker.status()["peers"] == 3, "everybody meets everybody")
    whole = answer_of(asker, route="spans")
    (server,) = (host for host in hosts if host.peer_id in calls_of(whole))
    with asker.client() as client:
        asked = {"prompt": PROMPT, "max_tokens": TOKENS, "route": "spans", "lookup": 0}
        stream = client.stream("infer.generate", asked)
        for count, _ in enumerate(stream, 1):
            if count == 7:
                server.kill()
        result = stream.result
    assert result["token_ids"] == whole["token_ids"]
    assert result["retries"] >= 1
    assert calls_of(result)[server.peer_id] >= 7
    assert len(calls_of(result)) >= 2
