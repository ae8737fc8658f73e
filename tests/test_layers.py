"""The house's rules of import and size, read from the source with ast.

Package direction, level order, exclusive libraries, purity, catch-alls, foreign code,
file names and lengths. A rule that fails names the file and the line.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from blyand.config import OPTIONS

ROOT = Path(__file__).parents[1]
OURS = ("blyan_proto", "blyan_tile", "blyand", "blyanctl")
MAY_IMPORT = {
    "blyan_proto": set[str](),
    "blyan_tile": {"blyan_proto"},
    "blyand": {"blyan_proto", "blyan_tile"},
    "blyanctl": {"blyan_proto"},
}

LEVELS = {
    **dict.fromkeys(["__init__", "__main__", "daemon", "initialise"], 5),
    "accounting": 5,
    **dict.fromkeys(
        [
            "auditing",
            "gatekeeping",
            "foundation",
            "hosting",
            "learning",
            "neighbours",
            "bindings",
            "endpoints",
            "replica",
            "parts",
            "presence",
            "settling",
            "stores",
        ],
        5,
    ),
    **dict.fromkeys(["directory", "upkeep", "founding", "founding_commands"], 5),
    "newcomer": 5,
    "language": 5,
    "participation": 5,
    "gateway": 5,
    "rpc": 4,
    "http": 4,
    **dict.fromkeys(["chain", "finality", "election", "inference", "training"], 3),
    **dict.fromkeys(["retention", "joining"], 3),
    **dict.fromkeys(["data", "evolution", "guard", "ledger"], 3),
    "protocols": 2,
    **dict.fromkeys(
        ["net", "store", "config", "options", "sections", "supervise", "compute"], 1
    ),
    **dict.fromkeys(["worker", "clock", "events", "errors", "log", "metrics"], 1),
    **dict.fromkeys(["keystore", "home", "backup", "poison", "genesis"], 1),
    **dict.fromkeys(["exposition", "diary", "precedence"], 1),
    **dict.fromkeys(["rules", "__version__"], 0),
}

EXCLUSIVE = {
    "libp2p": ("blyand/net/",),
    "zeroconf": ("blyand/net/",),
    "multiaddr": ("blyand/net/",),
    "plyvel": ("blyand/store/",),
    "msgpack": ("blyan_proto/codec.py",),
    "coincurve": ("blyan_proto/signing.py",),
    "zstandard": ("blyan_tile/compress/",),
    "tokenizers": ("blyan_tile/vocabulary.py",),
    "jinja2": ("blyan_tile/template.py",),
    "llguidance": ("blyan_tile/grammar.py",),
    "torch": (
        "blyan_tile/",
        "blyand/inference/",
        "blyand/training/",
        "blyand/compute.py",
    ),
}
FOR_TRIO = "blyanctl/trio_client.py"  # programs in trio import it, the tool does not
EAGER_TORCH = ("blyan_tile/", "blyand/inference/", "blyand/training/")

# Pure code sees no socket, disk, clock or random source; they are its arguments.
PURE = ("blyan_proto/", "blyand/rules/")
IMPURE = set("os io socket time random secrets datetime pathlib shutil".split())
IMPURE |= set("subprocess threading asyncio trio torch tempfile logging".split())

# Where a stranger can reach a bug of ours; "*": the whole file contains such places.
CATCH_ALLS = {
    ("blyand/supervise.py", "_run_one"),
    ("blyand/poison.py", "containing"),  # one foreign item (DEC-C2)
    ("blyand/worker.py", "_answer"),
    ("blyand/net/serving.py", "serve_stream"),
    ("blyand/net/gossip.py", "*"),
    ("blyand/net/guard/circuit.py", "*"),
    ("blyand/net/guard/host.py", "*"),
    ("blyand/net/guard/inbound.py", "*"),
    ("blyand/net/guard/gossip.py", "*"),
    ("blyand/net/guard/tls.py", "_key_in"),
    ("blyand/rpc/server.py", "dispatch"),
    ("blyand/http/app.py", "__call__"),
    ("blyand/http/connection.py", "run"),
}

MAX_LINES = 400
BANNED_WORDS = "manager handler helper helpers util utils common misc base core".split()
SAFE_LOADERS = (
    ("torch.load", "weights_only", "True"),
    ("np.load", "allow_pickle", "False"),
    ("numpy.load", "allow_pickle", "False"),
)
FOREIGN_CODE = {"pickle", "cPickle", "dill", "marshal", "shelve", "cloudpickle"}

SOURCES = {
    path.relative_to(ROOT).as_posix(): ast.parse(path.read_text())
    for package in OURS
    for path in sorted((ROOT / package).rglob("*.py"))
}


def imports(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Yield every imported module with its line; ``from a import b`` gives a and a.b."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module, node.lineno
            for alias in node.names:
                yield f"{node.module}.{alias.name}", node.lineno


def eager_imports(tree: ast.Module) -> Iterator[tuple[str, int]]:
    """Like `imports`, without those inside functions or ``if TYPE_CHECKING``."""
    for node in tree.body:
        if isinstance(node, (ast.Import, ast.ImportFrom, ast.Try, ast.With)):
            yield from imports(node)


def fail_on(violations: list[str]) -> None:
    if violations:
        pytest.fail("\n".join(sorted(set(violations))), pytrace=False)


def test_packages_import_in_one_direction() -> None:
    fail_on(
        [
            f"{file}:{line} imports {name}"
            for file, tree in SOURCES.items()
            for name, line in imports(tree)
            if (top := name.split(".")[0]) in OURS
            and top != (package := file.split("/")[0])
            and top not in MAY_IMPORT[package]
        ]
    )


def test_the_daemon_imports_downward_and_siblings_never_meet() -> None:
    violations = []
    for file, tree in SOURCES.items():
        if not file.startswith("blyand/"):
            continue
        mine = file.split("/")[1].removesuffix(".py")
        assert mine in LEVELS, f"{file}: give {mine} a level in LEVELS"
        for name, line in imports(tree):
            parts = name.split(".")
            if parts[0] != "blyand" or len(parts) < 2 or parts[1] == mine:
                continue
            theirs = LEVELS.get(parts[1])
            if theirs is None:
                violations.append(f"{file}:{line} imports {name}, which has no level")
            elif theirs > LEVELS[mine] or theirs == LEVELS[mine] == 3:
                violations.append(
                    f"{file}:{line} (level {LEVELS[mine]}) imports {name} ({theirs})"
                )
    fail_on(violations)


def test_a_library_has_one_importer() -> None:
    fail_on(
        [
            f"{file}:{line} imports {name}; only {', '.join(homes)} may"
            for file, tree in SOURCES.items()
            for name, line in imports(tree)
            if (homes := EXCLUSIVE.get(name.split(".")[0]))
            and not file.startswith(homes)
        ]
    )


def test_torch_is_loaded_late() -> None:
    fail_on(
        [
            f"{file}:{line} imports {name} when it is imported itself"
            for file, tree in SOURCES.items()
            for name, line in eager_imports(tree)
            if name.split(".")[0] == "torch" and not file.startswith(EAGER_TORCH)
        ]
    )
    modules = [
        file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        for file in SOURCES
        if file.startswith("blyand/")
        and LEVELS[file.split("/")[1].removesuffix(".py")] <= 2
    ]
    script = f"import sys, {', '.join(modules)}; print('torch' in sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True
    )
    assert loaded.stdout == "False\n", loaded.stderr or "levels 0 to 2 load torch"


def test_pure_code_has_no_source_of_surprise() -> None:
    fail_on(
        [
            f"{file}:{line} imports {name}"
            for file, tree in SOURCES.items()
            if file.startswith(PURE)
            for name, line in imports(tree)
            if name.split(".")[0] in IMPURE
        ]
    )


def test_the_control_tool_needs_only_the_standard_library() -> None:
    fail_on(
        [
            f"{file}:{line} imports {name}"
            for file, tree in SOURCES.items()
            if file.startswith("blyanctl/") and file != FOR_TRIO
            for name, line in imports(tree)
            if (top := name.split(".")[0]) not in ("blyanctl", "blyan_proto")
            and top not in sys.stdlib_module_names
        ]
    )


def test_imports_are_absolute_and_name_what_they_take() -> None:
    fail_on(
        [
            f"{file}:{node.lineno} is a relative or a star import"
            for file, tree in SOURCES.items()
            for node in ast.walk(tree)
            if isinstance(node, ast.ImportFrom)
            and (node.level or node.names[0].name == "*")
        ]
    )


def catch_alls(tree: ast.AST, function: str = "") -> Iterator[tuple[str, int]]:
    """Yield (function, line) of handlers of everything that do not raise it again."""
    for node in ast.iter_child_nodes(tree):
        inside = function
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            inside = node.name
        if isinstance(node, ast.ExceptHandler) and catches_all(node.type):
            last = node.body[-1]
            if not (isinstance(last, ast.Raise) and last.exc is None):
                yield function, node.lineno
        if isinstance(node, ast.Call) and name_of(node.func).endswith("suppress"):
            if any(catches_all(argument) for argument in node.args):
                yield function, node.lineno
        yield from catch_alls(node, inside)


def catches_all(kind: ast.expr | None) -> bool:
    if isinstance(kind, ast.Tuple):
        return any(map(catches_all, kind.elts))
    return kind is None or name_of(kind) in ("Exception", "BaseException")


def name_of(node: ast.expr) -> str:
    return ast.unparse(node) if isinstance(node, (ast.Name, ast.Attribute)) else ""


def test_everything_is_caught_only_at_the_boundaries() -> None:
    fail_on(
        [
            f"{file}:{line} catches everything in {function or 'the module'}"
            for file, tree in SOURCES.items()
            for function, line in catch_alls(tree)
            if not CATCH_ALLS & {(file, function), (file, "*")}
        ]
    )


def test_nothing_foreign_is_executed() -> None:
    violations = [
        f"{file}:{line} imports {name}"
        for file, tree in SOURCES.items()
        for name, line in imports(tree)
        if name.split(".")[0] in FOREIGN_CODE
    ]
    for file, tree in SOURCES.items():
        for node in ast.walk(tree):
            if not isinstance(node, ast.Call):
                continue
            called = name_of(node.func)
            if called in ("eval", "exec", "compile", "__import__"):
                violations.append(f"{file}:{node.lineno} calls {called}")
            for loader, word, value in SAFE_LOADERS:
                if called == loader and not any(
                    given.arg == word and ast.unparse(given.value) == value
                    for given in node.keywords
                ):
                    violations.append(f"{file}:{node.lineno} {loader} without {word}")
    fail_on(violations)


def test_files_are_short_named_by_a_noun_and_say_what_they_are() -> None:
    violations = []
    for file, tree in SOURCES.items():
        lines = len((ROOT / file).read_text().splitlines())
        if lines > MAX_LINES:
            violations.append(f"{file} has {lines} lines, at most {MAX_LINES}")
        if set(Path(file).stem.split("_")) & set(BANNED_WORDS):
            violations.append(f"{file} is not named by a noun of ours")
        if tree.body and not ast.get_docstring(tree):
            violations.append(f"{file} has no docstring")
    fail_on(violations)


def test_no_option_is_without_effect() -> None:
    read = {
        node.attr
        for file, tree in SOURCES.items()
        if file.startswith("blyand/") and file != "blyand/config.py"
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
    }
    fail_on([f"nobody reads {o.key}" for o in OPTIONS.values() if o.name not in read])


def test_each_test_file_tests_something_by_its_name() -> None:
    fail_on(
        [
            f"{path.relative_to(ROOT)} has no tests"
            for path in sorted((ROOT / "tests").rglob("test_*.py"))
            if "def test_" not in path.read_text()
        ]
    )
