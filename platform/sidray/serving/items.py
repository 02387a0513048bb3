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
from sidray.serving.traffic import Traffic


async def put_everywhere(traffic: Traffic, request: ItemsRequest) -> ItemsResponse:
    """To the tables of all runs: what is wrong with an item, for one run that answers, rejects that item alone and for
    all of them. ApiError when one of these runs cannot write. A shadow gets what fits it."""
    services = await traffic.weighted()
    async with deadline(services[0].settings.write_timeout_s):
        checked = await asyncio.gather(*(_all_checked(service, request.items) for service in services))
        rejected = {each.item_id: each for _, refused in reversed(checked) for each in refused}
        good = [item for item in request.items if item.item_id not in rejected]
        copies = traffic.in_shadows(lambda shadow: _put_copy(shadow, good)) if good else []
        fitting = [[item for item in fits if item.item_id not in rejected] for fits, _ in checked]
        versions = await asyncio.gather(*map(_put, services, fitting))
    await asyncio.gather(*copies)
    return ItemsResponse(
        accepted=len(good),
        rejected=[rejected[item.item_id] for item in request.items if item.item_id in rejected],
        table_version=versions[0],
    )


async def delete_item(traffic: Traffic, item_id: str) -> Deleted:
    """From the tables of all runs. ApiError 404 when the primary has no such item."""
    primary, *others = await traffic.weighted()
    async with deadline(primary.settings.write_timeout_s):
        copies = traffic.in_shadows(lambda shadow: _remove(shadow, item_id))
        answer, *_ = await asyncio.gather(
            primary.backend.delete(item_id), *(_remove(service, item_id) for service in others)
        )
    await asyncio.gather(*copies)
    return Deleted(item_id=item_id, table_version=accepted(answer))


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


async def _put(service: Service, items: list[NewItem]) -> int:
    """The version of its table that has them."""
    if not items:
        return (await service.backend.recall.describe()).table_version
    return accepted(await service.backend.put(items))


async def _put_copy(shadow: Service, items: Sequence[Item]) -> None:
    """ApiError for what does not fit, when the rest is written."""
    fits, refused = await _all_checked(shadow, items)
    if fits:
        accepted(await shadow.backend.put(fits))
    if refused:
        message = f"{len(refused)} of {len(items)} items do not fit; {refused[0].item_id!r}: {refused[0].reason}"
        raise ApiError(Refusal(422, "rejected", message))


async def _remove(service: Service, item_id: str) -> None:
    """From a table that may not have it."""
    answer = await service.backend.delete(item_id)
    if not (isinstance(answer, Refusal) and answer.status == 404):
        accepted(answer)


async def _all_checked(service: Service, items: Sequence[Item]) -> tuple[list[NewItem], list[Rejected]]:
    checked = await asyncio.gather(*(_checked(service, item) for item in items))
    fits = [each for each in checked if isinstance(each, NewItem)]
    return fits, [each for each in checked if isinstance(each, Rejected)]


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
