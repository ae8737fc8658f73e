"""What comes while a call is under way: tokens, progress, one row per round."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from blyan_proto.rpc.spec import JsonObject
from blyanctl import dashboard
from blyanctl.graph import draw
from blyanctl.heat import heat
from blyanctl.page import page
from blyanctl.render import cell, duration, render, size

BAR_CELLS = 24

Show = Callable[[Iterable[JsonObject], TextIO], None]


def json_lines(items: Iterable[JsonObject], out: TextIO) -> None:
    """Print every item as one JSON line."""
    for item in items:
        out.write(json.dumps(item) + "\n")
        out.flush()


def tokens(items: Iterable[JsonObject], out: TextIO) -> None:
    """Print text as it is made, and end the line.

    With the likeliest tokens beside it, one token a line.
    """
    ended = "\n"
    for item in items:
        if item["top"]:
            ended = ""
            others = "  ".join(map(_chance, item["top"]))
            out.write(f"{_chance(item):<24} | {others}\n")
        else:
            out.write(printable(item["text"]))
        out.flush()
    out.write(ended)


def _chance(token: JsonObject) -> str:
    return f"{json.dumps(token['text'])} {token['logprob']:.2f}"


def printable(text: str) -> str:
    """Return a model's text without what would steer the terminal."""
    return "".join(
        c if c.isprintable() or c in "\n\t" else "\N{REPLACEMENT CHARACTER}"
        for c in text
    )


def lines(items: Iterable[JsonObject], out: TextIO) -> None:
    """Print what is text already, line by line."""
    for item in items:
        out.write(printable(item["line"]) + "\n")


def progress(items: Iterable[JsonObject], out: TextIO) -> None:
    """Draw a bar that stays on one line; on a pipe, one line per stage."""
    live = out.isatty()
    width, stage = 0, None
    for item in items:
        if live:
            text = bar(item)
            width = max(width, len(text))
            out.write("\r" + text.ljust(width))
        elif item["stage"] != stage:
            out.write(item["stage"] + "\n")
        stage = item["stage"]
        out.flush()
    if live and width:
        out.write("\r" + " " * width + "\r")
        out.flush()


def bar(item: JsonObject) -> str:
    """Return one Progress as text."""
    done, total, unit = item["done"], item["total"], item.get("unit")
    count = item.get("told") or (size(done) if unit == "bytes" else f"{done} {unit}")
    if not total:
        return f"{item['stage']}: {count}"
    full = min(BAR_CELLS, BAR_CELLS * done // total)
    drawn = "#" * full + "." * (BAR_CELLS - full)
    return f"{item['stage']} [{drawn}] {100 * done // total:3} %  {count}"


def syncing(items: Iterable[JsonObject], out: TextIO) -> None:
    """Draw a bar over the checkpoints; on a pipe, one line per stage."""
    progress((_as_progress(item) for item in items), out)


def _as_progress(item: JsonObject) -> JsonObject:
    """Return one sign of a sync as progress: its details go where the count stands."""
    parts = [
        f"checkpoint {item['checkpoint']} of {item['known']}",
        f"{item['blocks']:,} blocks, {size(item['fetched_bytes'])}",
        f"{item['blocks_per_s']:.0f} blocks/s",
        f"{item['peers']} peers",
    ]
    if item["left_s"] is not None and item["left_s"] > 0:
        parts.append(f"about {duration(item['left_s'])} left")
    done, total = item["checkpoint"], item["known"]
    told = ", ".join(parts)
    return {"stage": item["stage"], "done": done, "total": total, "told": told}


def joining(items: Iterable[JsonObject], out: TextIO) -> None:
    """Draw how far this node has joined, or its history come; on a pipe, the stages."""
    progress((_as_joining(item) for item in items), out)


def _as_joining(item: JsonObject) -> JsonObject:
    """Return one sign of a join as progress: over the state, then over the history."""
    if item["phase"] != "following":
        done, total = item["chunks"], 256 if item["target"] else None
        told = f"checkpoint {item['target']}, {size(item['state_bytes'])} of state"
        stage = item["trouble"] or item["phase"]
    else:
        whole = max(1, item["joined_at"])
        left = item["history_from"] + item["blocks_from"] - 2
        done, total = max(0, 2 * whole - left), 2 * whole
        told = f"from checkpoint {item['blocks_from']} on, {item['backfilled_blocks']:,} blocks"
        stage = item["backfill_trouble"] or "filling in the history"
        if item["backfill_left_s"]:
            told += f", about {duration(item['backfill_left_s'])} left"
    return {"stage": stage, "done": done, "total": total, "told": told}


# Columns of the round table: heading, width, the cell of one report.
COLUMNS: tuple[tuple[str, int, Callable[[JsonObject], str]], ...] = (
    ("round", 9, lambda r: f"{r['round']}/{r['rounds']}"),
    ("train", 8, lambda r: _loss(r["train_loss"])),
    ("held out", 8, lambda r: _loss(r["held_out_loss"])),
    ("tokens", 9, lambda r: f"{r['tokens']:,}"),
    ("up", 10, lambda r: size(r["bytes_up"])),
    ("down", 10, lambda r: size(r["bytes_down"])),
    ("ratio", 7, lambda r: _ratio(r["compression_ratio"])),
    ("deltas", 6, lambda r: str(r["contributions"])),
    ("blocks", 6, lambda r: str(r["blocks"])),
    ("primaries", 9, lambda r: str(len(r["primaries"]))),
    ("peers", 5, lambda r: str(r["peers"])),
    ("time", 8, lambda r: duration(r["seconds"])),
)


def rounds(items: Iterable[JsonObject], out: TextIO) -> None:
    """Print the baselines, then one row per closed round; on a terminal, a bar below."""
    headed = False
    began = time.monotonic()
    for item in items:
        if item["under_way"] is not None:
            continue
        if out.isatty():
            out.write("\r\x1b[K")  # the bar makes room for the row
        if item["baselines"] is not None:
            told = ", ".join(f"{k} {v:.3f}" for k, v in item["baselines"].items())
            out.write(f"baselines, nats per byte: {told}\n")
        if not headed:
            out.write("  ".join(head.rjust(width) for head, width, _ in COLUMNS) + "\n")
            headed = True
        row = (show(item).rjust(width) for _, width, show in COLUMNS)
        out.write("  ".join(row) + "\n")
        if out.isatty() and item["round"] < item["rounds"]:
            out.write(_outlook(item["round"], item["rounds"], began))
        out.flush()


def _outlook(round: int, rounds: int, began: float) -> str:
    """Return a bar over the rounds, and how long the rest may take."""
    full = BAR_CELLS * round // rounds
    drawn = "#" * full + "." * (BAR_CELLS - full)
    text = f"[{drawn}] round {round + 1} of {rounds}"
    if round:
        left = (time.monotonic() - began) / round * (rounds - round)
        text += f", about {duration(left)} left"
    return text


def _loss(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _ratio(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f}x"


# How a method's items are shown: always, or only when --stream asks for it.
ALWAYS: dict[str, Show] = {
    "train.watch": rounds,
    "data.add": progress,
    "model.create": progress,
    "model.import": progress,
    "model.export": progress,
    "model.pack": progress,
    "chain.export": lines,
    "chain.verify": progress,
    "chain.sync": syncing,
    "sync.watch": joining,
    "node.backup": progress,
}
TOKENS = "infer.generate"
ON_REQUEST: dict[str, Show] = {TOKENS: tokens}


@dataclass(frozen=True)
class Drawn:
    """A screen for a method's items, and what it asks for beyond the caller's params."""

    show: Show
    params: JsonObject


def drawn(method: str, out: TextIO) -> Drawn | None:
    """Return what draws a method's items on this terminal; None where lines do."""
    if method == "train.watch" and dashboard.fits(out):
        return Drawn(dashboard.show, {"live": True})
    return None


PAGES: dict[str, Callable[[JsonObject], str]] = {"train.report": page}


def written(method: str, result: JsonObject, place: str | None) -> str:
    """Write a result's page; return what to print: where it is, or the page for "-"."""
    text = PAGES[method](result)
    if place == "-":
        return text.rstrip("\n")
    place = place or f"{method.replace('.', '-')}-{result['run'][:16]}.html"
    Path(place).write_text(text, encoding="utf-8")
    return f"written to {place}"


def ending(method: str, result: JsonObject, streamed: bool) -> tuple[str, str] | None:
    """Return what ends a call in place of the plain result: (stdout, stderr) text."""
    if method == "chain.export":
        return "", f"{result['blocks']} blocks"
    if method == "chain.prove":
        shown = {k: v for k, v in result.items() if k not in ("value", "proof")}
        note = "With --json it is printed whole, for `blyanctl verify`."
        return render(shown), note
    if method == "train.explain":
        text = render({name: _shown(value) for name, value in result.items()})
        return text, "With --json it comes with the digests and signatures."
    if method == "chain.log" and result["blocks"]:
        return draw(result["blocks"]), ""
    if method == "expert.usage":
        return heat(result), ""
    if method == "node.metrics":
        return printable(result["text"].rstrip("\n")), ""
    if method != TOKENS:
        return None
    if not streamed:
        return printable(result["text"]), ""
    return "", generated(result)


EVIDENCE = frozenset(
    "update delta manifest learner_key learner_signature primary_key "
    "receipt_signature".split()
)


def _shown(value: Any) -> Any:
    """Return a list of records without what only a program compares."""
    if not isinstance(value, list):
        return value
    return [{k: v for k, v in one.items() if k not in EVIDENCE} for one in value]


# What a person reads for the reason that a generation ended.
ENDS = {
    "length": "cut off at its length",
    "stop": "ended at a stop",
    "end": "ended by the model",
}


def _counted(count: int, one: str, many: str) -> str:
    return f"{count} {one if count == 1 else many}"


def generated(result: JsonObject) -> str:
    """Return one line about a generation."""
    timings: dict[str, Any] = result["timings"]
    rate, retries = timings["tokens_per_s"], result["retries"]
    made = _counted(len(result["token_ids"]), "token", "tokens")
    parts = [
        f"{made} in {duration(timings['total_s'])}",
        f"{cell('tokens_per_s', rate)} tokens/s" if rate is not None else "",
        _counted(len(result["peers"]), "node", "nodes"),
        _counted(retries, "retry", "retries") if retries else "",
        ENDS.get(result["finish_reason"], result["finish_reason"]),
    ]
    return ", ".join(part for part in parts if part)
