"""A finished run's folder: the names that are made from it."""

from __future__ import annotations

from sidray import storage
from sidray.finished import RunFolder
from sidray.recipe import load_recipe


def test_the_collection_of_a_variant_has_a_plain_name_in_an_object_store_alone() -> None:
    recipe, _, _ = load_recipe("smgr-debug", [])

    def name(root: str, label: str) -> str:
        return RunFolder(f"{root}/runs/own-1", label, recipe, {}).name

    assert name("/data", "basic method") == "own-1-basic method"
    assert name("s3://bucket", "dual-tower") == "own-1-dual-tower"
    assert name("s3://bucket", "basic method").startswith("own-1-basic-method-")
    assert name("s3://bucket", "basic method") != name("s3://bucket", "basic#method")
    storage.check_letters(f"s3://bucket/{name('s3://bucket', 'basic method, größer')}")
