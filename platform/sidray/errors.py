"""The one error that a user's own mistake raises. The CLI and the jobs print it without a traceback and exit with 2.

raise UserError("items/part-0.parquet has no column 'title'", "add it, or name the column in data.columns")
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator


class UserError(Exception):
    """Something the user can mend: `problem` names the place, `remedy` says what to do."""

    def __init__(self, problem: str, remedy: str = "") -> None:
        super().__init__(problem, remedy)  # both, so that it survives the pickling between Ray's processes
        self.problem = problem
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.problem}\n  remedy: {self.remedy}" if self.remedy else self.problem


class MachineError(UserError):
    """The machine failed the user: no memory, no disk, no storage. Once that is mended the same command continues."""


class StorageError(MachineError, OSError):
    """A storage that refuses or does not answer; an OSError to whoever can go on without it."""


def nearest(word: str, known: Iterable[str]) -> str:
    """' (did you mean X?)' for the known word closest to `word`, or '' when none is close."""
    close = difflib.get_close_matches(word, list(known), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def root_user_error(error: BaseException) -> UserError | None:
    """The UserError in the chain of causes of `error` (Ray wraps what a task raises); else the MachineError that
    one of the causes means; or None."""
    from sidray.failures import failure_of

    causes = list(_causes(error))
    told = (each for each in causes if isinstance(each, UserError) and not hasattr(each, "cause"))  # not Ray's wrapper
    meant = (failure_of(each) for each in causes)
    return next(told, None) or next((each for each in meant if each is not None), None)


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The error and all beneath it, each once."""
    seen: set[int] = set()
    todo: list[BaseException | None] = [error]
    while todo:
        current = todo.pop()
        if current is None or id(current) in seen:
            continue
        seen.add(id(current))
        yield current
        todo += [current.__cause__, current.__context__, getattr(current, "cause", None)]
        worker_failures = getattr(current, "worker_failures", None)
        if isinstance(worker_failures, dict):  # ray.train.WorkerGroupError
            todo += [failure for failure in worker_failures.values() if isinstance(failure, BaseException)]
