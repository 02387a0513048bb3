"""API keys: kept as hashes, compared in constant time, limited in their rate. A key itself is never stored or logged.

    key, line = new_key("team-search")       # the key for the client, once; the line for the file of keys
    keys = Keys.load("s3://bucket/keys.txt", requests_per_s=100);  keys.refusal("Bearer ...")   # None: welcome

The file: a line "name sha256-of-the-key" for each key; lines that begin with # and empty lines are skipped. Keys of one
name, as while one takes the place of another, are all valid and share a rate. `keys.follow()` reads the file again each
minute. Without a file everybody is welcome. Keys have 256 random bits, so a plain hash of them cannot be searched.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
import re
import secrets
from dataclasses import dataclass
from time import monotonic

from sidray import storage
from sidray.errors import UserError
from sidray.serving.messages import Refusal

REREAD_S = 60.0
_LOGGER = logging.getLogger("ray.serve")
_LINE = re.compile(r"(?P<name>\S+)\s+(?P<hash>[0-9a-f]{64})")
_MISSING = Refusal(401, "missing_api_key", "send an API key: Authorization: Bearer KEY")
_WRONG = Refusal(401, "invalid_api_key", "this API key is not valid")


@dataclass
class _Bucket:
    """Holds up to a second's requests and fills by `rate` a second."""

    rate: float
    left: float
    filled_at: float

    def take(self) -> bool:
        now = monotonic()
        self.left = min(max(1.0, self.rate), self.left + (now - self.filled_at) * self.rate)
        self.filled_at = now
        if self.left < 1:
            return False
        self.left -= 1
        return True


class Keys:
    """`hashes`: name -> sha256 of the key; {} lets everybody in. `requests_per_s`: of each name, in this process; 0:
    any number."""

    def __init__(self, hashes: dict[str, str], requests_per_s: float = 0.0) -> None:
        self._known = list(hashes.items())
        self._uri = ""
        self._rate = requests_per_s
        self._buckets: dict[str, _Bucket] = {}

    @classmethod
    def load(cls, uri: str, requests_per_s: float) -> Keys:
        """UserError for a line that is none, and for a file without any key: that would let everybody in."""
        keys = cls({}, requests_per_s)
        if uri:
            keys._uri, keys._known = uri, _read(uri)
        return keys

    @property
    def needed(self) -> bool:
        """Whether a request must bring one."""
        return bool(self._known)

    async def follow(self) -> None:
        """Reads the file again every REREAD_S seconds, until it is cancelled. While the file cannot be read or is none,
        the keys that are known stay valid, and the log says so."""
        while self._uri:
            await asyncio.sleep(REREAD_S)
            try:
                self._known = await asyncio.to_thread(_read, self._uri)
            except Exception as error:  # whatever it is: who ends here would never see a key that is revoked
                _LOGGER.warning("the API keys stay as they were: %s", error)

    def refusal(self, authorization: str) -> Refusal | None:
        """Of a request with this Authorization header ("": none)."""
        name = ""
        if self.needed:
            scheme, _, key = authorization.partition(" ")
            if scheme.lower() != "bearer" or not key.strip():
                return _MISSING
            name = self._name(key.strip())
            if not name:
                return _WRONG
        if self._rate and not self._bucket(name).take():
            return Refusal(429, "rate_limited", f"more than {self._rate:g} requests a second; try again")
        return None

    def _bucket(self, name: str) -> _Bucket:
        if name not in self._buckets:
            self._buckets[name] = _Bucket(self._rate, max(1.0, self._rate), monotonic())
        return self._buckets[name]

    def _name(self, key: str) -> str:
        """Whose key it is, "" when nobody's: every hash is looked at, whichever matches."""
        own = _hash(key)
        matches = [name for name, value in self._known if hmac.compare_digest(own, value)]
        return matches[0] if matches else ""


def _read(uri: str) -> list[tuple[str, str]]:
    """(name, hash) of each line. UserError as Keys.load says."""
    try:
        text = storage.read_bytes(uri).decode()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read the file of keys {uri}: {error}", "check gateway.keys") from error
    known: list[tuple[str, str]] = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        found = _LINE.fullmatch(line.strip())
        if found is None:
            raise UserError(f"{uri}, line {number}: not a name and a hash", "write the line that `sidray key` prints")
        known.append((found["name"], found["hash"]))
    if not known:
        raise UserError(f"{uri} holds no key", "add the line that `sidray key NAME` prints, or set keys to ''")
    return known


def new_key(name: str) -> tuple[str, str]:
    """A new key, and the line of the file of keys that admits it. UserError for a name with blanks."""
    if not re.fullmatch(r"\S+", name) or name.startswith("#"):
        raise UserError(f"{name!r} is no name for a key", "give one word")
    key = f"sk-{secrets.token_urlsafe(32)}"
    return key, f"{name} {_hash(key)}"


def _hash(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()
