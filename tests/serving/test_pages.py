"""The examples of docs/serving-api.md, against a service."""

from __future__ import annotations

import json
import shutil
import subprocess
from typing import Any

import pytest

from tests.docs.pages import ROOT, blocks, commands

pytestmark = pytest.mark.ray
PAGE = ROOT / "docs" / "serving-api.md"
URL = "http://127.0.0.1:8000"


def of_page(language: str, url: str) -> list[str]:
    return [block.text.replace(URL, url) for block in blocks(language, PAGE)]


def test_the_clients(service: str) -> None:
    ours, openai = of_page("python", service)
    pytest.importorskip("openai")
    found: dict[str, Any] = {}
    exec(ours, found)
    assert found["found"].index.table_version >= found["written"].table_version
    assert len(found["found"].hits) == 5
    assert "new-1" not in [hit.item_id for hit in found["near"].hits]
    exec(openai, found)
    width = len(found["vectors"][0])
    assert [len(vector) for vector in found["vectors"]] == [width, width]
    exec(ours + '\nclient = Client("' + service + '"); client.delete_item("new-1"); client.close()', found)


@pytest.mark.skipif(shutil.which("curl") is None, reason="no curl")
def test_from_a_shell(service: str) -> None:
    (block,) = of_page("bash", service)
    answers = []
    for words in commands(block):
        done = subprocess.run([*words, "--silent", "--fail"], check=True, capture_output=True, text=True)
        answers.append(json.loads(done.stdout))
    assert len(answers[0]["hits"]) == 5
    assert answers[1]["items"] >= 300
