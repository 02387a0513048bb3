"""Recipes as jobs of a cluster that may have no sidray installed: `sidray submit | status | stop`.

    job = submit(recipe, overrides, address="http://head:8265");  exit_code = follow(job)

What travels is this package and the recipe with every value resolved: a few hundred kilobytes, never the folder that
the command was given in. Whatever the package imports must be in the cluster's image.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from sidray import storage
from sidray.config import Values
from sidray.errors import UserError

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

PACKAGE = Path(__file__).parent
RECIPE = "recipe.yaml"
_ADDRESSES = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")
_LEFT_OUT = ["__pycache__", "*.pyc"]
_LOST_AFTER = 10  # reconnections to the log without a line in between


@dataclass(frozen=True)
class Job:
    """A submitted job on a cluster."""

    client: JobSubmissionClient
    id: str


def connect(address: str) -> JobSubmissionClient:
    """`address`: of the cluster's dashboard, such as http://head:8265; "": RAY_API_SERVER_ADDRESS or RAY_ADDRESS, else
    the local one. UserError when nobody answers there."""
    from ray.job_submission import JobSubmissionClient

    try:
        with _without(_ADDRESSES if address else ()):
            return JobSubmissionClient(address or None)
    except (ConnectionError, RuntimeError, ValueError) as error:
        where = address or next(filter(None, map(os.environ.get, _ADDRESSES)), "this machine")
        reason = str(error).splitlines()[0]
        raise UserError(
            f"no Ray cluster takes jobs at {where}: {reason}",
            "give the dashboard's address (--address http://HOST:8265); RAY_AUTH_MODE must be the cluster's",
        ) from error


@contextmanager
def _without(names: Sequence[str]) -> Iterator[None]:
    """For the block these variables are not set. (Ray takes them before the address that it is given.)"""
    before = {name: os.environ.pop(name) for name in names if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(before)


def submit(recipe: str, overrides: Sequence[str], address: str, environment: Sequence[str] = ()) -> Job:
    """Starts `sidray run` of the recipe as a job. `environment`: NAME (its value here) or NAME=VALUE, for the job.

    UserError for a mistake in the recipe, which is found before anything is sent; for a path that only this machine
    knows; for a NAME that is not set. The modules of tasks of the user's own go along, unless they are installed."""
    from sidray.recipe import load_recipe

    loaded, variants, values = load_recipe(recipe, list(overrides))
    check_paths(values)
    modules = _modules([task for each in (loaded, *variants.values()) for task in each.own_tasks])
    variables = dict(map(variable, environment))
    client = connect(address)
    with tempfile.TemporaryDirectory() as folder:
        for module in modules:
            _copy(module, Path(folder) / module.name)
        (Path(folder) / RECIPE).write_text(yaml.safe_dump(values, sort_keys=False, allow_unicode=True))
        runtime_env = {
            "working_dir": folder,
            "py_modules": [str(PACKAGE)],
            "excludes": _LEFT_OUT,
            "env_vars": {"PYTHONUNBUFFERED": "1", **variables},
        }
        job = client.submit_job(
            entrypoint=f"python -m sidray.cli run {RECIPE}",
            runtime_env=runtime_env,
            metadata={"recipe": str(values["name"])},
        )
    return Job(client, job)


def _modules(own_tasks: list[str]) -> list[Path]:
    if not own_tasks:
        return []
    from sidray.tasks.own import own_modules

    return own_modules(own_tasks)


def _copy(module: Path, to: Path) -> None:
    if module.is_dir():
        shutil.copytree(module, to, ignore=shutil.ignore_patterns(*_LEFT_OUT))
    else:
        shutil.copy(module, to)


def check_paths(values: Values) -> None:
    """The job runs in a folder of its own on some node: runs.root, data, init_from and weights that are files must name
    the same place there, in every variant; and no URI holds a secret, which the job would carry in the open.

    Raises UserError, with the key."""
    variants = values.get("variants") or {}
    everywhere = {"": values} | {f"variants.{name}.": change or {} for name, change in variants.items()}
    for key, path in (pair for start, each in everywhere.items() for pair in _paths(start, each)):
        if "://" in path:
            storage.check_place(path)
        elif path and not Path(path).is_absolute():
            raise UserError(
                f"{key}={path} is relative to a folder of this machine, which the cluster does not have",
                f"give {key} a URI (s3://..., gs://...) or an absolute path that every node mounts",
            )


def _paths(start: str, values: Values) -> Iterator[tuple[str, str]]:
    """Key and value of whatever may be a path."""
    yield f"{start}runs.root", (values.get("runs") or {}).get("root", "")
    yield f"{start}init_from", values.get("init_from", "")
    for name, value in (values.get("data") or {}).items():
        if name in _DATA_PATHS:
            yield f"{start}data.{name}", value
    for part, settings in (values.get("model") or {}).items():
        weights = str(settings.get("weights", "")) if isinstance(settings, dict) else ""
        if Path(weights).exists():  # else the name of a model
            yield f"{start}model.{part}.weights", weights


_DATA_PATHS = frozenset({"folder", "items", "clicks", "events", "pairs"})


def variable(text: str) -> tuple[str, str]:
    """NAME=VALUE, or NAME with the value that it has here. UserError when it has none."""
    name, given, value = text.partition("=")
    if not given:
        if name not in os.environ:
            raise UserError(f"--env {name}: the variable is not set here", f"export it, or give --env {name}=VALUE")
        value = os.environ[name]
    return name, value


def follow(job: Job, write: Callable[[str], object] = sys.stdout.write) -> int:
    """Writes the job's log as it grows, until it ends; its exit code (1 when it was stopped or never began)."""
    asyncio.run(_tail(job, write))
    details = job.client.get_job_info(job.id)
    if details.status == "SUCCEEDED":
        return 0
    if details.message:
        write(f"\n{job.id}: {details.status.lower()}: {details.message.strip()}\n")
    return details.driver_exit_code or 1


async def _tail(job: Job, write: Callable[[str], object]) -> None:
    """A connection that breaks is made again; the log's lines so far are not repeated."""
    shown = silent = 0
    while silent < _LOST_AFTER:
        passed = 0
        try:
            async for part in job.client.tail_job_logs(job.id):
                fresh = part[max(0, shown - passed) :]
                passed += len(part)
                if fresh:
                    write(fresh)
                    shown, silent = passed, 0
            if job.client.get_job_status(job.id).is_terminal():
                return
        except (RuntimeError, OSError):
            silent += 1
        await asyncio.sleep(1)
    raise UserError(f"the cluster does not answer; {job.id} may go on", f"sidray status {job.id} --follow, later")


def listed(client: JobSubmissionClient) -> list[Any]:
    """The submitted jobs, the newest first."""
    found = [each for each in client.list_jobs() if each.submission_id]
    return sorted(found, key=lambda each: -(each.start_time or 0))


def table(client: JobSubmissionClient) -> str:
    """One line for each job: id, state, seconds, recipe or command."""
    return "\n".join(map(line, listed(client))) or "no job was submitted to this cluster"


def line(details: Any) -> str:
    ended = details.end_time or time.time() * 1000
    seconds = (ended - details.start_time) / 1000 if details.start_time else 0.0
    what = (details.metadata or {}).get("recipe") or details.entrypoint
    return f"{details.submission_id}  {str(details.status).lower():10s} {seconds:8.0f} s  {what}"


def log_end(client: JobSubmissionClient, job: str) -> str:
    """The job's line, and the last 20 of its log."""
    with known_job(client, job):
        details = client.get_job_info(job)
        log = client.get_job_logs(job).splitlines()[-20:]
    return "\n".join([line(details), *log])


@contextmanager
def known_job(client: JobSubmissionClient, job: str) -> Iterator[None]:
    """For the block: what the cluster says of a job that it does not know is a UserError."""
    try:
        yield
    except RuntimeError as error:
        if "does not exist" not in str(error):
            raise
        newest = [each.submission_id for each in listed(client)][:5]
        raise UserError(f"the cluster has no job {job}", f"the newest are {', '.join(newest) or 'none'}") from error
