"""Training side by side: query2text with InfoNCE, the same encoder, pairs, global batch and rate, one thread a worker.

Peers: sentence-transformers' trainer, which gathers negatives over workers as ours does, and a bare torch DDP loop.
Memory is that of all processes of an arm, and of the largest, which is a worker.
"""

from __future__ import annotations

import functools
import subprocess
import sys
from pathlib import Path

import yaml

from .arms import Figures, in_turns, mean, run
from .setting import SCRIPTS, Setting
from .shop import SMALL, Shop
from .table import Figure, Row, compare

ST, DDP = "sentence-transformers", "torch DDP loop"
OURS = SCRIPTS / "sidray_training.py"
ITEMS, BATCH, RATE = 4000, 64, 1e-4
STEPS, WARM = 60, 20  # the first ones are not timed: processes still start beside them
_RAY = "Ray's own processes and idle workers, which do not grow with the model"
_RATE = (
    "Ray's other 19 processes take .11 of a core from the workers; "
    "DeepSpeed sums gradients after a backward pass (3 % of a step), DDP during it"
)
_IMPORTS = "Ray, DeepSpeed and Lance are 149 MiB of imports"
_ORDER = "not comparable closer than this: each draws an order of the pairs of its own"
MEMORY = Figure("peak MiB", "peak memory of all processes, MiB", True, {ST: _RAY, DDP: _RAY})
LARGEST = Figure("largest MiB", "peak memory of a worker, MiB", True, {ST: _IMPORTS, DDP: _IMPORTS})
LOSS = Figure("last loss", "loss of the last steps", True, {ST: _ORDER, DDP: _ORDER})
SAMPLES = Figure("samples/s", "samples/s", False, {ST: _RATE, DDP: _RATE})


def rows(setting: Setting) -> list[Row]:
    shop = Shop.write(setting.work / "training", ITEMS, SMALL)
    prepare(shop)
    found: list[Row] = []
    rates: dict[str, list[float]] = {}
    for workers in (1, 2):
        arms = {"sidray": functools.partial(_ours, shop, workers)}
        arms |= {
            name: functools.partial(_peer, setting, shop, workers, script)
            for name, script in ((ST, "st_training.py"), (DDP, "ddp_training.py"))
        }
        done = in_turns(arms, setting.rounds)
        plural = f"{workers} worker{'s' * (workers > 1)}"
        figures = [
            Figure(each.key, f"{each.name}, {plural}", each.less_is_better, each.causes)
            for each in (SAMPLES, MEMORY, LARGEST, LOSS)
        ]
        found += compare("training", figures, done)
        for name, each in done.items():
            if isinstance(each, list):
                rates.setdefault(name, []).append(mean(each)["samples/s"])
    return found + scaling(rates)


def scaling(rates: dict[str, list[float]]) -> list[Row]:
    """How many times the samples/s of one worker two have."""
    factors = {name: [{"factor": each[1] / each[0]}] for name, each in rates.items() if len(each) == 2}
    figure = Figure("factor", "1 -> 2 workers, times the samples/s", False, {ST: _RATE, DDP: _RATE})
    return compare("training", [figure], factors) if "sidray" in factors else []


def prepare(shop: Shop) -> None:
    """The steps before the stage, so that neither time nor memory of an arm has them."""
    subprocess.run([*_command(shop, 1), "--prepare"], check=True, stdout=sys.stderr)


def _ours(shop: Shop, workers: int) -> Figures:
    return run(_command(shop, workers), threads=1)


def _command(shop: Shop, workers: int) -> list[str]:
    return [sys.executable, str(OURS), str(_recipe(shop, workers)), "--warm", str(WARM)]


def _recipe(shop: Shop, workers: int) -> Path:
    recipe = shop.recipe(shop.folder / "store", STEPS, BATCH, workers=workers)
    recipe["stages"][0]["lr"] = RATE
    path = shop.folder / f"recipe-{workers}.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


def _peer(setting: Setting, shop: Shop, workers: int, script: str) -> Figures:
    python: Path = setting.venvs.python(ST)
    launch: list[object] = [
        python,
        "-m",
        "torch.distributed.run",
        "--standalone",
        f"--nproc_per_node={workers}",
        SCRIPTS / script,
    ]
    given: list[object] = ["--encoder", shop.encoder, "--pairs", shop.folder / "pairs.json"]
    sizes = ["--batch", str(BATCH), "--steps", str(STEPS), "--lr", str(RATE), "--warm", str(WARM)]
    return run([*launch, *given, *sizes], threads=1)
