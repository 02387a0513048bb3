"""The finished run that the comparisons of embedding and of the server share, and its encoder as a peer loads it."""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import yaml

from .setting import Setting
from .shop import E5, Shop, for_sentence_transformers

ITEMS = 2000


@dataclass(frozen=True)
class Finished:
    """`exported`: what `sidray export` wrote; its folder text/ is the encoder of the run."""

    shop: Shop
    run: Path
    exported: Path

    @classmethod
    def make(cls, setting: Setting) -> Finished:
        """`sidray run` and `sidray export`; a run that is there stays."""
        shop = Shop.write(setting.work / "run", ITEMS, E5)
        recipe, exported = shop.folder / "recipe.yaml", shop.folder / "exported"
        values = shop.recipe(shop.folder / "store", steps=2, batch=32, workers=1)
        recipe.write_text(yaml.safe_dump(values))
        _sidray("run", recipe)
        run = next((shop.folder / "store/runs").iterdir())
        shutil.rmtree(exported, ignore_errors=True)
        _sidray("export", run, exported)
        for_sentence_transformers(exported / "text")
        return cls(shop, run, exported)


def _sidray(*arguments: str | Path) -> None:
    command = [sys.executable, "-m", "sidray.cli", *map(str, arguments)]
    subprocess.run(command, check=True, stdout=sys.stderr)
