"""Writing and reading items, and the events of users: checked here, done by the writer and by recall."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from sidray.errors import nearest
from sidray.serving.item_schemas import (
    Deleted,
    EventsRequest,
    EventsResponse,
    Item,
    ItemsRequest,
    ItemsResponse,
    Rejected,
    StoredItem,
)
from sidray.serving.messages import NewItem, Refusal
from sidray.serving.problems import ApiError
from sidray.serving.service import Service, accepted, deadline


async def put_everywhere(services: Sequence[Service], request: ItemsRequest) -> ItemsResponse:
    """To the tables of all runs, the primary's first: accepted is what all of them accept. ApiError when the primary or
    another one cannot write."""
    answers = await asyncio.gather(*(put_items(service, request) for service in services))
    rejected = {each.item_id: each for answer in reversed(answers) for each in answer.rejected}
    return ItemsResponse(
        accepted=len(request.items) - len(rejected),
        rejected=[rejected[item.item_id] for item in request.items if item.item_id in rejected],
        table_version=answers[0].table_version,
    )


async def put_items(service: Service, request: ItemsRequest) -> ItemsResponse:
    """Writes what is right, in one version; what is wrong with an item rejects that item alone."""
    async with deadline(service.settings.write_timeout_s):
        checked = await asyncio.gather(*(_checked(service, item) for item in request.items))
        good = [item for item in checked if isinstance(item, NewItem)]
        rejected = [item for item in checked if isinstance(item, Rejected)]
        backend = service.backend
        version = accepted(await backend.put(good)) if good else (await backend.recall.describe()).table_version
        return ItemsResponse(accepted=len(good), rejected=rejected, table_version=version)


async def delete_item(services: Sequence[Service], item_id: str) -> Deleted:
    """From the tables of all runs, the primary's first. ApiError 404 when the primary has no such item."""
    async with deadline(services[0].settings.write_timeout_s):
        answers = await asyncio.gather(*(service.backend.delete(item_id) for service in services))
        for answer in answers[1:]:
            if not (isinstance(answer, Refusal) and answer.status == 404):
                accepted(answer)
        return Deleted(item_id=item_id, table_version=accepted(answers[0]))


async def stored_item(service: Service, item_id: str) -> StoredItem:
    async with deadline(service.settings.timeout_s):
        item, version = accepted(await service.backend.recall.item(item_id))
        return StoredItem(**item, table_version=version)


async def thumbnail(service: Service, item_id: str) -> bytes:
    async with deadline(service.settings.timeout_s):
        return accepted(await service.backend.recall.thumbnail(item_id))


async def append_events(service: Service, request: EventsRequest) -> EventsResponse:
    async with deadline(service.settings.write_timeout_s):
        rows = [event.model_dump() for event in request.events]
        return EventsResponse(accepted=accepted(await service.backend.append_events(rows)))


async def _checked(service: Service, item: Item) -> NewItem | Rejected:
    known = service.backend.info.text_fields
    if unknown := [name for name in item.fields if name not in known]:
        names = ", ".join(["title", "image", "partition", *known])
        return _rejected(item, f"unknown field {unknown[0][:80]!r}{nearest(unknown[0], known)}; fields: {names}")
    if not item.title.strip():
        return _rejected(item, "the title is empty")
    image = None
    if item.image is not None:
        try:
            image = await service.picture(item.image)
        except ApiError as error:
            return _rejected(item, error.refusal.message)
    return NewItem(item.item_id, item.title, item.partition, image, item.fields)


def _rejected(item: Item, reason: str) -> Rejected:
    return Rejected(item_id=item.item_id, reason=reason)
