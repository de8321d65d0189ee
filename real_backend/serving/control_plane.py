"""The control plane over HTTP: status, swap, modes, roll-back and the kill switch, on a port of their own."""

from __future__ import annotations

import hashlib
import hmac
import logging
import pathlib
import secrets
import tempfile
from collections.abc import Callable
from typing import Annotated, Any, Literal, Protocol

import fastapi
import pydantic
from fastapi import Depends, Header, Query
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.middleware.trustedhost import TrustedHostMiddleware

import helm_gym
from helm_gym import files
from helm_gym.errors import HelmError, InvalidInputError
from helm_gym.policies.onnx_check.rules import MAX_FILE_BYTES
from helm_gym.text import sentence
from real_backend.serving.requests import BadRequestError, Failure, body_of, failed

log = logging.getLogger("helm_gym.serving")
LOOPBACK = ("127.0.0.1", "localhost", "::1")
_PAGE = pathlib.Path(__file__).parent / "page"
TOKEN_FILE = "control-token.sha256"


class Switches(Protocol):
    """What the control plane needs of ``helm_gym.deploy.Controller``."""

    def set_mode(self, mode: str, node: int | None = None) -> None: ...

    def swap(self, path: pathlib.Path, sha256: str | None = None) -> Any: ...

    def roll_back(self) -> None: ...

    def promote(self) -> None: ...

    def kill(self) -> None: ...

    def revive(self) -> None: ...

    def status(self) -> dict[str, Any]: ...


class ModeRequest(pydantic.BaseModel):
    """``node``: all where not given."""

    model_config = pydantic.ConfigDict(extra="forbid")

    mode: Literal["off", "shadow", "canary", "active"]
    node: int | None = pydantic.Field(default=None, ge=0, strict=True)


def issue_token(folder: pathlib.Path) -> str:
    """A new token of a state folder's control plane, which is told once; its hash is kept, and the old one ends.

    Raises:
        InvalidInputError: the folder cannot be written to.
    """
    token = secrets.token_urlsafe(32)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InvalidInputError(f"--state {folder} cannot be made: {files.reason(error)}.") from error
    files.write(folder / TOKEN_FILE, f"{hashed(token)}\n".encode())
    return token


def kept_hash(folder: pathlib.Path | None) -> str | None:
    """The hash of the token that a state folder keeps; None where it keeps none."""
    if folder is None or not (folder / TOKEN_FILE).exists():
        return None
    text = files.read_bytes(folder / TOKEN_FILE, "The control token", 1024, "issue another").decode("ascii", "replace")
    found = text.strip()
    if len(found) != 64 or set(found) - set("0123456789abcdef"):
        raise InvalidInputError(f"{folder / TOKEN_FILE} is no SHA-256; issue another token.")
    return found


def hashed(token: str) -> str:
    """A token has 256 random bits, so that a plain hash of it cannot be turned back."""
    return hashlib.sha256(token.encode()).hexdigest()


def make_app(
    controller: Switches, status: Callable[[], dict[str, Any]], token_hash: str | None, host: str
) -> fastapi.FastAPI:
    """The application.

    Args:
        status: of the service, which is put beside the controller's.
        token_hash: of the token that is required; without one only loopback may be listened on.

    Raises:
        InvalidInputError: other machines could reach it and nobody needs a token.
    """
    if token_hash is None and host not in LOOPBACK:
        raise InvalidInputError(
            f"--control-host {host} is for other machines to reach; issue a token first (`helm-gym control token`)."
        )

    def admitted(request: fastapi.Request, authorization: Annotated[str | None, Header()] = None) -> None:
        if token_hash is None:
            # A page in a browser cannot send this type elsewhere without being asked.
            if request.method == "POST" and request.headers.get("content-type") not in _TYPES:
                raise BadRequestError(415, f"Send it as {' or '.join(_TYPES)}.")
            return
        kind, _, token = (authorization or "").partition(" ")
        if kind.lower() != "bearer" or not hmac.compare_digest(hashed(token.strip()), token_hash):
            raise BadRequestError(401, "A valid token is required: Authorization: Bearer TOKEN.")

    app = fastapi.FastAPI(
        title="HELM-Gym control plane",
        version=helm_gym.__version__,
        docs_url=None,
        redoc_url=None,
        responses={status: {"model": Failure} for status in (400, 401, 413, 415, 422)},
    )
    admitted_only = [Depends(admitted)]
    if token_hash is None:  # so that no other site's page can reach it through a browser's back
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=[*LOOPBACK, "[::1]"])

    _add_page(app)

    @app.get("/control/status", dependencies=admitted_only)
    def get_status() -> dict[str, Any]:
        """The service, its nodes, the policy, its modes, and what was not the policy's own decision."""
        return {"service": status(), "controller": controller.status()}

    @app.post("/control/mode", dependencies=admitted_only)
    def post_mode(given: ModeRequest) -> dict[str, Any]:
        """Sets the mode of a node, or of all."""
        return _done(controller, "mode", lambda: controller.set_mode(given.mode, given.node), given.model_dump())

    @app.post("/control/swap", dependencies=admitted_only)
    async def post_swap(
        request: fastapi.Request,
        sha256: Annotated[str | None, Query(pattern="^[0-9a-f]{64}$", description="that the file must have")] = None,
    ) -> dict[str, Any]:
        """Puts another policy in place: the body is its ONNX file. The former one is kept for a roll-back."""
        content = await body_of(request, MAX_FILE_BYTES)
        return await fastapi.concurrency.run_in_threadpool(_swap, controller, content, sha256)

    @app.post("/control/rollback", dependencies=admitted_only)
    def post_rollback() -> dict[str, Any]:
        """Puts the former policy back, or ends a trial."""
        return _done(controller, "rollback", controller.roll_back)

    @app.post("/control/promote", dependencies=admitted_only)
    def post_promote() -> dict[str, Any]:
        """Ends a trial well: its policy becomes that of all nodes."""
        return _done(controller, "promote", controller.promote)

    @app.post("/control/kill", dependencies=admitted_only)
    def post_kill() -> dict[str, Any]:
        """The kill switch: no policy decides from now on, and the safe split is held."""
        return _done(controller, "kill", controller.kill)

    @app.post("/control/revive", dependencies=admitted_only)
    def post_revive() -> dict[str, Any]:
        """Ends what the kill switch began."""
        return _done(controller, "revive", controller.revive)

    @app.exception_handler(HelmError)
    async def helm(request: fastapi.Request, error: HelmError) -> Response:
        if isinstance(error, BadRequestError):
            return failed(error)
        return JSONResponse({"error": {"reason": "refused", "sentence": sentence(str(error))}}, 422)

    @app.exception_handler(HTTPException)
    async def http(request: fastapi.Request, error: HTTPException) -> Response:
        return failed(BadRequestError(error.status_code, f"{error.detail}: {request.method} {request.url.path[:100]}."))

    @app.exception_handler(RequestValidationError)
    async def invalid(request: fastapi.Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        return failed(BadRequestError(422, f"{'.'.join(map(str, first['loc']))}: {first['msg']}."))

    return app


def _add_page(app: fastapi.FastAPI) -> None:
    """A page that shows the status; it has no secret, and asks for the token itself."""
    headers = {"Content-Security-Policy": "default-src 'self'; frame-ancestors 'none'; form-action 'none'"}
    for name, kind in (("index.html", "text/html"), ("page.css", "text/css"), ("page.js", "text/javascript")):
        response = Response((_PAGE / name).read_bytes(), media_type=kind, headers=headers)
        for path in ("/", "/index.html") if name == "index.html" else (f"/{name}",):
            app.add_api_route(path, lambda response=response: response, include_in_schema=False, response_model=None)


_TYPES = ("application/json", "application/octet-stream")


def _done(
    controller: Switches, what: str, do: Callable[[], Any], facts: dict[str, Any] | None = None
) -> dict[str, Any]:
    do()
    log.info("control", extra={"what": what} | (facts or {}))
    return controller.status()


def _swap(controller: Switches, content: bytes, sha256: str | None) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="helm-gym-") as folder:
        path = pathlib.Path(folder) / "policy.onnx"
        path.write_bytes(content)
        facts = {"sha256": hashlib.sha256(content).hexdigest()}
        return _done(controller, "swap", lambda: controller.swap(path, sha256), facts)
