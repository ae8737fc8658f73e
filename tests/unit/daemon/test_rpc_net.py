"""net.status and node.metrics over two hosts that talk."""

from __future__ import annotations

import trio

from blyan_proto.rpc import net as spec
from blyan_proto.rpc import node as node_spec
from blyan_proto.rpc.methods import all_methods
from blyanctl.live import ending
from blyanctl.render import render
from blyand.errors import Busy
from blyand.metrics import Metrics
from blyand.net.stream import expect_ok
from blyand.rpc import net
from blyand.rpc.bind import Answers
from tests.unit.daemon.test_exposition import read
from tests.unit.daemon.test_net_stream import ECHO, echo, pair

CALLS = "/blyan/ask/1"


def test_the_status_tells_connections_traffic_and_bans():
    async def ask(answers, name):
        method = all_methods()[name]
        result = await answers._answers[name](method.read_params({}))
        return method.read_result(method.write_result(result)), result

    async def main():
        made = Metrics()
        async with pair(metrics=made) as (server, client):
            server.handle(ECHO, echo, concurrency=1)
            calls = {CALLS: 3}
            sights = net.Sights(
                host=server,
                metrics=made,
                peers=lambda: 1,
                known_peers=lambda: 7,
                calls=lambda: calls,
                gauges=lambda: {"blyan_pending_blocks": 4},
                reach=lambda: ("public", "two peers reached it"),
                bans=lambda: [
                    ("16Uiu", 1_700_000_000_000, "BadProof: no"),
                    ("x", None, ""),
                ],
            )
            answers = Answers(all_methods())
            net.bind(answers, sights)
            async with client.request(server.peer_id, ECHO, 5) as stream:
                await stream.send(bytes(100))
                await stream.receive(100, 5)
                try:
                    async with client.request(server.peer_id, ECHO, 5) as second:
                        await expect_ok(second, 5)
                except Busy:
                    pass
                refusals = made.counter(
                    "blyan_net_streams_refused", protocol=ECHO, reason="busy"
                )
                while not refusals.value:
                    await trio.sleep(0.001)
                told, _ = await ask(answers, spec.status.name)
            assert told.listen[0] in told.announced[0]
            (link,) = told.links
            assert (link.direction, link.link, link.connections) == (
                "in",
                "loopback",
                1,
            )
            assert link.streams >= 1 and len(link.transport.split()) == 2
            traffic = {line.protocol: line for line in told.traffic}[ECHO]
            assert (traffic.refused, traffic.now) == (1, 1)
            assert traffic.down_bytes == 104 and traffic.up_bytes > 104
            topics = [topic.topic for topic in told.gossip]
            assert topics == ["block", "checkpoint", "receipt"]
            assert (told.peers, told.known_peers, told.calls) == (1, 7, 3)
            assert told.reachability == "public" and told.bans[1].until_ms is None
            shown = render(spec.status.write_result(told))
            assert "reachability  public" in shown and "2023-11-14" in shown
            families = {}
            for calls_now in (calls, {}):
                sights.calls().clear() if not calls_now else None
                told, _ = await ask(answers, node_spec.metrics.name)
                families = read(told.text)
                assert ending("node.metrics", {"text": told.text}, False)
            (under_way,) = families["blyan_net_calls_under_way"][1]
            assert under_way[2] == 0 and families["blyan_open_files"][1][0][2] > 3
            assert families["blyan_pending_blocks"][1][0][2] == 4
            assert families["blyan_net_connections"][1][0][2] == 1
            refused = families["blyan_net_streams_refused_total"][1][0]
            assert refused[1:] == ({"protocol": ECHO, "reason": "busy"}, 1)

    trio.run(main)
