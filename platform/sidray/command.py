"""How every command of ours begins and ends, on the command line and as a job.

run_command(work)     # environment set, libraries quiet, a user's mistake told without a traceback, exit code 2
"""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Callable

from sidray.cluster import prepare_environment
from sidray.errors import root_user_error


def run_command(work: Callable[[], None]) -> None:
    """Runs `work`; a UserError in it, or beneath what it raises, ends the process with exit code 2."""
    prepare_environment()
    _quieten()
    try:
        work()
    except Exception as error:
        mistake = root_user_error(error)
        if mistake is None:
            raise
        print(f"error: {mistake}", file=sys.stderr)
        sys.exit(2)


def _quieten() -> None:
    """Our own lines say what happens; the libraries' notes on every dataset drown them."""
    logging.getLogger("ray.data._internal.execution").setLevel(logging.WARNING)
    logging.getLogger("ray.data._internal.progress").setLevel(logging.ERROR)  # it warns that its bars are off
    warnings.filterwarnings("ignore", message="lance is not fork-safe")
