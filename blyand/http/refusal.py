"""What a client is told instead of an answer, in the shape that OpenAI's clients read."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from blyan_proto.errors import LimitExceeded, ProtocolError
from blyan_proto.rpc.errors import (
    MODEL_AMBIGUOUS,
    MODEL_UNKNOWN,
    PROMPT_INVALID,
    PROMPT_TOO_LONG,
    RpcError,
)
from blyand.errors import Busy, DiskFull, LocalFault, TooSlow, Unavailable
from blyand.supervise import leaves

BUSY_RETRY_S = 1  # seconds after which a client that found us busy may come back
ROUTE_RETRY_S = 10  # after which a lost peer may have been replaced

TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
}


class Refusal(Exception):
    """An HTTP status and one sentence. `param` names what of the request is wrong."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_s: int | None = None,
        headers: tuple[tuple[str, str], ...] = (),
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param
        self.code = code
        self.headers = headers
        if retry_s is not None:
            self.headers += (("retry-after", str(retry_s)),)

    def body(self) -> dict[str, Any]:
        """Return the JSON body of the answer."""
        kind = "server_error" if self.status >= 500 else "invalid_request_error"
        return {
            "error": {
                "message": self.message,
                "type": TYPES.get(self.status, kind),
                "param": self.param,
                "code": self.code,
            }
        }


def refusal_of(error: BaseException) -> Refusal | None:
    """Return what a client is told of a failure; None if it is a bug of ours.

    Raises the LocalFault in it, and what is no failure: cancellation, interrupts.
    """
    found = list(leaves(error))
    for leaf in found:
        if isinstance(leaf, LocalFault):
            raise leaf
    stops = [leaf for leaf in found if not isinstance(leaf, Exception)]
    if stops:
        raise BaseExceptionGroup("stopped", stops)
    told = list(_told(found))
    return told[0] if len(told) == len(found) else None


def _told(found: list[BaseException]) -> Iterator[Refusal]:
    for error in found:
        if isinstance(error, Refusal):
            yield error
        elif isinstance(error, RpcError):
            yield _of_rpc(error)
        elif isinstance(error, Busy):
            yield Refusal(429, str(error), code="busy", retry_s=BUSY_RETRY_S)
        elif isinstance(error, TooSlow):
            yield Refusal(504, str(error) or "not done in time", code="too_slow")
        elif isinstance(error, Unavailable):
            code = "disk_full" if isinstance(error, DiskFull) else "no_route"
            text = str(error) or "the network cannot answer now"
            yield Refusal(503, text, code=code, retry_s=ROUTE_RETRY_S)
        elif isinstance(error, LimitExceeded):
            yield Refusal(400, str(error), code="limit_exceeded")
        elif isinstance(error, ProtocolError):
            yield Refusal(400, str(error), code="invalid_value")


def _of_rpc(error: RpcError) -> Refusal:
    if error.code in (MODEL_UNKNOWN.code, MODEL_AMBIGUOUS.code):
        return Refusal(404, error.message, param="model", code="model_not_found")
    if error.code == PROMPT_TOO_LONG.code:
        return Refusal(400, error.message, code="context_length_exceeded")
    if error.code == PROMPT_INVALID.code:
        return Refusal(400, error.message, param="prompt", code="invalid_value")
    return Refusal(400, error.message)
