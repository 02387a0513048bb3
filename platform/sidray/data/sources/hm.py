"""H&M's competition data (academic, non-commercial): the public Kaggle folder, or one prepared as contract tables.

    build(DataSettings(source="hm", folder="h-and-m-personalized-fashion-recommendations"), "work")

The item's text holds its name, type and description, never its colour or print: these stand in the photo alone, and the
queries ask for them. So the text alone cannot tell apart an article's siblings in other colours.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pcsv
from PIL import Image

from sidray import storage
from sidray.data import related, splits
from sidray.data.settings import CONTRACT, DataSettings
from sidray.data.sources.writing import parquet_writer, write_drawn, write_parquet
from sidray.errors import UserError, nearest

FILES = (
    "articles.csv",
    "transactions_train.csv",
    "items",
    *(f"{name}.parquet" for name in CONTRACT if name != "items"),
)
PHOTO_SIZE = 256  # pixels of the longer side; the originals have 1166 x 1750
BATCH = 128  # photos that one task shrinks
VAGUE_PRINTS = ("Solid", "Other structure", "Other pattern")  # say nothing that a photo shows; left out of queries
NO_COLOUR = ("Unknown", "undefined")
RELATED = 10  # most pairs of an article
ARTICLE_COLUMNS = {  # ours -> the file's
    "item_id": "article_id",
    "product_code": "product_code",
    "title": "prod_name",
    "category": "product_type_name",
    "print": "graphical_appearance_name",
    "colour": "colour_group_name",
    "partition": "index_group_name",
    "description": "detail_desc",
}
EVENTS = pa.schema({"user_id": pa.string(), "item_id": pa.string(), "action": pa.string(), "ts": pa.timestamp("us")})
Ints = npt.NDArray[np.int64]
Keys = npt.NDArray[np.uint64]


def build(settings: DataSettings, folder: str) -> dict[str, str]:
    """Table name -> URI: the prepared folder's own tables, or tables made from the Kaggle folder below `folder`.

    Raises UserError when data.folder is neither."""
    source = storage.absolute(settings.folder)
    if storage.exists(storage.join(source, "articles.csv")):
        return _from_kaggle(settings, source, folder)
    found = {"items": storage.join(source, "items")}
    found |= {name: storage.join(source, f"{name}.parquet") for name in CONTRACT if name != "items"}
    found = {name: uri for name, uri in found.items() if storage.exists(uri)}
    if "items" not in found:
        raise UserError(
            f"data.folder: {settings.folder} has neither articles.csv (the Kaggle folder) nor items/ (a prepared one)",
            "download the data of the competition h-and-m-personalized-fashion-recommendations and name its folder",
        )
    return found


def _from_kaggle(settings: DataSettings, source: str, folder: str) -> dict[str, str]:
    articles = read_articles(storage.join(source, "articles.csv")).slice(0, settings.limit)
    uris = {name: storage.join(folder, f"{name}.parquet") for name in CONTRACT}
    kept = articles.select(["item_id", "title", "category", "description", "partition"])

    def photos(block: pa.Table) -> pa.Table:
        images = [read_photo(source, item_id) for item_id in block["item_id"].to_pylist()]
        return block.drop_columns(["path"]).append_column("image", pa.array(images, pa.binary()))

    write_drawn(kept.append_column("path", kept["item_id"]), photos, BATCH, uris["items"])
    write_parquet(_clicks(articles, settings), uris["clicks"])
    baskets, bought = _write_events(storage.join(source, "transactions_train.csv"), articles["item_id"], uris["events"])
    write_parquet(_pairs(articles, baskets, bought, settings), uris["pairs"])
    return uris


def read_articles(uri: str) -> pa.Table:
    """articles.csv with our column names, all string, without nulls."""
    filesystem, path = storage.open_uri(uri)
    with filesystem.open_input_stream(path) as stream, _csv_errors(uri):
        text = {column: pa.string() for column in ARTICLE_COLUMNS.values()}
        parsing = pcsv.ParseOptions(newlines_in_values=True)
        articles = pcsv.read_csv(
            stream, None, parsing, pcsv.ConvertOptions(column_types=text, strings_can_be_null=False)
        )
    return pa.table({name: _column(articles, column, uri) for name, column in ARTICLE_COLUMNS.items()})


@contextmanager
def _csv_errors(uri: str) -> Iterator[None]:
    try:
        yield
    except pa.ArrowInvalid as error:
        raise UserError(f"{uri} cannot be read as CSV: {error}", "download the file again") from error


def _column(table: pa.Table | pa.RecordBatch, name: str, uri: str) -> pa.ChunkedArray:
    if name not in table.schema.names:
        raise UserError(f"{uri} has no column {name!r}{nearest(name, table.schema.names)}", "download the file again")
    return table.column(name)


def read_photo(source: str, item_id: str) -> bytes | None:
    """The article's photo as JPEG, its longer side PHOTO_SIZE; as it is when it does not decode, None when absent."""
    uri = storage.join(source, "images", item_id[:3], f"{item_id}.jpg")
    if not storage.exists(uri):
        return None
    data = storage.read_bytes(uri)
    try:
        with Image.open(io.BytesIO(data), formats=("JPEG",)) as photo:
            photo.draft("RGB", (PHOTO_SIZE, PHOTO_SIZE))
            photo.thumbnail((PHOTO_SIZE, PHOTO_SIZE))
            small = io.BytesIO()
            photo.convert("RGB").save(small, "JPEG", quality=90)
    except Exception:  # the ingest finds the reason and sets the article aside
        return data
    return small.getvalue()


def _clicks(articles: pa.Table, settings: DataSettings) -> pa.Table:
    """Three queries for each article with a named colour, split by product_code: siblings stay together."""
    split_of = splits.names(_split_codes(articles, settings, "clicks:")).to_pylist()
    rows = [
        {"query": query, "item_id": article["item_id"], "partition": article["partition"], "split": split, "kind": kind}
        for article, split in zip(articles.to_pylist(), split_of, strict=True)
        if article["colour"] not in NO_COLOUR
        for kind, query in queries_of(article)
    ]
    fields = [pa.field(name, pa.string()) for name in ("query", "item_id", "partition", "split", "kind")]
    return pa.Table.from_pylist(rows, pa.schema(fields))


def queries_of(article: dict[str, str]) -> Iterator[tuple[str, str]]:
    """(kind, query): name = colour [print] name, name_first = name colour, type = colour [print] product type."""
    look = article["colour"] if article["print"] in VAGUE_PRINTS else f"{article['colour']} {article['print']}"
    texts = {
        "name": f"{look} {article['title']}",
        "name_first": f"{article['title']} {article['colour']}",
        "type": f"{look} {article['category']}",
    }
    for kind, text in texts.items():
        yield kind, " ".join(text.lower().split())


def _write_events(uri: str, item_ids: pa.ChunkedArray, target: str) -> tuple[Keys, Ints]:
    """Streams the transactions to an events table; returns (basket, article row) of each purchase, 16 bytes together.

    A basket is what one customer bought on one day, as a 64-bit key."""
    filesystem, path = storage.open_uri(uri)
    if not storage.exists(uri):
        raise UserError(f"{uri} does not exist", "put the competition's transactions_train.csv into data.folder")
    types = {"t_dat": pa.timestamp("us"), "customer_id": pa.string(), "article_id": pa.string()}
    reading, converting = pcsv.ReadOptions(block_size=16 * 2**20), pcsv.ConvertOptions(column_types=types)
    baskets, bought = [], []
    with filesystem.open_input_stream(path) as stream, parquet_writer(target, EVENTS) as writer, _csv_errors(uri):
        for batch in pcsv.open_csv(stream, reading, convert_options=converting):
            stamp, user, item_id = (_column(batch, name, uri) for name in types)
            user = pc.utf8_slice_codeunits(user, 0, 16)  # 64 of the 256 bits of their hash
            action = pa.array(["conversion"] * batch.num_rows)
            writer.write_table(pa.table([user, item_id, action, stamp], schema=EVENTS))
            row = pc.index_in(item_id, item_ids).fill_null(-1).to_numpy().astype(np.int64)
            bought.append(row[row >= 0])
            baskets.append(_baskets(user, stamp, uri)[row >= 0])
    return np.concatenate(baskets), np.concatenate(bought)


def _baskets(user: pa.Array, stamp: pa.Array, uri: str) -> Keys:
    """uint64 [rows]: the customer's hash shifted by the time, so that equal means the same customer and day."""
    try:
        customer = np.frombuffer(bytes.fromhex("".join(user.to_pylist())), dtype=">u8").astype(np.uint64)
    except ValueError as error:
        raise UserError(f"{uri}: a customer_id is not a hexadecimal hash", "download the file again") from error
    day: Keys = stamp.cast(pa.int64()).to_numpy().astype(np.uint64)
    return customer + day * np.uint64(0x9E3779B97F4A7C15)


def _pairs(articles: pa.Table, baskets: Keys, bought: Ints, settings: DataSettings) -> pa.Table:
    """Articles bought together, the most frequent ones of each; split by product_code on a hash of their own."""
    basket = np.unique(baskets, return_inverse=True)[1].astype(np.int64)
    item, other, count = related.bought_together(basket, bought, articles.num_rows, RELATED)
    codes = _split_codes(articles, settings, "pairs:")
    ids = articles["item_id"]
    return pa.table(
        {
            "item_id": ids.take(pa.array(item)),
            "related_id": ids.take(pa.array(other)),
            "split": splits.names(splits.of_pairs(codes[item], codes[other])),
            "score": pa.array(count, pa.float32()),
        }
    )


def _split_codes(articles: pa.Table, settings: DataSettings, salt: str) -> splits.Codes:
    """int8 [articles]: by product_code, so that an article's siblings in other colours share its split."""
    codes = (salt + code for code in articles["product_code"].to_pylist())
    return splits.by_hash(codes, settings.valid_fraction, settings.test_fraction, settings.seed)
