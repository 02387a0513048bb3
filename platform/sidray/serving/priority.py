"""Work that can wait gives way to searches on the same machine. Light: no Ray.

give_way()   # this process, with the threads that it has and those that they start
"""

from __future__ import annotations

import os

LOWEST = 19  # Ray's workers have 15


def give_way() -> None:
    """Linux has a priority for each thread; elsewhere that of the process is lowered."""
    try:
        threads = [int(name) for name in os.listdir("/proc/self/task")]
    except FileNotFoundError:
        threads = [0]
    for thread in threads:
        try:
            os.setpriority(os.PRIO_PROCESS, thread, LOWEST)
        except ProcessLookupError:
            continue  # it has ended
