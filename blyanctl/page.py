"""`train report` as one page of HTML: nothing in it comes from anywhere else."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape
from typing import Any

from blyan_proto.rpc.spec import JsonObject
from blyanctl.plot import Level, Line, Point, legend, plot, strip
from blyanctl.render import cell, date, duration, size

PEER_CHARACTERS = 10
MOST_EVENTS = 200

STYLE = """
:root{--ink:#1c2330;--dim:#667085;--line:#e4e7ec;--paper:#fff;--card:#f7f8fa;
--a:#0f766e;--b:#2563eb;--c:#b45309;--late:#c2410c}
@media(prefers-color-scheme:dark){:root{--ink:#e6e9ef;--dim:#98a2b3;--line:#2b3240;
--paper:#12161d;--card:#1a202a;--a:#2dd4bf;--b:#7aa2ff;--c:#fbbf24;--late:#fb923c}}
*{box-sizing:border-box}
body{margin:0;background:var(--paper);color:var(--ink);
font:16px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}
main{max-width:70rem;margin:0 auto;padding:1.5rem 1rem 3rem}
h1{font-size:1.5rem;line-height:1.2;margin:0 0 .25rem}h2{font-size:1.1rem;margin:2.2rem 0 .4rem}
p{margin:.2rem 0}.dim,.none,caption{color:var(--dim);font-size:.9rem}
code{font:.85em ui-monospace,Menlo,Consolas,monospace;overflow-wrap:anywhere}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(max(9.5rem,22%),1fr));gap:.6rem;margin-top:1rem}
.tiles div{background:var(--card);border:1px solid var(--line);border-radius:.5rem;padding:.6rem .8rem}
.tiles b{display:block;font-size:1.25rem;font-variant-numeric:tabular-nums}
.tiles span{color:var(--dim);font-size:.85rem}
.pair{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,26rem),1fr));gap:0 2rem}
.plot{display:grid;grid-template-columns:3.9rem 1fr;margin-top:.3rem}
.area{position:relative;height:15rem;border-left:1px solid var(--dim);border-bottom:1px solid var(--dim)}
.pair .area{height:9rem}
.area svg{position:absolute;inset:0;width:100%;height:100%;overflow:visible}
.ys{position:relative}.ys span{white-space:nowrap;position:absolute;right:.5rem;transform:translateY(-50%)}
.levels span{position:absolute;right:.2rem;transform:translateY(-105%)}
.ys,.xs,.levels{color:var(--dim);font-size:.78rem;font-variant-numeric:tabular-nums}
.xs{grid-column:2;display:flex;justify-content:space-between;padding-top:.15rem}
polyline{fill:none;stroke-width:2;vector-effect:non-scaling-stroke;stroke-linejoin:round;stroke-linecap:round}
polyline.a{stroke:var(--a)}polyline.b{stroke:var(--b)}polyline.c{stroke:var(--c)}
.grid{stroke:var(--line);vector-effect:non-scaling-stroke}
.level{stroke:var(--dim);stroke-dasharray:3 4;vector-effect:non-scaling-stroke}
.at{fill:transparent}.at:hover{fill:var(--dim);fill-opacity:.18}
.legend{display:flex;flex-wrap:wrap;gap:.2rem 1.2rem;font-size:.9rem}
.legend i{display:inline-block;width:1.1rem;height:.2rem;border-radius:1px;margin-right:.4rem;vertical-align:middle}
i.a{background:var(--a)}i.b{background:var(--b)}i.c{background:var(--c)}
.scroll{overflow-x:auto}details{margin-top:2.2rem}details+details{margin-top:.6rem}summary{cursor:pointer}summary h2{display:inline}table{border-collapse:collapse;width:100%;font-size:.9rem;font-variant-numeric:tabular-nums}
th,td{padding:.3rem .6rem;border-bottom:1px solid var(--line);text-align:right;white-space:nowrap}
th:first-child,td:first-child{text-align:left}thead th{color:var(--dim);font-weight:500}
td.wide{text-align:left;white-space:normal}
.strip{display:grid;grid-template-columns:max-content 1fr;gap:.25rem .6rem;margin:.4rem 0;align-items:center}
.strip dt{font-size:.85rem}.strip dd{margin:0;height:1rem;background:var(--card);border:1px solid var(--line)}
.strip svg{width:100%;height:100%;display:block}.late{fill:var(--late)}
footer{margin-top:2.5rem;color:var(--dim);font-size:.85rem}
"""


def page(report: JsonObject) -> str:
    """Return a report as a page."""
    history: list[JsonObject] = report["history"]
    title = f"{report['model']}: {report['round']} of {report['rounds']} rounds"
    parts = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="dim">run <code>{escape(report["run"])}</code>, on '
        f"{escape(report['dataset'])}; {escape(report['outcome'])}</p>",
        _tiles(report),
        _losses(report, history),
        _figures(report, history),
        _learners(report, history),
        _takeovers(history),
        _rounds(history),
        _settings(report),
        f"<footer>{escape(_origin(report))}</footer>",
    ]
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head>"
        f"<body><main>{''.join(parts)}</main></body></html>\n"
    )


def _origin(report: JsonObject) -> str:
    told = f"As node …{report['peer_id'][-PEER_CHARACTERS:]} saw it"
    if report["every"] > 1:
        told += f"; one round of {report['every']} is shown"
    seen = len(report["history"])
    if seen and report["history"][0]["round"] > report["every"]:
        told += f"; it looked on from round {report['history'][0]['round']}"
    return f"{told}. {date(report['made_ms'])}"


def _tiles(report: JsonObject) -> str:
    before, after = report["first_held_out_loss"], report["held_out_loss"]
    ratio = report["compression_ratio"]
    tiles = (
        ("held-out loss, nats", _loss(after) or "-"),
        ("before the first round", _loss(before) or "-"),
        ("tokens learnt from", f"{report['tokens']:,}"),
        ("time of the rounds", duration(report["seconds"])),
        ("sent by this node", size(report["bytes_up"])),
        ("smaller than float32", "-" if ratio is None else f"{ratio:.0f}x"),
        ("learners", str(len(report["learners"]))),
        ("takeovers", str(sum(one["takeovers"] for one in report["learners"]))),
    )
    return '<div class="tiles">' + "".join(
        f"<div><b>{escape(value)}</b><span>{escape(name)}</span></div>"
        for name, value in tiles
    ) + "</div>"  # fmt: skip


def _loss(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _losses(report: JsonObject, history: Sequence[JsonObject]) -> str:
    before = report["first_held_out_loss"]
    held_out = _points(history, "held_out_loss")
    if before is not None:
        held_out.insert(0, (0, before))
    lines = [
        Line("held-out text", held_out, "a"),
        Line("training text of this node", _points(history, "train_loss"), "b"),
    ]
    simple = report["baselines"] or {}
    levels = [Level(f"{name} {value:.2f}", value) for name, value in simple.items()]
    drawn = plot(lines, report["rounds"], "{:.2f}".format, levels)
    return f"<h2>Loss, nats per token</h2>{legend(lines)}{drawn}"


def _figures(report: JsonObject, history: Sequence[JsonObject]) -> str:
    figures: tuple[tuple[str, tuple[tuple[str, str, str], ...], Any], ...] = (
        ("Tokens a second, all learners", (("tokens/s", "tokens_per_s", "a"),), _count),
        ("Time of a round", (("time", "seconds", "c"),), duration),
        (
            "Bytes of a round, this node",
            (("deltas sent", "bytes_up", "b"), ("received", "bytes_down", "c")),
            size,
        ),
        (
            "Compression, float32 over sent",
            (("ratio", "compression_ratio", "a"),),
            "{:.0f}x".format,
        ),
    )
    drawn = []
    for title, curves, told in figures:
        lines = [Line(name, _points(history, key), ink) for name, key, ink in curves]
        key = legend(lines) if len(lines) > 1 else ""
        base = 1024.0 if told is size else 10.0
        body = plot(lines, report["rounds"], told, from_zero=True, base=base)
        drawn.append(f"<section><h2>{title}</h2>{key}{body}</section>")
    return f'<div class="pair">{"".join(drawn)}</div>'


def _count(value: float) -> str:
    return f"{value:,.0f}"


def _points(history: Sequence[JsonObject], key: str) -> list[Point]:
    return [(one["round"], one[key]) for one in history if one[key] is not None]


def _peer(peer: str) -> str:
    return f"…{peer[-PEER_CHARACTERS:]}"


def _learners(report: JsonObject, history: Sequence[JsonObject]) -> str:
    learners = report["learners"]
    if not learners:
        return ""
    heads = "peer,rounds,tokens,deltas listed,missed,clipped,primary of,took over"
    keys = "rounds tokens listed missed clipped primary_of takeovers".split()
    body = [
        f"<td><code>{escape(_peer(one['peer_id']))}</code>"
        f"{' (this node)' if one['peer_id'] == report['peer_id'] else ''}</td>"
        + "".join(f"<td>{one[key]:,}</td>" for key in keys)
        for one in learners
    ]
    text = f"<h2>Learners</h2>{_table(heads.split(','), body)}"
    late = [one["peer_id"] for one in learners if one["missed"]]
    if late:
        missed = [
            {part["peer_id"]: part["missed"] for part in one["parts"]}
            for one in history
        ]
        rows = [[one.get(peer, 0) for one in missed] for peer in late]
        rounds = [one["round"] for one in history]
        text += "<h2>Behind</h2>"
        text += '<p class="dim">rounds whose updates came out without a learner</p>'
        text += strip([_peer(peer) for peer in late], rows, rounds)
    return text


def _takeovers(history: Sequence[JsonObject]) -> str:
    body = [
        f"<td>{one['round']}</td><td>{escape(taken['group'])}</td>"
        f"<td>{taken['rank']}</td><td><code>{escape(_peer(taken['peer_id']))}</code></td>"
        for one in history
        for taken in one["takeovers"]
    ]
    if not body:
        return ""
    more = (
        f'<p class="dim">the first {MOST_EVENTS}</p>' if len(body) > MOST_EVENTS else ""
    )
    heads = ["round", "group", "rank", "published by"]
    return f"<h2>Takeovers</h2>{more}{_table(heads, body[:MOST_EVENTS])}"


def _rounds(history: Sequence[JsonObject]) -> str:
    shown: tuple[tuple[str, Callable[[JsonObject], str]], ...] = (
        ("round", lambda r: str(r["round"])),
        ("held out", lambda r: _loss(r["held_out_loss"]) or "-"),
        ("train", lambda r: _loss(r["train_loss"]) or "-"),
        ("tokens", lambda r: f"{r['tokens']:,}"),
        ("sent", lambda r: size(r["bytes_up"])),
        ("received", lambda r: size(r["bytes_down"])),
        ("deltas", lambda r: str(r["contributions"])),
        ("learners", lambda r: str(r["learners"])),
        ("primaries", lambda r: str(len(r["primaries"]))),
        ("time", lambda r: duration(r["seconds"])),
    )
    body = [
        "".join(f"<td>{escape(told(one))}</td>" for _, told in shown) for one in history
    ]
    table = _table([head for head, _ in shown], body)
    return f"<details><summary><h2>Rounds</h2></summary>{table}</details>"


def _settings(report: JsonObject) -> str:
    body = [
        f"<td>{escape(one['name'].replace('_', ' '))}</td>"
        f'<td class="wide">{escape(cell("value", one["value"]))}</td>'
        for one in report["settings"]
    ]
    table = _table(["setting", "value"], body)
    return f"<details><summary><h2>Settings</h2></summary>{table}</details>"


def _table(heads: Sequence[str], rows: Sequence[str]) -> str:
    head = "".join(f"<th>{escape(one)}</th>" for one in heads)
    body = "".join(f"<tr>{row}</tr>" for row in rows)
    return (
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )
