"""hivemind's transport, measured on request. Run by hivemind's own Python.

    PYTHON tests/bench/transport_hivemind.py [serve]

Reads one JSON request a line, ["rpc", size, count], ["calls", seconds] or ["bulk",
bytes], and answers each with a line: seconds of each call, calls/s, or seconds.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time

os.environ.setdefault("HIVEMIND_LOGLEVEL", "ERROR")

import uvloop  # noqa: E402
from hivemind.p2p import P2P, PeerID  # noqa: E402
from hivemind.proto.runtime_pb2 import Tensor  # noqa: E402

LOCAL = dict(
    host_maddrs=["/ip4/127.0.0.1/tcp/0"],
    nat_port_map=False,
    auto_nat=False,
    use_relay=False,
    persistent_conn_max_msg_size=16 << 20,
)
PART_BYTES = 1 << 20


async def serve():
    p2p = await P2P.create(**LOCAL)

    async def echo(request: Tensor, context) -> Tensor:
        return request

    async def sink(requests, context):
        count = 0
        async for request in requests:
            count += len(request.buffer)
        yield Tensor(size=[count])

    await p2p.add_protobuf_handler("echo", echo, Tensor)
    await p2p.add_protobuf_handler(
        "sink", sink, Tensor, stream_input=True, stream_output=True
    )
    addresses = [str(address) for address in await p2p.get_visible_maddrs()]
    print(json.dumps([p2p.peer_id.to_base58(), addresses]), flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    await p2p.shutdown()


class Client:
    def __init__(self, p2p, peer):
        self.p2p, self.peer = p2p, peer

    async def call(self, message):
        return await self.p2p.call_protobuf_handler(self.peer, "echo", message, Tensor)

    async def rpc(self, size, count):
        message, taken = Tensor(buffer=os.urandom(size)), []
        for _ in range(count):
            began = time.perf_counter()
            await self.call(message)
            taken.append(time.perf_counter() - began)
        return taken

    async def calls(self, seconds):
        message, done, began = Tensor(buffer=os.urandom(1024)), 0, time.perf_counter()

        async def work():
            nonlocal done
            while time.perf_counter() - began < seconds:
                await self.call(message)
                done += 1

        await asyncio.gather(*(work() for _ in range(32)))
        return done / (time.perf_counter() - began)

    async def bulk(self, size):
        part = Tensor(buffer=os.urandom(PART_BYTES))

        async def parts():
            for _ in range(size // PART_BYTES):
                yield part

        began = time.perf_counter()
        answers = await self.p2p.iterate_protobuf_handler(
            self.peer, "sink", parts(), Tensor
        )
        async for answer in answers:
            assert answer.size[0] == size
        return time.perf_counter() - began


async def main():
    server = subprocess.Popen(
        [sys.executable, "-W", "ignore", __file__, "serve"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        peer, addresses = json.loads(server.stdout.readline())
        p2p = await P2P.create(initial_peers=addresses, **LOCAL)
        await p2p.wait_for_at_least_n_peers(1)
        client = Client(p2p, PeerID.from_base58(peer))
        print(json.dumps("ready"), flush=True)
        loop = asyncio.get_running_loop()
        while line := await loop.run_in_executor(None, sys.stdin.readline):
            what, *arguments = json.loads(line)
            print(json.dumps(await getattr(client, what)(*arguments)), flush=True)
        await p2p.shutdown()
    finally:
        server.stdin.close()
        try:
            server.wait(5)
        except subprocess.TimeoutExpired:
            server.kill()


if __name__ == "__main__":
    uvloop.install()
    asyncio.run(serve() if sys.argv[1:] == ["serve"] else main())
