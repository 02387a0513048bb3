"""Every command of every page: parsed by the command line that it is for, and run, or named with the reason."""

from __future__ import annotations

import argparse
import os
import re
import runpy
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from typer.testing import CliRunner

from sidray.batch_embed import _Call
from sidray.cli import app
from sidray.config import build, overridden, shipped
from sidray.recipe import load_recipe
from sidray.serving.settings import GatewaySettings, RunSettings
from tests.docs.commands import NAMED, RUN
from tests.docs.pages import PAGES, ROOT, Block, blocks, commands

Command = list[str]
ALL = [(block, words) for block in blocks("bash") for words in commands(block.text)]
IDS = [f"{block}-{' '.join(words[:3])}" for block, words in ALL]


def plain(words: Command) -> Command:
    """Without the variables before it and the folder of .venv; NAME=$(kubectl ...) is kubectl's."""
    if "=$(kubectl" in words[0]:
        return ["kubectl", *words[1:]]
    words = words[1:] if words[0].startswith("PYTHONPATH=") else words
    return [words[0].removeprefix(".venv/bin/"), *words[1:]]


def inner(words: Command) -> Command:
    """What is run by another machine."""
    return words[words.index("--") + 1 :] if "--" in words else words


@pytest.mark.parametrize(("block", "words"), ALL, ids=IDS)
def test_it_is_run_or_named(block: Block, words: Command) -> None:
    text = " ".join(plain(words))
    tests = [test for pattern, test in RUN.items() if re.fullmatch(pattern, text, re.S)]
    reasons = [each for pattern, each in NAMED.items() if re.fullmatch(pattern, text, re.S)]
    assert tests or reasons, f"{block}: {text!r} is neither run by a test nor named in tests/docs/commands.py"
    assert all((ROOT / test).is_file() for test in tests)
    if not tests:
        reason, says = reasons[0]
        assert re.search(says, block.section), f"{block}: {text!r} {reason}, and its section does not say {says!r}"


@pytest.mark.parametrize("pattern", [*RUN, *NAMED])
def test_no_name_is_left_over(pattern: str) -> None:
    assert any(re.fullmatch(pattern, " ".join(plain(words)), re.S) for _, words in ALL)


@pytest.mark.parametrize(("block", "words"), ALL, ids=IDS)
def test_its_command_line_takes_it(block: Block, words: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    words = plain(words)
    if words[:3] == ["ray", "job", "submit"]:
        from ray.dashboard.modules.job.cli import job_cli_group

        job_cli_group.commands["submit"].make_context("submit", list(words[3:]))
    if words[:2] == ["serve", "deploy"]:
        from ray.serve.scripts import deploy

        given = deploy.make_context("deploy", list(words[2:])).params
        assert (ROOT / given["config_or_import_path"]).is_file()
    words = inner(words)
    if words[0] == "sidray":
        _sidray(block, words)
    elif words[0] == "make":
        subprocess.run(["make", "--dry-run", *words[1:]], cwd=ROOT, check=True, capture_output=True)
    elif words[0] == "python" and words[1].startswith("jobs/"):
        _script(ROOT / words[1], words[2:], monkeypatch)
    elif words[0] == "python":
        assert any(each.text.startswith(f"# {words[1]}\n") for each in blocks("python", block.page))
    elif words[0] == "pytest":
        assert all((ROOT / word).exists() for word in words[1:] if "/" in word)


def _sidray(block: Block, words: Command) -> None:
    group: Any = typer.main.get_command(app)
    name = words[1]
    given = group.commands[name].make_context(name, words[2:]).params
    overrides = given.get("overrides") or []
    if name in ("run", "submit"):
        _recipe(block, given["recipe"], overrides)
    elif name in ("serve", "promote"):
        values = overridden({"run": "RUN"}, overrides)
        build(GatewaySettings, values.pop("gateway", {}), "gateway")
        build(RunSettings, values, "run")
    elif name == "embed":
        build(_Call, overridden({"embedding": {}}, overrides), "embed")


def _recipe(block: Block, recipe: str, overrides: Command) -> None:
    """A shipped one, a file of the project, or one that the page shows."""
    if recipe not in shipped() and not (ROOT / recipe).is_file():
        shown = [each.text for each in blocks("yaml", block.page) if each.text.startswith(f"# {recipe}\n")]
        assert len(shown) == 1, f"{block}: the page shows no {recipe}"
        values = yaml.safe_load(shown[0])
        assert overridden(values, overrides)
        return
    name = str(ROOT / recipe) if (ROOT / recipe).is_file() else recipe
    load_recipe(name, overrides)


class _ParsedError(Exception):
    pass


def _script(path: Path, arguments: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """Up to the end of its parser."""
    for name in ("parse_args", "parse_intermixed_args"):

        def stop(parser: argparse.ArgumentParser, parse: Any = getattr(argparse.ArgumentParser, name)) -> None:
            raise _ParsedError(vars(parse(parser, arguments)))

        monkeypatch.setattr(argparse.ArgumentParser, name, stop)
    monkeypatch.setattr(sys, "path", [str(path.parent), *sys.path])
    monkeypatch.setattr(sys, "argv", [str(path), *arguments])
    with pytest.raises(_ParsedError) as caught:
        runpy.run_path(str(path), run_name="__main__")
    given = caught.value.args[0]
    if "recipe" in given:
        load_recipe("smgr-debug" if given["recipe"] == "RECIPE" else given["recipe"], given["overrides"])


def test_make_help_names_every_target() -> None:
    done = subprocess.run(["make", "--no-print-directory"], cwd=ROOT, check=True, capture_output=True, text=True)
    told = {line.split()[0] for line in done.stdout.splitlines()}
    phony = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.M)
    assert phony
    assert told == set(phony[1].split())


def test_the_pages_are_these() -> None:
    assert {str(page.relative_to(ROOT)) for page in PAGES} >= {"README.md", "CONTRIBUTING.md", "cluster/README.md"}
    assert len(ALL) > 60


RUN_HERE = [
    words
    for words in dict.fromkeys(tuple(plain(words)) for _, words in ALL)
    if "tests/docs/test_commands.py"
    in [test for pattern, test in RUN.items() if re.fullmatch(pattern, " ".join(words))]
    and words[0] == "sidray"
]


@pytest.mark.ray
@pytest.mark.parametrize("words", RUN_HERE, ids=" ".join)
def test_it_runs(words: tuple[str, ...], debug_run: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the debug run."""
    monkeypatch.chdir(tmp_path)
    given = [debug_run if word == "RUN" else word for word in words[1:]]
    done = CliRunner().invoke(app, given, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert done.output.strip()


def test_make_installs_anew_for_other_extras_and_only_then(tmp_path: Path) -> None:
    """With a pip that notes what it is asked for."""
    pip, python = tmp_path / ".venv/bin/pip", tmp_path / ".venv/bin/python"
    pip.parent.mkdir(parents=True)
    pip.write_text('#!/bin/sh\nfor word; do :; done; echo "$1 $word" >> asked\n')
    python.write_text("#!/bin/sh\n")
    pip.chmod(0o755)
    python.chmod(0o755)
    for name in ("Makefile", "pyproject.toml"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    plain = {name: value for name, value in os.environ.items() if name not in ("EXTRAS", "MAKEFLAGS", "MAKELEVEL")}

    def asked(target: str, *variables: str) -> list[str]:
        (tmp_path / "asked").write_text("")
        command = ["make", f".venv/.installed-{target}", *variables]
        subprocess.run(command, cwd=tmp_path, env=plain, check=True, capture_output=True)
        time.sleep(0.02)  # file times are as fine as the kernel's clock
        return (tmp_path / "asked").read_text().splitlines()

    assert asked("run") == ["install .[cpu,demo]"]
    assert asked("dev") == ["install .[cpu,demo,dev]"]
    assert asked("run") == asked("dev") == []
    assert asked("run", "EXTRAS=gpu,demo") == ["uninstall faiss-gpu-cu12", "install .[gpu,demo]"]
    assert asked("dev") == ["install .[gpu,demo,dev]"]  # not cpu over it
    assert asked("dev") == asked("run", "EXTRAS=gpu,demo") == []
    assert asked("dev", "EXTRAS=cpu,demo") == ["uninstall faiss-gpu-cu12", "install .[cpu,demo,dev]"]
