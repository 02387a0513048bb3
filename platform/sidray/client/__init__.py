"""The Python client of the service: every route, typed, with the contract's retries.

    from sidray.client import Client

    with Client("http://127.0.0.1:8000", api_key="...") as client:
        client.wait_until_ready(timeout_s=60)
        for hit in client.search("noodle soup", k=5).hits:
            print(f"{hit.score:.3f} {hit.title}")
        written = client.put_items([{"item_id": "a1", "title": "Ramen", "image": Path("ramen.jpg")}])
        client.search("ramen", min_table_version=written.table_version)

`AsyncClient` has the same methods as coroutines. It needs httpx, numpy and pydantic: no Ray, no torch.
"""

from sidray.client.asynchronous import AsyncClient
from sidray.client.errors import ApiError, ClientError, ConnectionFailed
from sidray.client.rows import Picture
from sidray.client.synchronous import Client
from sidray.serving.embedding_schemas import TextOrImage
from sidray.serving.item_schemas import Event, Item

__all__ = [
    "ApiError",
    "AsyncClient",
    "Client",
    "ClientError",
    "ConnectionFailed",
    "Event",
    "Item",
    "Picture",
    "TextOrImage",
]
