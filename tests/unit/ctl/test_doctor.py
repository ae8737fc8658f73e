"""The doctor's checks; what it finds on this machine is not asserted."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from blyanctl import doctor, doctor_node
from blyanctl.__main__ import main


def probe(code: str, wait_s: float) -> list[doctor.Finding]:
    with tempfile.TemporaryFile() as output:
        child = subprocess.Popen([sys.executable, "-c", code], stdout=output)
        until = time.monotonic() + wait_s
        return list(doctor.libraries(child, output.fileno(), until))


def test_a_library_that_is_missing_crashes_or_hangs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    libraries = (("numpy", "numpy"), ("nothing", "nothing"), ("last", "last"))
    monkeypatch.setattr(doctor, "LIBRARIES", libraries)
    said = (
        'print(\'["numpy", true, "2"]\\n["nothing", false, "No module"]\', flush=True)'
    )
    hangs = probe(f"{said}\nimport time\ntime.sleep(60)", 0.5)
    assert [f.state for f in hangs] == ["ok", "fail", "warn"]
    assert hangs[1].advice == "pip install nothing"
    crashes = probe(f"{said}\nimport os\nos.abort()", 10)
    assert [f.state for f in crashes] == ["ok", "fail", "fail"]
    assert "crashed" in crashes[2].found


def test_the_probe_imports_what_is_here(monkeypatch: pytest.MonkeyPatch) -> None:
    code = doctor.PROBE.replace(
        repr(doctor.LIBRARIES), "(('numpy', 'numpy'), ('nothing', 'no_such_module'))"
    )
    found = {finding.check: finding for finding in probe(code, 10)}
    assert found["numpy"].state == "ok" and found["arithmetic"].state == "ok"


def test_limits() -> None:
    assert doctor.python_version((3, 10, 9)).state == "fail"
    assert doctor.python_version((3, 12, 1)).state == "ok"
    assert doctor.subnormal(False).state == "fail"
    environment = {"OMP_NUM_THREADS": "8"}
    four = doctor.threads(4, 8, environment)
    assert four.state == "warn" and four.advice == "set it to 2"
    assert doctor.threads(1, 8, environment).state == "ok"
    assert doctor.threads(9, 8, {}).state == "warn"


def test_the_home(tmp_path: Path) -> None:
    assert doctor.home_usable(tmp_path / "new" / "home").state == "ok"
    tmp_path.chmod(0o755)
    open_home = doctor.home_usable(tmp_path)
    assert open_home.state == "warn" and "chmod 700" in open_home.advice
    tmp_path.chmod(0o700)
    assert doctor.home_usable(tmp_path).state == "ok"
    assert not os.listdir(tmp_path)
    assert doctor.disk(tmp_path / "new").check == "disk"


def test_the_exit_code_tells_a_failure(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    findings = [doctor.Finding("a", "ok", "1"), doctor.Finding("b", "warn", "2", "do")]
    monkeypatch.setattr(doctor, "examine", lambda home: findings)
    assert main(["doctor"]) == 0
    assert capsys.readouterr().out.splitlines()[2].split() == ["b", "warn", "2", "do"]
    findings.append(doctor.Finding("c", "fail", "3"))
    assert main(["--json", "doctor"]) == 1
    body = json.loads(capsys.readouterr().out)
    assert body["ok"] is False and body["checks"][2]["state"] == "fail"


def test_the_quick_checks_run_here() -> None:
    for check in (
        doctor.cores,
        doctor.memory,
        doctor.open_files,
        doctor.clock_set,
        doctor.clock_synchronised,
    ):
        finding = check()
        assert finding.state in (doctor.OK, doctor.WARN, doctor.FAIL) and finding.found


def test_pins_and_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "libp2p" in doctor.pins()
    monkeypatch.setattr(doctor, "pins", lambda: {"libp2p": "1.2.3"})
    other = doctor.library("libp2p", True, "1.2.4")
    assert other.state == "fail" and other.advice == "pip install libp2p==1.2.3"
    assert doctor.library("libp2p", True, "1.2.3").state == "ok"
    assert doctor.library("numpy", True, "9").state == "ok"
    assert doctor.gpu(False, "", "").state == "ok"
    assert doctor.gpu(True, "a card", "driver 1").found == "a card"
    assert "no CUDA" in doctor.gpu(False, "", "driver 1").found
    assert "cannot use" in doctor.gpu(False, "built for CUDA 99", "driver 1").found


def test_a_port_that_another_program_has(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        number = taken.getsockname()[1]
        address = f"/ip4/127.0.0.1/tcp/{number}"
        text = f'[net]\nlisten = ["{address}", "/ip4/203.0.113.9/tcp/0"]\n'
        (tmp_path / "config.toml").write_text(text)
        told = {f.check: f for f in doctor_node.examine(tmp_path)}
        assert "none runs" in told["daemon"].found
        busy, foreign = doctor_node.ports(tmp_path)
        assert busy.state == "fail" and f"{number} is in use" in busy.found
        assert foreign.state == "fail" and "--listen" in foreign.advice
    assert doctor_node.port("ip4", "127.0.0.1", number).state == "ok"
    (tmp_path / "config.toml").write_text("[net")
    assert next(doctor_node.ports(tmp_path)).check == "configuration"
    assert list(doctor_node.examine(tmp_path / "nowhere")) == []


def test_what_a_running_daemon_tells() -> None:
    lonely = doctor_node.connected({"peers": 0})
    assert lonely.state == "warn" and "peer connect" in lonely.advice
    assert doctor_node.connected({"peers": 3}).state == "ok"
    net = {"reachability": "private", "reason": "2 peers failed"}
    hidden = doctor_node.reachable({**net, "listen": ["/ip4/0.0.0.0/tcp/4001"]})
    assert hidden.state == "warn" and "4001" in hidden.advice
    known = {"reachability": "public", "reason": "2 peers came", "listen": []}
    assert doctor_node.reachable(known).state == "ok"
    late = doctor_node.skew({"time_ms": 100_000}, 60.0)
    assert late.state == "fail" and "40.0 s behind" in late.found
    assert doctor_node.skew({"time_ms": 100_000}, 130.0).state == "ok"
    room = {"disk_bytes": 3 << 20, "disk_free_bytes": 1 << 30}
    free = doctor_node.budget({**room, "disk_limit_bytes": None})
    assert free.state == "ok" and free.found == "3.0 MiB used, no limit, 1.0 GiB free"
    assert doctor_node.budget({**room, "disk_limit_bytes": 4 << 20}).state == "ok"
    full = doctor_node.budget({**room, "disk_limit_bytes": 3 << 20})
    assert full.state == "warn" and "store.disk_mib" in full.advice
    (warned,) = doctor_node.warnings({"warnings": ["the disk is slow"]})
    assert warned.state == "warn" and warned.found == "the disk is slow"
