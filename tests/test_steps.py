"""The step store: keys, reruns, killed attempts, two drivers on one step, unwritable folders."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from sidray import lease, storage
from sidray.errors import UserError
from sidray.lease import EXPIRY_S, Lease
from sidray.steps import Chained, Step, Store, Work, in_order


def make(name: str, calls: list[str], config: dict[str, Any] | None = None, version: int = 1, **inputs: Step) -> Step:
    def run(work: Work) -> dict[str, Any]:
        calls.append(name)
        storage.write_json(work.path("out.json"), {"of": sorted(work.inputs)})
        return {"calls": len(calls)}

    return Step(name, run, config or {}, version, inputs)


def quiet(root: Path) -> Store:
    return Store(str(root), say=lambda line: None)


def test_a_rerun_is_a_no_op_and_a_change_reruns_what_depends_on_it(tmp_path: Path) -> None:
    calls: list[str] = []
    store = quiet(tmp_path)

    def chain(number: int) -> Step:
        a = make("a", calls, {"n": 0})
        b = make("b", calls, {"n": number}, a=a)
        return make("c", calls, {}, b=b)

    first = store.ensure(chain(1))
    assert calls == ["a", "b", "c"]
    assert store.ensure(chain(1)) == first
    assert calls == ["a", "b", "c"]
    assert store.ensure(chain(2)) != first
    assert calls == ["a", "b", "c", "b", "c"]
    manifest = store.manifest(chain(1))
    assert manifest is not None
    assert set(manifest) >= {"name", "key", "attempt", "inputs", "seconds", "bytes", "summary"}


def test_the_key_depends_on_all_four_and_on_nothing_else() -> None:
    calls: list[str] = []
    base = make("a", calls, {"x": 1})
    assert make("a", calls, {"x": 1}).key == base.key
    others = [
        make("b", calls, {"x": 1}),
        make("a", calls, {"x": 2}),
        make("a", calls, {"x": 1}, 2),
        make("a", calls, {"x": 1}, i=base),
    ]
    assert len({base.key, *(step.key for step in others)}) == 5


def test_shared_steps_are_listed_once() -> None:
    calls: list[str] = []
    a = make("a", calls)
    b, c = make("b", calls, a=a), make("c", calls, a=make("a", calls))
    assert [step.name for step in in_order({"b": b, "c": c})] == ["a", "b", "c"]


class Stage(Chained):
    """Notes what it finds in its output, leaves a checkpoint there, and fails the first time."""

    def __init__(self) -> None:
        self.found: list[tuple[str, bool]] = []

    def together(self, runs: Sequence[Any], works: Sequence[Work]) -> list[dict[str, Any]]:
        return [self.once(work) for work in works]

    def once(self, work: Work) -> dict[str, Any]:
        self.found.append((work.output, storage.exists(work.path("checkpoint"))))
        storage.write_bytes(work.path("checkpoint"), b"half")
        if len(self.found) == 1:
            raise RuntimeError("killed")
        return {}


@pytest.mark.parametrize("continues", [True, False])
def test_a_killed_attempt_is_adopted_and_only_a_stage_finds_what_it_left(tmp_path: Path, continues: bool) -> None:
    store, stage = quiet(tmp_path), Stage()
    step = Step("a", stage if continues else stage.once, {}, 1)
    with pytest.raises(RuntimeError):
        store.ensure(step)
    assert store.manifest(step) is None
    output = store.ensure(step)
    assert stage.found == [(output, False), (output, continues)]


def test_what_another_driver_finished_meanwhile_is_not_computed_again(tmp_path: Path) -> None:
    """Two recipes that share their first stages; the other driver does them while this one computes what they need."""
    stages, other = Stage(), Stage()
    stages.found, other.found = [("", False)], [("", False)]  # neither fails

    def steps(stage: Stage, needed: Step) -> tuple[Step, Step]:
        first = Step("one", stage, {}, 1, {"needed": needed})
        return first, Step("two", stage, {}, 1, {"start": first})

    def slow(work: Work) -> dict[str, Any]:
        storage.write_json(work.path("out.json"), {})
        return {}

    def meanwhile(work: Work) -> dict[str, Any]:
        quiet(tmp_path).ensure(steps(other, Step("other", slow, {}, 1))[0])
        return slow(work)

    # The stage needs the same step under both drivers; this one has one more before it.
    needed = Step("other", slow, {}, 1)
    before = Step("before", meanwhile, {}, 1)
    first, _ = steps(stages, needed)
    last = Step("two", stages, {}, 1, {"before": before, "start": first})
    quiet(tmp_path).ensure(last)
    assert [Path(output).parent.name.partition("-")[0] for output, _ in other.found[1:]] == ["one"]
    assert [Path(output).parent.name.partition("-")[0] for output, _ in stages.found[1:]] == ["two"]
    assert len([path for path in (tmp_path / "steps" / first.folder).iterdir() if path.is_dir()]) == 1


def test_a_second_driver_is_told_the_owner(tmp_path: Path) -> None:
    sleeper = subprocess.Popen(
        [sys.executable, "-c", "import sys; print('up', flush=True); sys.stdin.read()"], stdin=-1, stdout=-1
    )
    assert sleeper.stdout is not None
    sleeper.stdout.readline()
    with open(f"/proc/{sleeper.pid}/stat") as stat:
        started = stat.read().rsplit(")", 1)[1].split()[19]
    left = {"owner": f"process {sleeper.pid}", "machine": lease._machine(), "pid": sleeper.pid, "started": started}
    path = tmp_path / "lease.json"
    path.write_text(json.dumps({**left, "lease": "x", "attempt": "abc", "heartbeat": time.time()}))
    try:
        with pytest.raises(UserError, match=f"being computed by process {sleeper.pid}"):
            Lease(str(tmp_path))
        path.write_text(json.dumps({**left, "lease": "x", "attempt": "abc", "heartbeat": time.time() - EXPIRY_S - 1}))
        assert Lease(str(tmp_path)).adopted  # its heart has stopped
    finally:
        sleeper.kill()
        sleeper.wait()
    path.write_text(json.dumps({**left, "lease": "x", "attempt": "abc", "heartbeat": time.time()}))
    with Lease(str(tmp_path)) as adopted:  # the process of this machine is gone
        assert adopted.attempt == "abc"
    path.write_text(
        json.dumps({**left, "machine": "elsewhere", "lease": "x", "attempt": "abc", "heartbeat": time.time()})
    )
    with pytest.raises(UserError, match="being computed by"):
        Lease(str(tmp_path))


def test_an_unwritable_folder_and_a_full_disk_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write .*file/steps/a-.*\n.*remedy"):
        quiet(tmp_path / "file").ensure(make("a", []))
    with pytest.raises(UserError, match=r"No space left.*\n.*free space"), storage.write_errors("s3://bucket/x"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
