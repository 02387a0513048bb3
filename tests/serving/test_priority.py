"""A process that gives way does so with all of its threads."""

from __future__ import annotations

import subprocess
import sys

SCRIPT = """
import os, threading
from concurrent.futures import ThreadPoolExecutor
from sidray.serving.priority import give_way
pool = ThreadPoolExecutor(1)
pool.submit(int).result()          # a thread that was there before
give_way()
later = []
thread = threading.Thread(target=lambda: later.append(os.nice(0)))
thread.start(); thread.join()
print(os.nice(0), pool.submit(os.nice, 0).result(), *later)
"""


def test_all_threads_give_way() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["19"] * 3
