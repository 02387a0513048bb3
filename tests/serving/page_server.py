"""A service for the tests of the search page: the page itself, and the API's shapes over a handful of items.

Requests are checked by the API's own models and refusals come out of its own error handler.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

from fastapi import FastAPI, Request, Response

from sidray.serving import page, problems
from sidray.serving.messages import Refusal
from sidray.serving.problems import ApiError, overloaded
from sidray.serving.schemas import (
    Hit,
    Index,
    IndexKey,
    SearchRequest,
    SearchResponse,
    SimilarRequest,
    SimilarResponse,
    TookMs,
)

KEY = IndexKey(run="smgr-test-1a2b", model_key="m-1", generation="index-1", table_version=3)
INDEX = Index(**KEY.model_dump(), dimension=4, items=1234, partitions=2, fields=["sids"], delta=0, lag_seconds=0.0)
TOOK = TookMs(total=12.34, embed=9.5, recall=1.25)


def hit(item_id: str, title: str, score: float = 0.5, partition: str = "food", sids: list[int] | None = None) -> Hit:
    return Hit(item_id=item_id, score=score, title=title, partition=partition, fields={"sids": sids or []})


@dataclass
class FakeService:
    """What a test sets (hits by query, pictures, a refusal, a key, a query to hold back) and what it was asked."""

    hits: dict[str, list[Hit]] = field(default_factory=dict)
    similar: dict[str, list[Hit]] = field(default_factory=dict)
    pictures: dict[str, bytes] = field(default_factory=dict)
    refusal: Refusal | None = None
    busy_pictures: int = 0  # so many requests for pictures are refused
    key: str = ""
    held: str = ""
    release: threading.Event = field(default_factory=threading.Event)
    searched: list[SearchRequest] = field(default_factory=list)
    alike: list[SimilarRequest] = field(default_factory=list)
    answered: list[str] = field(default_factory=list)

    def check(self, request: Request) -> None:
        if self.key and request.headers.get("authorization") != f"Bearer {self.key}":
            raise ApiError(Refusal(401, "invalid_api_key", "the API key is missing or wrong"))
        if self.refusal:
            raise ApiError(self.refusal)


def api_of(fake: FakeService) -> FastAPI:
    """Plain functions: FastAPI runs them in threads, where one may wait."""
    api = FastAPI(openapi_url=None)
    api.include_router(page.router)
    problems.install(api)

    @api.post("/v1/search")
    def search(body: SearchRequest, request: Request) -> SearchResponse:
        fake.check(request)
        fake.searched.append(body)
        if fake.held and body.text == fake.held:
            fake.release.wait(30)
        fake.answered.append(body.text)
        return SearchResponse(hits=fake.hits.get(body.text, []), index=KEY, took_ms=TOOK)

    @api.post("/v1/similar")
    def similar(body: SimilarRequest, request: Request) -> SimilarResponse:
        fake.check(request)
        fake.alike.append(body)
        if body.item_ids[0] not in fake.similar:
            raise ApiError(Refusal(404, "unknown_item", "no item is called that", "item_ids"))
        return SimilarResponse(hits=fake.similar[body.item_ids[0]], index=KEY, took_ms=TOOK, unknown=[])

    @api.get("/v1/index")
    def index(request: Request) -> Index:
        fake.check(request)
        return INDEX

    @api.get("/v1/items/{item_id:path}/image")
    def image(item_id: str, request: Request) -> Response:
        fake.check(request)
        if fake.busy_pictures > 0:
            fake.busy_pictures -= 1
            raise ApiError(overloaded())
        if item_id not in fake.pictures:
            raise ApiError(Refusal(404, "no_picture", "this item has no picture"))
        return Response(fake.pictures[item_id], media_type="image/png")

    return api
