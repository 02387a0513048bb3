"""The health report against counts by hand."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sidray.errors import UserError
from sidray.tokenizers.health import check, collisions, health, measure, plot_health
from sidray.tokenizers.rkmeans import RkMeansTokenizer
from sidray.tokenizers.rqvae import RqVaeTokenizer
from sidray.tokenizers.settings import TokenizerSettings
from tests.tokenizers.conftest import mixture


def test_report_by_hand() -> None:
    rows = np.array([[0.0]] * 6 + [[1.0]] * 2, dtype=np.float32)
    tokenizer = RkMeansTokenizer("item", TokenizerSettings(kind="rkmeans", entries=4, levels=2, standardise=False))
    tokenizer.fit(rows)
    report = measure(tokenizer, rows)
    first, second = report["levels"]
    assert (report["items"], report["entries"]) == (8, 4)
    assert (first["utilisation"], first["dead_codes"]) == (0.5, 2)
    assert first["perplexity"] == pytest.approx(4 / 3**0.75)  # shares 3/4 and 1/4
    assert (second["utilisation"], second["dead_codes"], second["perplexity"]) == (0.25, 3, 1.0)
    assert first["relative_error"] == second["relative_error"] == 0
    assert report["collisions"] == {"distinct": 2, "shared_share": 1.0, "largest_group": 6}


def test_collisions_by_hand() -> None:
    codes = np.array([[0, 1], [1, 0], [0, 1], [2, 2], [2, 2], [0, 1]], dtype=np.int32)
    assert collisions(codes) == {"distinct": 3, "shared_share": 5 / 6, "largest_group": 3}


def test_relative_error_per_level(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = mixture(300, 8, 20)
    tokenizer = RqVaeTokenizer("item", TokenizerSettings(entries=8, epochs=5))
    tokenizer.fit(rows)
    monkeypatch.setattr("sidray.tokenizers.health.BATCH", 64)
    errors = [level["relative_error"] for level in measure(tokenizer, rows)["levels"]]
    spread = np.square(rows - rows.mean(0)).sum()
    codes = tokenizer.encode(rows)
    expected = [np.square(rows - tokenizer.decode(codes[:, :level])).sum() / spread for level in (1, 2, 3)]
    assert errors == pytest.approx(expected, rel=1e-4)


def test_check_names_modality_level_and_remedy(tmp_path: Path) -> None:
    rows = {"text": mixture(300, 8, 20), "image": mixture(300, 8, 4)}
    rows["image"][:] = rows["image"][:3].repeat(100, axis=0)  # three pictures: at most three codes
    settings = TokenizerSettings(kind="rkmeans", entries=8, min_utilisation=0.5)
    tokenizers = {modality: RkMeansTokenizer(modality, settings) for modality in rows}
    for modality, tokenizer in tokenizers.items():
        tokenizer.fit(rows[modality])
    report = health(tokenizers, rows)
    with pytest.raises(UserError, match=r"image tokenizer uses 3 of 8 codes on level 1 for 300 items") as raised:
        check(report, settings)
    assert "tokenizer.entries" in raised.value.remedy
    check({"text": report["text"]}, settings)
    check(report, settings.model_copy(update={"min_utilisation": 0.0}))
    assert json.loads(json.dumps(report)) == report
    plot_health(report, tmp_path / "health.png")
    with Image.open(tmp_path / "health.png") as image:
        assert image.size == (1100, 770)
        assert len(image.convert("RGB").getcolors(maxcolors=10**6) or []) > 50
