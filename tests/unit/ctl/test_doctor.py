"""The doctor's checks; what it finds on this machine is not asserted."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from blyanctl import doctor
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
