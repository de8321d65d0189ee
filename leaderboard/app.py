"""The HTTP API under /api/v1, described by OpenAPI, and the pages."""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import threading
from collections.abc import AsyncIterator, Callable
from typing import Annotated, Any, TypeVar

import fastapi
import pydantic
from fastapi import Depends, Header, Path, Query
from fastapi.concurrency import run_in_threadpool
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.exceptions import HTTPException
from starlette.middleware.trustedhost import TrustedHostMiddleware

from helm_gym.errors import HelmError
from helm_gym.policies.onnx_check.rules import MAX_FILE_BYTES
from helm_gym.text import sentence
from leaderboard.board import LOCAL_ACCOUNT, Board, NotFoundError, RefusedSubmissionError
from leaderboard.guards import Guards
from leaderboard.page_cache import PageCache
from leaderboard.pages import SHOWN, Pages, read_style
from leaderboard.publishing import published_lines
from leaderboard.rendering import Renderer
from leaderboard.store import StoreError
from leaderboard.submissions import MAX_MEMBERS, MAX_NAME, METHOD, POLICY

Id = Annotated[str, Path(pattern="^[0-9a-f]{16}$", description="an entry's id")]
Digest = Annotated[str, Path(pattern="^[0-9a-f]{64}$", description="a file's SHA-256")]
Name = Annotated[str, Path(pattern="^[a-z0-9-]{1,64}$", description="a task's name")]
Track = Annotated[str, Query(pattern=f"^({POLICY}|{METHOD})$")]
First = Annotated[int, Query(ge=0, le=1_000_000, description="rows to leave out")]
Number = Annotated[int, Path(ge=1, le=1_000_000, description="a season's number")]
SeasonNumber = Annotated[int | None, Query(ge=1, le=1_000_000, description="the newest season where not given")]
OfEntry = Annotated[str, Query(pattern="^[0-9a-f]{16}$")]
T = TypeVar("T")


def _account(request: fastapi.Request, authorization: Annotated[str | None, Header()] = None) -> str:
    """Who asks."""
    if not request.app.state.tokens:
        return LOCAL_ACCOUNT
    kind, _, token = (authorization or "").partition(" ")
    found: str | None = request.app.state.board.account_of(token.strip()) if kind.lower() == "bearer" else None
    if found is None:
        raise HTTPException(401, "A valid token is required: Authorization: Bearer TOKEN.")
    return found


Account = Annotated[str, Depends(_account)]


class Error(pydantic.BaseModel):
    """Why something was not done."""

    reason: str
    sentence: str


class Failure(pydantic.BaseModel):
    error: Error


class Given(pydantic.BaseModel):
    """A submission: each file in base64."""

    model_config = pydantic.ConfigDict(extra="forbid")

    name: str = pydantic.Field(min_length=1, max_length=MAX_NAME)
    track: str = POLICY
    tasks: list[str] = pydantic.Field(default=[], max_length=100)
    write_up: dict[str, str | list[str]] = pydantic.Field(default={}, max_length=20)
    files: list[str] = pydantic.Field(min_length=1, max_length=MAX_MEMBERS)


class Taken(pydantic.BaseModel):
    """Where to look for it."""

    entry: str
    state: str


_FAILURES: dict[int | str, dict[str, Any]] = {
    status: {"model": Failure} for status in (400, 401, 404, 408, 409, 413, 422, 429, 503, 507)
}


def make_app(
    board: Board, tokens: bool = False, hosts: list[str] | None = None, renderer: Renderer | None = None
) -> fastapi.FastAPI:
    """The application over an opened board.

    Args:
        tokens: whether submitting requires a token; without, everybody is the same local user.
        hosts: names that it answers to, so that no other site's page can reach it through a browser's back.
        renderer: makes the pages; a thread where none is given.
    """
    views = _Views(renderer or Renderer(board, tokens))

    @contextlib.asynccontextmanager
    async def warmed(_: fastapi.FastAPI) -> AsyncIterator[None]:
        """Tables are begun before the first to look comes: those of 10,000 entries take seconds."""
        views.renderer.submit(Pages.index)
        yield
        views.renderer.close()

    app = fastapi.FastAPI(
        title="HELM-Gym leaderboard",
        version="1",
        docs_url=None,
        redoc_url=None,
        responses=_FAILURES,
        lifespan=warmed,
    )
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=hosts or ["127.0.0.1", "localhost", "[::1]"])
    app.add_middleware(Guards)
    _handle_errors(app)

    app.state.board, app.state.tokens = board, tokens
    _add_api(app, board, views)
    _add_pages(app, board, views)
    return app


class _Views:
    """What is made of the tables: pages, kept for a moment, and answers of the API."""

    def __init__(self, renderer: Renderer):
        self.renderer, self._cache = renderer, PageCache()

    async def made(self, make: Callable[..., T], *given: Any) -> T:
        """``make(pages, *given)``."""
        return await asyncio.wrap_future(self.renderer.submit(make, *given))

    async def page(self, make: Callable[..., str], *given: Any) -> HTMLResponse:
        """A page by what makes it."""
        address = repr((make.__qualname__, given))
        return HTMLResponse(await self._cache.get(address, lambda: self.renderer.submit(make, *given)))


def _table(pages: Pages, task: str, track: str, season: int | None, first: int, entry: str | None) -> dict[str, Any]:
    table = pages.standings.table(task, track, season)
    rows = [row for row in table["rows"] if entry in (None, row["entry"])]
    return table | {"rows": rows[first : first + SHOWN], "entries": len(table["rows"])}


def _overall(pages: Pages, track: str, season: int | None) -> dict[str, Any]:
    return pages.standings.overall(track, season)


def _scores(pages: Pages, entry: str) -> dict[str, Any]:
    return pages.standings.scores(entry)


def _comparison(pages: Pages, first: str, second: str, season: int | None) -> list[dict[str, Any]]:
    return pages.standings.compare(first, second, season)


def _add_api(app: fastapi.FastAPI, board: Board, views: _Views) -> None:
    @app.get("/api/v1/board")
    def get_board() -> dict[str, Any]:
        """The board and its season."""
        return board.facts() | {"requires_token": app.state.tokens}

    @app.get("/api/v1/tasks/{task}")
    async def get_task(
        task: Name,
        track: Track = POLICY,
        first: First = 0,
        entry: Annotated[str | None, Query(pattern="^[0-9a-f]{16}$", description="only this entry's row")] = None,
        season: SeasonNumber = None,
    ) -> dict[str, Any]:
        """A task's table, a hundred rows of it."""
        await run_in_threadpool(board.facts, season, task)
        return await views.made(_table, task, track, season, first, entry)

    @app.get("/api/v1/overall")
    async def get_overall(track: Track = POLICY, season: SeasonNumber = None) -> dict[str, Any]:
        """The board over all tasks."""
        await run_in_threadpool(board.facts, season)
        return await views.made(_overall, track, season)

    @app.get("/api/v1/entries")
    def get_entries(
        account: Annotated[str | None, Query(max_length=100)] = None, first: First = 0
    ) -> list[dict[str, Any]]:
        """Submissions, the newest first, a hundred at a time."""
        return board.entries(account, first, SHOWN)

    @app.post("/api/v1/entries", status_code=201)
    def post_entry(given: Given, account: Account) -> Taken:
        """Hands policies in. The same ones again are the same entry."""
        contents = [_decoded(text) for text in given.files]
        entry = board.submit(account, contents, given.name, given.track, given.tasks, given.write_up)
        return Taken(entry=entry, state=board.entry(entry)["state"])

    @app.get("/api/v1/entries/{entry}")
    def get_entry(entry: Id) -> dict[str, Any]:
        """An entry, its states, and how far the work on it is."""
        return board.entry(entry)

    @app.delete("/api/v1/entries/{entry}")
    def delete_entry(entry: Id, account: Account) -> Taken:
        """Calls a submission off."""
        board.cancel(account, entry)
        return Taken(entry=entry, state="cancelled")

    @app.get("/api/v1/entries/{entry}/scores")
    async def get_scores(entry: Id) -> dict[str, Any]:
        """An entry's figures: of development episodes each one, of hidden ones aggregates."""
        await run_in_threadpool(board.entry, entry)
        return await views.made(_scores, entry)

    @app.get("/api/v1/compare/{first}/{second}")
    async def get_comparison(first: Id, second: Id, season: SeasonNumber = None) -> list[dict[str, Any]]:
        """Two entries, task by task."""
        await run_in_threadpool(board.facts, season)
        for entry in (first, second):
            await run_in_threadpool(board.entry, entry)
        return await views.made(_comparison, first, second, season)

    @app.get("/api/v1/files/{digest}", response_class=Response)
    def get_file(digest: Digest) -> Response:
        """A submitted policy's file."""
        return _file(board, digest)


def _add_pages(app: fastapi.FastAPI, board: Board, views: _Views) -> None:
    kept, making = (-1, ""), threading.Lock()

    def page(path: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        return app.get(path, response_class=HTMLResponse, include_in_schema=False)

    @page("/")
    @page("/index.html")
    async def index() -> HTMLResponse:
        return await views.page(Pages.index)

    @page("/submit.html")
    async def submit() -> HTMLResponse:
        return await views.page(Pages.submit)

    @page("/rules.html")
    async def rules() -> HTMLResponse:
        return await views.page(Pages.rules)

    @page("/seasons/{season}/index.html")
    async def season(season: Number) -> HTMLResponse:
        return await views.page(Pages.index, season)

    @page("/tasks/{task}.html")
    async def task(task: Name, first: First = 0) -> HTMLResponse:
        return await views.page(Pages.task, task, first)

    @page("/methods/{task}.html")
    async def method(task: Name, first: First = 0) -> HTMLResponse:
        return await views.page(Pages.task, task, first, METHOD)

    @page("/seasons/{season}/tasks/{task}.html")
    async def former_task(season: Number, task: Name, first: First = 0) -> HTMLResponse:
        return await views.page(Pages.task, task, first, POLICY, season)

    @page("/seasons/{season}/methods/{task}.html")
    async def former_method(season: Number, task: Name, first: First = 0) -> HTMLResponse:
        return await views.page(Pages.task, task, first, METHOD, season)

    @page("/entries/{entry}.html")
    async def entry(entry: Id) -> HTMLResponse:
        return await views.page(Pages.entry, entry)

    @page("/compare.html")
    async def compare(first: OfEntry, second: OfEntry, season: SeasonNumber = None) -> HTMLResponse:
        return await views.page(Pages.compare, first, second, season)

    @app.get("/style.css", include_in_schema=False)
    async def style() -> Response:
        return Response(read_style(), media_type="text/css", headers={"Cache-Control": "max-age=300"})

    @app.get("/files/{digest}.onnx", include_in_schema=False)
    def file(digest: Digest) -> Response:
        return _file(board, digest)

    @app.get("/log.jsonl", include_in_schema=False)
    def log() -> Response:
        nonlocal kept
        with board.store.reading() as connection:
            last = board.store.last_seq(connection)
        if kept[0] != last:  # one request at a time makes it: it is long
            with making:
                if kept[0] < last:
                    kept = last, "".join(f"{line}\n" for line in published_lines(board.store))
        return PlainTextResponse(kept[1])


def _decoded(text: str) -> bytes:
    if len(text) > 4 * MAX_FILE_BYTES // 3 + 8:
        raise HTTPException(413, f"A policy has at most {MAX_FILE_BYTES >> 20} MiB.")
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise HTTPException(422, "A file is not base64.") from error


def _file(board: Board, digest: str) -> Response:
    if not board.is_submitted(digest):
        raise NotFoundError(f"There is no submitted file '{digest}'.")
    name = {"Content-Disposition": f'attachment; filename="{digest[:12]}.onnx"'}
    return Response(board.store.get(digest), media_type="application/octet-stream", headers=name)


def _handle_errors(app: fastapi.FastAPI) -> None:
    def answer(request: fastapi.Request, status: int, reason: str, text: str) -> Response:
        if request.url.path.startswith("/api/"):
            return JSONResponse({"error": {"reason": reason, "sentence": sentence(text)}}, status)
        return PlainTextResponse(f"{status}: {sentence(text)}\n", status)

    @app.exception_handler(HelmError)
    def helm(request: fastapi.Request, error: HelmError) -> Response:
        if isinstance(error, NotFoundError):
            return answer(request, 404, "not-found", str(error))
        if isinstance(error, RefusedSubmissionError):
            return answer(request, 409 if error.reason in ("final", "closed") else 429, error.reason, str(error))
        if isinstance(error, StoreError):
            full = "full" in str(error) or "No space" in str(error)
            return answer(request, 507 if full else 503, "storage", str(error))
        return answer(request, 422, "invalid", str(error))

    @app.exception_handler(HTTPException)
    def http(request: fastapi.Request, error: HTTPException) -> Response:
        return answer(request, error.status_code, "token" if error.status_code == 401 else "request", str(error.detail))

    @app.exception_handler(RequestValidationError)
    def invalid(request: fastapi.Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        return answer(request, 422, "invalid", f"{place}: {first['msg']}.")
