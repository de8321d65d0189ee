"""The data plane over HTTP: ranking, the Open Inference Protocol, health and metrics."""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any

import fastapi
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException

import helm_gym
from helm_gym.errors import HelmError
from real_backend.serving import open_inference, requests
from real_backend.serving.open_inference import HEADER_LENGTH, InferRequest
from real_backend.serving.requests import BadRequestError, Failure, RankAnswer, RankRequest, Rate
from real_backend.serving.service import Ranked, Service, UnavailableError

log = logging.getLogger("helm_gym.serving")
Answer = Callable[[fastapi.Request], Awaitable[Response]]
_FAILURES: dict[int | str, dict[str, Any]] = {
    status: {"model": Failure} for status in (400, 404, 405, 408, 409, 413, 415, 422, 429, 503)
}


class Readiness:
    """Whether the service takes requests."""

    def __init__(self) -> None:
        self.service: Service | None = None  # None: it is still starting
        self.draining = False

    @property
    def ready(self) -> bool:
        return self.service is not None and not self.draining and bool(self.service.fleet.ready)


def make_app(readiness: Readiness, model: str, rate: float = 0.0, log_requests: bool = False) -> fastapi.FastAPI:
    """The application; it answers before the service is there.

    Args:
        model: the model's name in the Open Inference Protocol.
        rate: requests a second of one client; 0: no bound.
        log_requests: whether each request has a line in the log.
    """
    app = fastapi.FastAPI(
        title="HELM-Gym service", version=helm_gym.__version__, docs_url=None, redoc_url=None, responses=_FAILURES
    )
    bound = Rate(rate)

    def served() -> Service:
        if readiness.service is None:
            raise UnavailableError("The model is still being loaded.")
        return readiness.service

    def answering(protocol: str, answer: Answer, failed: Callable[[HelmError], Response]) -> Answer:
        """Time, count and trace around a request; what goes wrong is told in the protocol's form."""

        async def answered(request: fastapi.Request) -> Response:
            trace, passed = requests.trace_headers(request)
            started = time.perf_counter()
            try:
                bound.check(request.client.host if request.client else "")
                response = await answer(request)
            except HelmError as error:
                response = failed(error)
            took_s = time.perf_counter() - started
            if passed:
                response.headers.update(passed)
            if readiness.draining:
                response.headers["Connection"] = "close"
            if readiness.service is not None:
                metrics = readiness.service.metrics
                metrics.requests.labels(protocol, response.status_code).inc()
                if response.status_code == 200:
                    metrics.latency.labels(protocol).observe(took_s)
            if log_requests:
                facts = {"protocol": protocol, "status": response.status_code, "ms": round(1e3 * took_s, 3)}
                log.info("request", extra=facts | ({"trace_id": trace} if trace else {}))
            return response

        return answered

    async def rank(request: fastapi.Request) -> Response:
        body = await requests.body_of(request)
        service = served()
        service.check_room()  # before anything is done for it
        asked = requests.parse(body)
        ranked = await service.rank(asked.user, asked.start, asked.events, asked.candidates)
        return Response(requests.answer_to(asked, ranked), headers=timing(ranked), media_type="application/json")

    async def infer(request: fastapi.Request) -> Response:
        known(request)
        body = await requests.body_of(request)
        service = served()
        service.check_room()
        asked = InferRequest(body, request.headers.get(HEADER_LENGTH))
        of = asked.request
        ranked = await service.rank(of.user, of.start, of.events, of.candidates)
        content, headers = asked.answer(model, ranked)
        return Response(content, headers=headers | timing(ranked))

    def timing(ranked: Ranked) -> dict[str, str]:
        return {"Server-Timing": f"node;dur={1e3 * ranked.took_s:.3f}"}

    def known(request: fastapi.Request) -> None:
        name, version = request.path_params["model"], request.path_params.get("version", "1")
        if name != model or version != "1":
            raise BadRequestError(
                404, f"There is no model '{name[:64]}' of version '{version[:16]}' here; there is {model}, 1."
            )

    def of_protocol(error: HelmError) -> Response:
        status, content, headers = requests.failure_of(error)
        return JSONResponse({"error": content["sentence"]}, status, headers)

    @app.post(
        "/v1/rank",
        response_model=RankAnswer,
        openapi_extra={
            "requestBody": {
                "required": True,
                "content": {"application/json": {"schema": RankRequest.model_json_schema()}},
            }
        },
    )
    async def post_rank(request: fastapi.Request) -> Response:
        """Scores of candidates for a user, the best first."""
        return await ranked(request)

    ranked = answering("rank", rank, requests.failed)
    inferred = answering("v2", infer, of_protocol)

    @app.get("/livez", response_class=PlainTextResponse)
    @app.get("/v2/health/live", response_class=PlainTextResponse)
    async def live() -> Response:
        """200 as long as the process is there."""
        return PlainTextResponse("ok\n")

    @app.get("/readyz", response_class=PlainTextResponse)
    @app.get("/v2/health/ready", response_class=PlainTextResponse)
    async def ready() -> Response:
        """200 while requests should be sent here; 503 while it starts, drains, or has no node."""
        return PlainTextResponse("ok\n") if readiness.ready else PlainTextResponse("not ready\n", 503)

    @app.get("/metrics", response_class=PlainTextResponse)
    async def metrics() -> Response:
        """Prometheus metrics."""
        return Response(served().measured(), media_type=CONTENT_TYPE_LATEST)

    @app.get("/v2")
    async def server() -> dict[str, Any]:
        """The server's metadata."""
        return {"name": "helm-gym", "version": helm_gym.__version__, "extensions": open_inference.EXTENSIONS}

    for prefix in ("/v2/models/{model}", "/v2/models/{model}/versions/{version}"):

        @app.get(prefix)
        async def metadata(request: fastapi.Request) -> dict[str, Any]:
            """The model's metadata. An id may be BYTES, INT64 or UINT64; ``events`` and ``start`` may be left out."""
            known(request)
            return {
                "name": model,
                "versions": ["1"],
                "platform": "helm_gym_hstu",
                "inputs": open_inference.INPUTS,
                "outputs": open_inference.OUTPUTS,
            }

        @app.get(f"{prefix}/ready", response_class=PlainTextResponse)
        async def model_ready(request: fastapi.Request) -> Response:
            """As ``/readyz``, for a model that there is."""
            known(request)
            return await ready()

        @app.post(f"{prefix}/infer")
        async def post_infer(request: fastapi.Request) -> Response:
            """Inference; see the model's metadata."""
            return await inferred(request)

    @app.exception_handler(HelmError)
    async def helm(request: fastapi.Request, error: HelmError) -> Response:
        return of_protocol(error) if request.url.path.startswith("/v2") else requests.failed(error)

    @app.exception_handler(HTTPException)
    async def http(request: fastapi.Request, error: HTTPException) -> Response:
        text = f"{error.detail}: {request.method} {request.url.path[:100]} is nothing that this service does."
        return await helm(request, BadRequestError(error.status_code, text))

    return app
