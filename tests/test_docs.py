"""The pages for people, held against the code: links, commands, tables, quoted messages.

What a reader can type must exist; what a table states must be what the source says.
"""

from __future__ import annotations

import argparse
import ast
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from blyan_proto.rpc.methods import all_methods
from blyanctl import parser as ctl_parser
from blyand import __main__ as daemon_main
from tests.documents import tables

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    path
    for path in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
    if not any(part.startswith(".") for part in path.relative_to(ROOT).parts)
)
GENERATED = {ROOT / "docs" / "rpc.md", ROOT / "docs" / "config.md"}
PROSE = [path for path in PAGES if path not in GENERATED]
SOURCES = [
    path
    for package in ("blyan_proto", "blyan_tile", "blyand", "blyanctl")
    for path in sorted((ROOT / package).rglob("*.py"))
]

# Where a page was written, and by what routine, is nobody's business.
FORBIDDEN = (
    r"(?<![\w.$~/-])/(?:work|root|tmp|mnt)/",
    r"\bissues?\b",
    r"\b(?:this|last|next|previous|another|helper) sessions?\b",
    r"\b(?:TODO|FIXME|XXX|TBD|lorem)\b",
    r"\bshared/",
    r"\b(?:style|design|requirements|whitepaper|contract)\.md\b",
    r"\bour (?:lead|helpers?|tracker)\b",
)

FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"!?\[[^\]]*\]\(([^()\s]+)\)")
SPAN = re.compile(r"`([^`\n]+)`")
TARGET = re.compile(r"^([a-z]+):.*## ", re.MULTILINE)
PROGRAMS = ("make", "blyanctl", "blyand")


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def fail_on(violations: list[str]) -> None:
    if violations:
        pytest.fail("\n".join(violations), pytrace=False)


def blocks(path: Path, *languages: str) -> Iterator[str]:
    for language, body in FENCE.findall(path.read_text()):
        if language in languages:
            yield body


def prose(path: Path) -> str:
    return FENCE.sub("", path.read_text())


def anchors(path: Path) -> set[str]:
    """Return the fragments of a page's headings, as GitHub makes them."""
    found = set()
    for heading in re.findall(r"^#+ (.+)$", prose(path), re.MULTILINE):
        plain = re.sub(r"[^\w\- ]", "", heading.lower())
        found.add(plain.replace(" ", "-"))
    return found


def test_every_relative_link_leads_somewhere() -> None:
    broken = []
    for page in PAGES:
        for target in LINK.findall(prose(page)):
            if re.match(r"[a-z]+:", target):
                continue
            file, _, fragment = target.partition("#")
            to = (page.parent / file).resolve() if file else page
            if not to.exists():
                broken.append(f"{name(page)}: {target} does not exist")
            elif fragment and fragment not in anchors(to):
                broken.append(f"{name(page)}: {target} has no such heading")
    fail_on(broken)


def commands(path: Path) -> Iterator[list[str]]:
    """Yield the words of each command of ours that a page tells to type."""
    lines = [line for body in blocks(path, "sh") for line in body.splitlines()]
    lines += SPAN.findall(prose(path))
    for line in lines:
        try:
            words = shlex.split(line, comments=True)
        except ValueError:
            continue
        while words and re.match(r"[A-Z_]+=", words[0]):
            words.pop(0)
        if words and (program := words[0].rpartition("/")[2]) in PROGRAMS:
            yield [program, *words[1:]]


def misuse(parser: argparse.ArgumentParser, words: list[str]) -> str | None:
    """Return what a parser does not know among these words: a flag or a command."""
    left = list(words)
    while left:
        word = left.pop(0)
        if word.startswith("-"):
            action = parser._option_string_actions.get(word)
            if action is None:
                return f"{parser.prog} has no {word}"
            if action.nargs is None and left:
                left.pop(0)
            continue
        below = next(
            (a for a in parser._actions if isinstance(a, argparse._SubParsersAction)),
            None,
        )
        if below is not None:
            if word.isupper() or word == "…":
                return None  # a placeholder: NOUN VERB
            if word not in below.choices:
                return f"{parser.prog} has no {word}"
            parser = below.choices[word]
    return None


def unknown(words: list[str]) -> str | None:
    program, *rest = words
    if program == "make":
        known = set(TARGET.findall((ROOT / "Makefile").read_text()))
        wrong = [w for w in rest if re.fullmatch(r"[a-z]+", w) and w not in known]
        return f"make has no target {wrong[0]}" if wrong else None
    if program == "blyand":
        return misuse(daemon_main._parser(), rest)
    return misuse(ctl_parser.build(rest), rest)


@pytest.mark.parametrize("page", PROSE, ids=name)
def test_every_command_exists(page: Path) -> None:
    found = ((words, unknown(words)) for words in commands(page))
    fail_on([f"{name(page)}: {' '.join(w)}: {why}" for w, why in found if why])


def test_the_command_check_sees_what_is_wrong() -> None:
    assert unknown(["make", "nothing"]) == "make has no target nothing"
    assert unknown(["blyanctl", "node", "explode"])
    assert unknown(["blyanctl", "--home", "X", "data", "add", "X", "--max-mbs", "3"])
    assert unknown(["blyand", "run", "--listens", "X"])
    assert unknown(["blyanctl", "--home", "X", "tile", "roots", "--round", "3"]) is None


def test_the_readme_lists_every_make_target() -> None:
    known = TARGET.findall((ROOT / "Makefile").read_text())
    told = re.findall(r"^\| `make ([a-z]+)` \|", (ROOT / "README.md").read_text(), re.M)
    assert sorted(told) == sorted(known)


def test_python_examples_compile_and_call_what_exists() -> None:
    wrong = []
    for page in PROSE:
        for body in blocks(page, "python"):
            for node in ast.walk(ast.parse(body)):
                if not isinstance(node, ast.Call) or not node.args:
                    continue
                if getattr(node.func, "attr", "") in ("call", "stream"):
                    method = ast.literal_eval(node.args[0])
                    if method not in all_methods():
                        wrong.append(f"{name(page)}: there is no {method}")
    fail_on(wrong)


def test_pages_say_nothing_of_how_they_were_made() -> None:
    found = []
    for page in PAGES:
        for number, line in enumerate(page.read_text().splitlines(), 1):
            for pattern in FORBIDDEN:
                if hit := re.search(pattern, line):
                    found.append(f"{name(page)}:{number}: {hit.group()}")
    fail_on(found)


def test_files_that_pages_name_exist() -> None:
    missing = []
    for page in PROSE:
        for span in SPAN.findall(prose(page)):
            if re.fullmatch(
                r"(blyan_proto|blyan_tile|blyand|blyanctl|tests)/[\w./]+", span
            ):
                if not (ROOT / span).exists() and not (ROOT / f"{span}.py").exists():
                    if "NOUN" not in span:
                        missing.append(f"{name(page)}: {span}")
    page = ROOT / "docs" / "architecture.md"
    for span in SPAN.findall(prose(page)):
        if re.fullmatch(r"[a-z_]+/[a-z_/]+\.py", span):
            if not any((ROOT / home / span).exists() for home in ("", "blyand")):
                missing.append(f"{name(page)}: {span}")
    fail_on(missing)


def value_of(file: str, constant: str) -> str | None:
    """Return the text that a constant, or a parameter of that name, is set to."""
    path = next(p for h in ("blyand", "") if (p := ROOT / h / file).exists())
    text = path.read_text()
    found = re.search(rf"^{constant}(?:: \w+)? = ([^#\n]+)", text, re.MULTILINE)
    found = found or re.search(rf"\b{constant}: int = ([\w<]+)", text)
    return found.group(1).strip().replace("_", "") if found else None


def test_the_table_of_queues_is_what_the_source_says() -> None:
    (table,) = [t for t in tables("architecture.md") if t[0][0] == "queue"]
    wrong = []
    for queue, where, bound, overflow in table[1:]:
        file, constant = re.findall(r"[\w./]+", where)
        if value_of(file, constant) != bound:
            wrong.append(f"{queue}: {where} is {value_of(file, constant)}, not {bound}")
        assert overflow, queue
    fail_on(wrong)


def test_services_and_lanes_are_those_of_the_daemon() -> None:
    source = (ROOT / "blyand" / "daemon.py").read_text()
    page = (ROOT / "docs" / "architecture.md").read_text()
    services = re.findall(r'Service\(\s*"(\w+)"', source)
    told = re.search(r"each ready before the next:\s(.+?)Once", page, re.DOTALL)
    assert services and told
    places = [told.group(1).find(service) for service in services]
    assert -1 not in places and places == sorted(places), services
    (lanes,) = [t for t in tables("architecture.md") if t[0][0] == "lane"]
    named = {row[0]: row[1] for row in lanes[1:]}
    for lane, width in re.findall(r'(?:Threads|FirstLane)\(\s*"(\w+)", (\d+)', source):
        assert named[lane].split()[0] == width, lane
    assert set(re.findall(r'open_worker\("(\w+)"', source)) <= set(named)


def constant_texts() -> set[str]:
    return {
        node.value
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }


def test_messages_that_operations_explains_exist() -> None:
    texts = constant_texts()
    (table,) = [t for t in tables("operations.md") if t[0][0] == "you see"]
    missing = []
    for row in table[1:]:
        for quoted in re.findall(r"\"([^\"]+)\"", row[0]):
            for part in map(str.strip, quoted.split("…")):
                if len(part) > 3 and not any(part in text for text in texts):
                    missing.append(f"{quoted}: nobody says {part!r}")
    fail_on(missing)


def test_every_cited_decision_is_listed() -> None:
    listed = {row[0] for t in tables("decisions/README.md") for row in t[1:]}
    missing = set()
    for path in [*SOURCES, *PAGES]:
        for first, more in re.findall(
            r"DEC-([A-Z]\d+)((?:(?:, | … )[A-Z]\d+)*)", path.read_text()
        ):
            cited = {first, *re.findall(r"[A-Z]\d+", more)}
            missing |= {f"DEC-{c} in {name(path)}" for c in cited - listed}
    pages = {p.name for p in (ROOT / "docs" / "decisions").glob("0*.md")}
    index = (ROOT / "docs" / "decisions" / "README.md").read_text()
    missing |= {f"{page} is not in the index" for page in pages if page not in index}
    fail_on(sorted(missing))
