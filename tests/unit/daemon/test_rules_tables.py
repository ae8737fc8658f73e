"""Tables of executed state: no two under one prefix, and each stands in the docs."""

import re
from collections import Counter
from pathlib import Path

from tests.documents import tables

RULES = Path(__file__).parents[3] / "blyand" / "rules"
DECLARED = re.compile(r'= Table\(\s*b"([^"]+)",\s*(\w+)')


def declared():
    """Yield (prefix, record) of every table in the rules."""
    for file in sorted(RULES.rglob("*.py")):
        yield from DECLARED.findall(file.read_text())


def test_no_two_tables_share_a_prefix():
    count = Counter(prefix for prefix, _ in declared())
    assert len(count) > 10 and set(count.values()) == {1}, count
    assert not any("/" in prefix for prefix in count)


def test_every_table_stands_in_the_docs():
    told = {
        row[0]: row[2]
        for head, *rows in tables("store-schema.md")
        if head[0] == "table"
        for row in rows
    }
    lacking = [pair for pair in declared() if told.get(pair[0]) != pair[1]]
    assert not lacking, f"docs/store-schema.md, Tables, lacks {lacking}"
