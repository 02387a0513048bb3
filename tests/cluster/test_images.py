"""The Dockerfiles and lock files: what pyproject asks for, at the versions that are tested, run by nobody's root."""

from __future__ import annotations

import re
import tomllib
from importlib.metadata import PackageNotFoundError, version

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

from cluster.docker.lock import EXTRAS, PYTHON
from sidray import cluster
from tests.cluster.render import CLUSTER

DOCKER = CLUSTER / "docker"
PROJECT = tomllib.loads((CLUSTER.parent / "pyproject.toml").read_text())["project"]
every_image = pytest.mark.parametrize("name", EXTRAS)


def dockerfile(name: str) -> str:
    """Without comments, continued lines joined."""
    text = (DOCKER / f"{name}.Dockerfile").read_text()
    return re.sub(r"\\\n\s*", "", re.sub(r"^#.*\n", "", text, flags=re.M))


def locked(name: str) -> dict[str, str]:
    """Package -> version; of the CPU image with the torch that its Dockerfile installs."""
    text = (DOCKER / f"requirements-{name}.lock").read_text() + dockerfile(name)
    found = re.findall(r"(?:^|\s)([a-z0-9][a-z0-9-]*)==(\S+)", re.sub(r"^#.*\n", "", text, flags=re.M))
    assert len(dict(found)) == len(found), "a package is locked twice"
    return dict(found)


@every_image
def test_every_requirement_is_locked_at_a_version_that_satisfies_it(name: str) -> None:
    versions = locked(name)
    optional = PROJECT["optional-dependencies"]
    wanted = [*PROJECT["dependencies"], *(each for extra in EXTRAS[name] for each in optional[extra])]
    for text in wanted:
        requirement = Requirement(text)
        package = canonicalize_name(requirement.name)
        assert package in versions, f"{text} is not locked"
        assert requirement.specifier.contains(versions[package], prereleases=True), (text, versions[package])


@every_image
def test_every_line_has_a_hash(name: str) -> None:
    lines = (DOCKER / f"requirements-{name}.lock").read_text().replace(" \\\n", "").splitlines()
    for line in lines:
        assert line.startswith("#") or re.fullmatch(r"\S+==\S+(    --hash=sha256:[0-9a-f]{64})+", line), line
    assert "pip install --no-deps --require-hashes -r" in dockerfile(name)
    assert "pip check" in dockerfile(name)


def test_the_cpu_image_has_the_versions_that_are_tested_here() -> None:
    """Those of them that are installed: a machine may have resolved a newer one since the lock was written, so only the
    ones that pyproject bounds by a minor version are held to it."""
    for package in ("ray", "deepspeed"):
        try:
            assert Version(locked("cpu")[package]).release[:2] == Version(version(package)).release[:2]
        except PackageNotFoundError:
            pytest.skip(f"no {package} here")


def test_the_images_differ_in_torch_faiss_and_cuda_alone() -> None:
    cpu, cuda = locked("cpu"), locked("cuda")
    assert Version(cpu["torch"]).public == Version(cuda["torch"]).public
    assert Version(cpu["torch"]).local == "cpu"
    assert {name for name in cpu if name in cuda and cpu[name] != cuda[name]} <= {"torch"}
    assert set(cpu) - set(cuda) == {"faiss-cpu"}
    brought = set(cuda) - set(cpu)
    assert {name for name in brought if not name.startswith(("nvidia-", "cuda-"))} == {"faiss-gpu-cu12", "triton"}


@every_image
def test_the_python_is_one_that_the_project_takes_and_the_lock_is_for(name: str) -> None:
    bases = re.findall(r"^FROM python:(\S+?)-slim-bookworm", dockerfile(name), re.M)
    assert len(bases) == 2
    assert len(set(bases)) == 1
    assert bases[0] in SpecifierSet(PROJECT["requires-python"])
    assert bases[0].startswith(f"{PYTHON}.")


@every_image
def test_the_image_has_the_environment_of_a_cluster_that_sidray_starts(name: str) -> None:
    given = dict(
        each for line in re.findall(r"^ENV (.*)$", dockerfile(name), re.M) for each in re.findall(r"(\w+)=(\S+)", line)
    )
    expected = dict(cluster._ENVIRONMENT)
    expected |= {key: value for key, value in cluster.LOCAL_ENVIRONMENT.items() if key.startswith("MALLOC_")}
    if name == "cuda":
        expected.pop("DS_ACCELERATOR")
        assert "DS_ACCELERATOR" not in given
    assert {key: given.get(key) for key in expected} == expected


@every_image
def test_nobody_is_root_and_kuberay_finds_its_tools(name: str) -> None:
    text = dockerfile(name)
    users = re.findall(r"^USER (.*)$", text, re.M)
    assert users == ["1000:1000"]  # runAsUser of the pods
    assert text.index("USER ") > text.rindex("RUN ")
    final = text[text.rindex("\nFROM ") :]
    assert "install -y --no-install-recommends wget" in final
    assert "/etc/profile.d/sidray.sh" in final  # bash -l sets PATH anew
    assert "COPY jobs /app/jobs" in final
    assert "COPY serve /app/serve" in final
    assert "ENTRYPOINT" not in text  # the pods' command is /bin/bash -c


@every_image
def test_what_the_image_copies_is_sent_to_the_builder(name: str) -> None:
    ignored = (CLUSTER.parent / ".dockerignore").read_text().splitlines()
    assert ignored[1] == "*"
    sent = [line[1:] for line in ignored if line.startswith("!")]
    copied = [
        each for line in re.findall(r"^COPY (?!--from)(.*) \S+$", dockerfile(name), re.M) for each in line.split()
    ]
    for path in copied:
        assert (CLUSTER.parent / path).exists(), path
        assert path in sent or (path.endswith(".lock") and "cluster/docker/requirements-*.lock" in sent), path
