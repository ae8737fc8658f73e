"""What is wrong with this machine, in ten seconds: one line per check, and what to do.

Libraries are imported in a child process with a deadline: one that crashes, hangs or
is missing is a finding, not the end of the doctor.
"""

from __future__ import annotations

import argparse
import ctypes
import ctypes.util
import importlib.metadata
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path

from blyanctl import doctor_node
from blyanctl.client import home_directory
from blyanctl.finding import FAIL, OK, WARN, Finding
from blyanctl.render import size, table

GIB = 1024**3
IMPORT_DEADLINE_S = 8.0


def configure(parser: argparse.ArgumentParser) -> None:
    """The doctor takes no arguments of its own."""


def run(arguments: argparse.Namespace) -> int:
    """Print all findings; exit code 1 if any of them is a failure."""
    home = home_directory(getattr(arguments, "home", None))
    findings = list(examine(home))
    failed = any(finding.state == FAIL for finding in findings)
    if getattr(arguments, "json", False):
        body = {"ok": not failed, "checks": [asdict(finding) for finding in findings]}
        sys.stdout.write(json.dumps(body) + "\n")
    else:
        sys.stdout.write(table([asdict(finding) for finding in findings]) + "\n")
    return 1 if failed else 0


def examine(home: Path) -> Iterator[Finding]:
    """Yield every finding. Takes at most about `IMPORT_DEADLINE_S`."""
    with tempfile.TemporaryFile() as output:
        child = subprocess.Popen(
            [sys.executable, "-c", PROBE],
            stdout=output,
            stderr=subprocess.DEVNULL,
            stdin=subprocess.DEVNULL,
        )
        until = time.monotonic() + IMPORT_DEADLINE_S
        yield python_version(sys.version_info[:3])
        for check in (cores, memory, open_files, clock_set, clock_synchronised):
            yield check()
        yield disk(home)
        yield home_usable(home)
        yield threads(daemons(), len(os.sched_getaffinity(0)), os.environ)
        yield from doctor_node.examine(home)
        yield from libraries(child, output.fileno(), until)


def python_version(version: tuple[int, ...]) -> Finding:
    found = ".".join(map(str, version))
    if version < (3, 11):
        return Finding("python", FAIL, found, "install Python 3.11 or newer")
    return Finding("python", OK, found)


def cores() -> Finding:
    count = len(os.sched_getaffinity(0))
    if count < 2:
        return Finding("cores", WARN, str(count), "training and serving share one core")
    return Finding("cores", OK, str(count))


def memory() -> Finding:
    """Free memory, or what the control group of a container leaves."""
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for line in _read("/proc/meminfo").splitlines():
        if line.startswith("MemAvailable:"):
            free = int(line.split()[1]) * 1024
    limit, used = (
        _read(f"/sys/fs/cgroup/memory.{part}") for part in ("max", "current")
    )
    if limit.strip().isdigit() and used.strip().isdigit():
        free = min(free, int(limit) - int(used))
    return _room("memory", free, 1 * GIB, 4 * GIB, "free some, or hold fewer experts")


def disk(home: Path) -> Finding:
    place = home
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    return _room("disk", free, 1 * GIB, 10 * GIB, "free some, or move the home")


def _room(check: str, free: int, fail: int, warn: int, advice: str) -> Finding:
    state = FAIL if free < fail else WARN if free < warn else OK
    return Finding(check, state, f"{size(free)} free", "" if state == OK else advice)


def open_files() -> Finding:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    state = FAIL if soft < 512 else WARN if soft < 4096 else OK
    advice = f"raise it: ulimit -n {min(65_536, hard) if hard > 0 else 65_536}"
    return Finding(
        "open files", state, f"at most {soft}", "" if state == OK else advice
    )


def clock_set() -> Finding:
    """The clock must not stand before the day this software was installed."""
    now, installed = time.time(), Path(__file__).stat().st_mtime
    found = time.strftime("%Y-%m-%d %H:%M:%SZ", time.gmtime(now))
    if now < installed - 86_400:
        return Finding("clock", FAIL, found, "set the clock: it is in the past")
    return Finding("clock", OK, found)


def clock_synchronised() -> Finding:
    """Ask the kernel whether something keeps the clock right."""
    name, unsynchronised = "clock keeper", 5
    try:
        state = ctypes.CDLL(None).adjtimex(ctypes.create_string_buffer(512))
    except (OSError, AttributeError):
        state = -1
    if state == unsynchronised:
        advice = "switch on time synchronisation, as systemd-timesyncd or chrony"
        return Finding(name, WARN, "the clock is not synchronised", advice)
    if state < 0:
        return Finding(name, OK, "cannot tell here")
    return Finding(name, OK, "synchronised")


def home_usable(home: Path) -> Finding:
    if not home.exists():
        parent = next(place for place in home.parents if place.exists())
        if os.access(parent, os.W_OK):
            return Finding("home", OK, f"{home} is not there yet")
        advice = "name a writable one with --home"
        return Finding("home", FAIL, f"{parent} is not writable", advice)
    try:
        with tempfile.TemporaryFile(dir=home):
            pass
    except OSError as error:
        advice = f"make {home} writable for this user"
        return Finding("home", FAIL, f"cannot write: {error.strerror}", advice)
    if home.stat().st_mode & 0o077:
        return Finding("home", WARN, "others can look in", f"chmod 700 {home}")
    return Finding("home", OK, str(home))


def daemons() -> int:
    """Return how many daemons run on this machine, as far as we may see."""
    count = 0
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        words = _read(entry).split("\0")[:4]
        names = {os.path.basename(word) for word in words}
        if "run" in words and names & {"blyand", "__main__.py"}:
            count += 1
    return count


def threads(running: int, cores: int, environment: Mapping[str, str]) -> Finding:
    """Daemons on one host share its cores (DEC-S5)."""
    wanted = max(1, cores // max(1, running))
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        given = environment.get(name, "")
        if given.isdigit() and int(given) > wanted:
            found = f"{name}={given} with {max(1, running)} daemons on {cores} cores"
            return Finding("threads", WARN, found, f"set it to {wanted}")
    found = f"{running} daemons on {cores} cores"
    if running > cores:
        return Finding("threads", WARN, found, "run fewer: they take turns")
    return Finding("threads", OK, found)


# Distribution, module: what setup.cfg asks for, quick ones first.
LIBRARIES = (
    ("numpy", "numpy"),
    ("msgpack", "msgpack"),
    ("blake3", "blake3"),
    ("coincurve", "coincurve"),
    ("cryptography", "cryptography"),
    ("pycryptodome", "Crypto"),
    ("plyvel", "plyvel"),
    ("zstandard", "zstandard"),
    ("trio", "trio"),
    ("multiaddr", "multiaddr"),
    ("fastecdsa", "fastecdsa.curve"),
    ("libp2p", "libp2p"),
    ("torch", "torch"),
)

# Runs in the child; a line of JSON per library as soon as it is known.
PROBE = f"""
import importlib, importlib.metadata, json
def say(name, good, text):
    print(json.dumps([name, good, text]), flush=True)
def subnormal():
    import numpy
    tiny = numpy.array([1e-40], dtype=numpy.float32)
    return bool((tiny * numpy.float32(1.0) != 0).all() and (tiny + tiny > tiny).all())
for distribution, module in {LIBRARIES!r}:
    try:
        importlib.import_module(module)
        say(distribution, True, importlib.metadata.version(distribution))
    except (ImportError, OSError, RuntimeError, AttributeError, ValueError) as error:
        say(distribution, False, f"{{type(error).__name__}}: {{error}}"[:200])
def gpu():
    import torch
    if torch.cuda.is_available():
        return [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return ["built for CUDA " + torch.version.cuda] if torch.version.cuda else []
try:
    say("subnormal", subnormal(), "")
    say("gpu", __import__("torch").cuda.is_available(), ", ".join(gpu()))
except ImportError:
    pass
"""


def libraries(
    child: subprocess.Popen[bytes], output: int, until: float
) -> Iterator[Finding]:
    """Yield what the child found out by its deadline."""
    try:
        code: int | None = child.wait(timeout=max(0.0, until - time.monotonic()))
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()
        code = None
    raw = os.pread(output, 1 << 20, 0).decode(errors="replace")
    known = {}
    for line in raw.splitlines():
        if line.startswith("["):
            name, good, text = json.loads(line)
            known[name] = (good, text)
    broken = False
    for distribution, _ in LIBRARIES:
        if distribution in known:
            yield library(distribution, *known[distribution])
        elif code is None:
            text = f"not imported within {IMPORT_DEADLINE_S:g} s"
            yield Finding(
                distribution, WARN, text, "look again when the machine is idle"
            )
        elif not broken:
            broken = True  # the first one that is missing ended the child
            advice = "its binary does not fit this machine: install it anew"
            yield Finding(
                distribution, FAIL, f"crashed on import (exit {code})", advice
            )
    if "gpu" in known:
        driver = _read("/proc/driver/nvidia/version")
        yield gpu(*known["gpu"], driver.partition("\n")[0])
    if "subnormal" in known:
        yield subnormal(known["subnormal"][0])


def library(distribution: str, good: bool, text: str) -> Finding:
    pinned = pins().get(distribution)
    if good and pinned not in (None, text):
        advice = f"pip install {distribution}=={pinned}"
        found = f"{text}, and only {pinned} is known to be safe"
        return Finding(distribution, FAIL, found, advice)
    if good:
        return Finding(distribution, OK, text)
    advice = f"pip install {distribution}"
    if distribution == "fastecdsa" and not can_build_fastecdsa():
        advice = "install a C compiler and libgmp-dev, then pip install fastecdsa"
    return Finding(distribution, FAIL, text, advice)


def pins() -> dict[str, str]:
    """Return the one version that this package works with, where it names one."""
    try:
        required = importlib.metadata.requires("blyan") or []
    except importlib.metadata.PackageNotFoundError:
        return {}
    exact = (text.split(";")[0].partition("==") for text in required)
    return {name.strip(): version.strip() for name, sign, version in exact if sign}


def gpu(usable: bool, seen: str, driver: str) -> Finding:
    """`seen`: what torch sees or was built for; `driver`: the kernel's, if loaded."""
    if usable:
        return Finding("gpu", OK, seen)
    if not driver:
        return Finding("gpu", OK, "none; the processor is used")
    if seen:
        advice = "update the driver, or install the torch that was built for it"
        return Finding("gpu", WARN, f"torch cannot use it: {seen}; {driver}", advice)
    advice = "pip install torch from an index with CUDA builds (see docs/operations.md)"
    return Finding("gpu", WARN, f"torch has no CUDA; {driver}", advice)


def can_build_fastecdsa() -> bool:
    """True with a C compiler and GMP's header, which its source needs."""
    headers: Callable[[str], bool] = os.path.exists
    places = ("/usr/include", "/usr/local/include", "/usr/include/x86_64-linux-gnu")
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    return bool(compiler) and any(headers(f"{place}/gmp.h") for place in places)


def subnormal(kept: bool) -> Finding:
    """Roots agree between nodes only if no library flushes tiny numbers (DEC-B1)."""
    if kept:
        return Finding("arithmetic", OK, "subnormal numbers are kept")
    advice = "a library was built with -ffast-math: find and replace it"
    return Finding("arithmetic", FAIL, "subnormal numbers become zero", advice)


def _read(path: str | Path) -> str:
    """Return a small file's text, empty if it cannot be read."""
    try:
        return Path(path).read_text(errors="replace")
    except OSError:
        return ""
