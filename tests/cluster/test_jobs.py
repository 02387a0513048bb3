"""The RayJobs: commands that exist, with arguments that they take, and what becomes of a job that fails."""

from __future__ import annotations

import re
import shlex
from typing import Any

import pytest
import typer

from sidray.cli import app
from sidray.recipe import load_recipe
from tests.cluster.render import CLUSTER, KUBERAY, RENDERED, Manifest, cluster_specs, named, render

ROOT = CLUSTER.parent
JOBS = ("train", "embed", "index")
COMMANDS: dict[str, Any] = vars(typer.main.get_command(app))["commands"]


def check_command(words: list[str]) -> None:
    """A command of sidray, and its arguments."""
    program, name, *arguments = words
    assert program == "sidray"
    assert name in COMMANDS, f"sidray has no command {name}"
    parsed = COMMANDS[name].make_context(name, arguments).params
    if name == "run":
        load_recipe(parsed["recipe"], list(parsed["overrides"] or []))


@pytest.mark.parametrize("name", RENDERED)
@pytest.mark.parametrize("job", JOBS)
def test_entrypoints_exist_and_take_their_arguments(name: str, job: str) -> None:
    manifests = render(name)
    entrypoint = named(manifests, "RayJob", f"sidray-{job}")["spec"]["entrypoint"]
    variables = set(re.findall(r"\$(\w+)", entrypoint))
    assert variables <= set(named(manifests, "ConfigMap", "sidray-environment")["data"])
    assert "SIDRAY_RUNS_ROOT" in variables
    assert re.search(r"[;&|`>]", entrypoint) is None
    check_command(shlex.split(entrypoint))


WRONG = {
    "sidray train smgr": "sidray has no command train",
    "sidray embed RUN --item x --out y": "No such option: --item",
    "sidray run smgr-debug trainings.workers=1": "trainings",
}


@pytest.mark.parametrize("command", WRONG)
def test_what_is_no_command_is_found(command: str) -> None:
    with pytest.raises(Exception, match=WRONG[command]):
        check_command(command.split())


def test_scripts_that_comments_and_the_runbook_name_are_there() -> None:
    texts = [path.read_text() for path in (*KUBERAY.rglob("*.yaml"), CLUSTER / "README.md")]
    scripts = {each for text in texts for each in re.findall(r"\bjobs/(?:bench/)?\w+\.py", text)}
    assert {"jobs/prepare.py", "jobs/embed.py"} <= scripts
    for each in scripts:
        assert (ROOT / each).is_file(), each


@pytest.mark.parametrize("name", RENDERED)
@pytest.mark.parametrize("job", JOBS)
def test_a_job_is_tried_again_ends_and_leaves_nothing_running(name: str, job: str) -> None:
    spec = named(render(name), "RayJob", f"sidray-{job}")["spec"]
    assert spec["suspend"] is True  # `kubectl apply -k` starts nothing
    assert spec["submissionMode"] == "HTTPMode"  # no submitter pod: there is no policy for one
    assert spec["backoffLimit"] > 2  # the lease of a lost driver, sidray.lease.EXPIRY_S, can cost an attempt or two
    assert spec["activeDeadlineSeconds"] > 0
    assert spec["shutdownAfterJobFinishes"] is True
    assert spec["ttlSecondsAfterFinished"] > 0


def available(manifest: Manifest) -> tuple[float, float]:
    """CPUs and GPUs that stand when the job starts."""
    (spec,) = cluster_specs([manifest]).values()
    limits = [
        (group["minReplicas"], group["template"]["spec"]["containers"][0]["resources"]["limits"])
        for group in spec["workerGroupSpecs"]
    ]
    cpus = sum(count * float(each["cpu"]) for count, each in limits)
    return cpus, sum(count * float(each.get("nvidia.com/gpu", 0)) for count, each in limits)


@pytest.mark.parametrize("name", RENDERED)
def test_training_finds_its_workers_without_waiting_for_the_autoscaler(name: str) -> None:
    """A new node takes minutes, which training.wait_s would have to allow."""
    job = named(render(name), "RayJob", "sidray-train")
    words = shlex.split(job["spec"]["entrypoint"])
    recipe, _, _ = load_recipe(words[2], words[3:])
    cpus, gpus = available(job)
    training = recipe.training
    assert training.workers * training.cpus_per_worker + 0.5 <= cpus
    assert training.workers * training.gpus_per_worker <= gpus
    assert (training.gpus_per_worker > 0) == (name == "gpu")


def test_recipes_of_jobs_read_what_the_image_has() -> None:
    for name in RENDERED:
        words = shlex.split(named(render(name), "RayJob", "sidray-train")["spec"]["entrypoint"])
        assert load_recipe(words[2], words[3:])[0].data.source == "pictograms"  # of the extra `demo`, which is locked
