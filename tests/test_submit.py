"""`sidray submit` against a cluster whose Python has no sidray: what travels, the log, exit codes, status, stop."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import time
import venv
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import psutil
import pytest

from sidray.cluster import free_port
from sidray.errors import UserError
from sidray.recipe import load_recipe
from sidray.submit import Job, check_paths, connect, follow, known_job, log_end, submit, table, variable


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The dashboard's address of a head in an environment with Ray and the libraries, but without sidray."""
    folder = tmp_path_factory.mktemp("bare")
    venv.create(folder / "venv", with_pip=False)
    python = folder / "venv" / "bin" / "python"
    environment = {
        name: value for name, value in os.environ.items() if name not in {"PYTHONPATH", "RAY_ADDRESS", "VIRTUAL_ENV"}
    }
    environment |= {"PYTHONPATH": sysconfig.get_path("purelib"), "PATH": f"{python.parent}:{environment['PATH']}"}
    assert subprocess.run([python, "-c", "import ray, torch"], env=environment, cwd=folder, check=False).returncode == 0
    bare = subprocess.run(
        [python, "-c", "import sidray"], env=environment, cwd=folder, check=False, capture_output=True
    )
    assert b"No module named 'sidray'" in bare.stderr
    port = free_port()
    ray = [python, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--num-cpus=3", f"--port={free_port()}"]
    ports = [f"--dashboard-port={port}", f"--dashboard-agent-listen-port={free_port()}", "--dashboard-host=127.0.0.1"]
    head = subprocess.Popen(
        [*ray, *ports, "--disable-usage-stats", f"--temp-dir={folder / 'ray'}"],
        env=environment,
        cwd=folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        yield ready(f"http://127.0.0.1:{port}")
    finally:
        for each in [*psutil.Process(head.pid).children(recursive=True), head]:
            with suppress(psutil.NoSuchProcess):
                each.kill()  # asked to end, it waits for its processes one after another: half a minute
        head.wait(60)


def ready(address: str) -> str:
    deadline = time.monotonic() + 60
    while True:
        try:
            connect(address).list_jobs()
            return address
        except (UserError, RuntimeError):
            if time.monotonic() > deadline:
                raise
            time.sleep(0.5)


def test_a_path_that_only_this_machine_knows_is_refused_before_anything_is_sent(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"runs\.root=\./sidray-runs is relative(.|\n)*s3://"):
        submit("smgr-debug", [], "http://127.0.0.1:1")
    for key in ("items", "clicks"):
        tables = {"items": "/data/items", "clicks": "s3://b/clicks"} | {key: "mine.parquet"}
        given = ["runs.root=s3://b/runs", "data.source=tables", *(f"data.{name}={uri}" for name, uri in tables.items())]
        with pytest.raises(UserError, match=rf"data\.{key}=mine\.parquet"):
            check_paths(load_recipe("smgr-debug", given)[2])
    check_paths(load_recipe("smgr-debug", [f"runs.root={tmp_path}"])[2])
    with pytest.raises(UserError, match="holds a key") as caught:
        check_paths(load_recipe("smgr-debug", ["runs.root=s3://AKIA:hush@shop/runs"])[2])
    assert "hush" not in str(caught.value)


def test_paths_of_variants_and_of_weights_are_looked_at_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lm").mkdir()
    for given, key in (
        ("variants={a: {init_from: sidray-runs/runs/x}}", "variants.a.init_from=sidray-runs"),
        ("model.text.weights=lm", "model.text.weights=lm"),
    ):
        with pytest.raises(UserError, match=key):
            check_paths(load_recipe("smgr-debug", ["runs.root=s3://b/runs", given])[2])


def test_following_a_cluster_that_is_gone_ends_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    class Gone:
        async def tail_job_logs(self, job: str) -> AsyncIterator[str]:
            raise RuntimeError("closed")
            yield

        def get_job_status(self, job: str) -> None:
            raise ConnectionError("refused")

    monkeypatch.setattr("asyncio.sleep", no_sleep)
    with pytest.raises(UserError, match=r"does not answer(.|\n)*sidray status j1 --follow"):
        follow(Job(cast(Any, Gone()), "j1"))


async def no_sleep(seconds: float) -> None:
    return None


def test_variables_are_given_or_taken_from_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BUCKET_KEY", "a=b")
    assert variable("BUCKET_KEY") == ("BUCKET_KEY", "a=b")
    assert variable("BUCKET_KEY=c=d") == ("BUCKET_KEY", "c=d")
    with pytest.raises(UserError, match="--env NOT_THERE"):
        variable("NOT_THERE")


def test_nobody_at_the_address_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The given address counts, also where Ray's variables name others."""
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:7")
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://127.0.0.1:8")
    with pytest.raises(UserError, match=r"at http://127\.0\.0\.1:8: .*127\.0\.0\.1:8"):
        connect("")
    with pytest.raises(UserError, match=r"no Ray cluster takes jobs at http://127\.0\.0\.1:9: .*127\.0\.0\.1:9"):
        submit("smgr-debug", [f"runs.root={tmp_path}"], "http://127.0.0.1:9")


def followed(job: Job) -> tuple[int, str]:
    parts: list[str] = []
    return follow(job, parts.append), "".join(parts)


@pytest.mark.ray
def test_a_finished_recipe_prints_its_table_and_ends_with_0(cluster: str, debug_run: str) -> None:
    root = debug_run.rsplit("/runs/", 1)[0]
    job = submit("smgr-debug", [f"runs.root={root}"], cluster, ["MARK=here"])
    code, log = followed(job)
    assert code == 0, log
    assert f"run folder: {debug_run}" in log
    assert (Path(debug_run) / "report" / "table.txt").read_text() in log
    details = job.client.get_job_info(job.id)
    assert details.runtime_env["env_vars"]["MARK"] == "here"
    assert job.id in table(job.client)
    assert "smgr-debug" in table(job.client)
    assert f"run folder: {debug_run}" in log_end(job.client, job.id)


@pytest.mark.ray
def test_a_mistake_that_only_the_cluster_sees_ends_with_2_and_its_remedy(cluster: str, tmp_path: Path) -> None:
    given = [
        f"runs.root={tmp_path}",
        "data.source=tables",
        "data.items=/nowhere/items.parquet",
        "data.clicks=/nowhere/c",
    ]
    code, log = followed(submit("smgr-debug", given, cluster))
    assert code == 2, log
    assert "error: " in log
    assert "/nowhere/items.parquet" in log
    assert "Traceback" not in log


@pytest.mark.ray
def test_a_stopped_job_is_stopped_and_an_unknown_one_is_told(cluster: str, tmp_path: Path) -> None:
    job = submit("smgr-debug", [f"runs.root={tmp_path}"], cluster)
    seen: list[str] = []

    def stop_at_the_first_step(part: str) -> None:
        seen.append(part)
        if "starts" in part:
            job.client.stop_job(job.id)

    assert follow(job, stop_at_the_first_step) == 1
    assert "stopped" in table(job.client)
    with (
        pytest.raises(UserError, match=f"no job raysubmit_other(.|\n)*{job.id}"),
        known_job(job.client, "raysubmit_other"),
    ):
        job.client.get_job_info("raysubmit_other")
    command = [sys.executable, "-m", "sidray.cli", "stop", job.id, "--address", cluster]
    again = subprocess.run(command, check=False, capture_output=True, text=True)
    assert again.stdout == f"{job.id} has ended already\n"


def test_follow_without_a_job_is_told() -> None:
    command = [sys.executable, "-m", "sidray.cli", "status", "--follow"]
    told = subprocess.run(command, check=False, capture_output=True, text=True)
    assert told.returncode == 2
    assert told.stderr.startswith("error: --follow shows the log of one job")


@pytest.mark.ray
@pytest.mark.slow
def test_the_workers_of_a_job_have_a_task_of_the_users_own(
    cluster: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(Path(__file__).resolve().parents[1] / "docs" / "examples")
    monkeypatch.setattr(sys, "path", [*sys.path])
    own = "stages=[{name: own, tasks: {'hidden_pictures:Query2ItemHidden': 1}}]"
    given = [own, "sid_stages=[]", "evaluation.after={}", f"runs.root={tmp_path}"]
    code, log = followed(submit("smgr-debug", given, cluster))
    assert code == 0, log
    assert "stage-own: done" in log
