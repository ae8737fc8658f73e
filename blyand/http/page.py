"""The chat page: three files, served as they are, that may talk to nobody but this node."""

from __future__ import annotations

from pathlib import Path

from blyand.http.app import Route
from blyand.http.reply import Reply
from blyand.http.request import Request

# Nothing from elsewhere, nothing inline, no frame, no form that leaves.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = (
    ("content-security-policy", POLICY),
    ("cross-origin-opener-policy", "same-origin"),
    ("permissions-policy", "camera=(), geolocation=(), microphone=()"),
)
FILES = {
    "/": ("page.html", "text/html; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
}


def page_routes() -> dict[str, Route]:
    """Return the routes of the page, its files read now."""
    return {path: _route(*about) for path, about in FILES.items()}


def _route(name: str, kind: str) -> Route:
    raw = Path(__file__).with_name(name).read_bytes()

    async def answer(request: Request, reply: Reply) -> None:
        await reply.whole(raw, kind, headers=HEADERS)

    return Route("GET", answer, is_open=True)
