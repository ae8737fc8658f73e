"""Who may come in (DEC-C3): a bound name, our own origin, the token.

Any page that a browser shows can send requests to 127.0.0.1. It cannot leave out its
Origin, it cannot send JSON elsewhere without asking first, and it does not know the token;
a name that was rebound to our address shows in Host.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass

from blyand.http.place import Place
from blyand.http.refusal import Refusal
from blyand.http.request import Request


@dataclass(frozen=True)
class Door:
    """`names`: further hosts, with or without port, under which a proxy is reached."""

    place: Place
    names: tuple[str, ...] = ()

    def check(self, request: Request, *, needs_token: bool) -> None:
        """Refusal 421 for another Host, 403 for another Origin, 401 without the token."""
        host = request.headers.get("host", "").lower()
        if not self._is_bound(host, request.server):
            raise Refusal(
                421,
                f"this server is not {host[:100]!r}; use the address that `blyanctl node "
                "status` shows, or name this one in http.names",
                code="wrong_host",
            )
        origin = request.headers.get("origin")
        if origin is not None and not self._is_own(origin.lower(), host):
            raise Refusal(
                403, "pages of other sites may not ask here", code="wrong_origin"
            )
        if needs_token:
            self._check_token(request.headers.get("authorization", ""))

    def _check_token(self, given: str) -> None:
        scheme, _, token = given.partition(" ")
        if not given:
            text = (
                "this needs the token in <home>/http.token: authorization: Bearer TOKEN"
            )
        elif scheme.lower() != "bearer" or not self.place.admits(token.strip()):
            text = "that is not the token in <home>/http.token"
        else:
            return
        raise Refusal(
            401,
            text,
            code="invalid_api_key",
            headers=(("www-authenticate", "Bearer"),),
        )

    def _is_bound(self, host: str, server: tuple[str, int]) -> bool:
        """True for the address that the client reached, `localhost` for loopback, a name."""
        address, port = server
        if host in self.names or _without_port(host) in self.names:
            return True
        own = [f"[{address}]" if ":" in address else address]
        if ipaddress.ip_address(address).is_loopback:
            own.append("localhost")
        ends = (f":{port}", "") if port == 80 else (f":{port}",)
        return any(host == name + end for name in own for end in ends)

    def _is_own(self, origin: str, host: str) -> bool:
        """`host` is a bound name. Through a proxy with TLS the page's origin is https."""
        scheme, _, rest = origin.partition("://")
        return scheme in ("http", "https") and rest == host


def _without_port(host: str) -> str:
    name, colon, port = host.rpartition(":")
    return name if colon and port.isdecimal() else host
