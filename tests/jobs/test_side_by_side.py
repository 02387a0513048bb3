"""The side-by-side benchmark without its peers: arms that fail, the direction of ratios, what is stored, the table."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import numpy as np
import pytest

from jobs.bench.peers import recall, tokenizer, training
from jobs.bench.peers.arms import Figures, NotRunError, in_turns, mean, run
from jobs.bench.peers.load import Target, load
from jobs.bench.peers.results import Part, Results
from jobs.bench.peers.setting import Setting
from jobs.bench.peers.table import Figure, Row, compare
from jobs.bench.peers.venvs import Venvs, pins

ROOT = Path(__file__).resolve().parents[2]
FIGURES = [Figure("items/s", "items/s", False, {"peer": "it has a cause"}), Figure("s", "seconds", True)]


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def test_the_last_json_line_of_an_arm_and_the_memory_of_its_children(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jobs.bench.peers.arms.EVERY_S", 0.05)
    child = "import time; held = bytearray(b'x') * 200_000_000; time.sleep(1)"
    parent = f"import os, subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}]); print('note')"
    figures = run(python(parent + "; print('{\"n\": ' + os.environ['OMP_NUM_THREADS'] + '}')"), threads=3)
    assert figures["n"] == 3
    assert 190 < figures["largest MiB"] < figures["peak MiB"] < 300


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        (python("raise ValueError('no such weights')"), "ValueError: no such weights"),
        (python("raise SystemExit(3)"), "exit code 3"),
        (python("print('hello')"), "it printed no figures"),
        (["/nowhere/python"], "/nowhere/python: No such file or directory"),
    ],
)
def test_an_arm_that_fails_says_why(command: list[str], reason: str) -> None:
    with pytest.raises(NotRunError, match=reason):
        run(command, threads=1)


def test_an_arm_that_takes_too_long_is_ended_with_its_children(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("jobs.bench.peers.arms.EVERY_S", 0.05)
    monkeypatch.setattr("jobs.bench.peers.arms.LIMIT_S", 1.0)
    monkeypatch.setattr("jobs.bench.peers.arms.STOP_S", 5.0)
    noted = f"pathlib.Path({str(tmp_path / 'pid')!r}).write_text(str(os.getpid()))"
    child = f"import os, pathlib, time; {noted}; time.sleep(60)"
    with pytest.raises(NotRunError, match="longer than 1 s"):
        run(python(f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"), threads=1)
    status = Path(f"/proc/{(tmp_path / 'pid').read_text()}/status")
    assert not status.exists() or "Z (zombie)" in status.read_text()


def test_arms_take_turns_and_one_that_failed_is_not_tried_again() -> None:
    called: list[str] = []

    def arm(name: str) -> Figures:
        called.append(name)
        if name == "b":
            raise NotRunError("it is broken")
        return {"x": len(called)}

    found = in_turns({name: lambda name=name: arm(name) for name in "abc"}, rounds=2)
    assert called == ["a", "b", "c", "c", "a"]
    assert str(found["b"]) == "it is broken"
    assert isinstance(found["a"], list)
    assert mean(found["a"]) == {"x": 3.0}
    assert mean([{"x": 1, "wait": "5 %"}, {"x": 2, "wait": "7 %"}]) == {"x": 1.5, "wait": "7 %"}


@pytest.mark.parametrize(
    ("ours", "theirs", "less", "ratio"), [(20, 10, False, 2.0), (20, 10, True, 0.5), (None, 1, False, None)]
)
def test_a_ratio_above_1_says_that_sidray_is_ahead(ours: float | None, theirs: float, less: bool, ratio: float) -> None:
    assert Row("part", "x", "peer", ours, theirs, less).ratio == ratio


def test_where_we_are_behind_the_row_says_so_and_why() -> None:
    found: dict[str, list[Figures] | NotRunError] = {
        "sidray": [{"items/s": 5, "s": 4}],
        "peer": [{"items/s": 10, "s": 2}],
    }
    assert [row.note for row in compare("part", FIGURES, found)] == ["behind: it has a cause", "behind"]
    found["peer"] = [{"items/s": 2, "s": 8}]
    assert [row.note for row in compare("part", FIGURES, found)] == ["", ""]


def test_who_did_not_run_has_a_row_that_says_why() -> None:
    ours: list[Figures] = [{"items/s": 5, "s": 4}]
    rows = compare("part", FIGURES, {"sidray": ours, "peer": NotRunError("no wheel for this Python")})
    assert rows == [Row("part", "items/s", "peer", 5.0, None, note="not run: no wheel for this Python")]
    rows = compare("part", FIGURES, {"sidray": NotRunError("a bug"), "peer": ours})
    assert {row.note for row in rows} == {"sidray not run: a bug"}
    assert {row.ratio for row in rows} == {None}


def test_a_peer_that_does_not_install_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jobs.bench.peers.venvs.pins", lambda: {"peer": [str(tmp_path / "no-such-package")]})
    monkeypatch.setattr("jobs.bench.peers.venvs._venv", lambda folder: folder.mkdir())
    with pytest.raises(NotRunError, match="it did not install"):
        Venvs(tmp_path).python("peer")
    (tmp_path / "peer/installed.json").write_text(json.dumps([str(tmp_path / "no-such-package")]))
    assert Venvs(tmp_path).python("peer") == tmp_path / "peer/bin/python"


def test_versions_are_pinned() -> None:
    assert all("==" in each for wanted in pins().values() for each in wanted)


@contextmanager
def embedding_server(status: int) -> Iterator[tuple[str, list[list[str]]]]:
    """Answers every POST with one vector for each input, after 10 ms. Its URL, and the inputs so far."""
    answered: list[list[str]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            inputs = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["input"]
            answered.append(inputs)
            time.sleep(0.01)
            body = json.dumps({"data": [{"embedding": ""}] * len(inputs)}).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}/v1/embeddings", answered
        server.shutdown()


def test_the_load_counts_tokens_of_what_was_answered() -> None:
    tokens = {"a": 3, "b": 5}
    with embedding_server(200) as (url, answered):
        started = time.perf_counter()
        found = asyncio.run(load(Target(url, "m"), [["a"], ["b", "c"]], list(tokens.values()), clients=2, seconds=0.5))
        lasted = time.perf_counter() - started
    assert set(found) == {"tokens/s", "p50 ms", "p99 ms"}
    assert 10 <= found["p50 ms"] <= found["p99 ms"] <= lasted * 1000
    read = sum(tokens[inputs[0]] for inputs in answered)
    assert read / lasted <= found["tokens/s"] <= read / 0.5
    assert {tuple(inputs) for inputs in answered} == {("a",), ("b", "c")}


def test_a_server_that_refuses_is_not_run() -> None:
    with embedding_server(500) as (url, _), pytest.raises(NotRunError, match="500 from"):
        asyncio.run(load(Target(url, "m"), [["a"]], [1], clients=1, seconds=0.5))


def test_stored_parts_make_one_table(tmp_path: Path) -> None:
    results = Results(tmp_path / "results")
    results.add("tokenizer", Part.of([Row("tokenizer", "encode, items/s", "vq", 12345.6, 6172.8)], 61))
    results.add("training", Part.of([Row("training", "samples/s", "st", None, None, note="not run: no wheel")], 3))
    old = Row("tokenizer", "encode, items/s", "vq", 0.1234, 0.05, True, note="behind")
    results.add("tokenizer", Part.of([old], 60))
    text = results.table(["training", "tokenizer", "recall"])
    assert "| samples/s | st |  |  |  | not run: no wheel |" in text
    assert "| encode, items/s | vq | 0.123 | 0.05 | 0.41 | behind |" in text
    assert "12,346" not in text
    assert text.index("| training |") < text.index("| tokenizer |")
    assert (tmp_path / "results/table.md").read_text() == text
    stored = json.loads((tmp_path / "results/results.json").read_text())
    assert {"rows", "seconds", "commit", "machine", "versions", "load", "ended"} == set(stored["tokenizer"])
    assert Row.of_json(stored["tokenizer"]["rows"][0]) == old


def test_equal_reconstruction_is_the_worse_of_the_two_least_errors() -> None:
    ours = [{"epochs": [(1, 9.0), (2, 5.0), (3, 4.0)], "encode items/s": 7.0}]
    peer = [{"epochs": [(2, 8.0), (4, 6.0), (6, 7.0)], "encode items/s": 9.0}]
    found = tokenizer.with_targets({"sidray": ours, "peer": peer, "other": NotRunError("no wheel")})
    rows = compare("tokenizer", tokenizer.FIGURES, found)
    assert (rows[0].ours, rows[0].theirs, rows[0].ratio) == (2, 4, 2)  # 5 is below 6, which the peer has after 4 s
    assert (rows[1].ours, rows[1].theirs) == (tokenizer.ITEMS, tokenizer.ITEMS / 2)
    assert rows[-1].note == "not run: no wheel"


def test_two_workers_beside_one() -> None:
    rows = training.scaling({"sidray": [100.0, 150.0], "peer": [100.0, 200.0], "half": [100.0]})
    (row,) = rows
    assert (row.peer, row.ours, row.theirs, row.ratio, row.note) == ("peer", 1.5, 2.0, 0.75, "behind")


def test_recall_is_rendered_from_the_line_of_its_bench() -> None:
    figures = {"QPS": 400.0, "CPU QPS": 500.0, "p99 ms": 4.0, "recall@10": 1.0}
    line = {
        "items": 5000,
        "build s": 1.0,
        "sidray": figures,
        "ivf": {**figures, "QPS": 100.0},
        "usearch": {"error": "no"},
    }
    rows = list(recall._rows(line))
    assert rows[0] == replace(rows[0], figure="queries/s, 5,000 items", peer="ivf", ours=400.0, theirs=100.0)
    assert rows[-1].note == "not run: no"


def test_a_made_up_shop_is_the_same_twice_and_peers_read_the_same_tokens(tmp_path: Path) -> None:
    from jobs.bench.peers.shop import MAX_TOKENS, Shop
    from sidray.models.prompts import Prompter, load_tokenizer
    from sidray.recipe import from_values

    encoder = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    one, two = (Shop.write(tmp_path / name, 60, encoder) for name in "ab")
    for name in ("items.txt", "pairs.json", "encoder/model.safetensors", "encoder/tokenizer.json"):
        assert (one.folder / name).read_bytes() == (two.folder / name).read_bytes()
    recipe, _, _ = from_values(one.recipe(tmp_path, steps=2, batch=8), "shop")
    tokenizer_ = load_tokenizer(one.encoder)
    prompter = Prompter(tokenizer_, recipe.model.text, recipe.model.prompts, recipe.data.text_fields)
    texts = (one.folder / "items.txt").read_text().split("\n")
    peers = tokenizer_(texts, truncation=True, max_length=MAX_TOKENS)["input_ids"]
    assert [[*ids, prompter.eos] for ids in prompter.items(texts)] == peers
    assert len(json.loads((one.folder / "pairs.json").read_text())) == 54


def test_the_command_line() -> None:
    command = [sys.executable, "jobs/bench/side_by_side.py", "--help"]
    done = subprocess.run(command, cwd=ROOT, text=True, capture_output=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert "--only" in done.stdout


def test_the_item_head_is_that_of_the_towers(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save_file

    from jobs.bench.peers.embedding import item_head
    from sidray.models.settings import Fusion
    from sidray.models.towers import fuse, mlp

    torch.manual_seed(0)
    head, hidden = mlp(6, [4]), torch.randn(5, 6)
    save_file(
        {f"mlp_i.{name}": value.detach() for name, value in head.named_parameters()}, tmp_path / "towers.safetensors"
    )
    expected = torch.nn.functional.normalize(head(fuse(hidden, None, Fusion())), dim=-1).detach().numpy()
    np.testing.assert_allclose(item_head(tmp_path, hidden.numpy()), expected, atol=1e-6)


def test_what_does_not_install_has_a_row_that_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(venvs: Venvs, peer: str) -> Path:
        raise NotRunError(f"{peer} needs a compiler")

    monkeypatch.setattr(Venvs, "beside_ours", broken)
    (row,) = recall.rows(Setting(Venvs(tmp_path), tmp_path, 1))
    assert (row.ratio, row.note) == (None, "not run: recall needs a compiler")
    none = {"sidray": NotRunError("a bug"), "peer": NotRunError("no wheel")}
    assert tokenizer.with_targets({**none}) == none
