"""One Ray for the whole test session, with the settings that make Train start and fail fast."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

from sidray.cluster import LOCAL_ENVIRONMENT, free_port
from tests import object_store

os.environ.setdefault("RAY_AUTH_MODE", "disabled")
os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
os.environ.setdefault("DS_ACCELERATOR", "cpu")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")
for name, value in LOCAL_ENVIRONMENT.items():
    os.environ.setdefault(name, value)

S3_URL = f"http://127.0.0.1:{free_port()}"  # known before Ray starts, whose workers use it, too
os.environ.update(object_store.environment(S3_URL))

hypothesis.settings.register_profile("shared", deadline=None)  # other work shares the machine
hypothesis.settings.load_profile("shared")
logging.raiseExceptions = False  # Ray's loggers keep the stderr of the test that ran first, which pytest has closed

MYPY = pytest.StashKey[subprocess.Popen[str]]()
SHARED_DATA = Path(__file__).resolve().parent.parent.parent / "shared" / "data"


def pytest_collection_finish(session: pytest.Session) -> None:
    """mypy runs beside the tests from the first one on, where its own is among them."""
    if not session.config.option.collectonly and any(item.name == "test_types" for item in session.items):
        command = ["nice", "-n", "19", sys.executable, "-m", "mypy"]
        session.config.stash[MYPY] = subprocess.Popen(
            command, cwd=session.config.rootpath, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )


def pytest_unconfigure(config: pytest.Config) -> None:
    if MYPY in config.stash:
        config.stash[MYPY].kill()


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """A local Ray with four logical CPUs: two workers and their data tasks fit on a laptop."""
    import ray

    ray.init("local", num_cpus=4, include_dashboard=False, log_to_driver=False, configure_logging=False)
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def debug_run(ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The run folder of `sidray run smgr-debug`, computed once for all tests."""
    from sidray.run import run_recipe

    root = tmp_path_factory.mktemp("runs")
    return run_recipe("smgr-debug", [f"runs.root={root}"], say=lambda line: None).folder


@pytest.fixture(scope="session")
def bucket() -> Iterator[str]:
    """The URI of a bucket of an S3 that all processes of the tests reach."""
    with object_store.moto_server(S3_URL):
        yield object_store.make_bucket(S3_URL, "shop")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real data for tests; they skip where it is absent."""
    if not SHARED_DATA.is_dir():
        pytest.skip("no shared/data beside the checkout")
    return SHARED_DATA
