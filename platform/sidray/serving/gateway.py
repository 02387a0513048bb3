"""The HTTP ingress: FastAPI routes over a Service, and the Serve deployment that holds them.

    POST /v1/search   GET /v1/models   GET /v1/index   GET /healthz   GET /readyz   GET /openapi.json

`create_api` needs no Ray: tests hand it a backend of their own.
"""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, FastAPI, Request
from ray import serve
from ray.serve.handle import DeploymentHandle

from sidray.serving import problems
from sidray.serving.guard import Guard
from sidray.serving.handles import HandleBackend
from sidray.serving.schemas import ErrorBody, Index, ModelList, SearchRequest, SearchResponse, Status
from sidray.serving.service import Limits, Service
from sidray.serving.settings import GatewaySettings

_ERRORS: dict[int | str, dict[str, Any]] = {
    400: {"model": ErrorBody, "description": "malformed JSON, a wrong type, or an image that is not base64"},
    404: {"model": ErrorBody, "description": "unknown partition"},
    413: {"model": ErrorBody, "description": "body over 32 MiB, query over 8,192 tokens, or too many pixels"},
    415: {"model": ErrorBody, "description": "the image is no JPEG, PNG or WebP picture"},
    422: {"model": ErrorBody, "description": "an impossible value or an unknown field"},
    500: {"model": ErrorBody, "description": "unexpected; safe to retry"},
    503: {"model": ErrorBody, "description": "busy; retry after the seconds in Retry-After"},
    504: {"model": ErrorBody, "description": "deadline; safe to retry"},
}
_UNAVAILABLE: dict[int | str, dict[str, Any]] = {503: _ERRORS[503]}
router = APIRouter()


def _service(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


ServiceOf = Annotated[Service, Depends(_service)]


@router.post("/v1/search", responses=_ERRORS)
async def search(body: SearchRequest, service: ServiceOf) -> SearchResponse:
    """The k items nearest to a query, a picture, both together, or a vector of the served model."""
    return await service.search(body)


@router.get("/v1/models", responses=_UNAVAILABLE)
async def models(service: ServiceOf) -> ModelList:
    """The served model."""
    return ModelList(data=[(await service.described())[0]])


@router.get("/v1/index", responses=_UNAVAILABLE)
async def index(service: ServiceOf) -> Index:
    """The served index."""
    return (await service.described())[1]


@router.get("/healthz")
async def healthz() -> Status:
    """Liveness: the gateway answers."""
    return Status(status="ok")


@router.get("/readyz", responses=_UNAVAILABLE)
async def readyz(service: ServiceOf) -> Status:
    """Readiness: model and index are loaded and belong together."""
    await service.described()
    return Status(status="ready")


def create_api(service: Service, max_in_flight: int) -> FastAPI:
    """The ASGI application. No documentation pages: they load scripts from elsewhere."""
    api = FastAPI(title="sidray", version="1", docs_url=None, redoc_url=None)
    api.state.service = service
    api.include_router(router)
    api.add_middleware(Guard, max_in_flight=max_in_flight)
    problems.install(api)
    return api


@serve.ingress()
class Gateway:
    """The ingress deployment."""

    def __init__(
        self, embedder: DeploymentHandle[Any], recall: DeploymentHandle[Any], settings: GatewaySettings, max_pixels: int
    ) -> None:
        self._service = Service(HandleBackend(embedder, recall), Limits(max_pixels, settings.timeout_s))
        self._max_in_flight = settings.max_ongoing

    def __serve_build_asgi_app__(self) -> FastAPI:
        return create_api(self._service, self._max_in_flight)
