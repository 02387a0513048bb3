"""The routes of the HTTP API, each a line over what the service does."""

from __future__ import annotations

from typing import Annotated, Any
from urllib.parse import unquote

from fastapi import APIRouter, Depends, Header, Request, Response

from sidray.serving import embeddings as embedding_service
from sidray.serving import items as item_service
from sidray.serving.embedding_schemas import EmbeddingsRequest, EmbeddingsResponse
from sidray.serving.item_schemas import (
    Deleted,
    EventsRequest,
    EventsResponse,
    ItemsRequest,
    ItemsResponse,
    StoredItem,
)
from sidray.serving.messages import Refusal, Times
from sidray.serving.problems import ApiError
from sidray.serving.schemas import (
    ErrorBody,
    Index,
    ModelList,
    Scope,
    SearchRequest,
    SearchResponse,
    SimilarRequest,
    SimilarResponse,
    Status,
    TookMs,
)
from sidray.serving.service import Service
from sidray.serving.traffic import Traffic

_DESCRIPTIONS = {
    400: "malformed JSON, a wrong type, or an image that is not base64",
    401: "missing or wrong API key",
    404: "unknown item, partition or model",
    413: "body over 32 MiB, input over 8,192 tokens, or too many pixels",
    415: "the image is no JPEG, PNG or WebP picture",
    422: "an impossible value or an unknown field",
    429: "this key's rate limit; retry after the seconds in Retry-After",
    500: "unexpected; safe to retry",
    503: "busy, or the table version has not arrived; retry after the seconds in Retry-After",
    504: "deadline; safe to retry",
}
_ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorBody, "description": text} for status, text in _DESCRIPTIONS.items()
}
_PICTURE: dict[int | str, dict[str, Any]] = {200: {"content": {"image/jpeg": {}}, "description": "a thumbnail"}}
_CACHE_PICTURE = {"Cache-Control": "private, max-age=60", "X-Content-Type-Options": "nosniff"}
_PIN = "the run that is to answer; without it the shares of the traffic decide"
router = APIRouter(responses=_ERRORS)
probes = APIRouter()


class Chosen:
    """What a request says of the run that it wants, and the runs there are."""

    def __init__(self, traffic: Traffic, pin: str) -> None:
        self.traffic = traffic
        self.pin = pin

    async def primary(self) -> Service:
        return await self.traffic.service(self.pin, fresh=True)

    async def of(self, body: Scope, of_primary: bool = False) -> Service:
        return await self.traffic.service(self.pin, fresh=of_primary or body.min_table_version > 0)


async def _traffic(request: Request) -> Traffic:
    """Async, as all dependencies here: FastAPI runs the others in a thread, which costs more than they do."""
    traffic: Traffic = request.app.state.traffic
    return traffic


TrafficOf = Annotated[Traffic, Depends(_traffic)]


async def _chosen(traffic: TrafficOf, x_sidray_run: Annotated[str, Header(description=_PIN)] = "") -> Chosen:
    return Chosen(traffic, x_sidray_run)


async def _item_id(item_id: str) -> str:
    """As the guard leaves it: percent-encoded, so that an id with slashes stays in one piece."""
    try:
        return unquote(item_id, errors="strict")
    except UnicodeDecodeError as error:
        raise ApiError(Refusal(400, "invalid_item_id", "the item_id in the path is not UTF-8", "item_id")) from error


ChosenOf = Annotated[Chosen, Depends(_chosen)]
ItemIdOf = Annotated[str, Depends(_item_id)]


@router.post("/v1/search")
async def search(body: SearchRequest, chosen: ChosenOf, response: Response) -> SearchResponse:
    """The k items nearest to a query, a picture, both together, or a vector of the served model."""
    chosen.traffic.copy(body)
    answer, times = await (await chosen.of(body, of_primary=body.vector is not None)).search(body)
    response.headers["Server-Timing"] = _timing(answer.took_ms, times)
    return answer


@router.post("/v1/similar")
async def similar(body: SimilarRequest, chosen: ChosenOf) -> SimilarResponse:
    """Items near those that a user saw last: a search from each of them, merged by the best score."""
    return await (await chosen.of(body)).similar(body)


@router.post("/v1/embeddings")
async def embeddings(body: EmbeddingsRequest, traffic: TrafficOf) -> EmbeddingsResponse:
    """Query vectors of texts and pictures, in OpenAI's shape."""
    return await embedding_service.embeddings(traffic, body)


@router.put("/v1/items")
async def put_items(body: ItemsRequest, traffic: TrafficOf) -> ItemsResponse:
    """Adds items or replaces them. They are durable when this answers, and found from that table version on."""
    return await item_service.put_everywhere(traffic, body)


@router.get("/v1/items/{item_id}/image", response_class=Response, responses=_PICTURE)
async def item_image(item_id: ItemIdOf, chosen: ChosenOf) -> Response:
    """The item's picture as the service keeps it: a small JPEG."""
    picture = await item_service.thumbnail(await chosen.primary(), item_id)
    return Response(picture, media_type="image/jpeg", headers=_CACHE_PICTURE)


@router.get("/v1/items/{item_id}")
async def stored_item(item_id: ItemIdOf, chosen: ChosenOf) -> StoredItem:
    """An item as it is found now."""
    return await item_service.stored_item(await chosen.primary(), item_id)


@router.delete("/v1/items/{item_id}")
async def delete_item(item_id: ItemIdOf, traffic: TrafficOf) -> Deleted:
    """Removes an item. It is gone for good when this answers, and from searches at that table version."""
    return await item_service.delete_item(traffic, item_id)


@router.post("/v1/events", status_code=202)
async def append_events(body: EventsRequest, chosen: ChosenOf) -> EventsResponse:
    """What users did, kept as the contract's events for the next training."""
    return await item_service.append_events(await chosen.primary(), body)


@router.get("/v1/models")
async def models(traffic: TrafficOf) -> ModelList:
    """The served models, the primary's first."""
    return ModelList(data=await traffic.models())


@router.get("/v1/index")
async def index(chosen: ChosenOf) -> Index:
    """The primary's index, or that of the run in X-Sidray-Run."""
    return (await (await chosen.primary()).described())[1]


@probes.get("/healthz")
async def healthz() -> Status:
    """Liveness: the gateway answers."""
    return Status(status="ok")


@probes.get("/readyz", responses={503: _ERRORS[503]})
async def readyz(traffic: TrafficOf) -> Status:
    """Readiness: the primary's model and index are loaded and belong together."""
    await traffic.ready()
    return Status(status="ready")


def _timing(took: TookMs, times: Times) -> str:
    """The Server-Timing header: milliseconds of each part."""
    parts = {"total": took.total, "queue": times.queue, "tokenise": times.tokenise, "infer": times.infer}
    return ", ".join(f"{name};dur={value:g}" for name, value in {**parts, "recall": took.recall}.items())
