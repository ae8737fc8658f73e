"""A fetch whose process is killed goes on where it was: no leaf that is here comes twice."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import trio

from blyan_proto.constants import LEAF_BYTES
from blyan_proto.protocols import blobs as proto
from blyand.compute import Threads
from blyand.metrics import Metrics
from blyand.net.host import Host, open_host
from blyand.protocols import blobs as ends
from blyand.protocols.uploads import Uploads
from blyand.rules.net.uploads import UploadLimits
from blyand.store.blobs import BlobStore
from tests.unit.daemon.test_net_stream import settings

LEAVES = 48
RATE = 40 * LEAF_BYTES  # so that it lasts a second
WAIT_S = 60


def start(host: Host, blob: bytes, folder: Path) -> subprocess.Popen[bytes]:
    module = [sys.executable, "-m", "tests.unit.daemon.fetching"]
    return subprocess.Popen([*module, host.addresses[0], blob.hex(), str(folder)])


def test_a_killed_fetch_goes_on_where_it_was(tmp_path: Path) -> None:
    content = np.random.default_rng(3).integers(0, 256, LEAVES * LEAF_BYTES, np.uint8)
    source, metrics = BlobStore(tmp_path / "source"), Metrics()
    blob = source.put_array(content, durable=False)
    sent = metrics.counter("blyan_blob_upload_bytes")

    async def main() -> None:
        async with open_host(settings(1)) as host:

            async def admit(info):
                host.admit(info.peer_id)

            host.on_connected(admit)
            for rate in (RATE, 0):
                limits = Uploads(UploadLimits(rate=rate), metrics)
                host.handle(
                    proto.PROTOCOL_ID,
                    ends.serve(source, Threads("disk", 1), limits),
                    deadline_s=None,
                )
                before = sent.value
                with trio.fail_after(WAIT_S):
                    if rate:
                        await killed(host)
                        missing = look()
                    else:
                        process = start(host, blob, tmp_path / "here")
                        assert await trio.to_thread.run_sync(process.wait) == 0
            assert (sent.value - before) // LEAF_BYTES == len(missing)

    async def killed(host: Host) -> None:
        process = start(host, blob, tmp_path / "here")
        while sent.value < LEAVES * LEAF_BYTES / 2:
            await trio.sleep(0.002)
        process.kill()
        code = await trio.to_thread.run_sync(process.wait)
        assert code == -signal.SIGKILL

    def look() -> tuple[int, ...]:
        here = BlobStore(tmp_path / "here")
        assert not here.has(blob)
        arriving = here.begin_fetch(source.outline(blob))
        missing = arriving.missing()
        arriving.close()
        here.close()
        assert 0 < len(missing) <= LEAVES * 3 / 4
        return missing

    trio.run(main)
    here = BlobStore(tmp_path / "here")
    assert here.verify(blob) and np.array_equal(here.open_array(blob), content)
    here.close()
    source.close()
