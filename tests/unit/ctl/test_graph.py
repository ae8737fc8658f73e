"""The block DAG drawn as text."""

import re

from blyanctl.graph import draw


def block(id, *parents, checkpoint=1, error=None):
    return {
        "id": id * 64,
        "chain": "C",
        "kind": "transfer",
        "height": 3,
        "parents": [parent * 64 for parent in parents],
        "subject": "",
        "account": "0x" + "0" * 40,
        "time_ms": 0,
        "checkpoint": checkpoint,
        "error": error,
    }


def shape(*blocks):
    """The drawing without the descriptions."""
    lines = draw(blocks).splitlines()
    return [re.split(r"  \w{12}", line)[0].rstrip() for line in lines]


def test_a_line():
    assert shape(block("c", "b", checkpoint=None), block("b", "a"), block("a")) == [
        "o",
        "*",
        "*",
    ]


def test_a_fork_and_a_merge():
    drawn = shape(block("d", "b", "c"), block("c", "a"), block("b", "a"), block("a"))
    assert drawn == ["*", "├─╮", "│ *", "* │", "├─╯", "*"]


def test_eight_parents_and_unrelated_chains_beside_each_other():
    parents = "bcdefghi"
    drawn = shape(
        block("z", "y"),
        block("a", *parents),
        *(block(id, "x") for id in parents),
        block("y"),
        block("x"),
    )
    assert drawn[2] == "│ ├─┬─┬─┬─┬─┬─┬─╮"
    assert drawn[-3:] == ["* │ │ │ │ │ │ │ │", "  ├─┴─┴─┴─┴─┴─┴─╯", "  *"]


def test_a_refused_block_says_why():
    text = draw([block("a", error="no money\x1b[2J")])
    assert text.startswith("x") and "no effect: no money" in text
    assert "\x1b" not in text
