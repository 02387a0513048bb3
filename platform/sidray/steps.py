"""The step graph: content-keyed outputs in one store. A rerun is a no-op, a killed run continues where it stopped.

    store = Store("./sidray-runs");  output = store.ensure(step)   # computes `step` and what it needs, once

A step's key is the hash of its name, its configuration, its inputs' keys and the integer VERSION beside its code. The
output is `<root>/steps/<name>-<key>/<attempt>/`; manifest.json, written last, names the attempt that made it.
"""

from __future__ import annotations

import hashlib
import json
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from sidray import storage
from sidray.errors import MachineError, root_user_error
from sidray.lease import Lease

Summary = dict[str, Any]


@dataclass(frozen=True)
class Work:
    """What a running step sees: where to write, and where its inputs lie."""

    output: str
    inputs: Mapping[str, str]

    def path(self, *parts: str) -> str:
        return storage.join(self.output, *parts)


class Chained(ABC):
    """Work that costs less in one go with its successors: consecutive stages share one group of training workers.

    It continues in what a killed attempt left in its output; any other step finds its output empty."""

    def __call__(self, work: Work) -> Summary:
        return self.together([self], [work])[0]

    @abstractmethod
    def together(self, runs: Sequence[Any], works: Sequence[Work]) -> list[Summary]:
        """Runs all of `runs` (this one first, each the input of the next) into their outputs. A summary may bring
        its own `seconds`."""


@dataclass(frozen=True)
class Step:
    """A value: two steps with equal key are the same work. `run` writes into `work.output` and returns a summary;
    `config` is what its result depends on (JSON)."""

    name: str
    run: Callable[[Work], Summary]
    config: Mapping[str, Any]
    version: int
    inputs: Mapping[str, Step] = field(default_factory=dict)

    @cached_property
    def key(self) -> str:
        identity = {
            "name": self.name,
            "config": self.config,
            "version": self.version,
            "inputs": {role: step.key for role, step in sorted(self.inputs.items())},
        }
        text = json.dumps(identity, sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @property
    def folder(self) -> str:
        return f"{self.name}-{self.key}"


@dataclass(frozen=True)
class DoneStep(Step):
    """A step that a run names by its folder: its key is that one's, whatever code and settings would give now."""

    done_key: str = ""

    @cached_property
    def key(self) -> str:
        return self.done_key


def in_order(steps: Mapping[str, Step]) -> list[Step]:
    """All steps reachable from `steps`, each once, inputs first."""
    ordered: dict[str, Step] = {}

    def visit(step: Step) -> None:
        if step.key in ordered:
            return
        for needed in step.inputs.values():
            visit(needed)
        ordered[step.key] = step

    for step in steps.values():
        visit(step)
    return list(ordered.values())


class Store:
    """The outputs under `<root>/steps`; `say` receives one line per event."""

    def __init__(self, root: str, say: Callable[[str], None] = print) -> None:
        self.root = storage.absolute(root)
        storage.check_letters(self.root)
        self.say = say

    def _folder(self, step: Step) -> str:
        return storage.join(self.root, "steps", step.folder)

    def manifest(self, step: Step) -> dict[str, Any] | None:
        """The manifest of a finished step, None when it is not done."""
        uri = storage.join(self._folder(step), "manifest.json")
        return dict(storage.read_json(uri)) if storage.exists(uri) else None

    def output(self, step: Step) -> str:
        """URI of a finished step's output. KeyError when it is not done."""
        manifest = self.manifest(step)
        if manifest is None:
            raise KeyError(step.folder)
        return storage.join(self._folder(step), str(manifest["attempt"]))

    def ensure(self, step: Step) -> str:
        """Computes the step and whatever it needs, unless they are done; returns the URI of its output."""
        pending = [needed for needed in in_order({step.name: step}) if self.manifest(needed) is None]
        while pending:
            chain = _chain(pending)
            self._compute(chain)
            pending = pending[len(chain) :]
        return self.output(step)

    def _compute(self, chain: list[Step]) -> None:
        with ExitStack() as leases:
            for step in chain:
                storage.make_folder(self._folder(step))
            held = [leases.enter_context(Lease(self._folder(step))) for step in chain]
            while chain and self.manifest(chain[0]) is not None:  # another driver finished it while this one asked
                chain, held = chain[1:], held[1:]
            if not chain:
                return
            outputs: dict[str, str] = {}
            works = []
            for step, lease in zip(chain, held, strict=True):
                output = storage.join(self._folder(step), lease.attempt)
                continues = lease.adopted and isinstance(step.run, Chained)
                self.say(f"{step.name}: {'continues attempt ' + lease.attempt if continues else 'starts'}")
                if lease.adopted and not continues:
                    storage.delete(output)
                storage.make_folder(output)
                inputs = {role: outputs.get(n.key) or self.output(n) for role, n in step.inputs.items()}
                works.append(Work(output, inputs))
                outputs[step.key] = output
            self._run(chain, works, held)

    def _run(self, chain: list[Step], works: list[Work], held: list[Lease]) -> None:
        started = time.time()
        first = chain[0].run
        with _named(chain):
            if isinstance(first, Chained):
                summaries = first.together([step.run for step in chain], works)
            else:
                summaries = [first(works[0])]
        elapsed = time.time() - started
        for step, work, lease, summary in zip(chain, works, held, summaries, strict=True):
            seconds = summary.pop("seconds", elapsed)
            lease.confirm()
            self._finish(step, work, summary, seconds)

    def _finish(self, step: Step, work: Work, summary: Summary, seconds: float) -> None:
        manifest = {
            "name": step.name,
            "key": step.key,
            "attempt": work.output.rsplit("/", 1)[1],
            "version": step.version,
            "config": dict(step.config),
            "inputs": {role: needed.folder for role, needed in step.inputs.items()},
            "seconds": round(seconds, 2),
            "bytes": storage.size_of(work.output),
            "finished": time.time(),
            "summary": summary,
        }
        storage.write_json(storage.join(self._folder(step), "manifest.json"), manifest)
        told = brief(summary)
        self.say(f"{step.name}: done in {seconds:.1f} s" + (f" · {told}" if told else ""))


@contextmanager
def _named(chain: list[Step]) -> Iterator[None]:
    """A failure of the machine says which step it ended."""
    try:
        yield
    except Exception as error:
        failure = root_user_error(error)
        if not isinstance(failure, MachineError):
            raise
        names = ", ".join(step.name for step in chain)
        remedy = f"{failure.remedy}; then run the same command again: it continues where it stopped"
        raise type(failure)(f"step {names}: {failure.problem}", remedy) from error


def _chain(pending: list[Step]) -> list[Step]:
    """The first pending step (inputs come first) and, if it is chained, the chained ones right after it."""
    length = 1
    while isinstance(pending[0].run, Chained) and length < len(pending) and isinstance(pending[length].run, Chained):
        length += 1
    return pending[:length]


def brief(summary: Mapping[str, Any]) -> str:
    """The plain values of a summary on one line."""
    plain = {k: v for k, v in summary.items() if isinstance(v, int | float | str) and not isinstance(v, bool)}
    return ", ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in plain.items())
