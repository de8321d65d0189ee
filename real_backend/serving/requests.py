"""Requests as they come over HTTP: bodies of bounded size and time, their form, and how an error is told."""

from __future__ import annotations

import asyncio
import math
import re
import secrets
import time
from typing import Annotated, Any

import fastapi
import pydantic
from fastapi.responses import JSONResponse, Response
from pydantic_core import to_json
from starlette.requests import ClientDisconnect

from helm_gym.errors import HelmError, InvalidInputError
from helm_gym.text import sentence
from real_backend.serving.service import MAX_EVENTS, OverloadedError, Ranked, UnavailableError
from real_backend.serving.user_index import HistoryRequiredError

MAX_BODY_BYTES = 2 * 2**20
BODY_S = 10.0  # in which a body must have come
MAX_ID = 256  # characters
_TRACE = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-([0-9a-f]{2})(-.*)?")

Number = Annotated[int, pydantic.Field(strict=True, ge=-(2**63), lt=2**64)]
Name = Annotated[str, pydantic.Field(strict=True, max_length=MAX_ID)]
Id = Number | Name


class BadRequestError(HelmError):
    """What was sent cannot be served; status: of HTTP, 4xx."""

    def __init__(self, status: int, sentence: str):
        super().__init__(sentence)
        self.status = status


class RankRequest(pydantic.BaseModel):
    """Which of these items would this user like best, now that he has done this?"""

    model_config = pydantic.ConfigDict(extra="forbid", title="Rank")

    user: Id
    candidates: list[Id] = pydantic.Field(min_length=1, max_length=4096, description="Items to score.")
    events: list[Id] = pydantic.Field(
        default=[], max_length=MAX_EVENTS, description="Items of new events, oldest first."
    )
    start: int = pydantic.Field(
        default=0, strict=True, ge=0, le=2**40, description="Events before these; 0: they are the whole history."
    )


class History(pydantic.BaseModel):
    """What the answer stands on.

    ``events``: of the user so far, the ``start`` of the next request; ``seen``: how many of the last ones the model
    saw; ``cached``: how many of these were not computed again.
    """

    events: int
    seen: int
    cached: int


class RankAnswer(pydantic.BaseModel):
    """The candidates, the best first."""

    user: Id
    items: list[Id]
    scores: list[float]
    history: History
    node: int


class Error(pydantic.BaseModel):
    """Why something was not done; ``have``: events that the service has of the user, where it asks for them all."""

    reason: str
    sentence: str
    have: int | None = None


class Failure(pydantic.BaseModel):
    error: Error


async def body_of(request: fastapi.Request, limit: int = MAX_BODY_BYTES) -> bytes:
    """A request's body.

    Raises:
        BadRequestError: it is too large, too slow or in an encoding.
    """
    if request.headers.get("content-encoding", "identity") != "identity":
        raise BadRequestError(415, "The body is encoded; send it as it is.")
    told = request.headers.get("content-length", "")
    if told.isascii() and told.isdecimal() and int(told[:20]) > limit:
        raise BadRequestError(413, f"The body is larger than {limit:,} bytes.")
    content = bytearray()
    try:
        async with asyncio.timeout(BODY_S):
            async for part in request.stream():
                content += part
                if len(content) > limit:
                    raise BadRequestError(413, f"The body is larger than {limit:,} bytes.")
    except TimeoutError as error:
        raise BadRequestError(408, f"The body did not come within {BODY_S:g} seconds.") from error
    except ClientDisconnect as error:
        raise BadRequestError(400, "The client left before its body had come.") from error
    return bytes(content)


def parse(body: bytes) -> RankRequest:
    """Raises BadRequestError where the body is none."""
    try:
        return RankRequest.model_validate_json(body)
    except pydantic.ValidationError as error:
        raise BadRequestError(422, told(error)) from error


def told(error: pydantic.ValidationError) -> str:
    """The first thing that is wrong, in a sentence."""
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    place = [str(part) for part in first["loc"]]
    if place and place[-1] in ("constrained-int", "constrained-str"):
        return f"{'.'.join(place[:-1])}: An id is a whole number of 64 bits or a text of at most {MAX_ID} characters."
    return f"{'.'.join(place)}: {first['msg']}." if place else f"{first['msg']}."


def answer_to(request: RankRequest, ranked: Ranked) -> bytes:
    """The JSON of ``RankAnswer``."""
    order = (-ranked.scores).argsort(kind="stable").tolist()
    scores, items = ranked.scores.tolist(), request.candidates
    return to_json(
        {
            "user": request.user,
            "items": [items[k] for k in order],
            "scores": [scores[k] for k in order],
            "history": {"events": ranked.total, "seen": ranked.seen, "cached": ranked.cached},
            "node": ranked.node,
        }
    )


def failure_of(error: HelmError) -> tuple[int, dict[str, Any], dict[str, str]]:
    """Status, the content of ``Error``, and headers for what went wrong."""
    text = sentence(str(error))
    if isinstance(error, BadRequestError):
        return error.status, {"reason": "invalid" if error.status == 422 else "request", "sentence": text}, {}
    if isinstance(error, HistoryRequiredError):
        return 409, {"reason": "history-required", "sentence": text, "have": error.have}, {}
    if isinstance(error, OverloadedError):
        after = str(max(1, math.ceil(error.retry_after_s)))
        return 429, {"reason": "overloaded", "sentence": text}, {"Retry-After": after}
    if isinstance(error, UnavailableError):
        return 503, {"reason": "unavailable", "sentence": text}, {"Retry-After": "2"}
    if isinstance(error, InvalidInputError):
        return 422, {"reason": "invalid", "sentence": text}, {}
    return 500, {"reason": "internal", "sentence": text}, {}


def failed(error: HelmError) -> Response:
    status, content, headers = failure_of(error)
    return JSONResponse({"error": content}, status, headers)


def trace_headers(request: fastapi.Request) -> tuple[str, dict[str, str]]:
    """W3C trace context: the trace's id, or none, and what is passed on: the same trace, and a span of our own."""
    given = request.headers.get("traceparent", "")
    found = _TRACE.fullmatch(given) if len(given) <= 512 else None
    if found is None or (given.startswith("00") and found[3]):
        return "", {}
    passed = {"traceparent": f"00-{found[1]}-{secrets.token_hex(8)}-{found[2]}"}
    state = request.headers.get("tracestate")
    if state and len(state) <= 512:
        passed["tracestate"] = state
    return found[1], passed


class Rate:
    """A bound on each client's requests: a bucket of tokens.

    Args:
        per_s: requests a second, and a second's worth at once; 0: no bound.
    """

    _MOST = 65_536  # clients that are remembered

    def __init__(self, per_s: float):
        self._per_s = per_s
        self._left: dict[str, tuple[float, float]] = {}

    def check(self, client: str) -> None:
        """Raises OverloadedError where the client has had its share."""
        if not self._per_s:
            return
        now, most = time.monotonic(), max(1.0, self._per_s)
        left, last = self._left.pop(client, (most, now))
        left = min(most, left + max(0.0, now - last) * self._per_s)
        self._left[client] = (left - 1.0 if left >= 1.0 else left, now)
        if len(self._left) > self._MOST:
            del self._left[next(iter(self._left))]
        if left < 1.0:
            raise OverloadedError(f"A client may send {self._per_s:g} requests a second.", (1.0 - left) / self._per_s)
