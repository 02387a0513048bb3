"""A heartbeat lease on a step: one driver computes it, a second one is told who does.

The lease is a small JSON file renewed every 30 s; it expires after 120 s without a heartbeat, or at once when its
owner was a process of this machine that is gone. A heartbeat that fails is tried again until the lease expires. Then
another driver may have taken the step over and be rewriting its output: whoever finishes calls `confirm` before it
writes its manifest. Object stores have no atomic create, so two drivers may slip through together within a request's
time: both then write the same result, of the same key.
"""

from __future__ import annotations

import functools
import os
import socket
import threading
import time
import uuid
from contextlib import suppress
from types import TracebackType
from typing import Any

from sidray import storage
from sidray.errors import UserError

HEARTBEAT_S = 30.0
RETRY_S = 5.0  # after a heartbeat that failed
EXPIRY_S = 120.0
_held: set[str] = set()  # by this process: a lease of its own that it could not release, on a full disk, is not alive


def _start_time(pid: int) -> str:
    """When the kernel started the process (ticks since boot), '' when there is none: tells a reused pid apart."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[19]
    except OSError:
        return ""


@functools.cache
def _machine() -> str:
    """Where process ids mean the same: containers that share a host's name have their own."""
    with suppress(OSError), open("/proc/sys/kernel/random/boot_id") as file:
        return f"{file.read().strip()} {os.readlink('/proc/self/ns/pid')}"
    return socket.gethostname()


class Lease:
    """Context manager: holds `<folder>/lease.json` while the block runs. `attempt` names the output folder: that
    of a holder who did not finish is adopted. Another holder is waited for `wait_s`."""

    def __init__(self, folder: str, wait_s: float = 0.0) -> None:
        self.uri = storage.join(folder, "lease.json")
        deadline = time.monotonic() + wait_s
        while (previous := self._read()) is not None and self._alive(previous):
            if time.monotonic() < deadline:
                time.sleep(0.2)
                continue
            raise UserError(
                f"step {folder} is being computed by {previous['owner']} (last heartbeat "
                f"{time.time() - previous['heartbeat']:.0f} s ago)",
                f"wait for it, or stop it; {EXPIRY_S:.0f} s after its last heartbeat a new driver takes the step over",
            )
        adopted = previous["attempt"] if previous is not None else None
        self.attempt: str = adopted or uuid.uuid4().hex[:8]
        self.adopted = adopted is not None
        self._mine = uuid.uuid4().hex
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._renew, name="lease", daemon=True)

    def _read(self) -> dict[str, Any] | None:
        """None when there is none, or half of one. Raises StorageError when that cannot be told."""
        try:
            return dict(storage.read_json(self.uri))
        except (FileNotFoundError, ValueError):
            return None

    @staticmethod
    def _alive(lease: dict[str, Any]) -> bool:
        if time.time() - float(lease["heartbeat"]) > EXPIRY_S:
            return False
        if lease.get("machine") != _machine():
            return True
        if lease["pid"] == os.getpid() and lease["started"] == _start_time(os.getpid()):
            return lease["lease"] in _held
        return bool(_start_time(int(lease["pid"])) == lease["started"])

    def _write(self) -> None:
        pid, host = os.getpid(), socket.gethostname()
        owner = f"process {pid} on {host}"
        value = {"owner": owner, "machine": _machine(), "pid": pid, "started": _start_time(pid), "lease": self._mine}
        storage.write_json(self.uri, {**value, "attempt": self.attempt, "heartbeat": time.time()})

    def confirm(self) -> None:
        """Renews the lease. UserError when another driver has taken the step over, finished or not: its result is the
        one that counts."""
        now = self._read()
        if now is None or now["lease"] != self._mine:
            owner = "another driver" if now is None else now["owner"]
            raise UserError(
                f"{self.uri}: {owner} took over, since this process did not renew its lease for {EXPIRY_S:.0f} s",
                "run the same command again when that one has finished",
            )
        self._write()

    def _renew(self) -> None:
        wait = HEARTBEAT_S
        while not self._stop.wait(wait):
            try:
                self.confirm()
                wait = HEARTBEAT_S
            except OSError:  # the storage is away; `confirm` tells whether that was for too long
                wait = RETRY_S
            except UserError:
                return

    def __enter__(self) -> Lease:
        self._write()
        now = self._read()
        if now is None or now["lease"] != self._mine:
            raise UserError(f"step {self.uri} was taken by another driver at the same moment", "run again")
        _held.add(self._mine)
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        self._stop.set()
        self._thread.join()
        _held.discard(self._mine)
        with suppress(OSError):  # what the block did counts, or what it raised; the lease expires by itself
            last = self._read()
            if last is None or last["lease"] != self._mine:
                return
            if kind is None:
                storage.delete(self.uri)
            else:  # the attempt stays for the next driver to adopt, without a wait
                storage.write_json(self.uri, {**last, "heartbeat": 0.0})
