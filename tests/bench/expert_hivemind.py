"""hivemind's remote expert, measured on request. Run by hivemind's own Python.

    PYTHON tests/bench/expert_hivemind.py WIDTH:HIDDEN... [serve]

Each WIDTH:HIDDEN is a SwiGLU expert. Reads one JSON request a line, [kind, width, rows,
count] with the kinds remote and local, and answers each with a line: seconds of each
call. One thread per process, float32, no compression.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time

os.environ.setdefault("HIVEMIND_LOGLEVEL", "ERROR")

import torch  # noqa: E402
from hivemind.dht import DHT  # noqa: E402
from hivemind.moe.client.expert import RemoteExpert  # noqa: E402
from hivemind.moe.client.remote_expert_worker import RemoteExpertWorker  # noqa: E402
from hivemind.moe.expert_uid import ExpertInfo  # noqa: E402
from hivemind.moe.server import ModuleBackend, Server  # noqa: E402
from hivemind.p2p import P2P, PeerID  # noqa: E402
from hivemind.utils.tensor_descr import BatchTensorDescriptor  # noqa: E402

LOCAL = dict(
    host_maddrs=["/ip4/127.0.0.1/tcp/0"],
    nat_port_map=False,
    auto_nat=False,
    use_relay=False,
)
MOST_ROWS = 8192


class SwiGlu(torch.nn.Module):
    def __init__(self, width, hidden):
        super().__init__()
        self.gate = torch.nn.Linear(width, hidden, bias=False)
        self.up = torch.nn.Linear(width, hidden, bias=False)
        self.down = torch.nn.Linear(hidden, width, bias=False)

    def forward(self, x):
        inner = torch.nn.functional.silu(self.gate(x)) * self.up(x)
        return self.down(inner)


def serve(shapes):
    backends = {}
    dht = DHT(start=True, **LOCAL)
    for width, hidden in shapes.items():
        name, shape = f"expert.{width}", BatchTensorDescriptor(width)
        backends[name] = ModuleBackend(
            name=name,
            module=SwiGlu(width, hidden),
            args_schema=(shape,),
            outputs_schema=shape,
            max_batch_size=MOST_ROWS,
        )
    server = Server(
        dht=dht,
        module_backends=backends,
        num_connection_handlers=2,
        device="cpu",
        update_period=10,
    )
    server.start()
    server.ready.wait()
    addresses = [str(address) for address in dht.get_visible_maddrs()]
    print(json.dumps([dht.peer_id.to_base58(), addresses]), flush=True)
    sys.stdin.read()
    server.shutdown()


def client_of(line):
    peer, addresses = json.loads(line)
    p2p = RemoteExpertWorker.run_coroutine(P2P.create(initial_peers=addresses, **LOCAL))
    return p2p, PeerID.from_base58(peer)


def answer(shapes, p2p, peer):
    local = {width: SwiGlu(width, hidden) for width, hidden in shapes.items()}
    remote = {
        width: RemoteExpert(ExpertInfo(uid=f"expert.{width}", peer_id=peer), p2p)
        for width in shapes
    }
    print(json.dumps("ready"), flush=True)
    for line in sys.stdin:
        kind, width, rows, count = json.loads(line)
        call, taken = {"local": local, "remote": remote}[kind][width], []
        x = torch.randn(rows, width)
        with torch.no_grad():
            for _ in range(count):
                began = time.perf_counter()
                call(x)
                taken.append(time.perf_counter() - began)
        print(json.dumps(taken), flush=True)


def main():
    torch.set_num_threads(1)
    asked = [one for one in sys.argv[1:] if one != "serve"]
    shapes = {
        int(width): int(hidden) for width, hidden in (a.split(":") for a in asked)
    }
    if "serve" in sys.argv:
        serve(shapes)
        return
    command = [sys.executable, "-W", "ignore", __file__, *asked, "serve"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as server:
        assert server.stdin is not None and server.stdout is not None
        try:
            while not (line := server.stdout.readline()).startswith("["):
                if not line:
                    raise SystemExit("hivemind's server ended")
            answer(shapes, *client_of(line))
        finally:
            server.stdin.close()
            try:
                server.wait(15)
            except subprocess.TimeoutExpired:
                server.terminate()


if __name__ == "__main__":
    main()
