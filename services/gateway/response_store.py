"""ResponseStore: responses that clients may ask for again, as files that all gateways of a machine share.

Each tenant has a folder of its own, bounded by number, bytes and age; the oldest go first. ID.json holds a response
that has ended. It is made by linking a finished file into place, which one process alone can do: so a response ends
once, however many gateways want to end it. ID.open holds one that is being worked on in the background; its gateway
touches it to show that it lives. ID.events grows by the events of such a one, if it streams. Everything here blocks: it
belongs into threads.
"""

import errno
import os
import re
import time
from hashlib import blake2b
from pathlib import Path

import msgspec

FREE_BYTES = 2**20  # on the file system, for the sockets and marks of all services
MAX_READ_BYTES = 2**20  # of events, at once
STALE_S = 10.0  # untouched for so long, a response's gateway is dead

_ID_SHAPE = re.compile(r"resp_[0-9a-f]{32}")


class Bounds(msgspec.Struct, frozen=True):
    """Of what is kept for one tenant."""

    num_responses: int = 10_000
    num_bytes: int = 256 * 2**20
    """And at most a quarter of the file system."""
    age_s: float = 24 * 3600.0
    look_s: float = 2.0
    """Between two looks at them, so that these cost little beside what is written."""


class Record(msgspec.Struct, frozen=True):
    """A response and the items that led to it, both as JSON."""

    response: msgspec.Raw
    input: msgspec.Raw


class Found(msgspec.Struct, frozen=True):
    record: Record
    is_stale: bool = False
    """It was being worked on, by a gateway that has died."""


class ResponseStore:
    """In a folder that only its owner may enter."""

    def __init__(self, folder: Path, bounds: Bounds = Bounds()) -> None:  # noqa: B008  # it is frozen
        self._folder, self._bounds = folder, bounds
        self._swept_s: dict[Path, float] = {}

    def begin(self, tenant: bytes, id: str, record: Record, has_events: bool = False) -> None:
        """Note a response that is being worked on, with events or without. Raises OSError."""
        made = self._write(tenant, record)
        if has_events:
            os.close(os.open(self._path(tenant, id, "events"), os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
        made.rename(self._path(tenant, id, "open"))

    def touch(self, tenant: bytes, id: str) -> bool:
        """Show that a response is being worked on. False: it has been ended or deleted, so nobody waits for it."""
        try:
            os.utime(self._path(tenant, id, "open"))
        except FileNotFoundError:
            return False
        return True

    def add_events(self, tenant: bytes, id: str, events: bytes) -> bool:
        """Keep more of a response's events. False: it has been deleted. Raises OSError."""
        try:
            with open(os.open(self._path(tenant, id, "events"), os.O_WRONLY | os.O_APPEND), "wb") as file:
                return file.write(events) > 0
        except FileNotFoundError:
            return False

    def read_events(self, tenant: bytes, id: str, start: int) -> tuple[bytes, bool] | None:
        """A response's events from a byte on, up to MAX_READ_BYTES, and whether more may follow; None: it has none."""
        try:
            touched_s = self._path(tenant, id, "open").stat().st_mtime  # this file goes when the last event is there
        except FileNotFoundError:
            touched_s = 0.0
        try:
            with self._path(tenant, id, "events").open("rb") as file:
                file.seek(start)
                return file.read(MAX_READ_BYTES), time.time() - touched_s <= STALE_S
        except FileNotFoundError:
            return None

    def end(self, tenant: bytes, id: str, record: Record, was_begun: bool = False) -> bool:
        """Keep a response that has ended. False: it had ended before, or was deleted meanwhile. Raises OSError."""
        made, path = self._write(tenant, record), self._path(tenant, id, "json")
        try:
            os.link(made, path)
        except FileExistsError:
            return False
        finally:
            made.unlink()
        if was_begun:
            try:
                self._path(tenant, id, "open").unlink()
            except FileNotFoundError:
                path.unlink(missing_ok=True)
                return False
        self._sweep(path.parent)
        return True

    def find(self, tenant: bytes, id: str) -> Found | None:
        """A tenant's response, as far as it has come."""
        if not _ID_SHAPE.fullmatch(id):
            return None
        for kind in ("json", "open", "json"):  # it may end between the first look and the second
            path = self._path(tenant, id, kind)
            try:
                data, age_s = path.read_bytes(), time.time() - path.stat().st_mtime
            except FileNotFoundError:
                continue
            return Found(msgspec.json.decode(data, type=Record), kind == "open" and age_s > STALE_S)
        return None

    def delete(self, tenant: bytes, id: str) -> bool:
        """False: there is none."""
        if not _ID_SHAPE.fullmatch(id):
            return False
        was_there = False
        for kind in ("open", "json"):  # in this order: see `end`
            try:
                self._path(tenant, id, kind).unlink()
                was_there = True
            except FileNotFoundError:
                continue
        self._path(tenant, id, "events").unlink(missing_ok=True)
        return was_there

    def _path(self, tenant: bytes, id: str, kind: str) -> Path:
        return self._folder / blake2b(tenant, digest_size=16).hexdigest() / f"{id}.{kind}"

    def _write(self, tenant: bytes, record: Record) -> Path:
        """A whole file beside the others, under a name that nobody looks for."""
        path = self._path(tenant, f"made-{os.urandom(8).hex()}", "new")
        for folder in (self._folder, path.parent):
            folder.mkdir(mode=0o700, exist_ok=True)
        data, space = msgspec.json.encode(record), os.statvfs(path.parent)
        if space.f_bavail * space.f_frsize < len(data) + FREE_BYTES:
            raise OSError(errno.ENOSPC, "the runtime folder is full")
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(data)
        return path

    def _sweep(self, folder: Path) -> None:
        """Remove what is beyond the bounds."""
        now, bounds = time.monotonic(), self._bounds
        if now - self._swept_s.get(folder, -bounds.look_s) < bounds.look_s:
            return
        self._swept_s[folder] = now
        found = []
        for entry in os.scandir(folder):
            try:
                status = entry.stat()
            except FileNotFoundError:
                continue  # another gateway has removed it
            found.append((status.st_mtime, status.st_size, entry.path))
        found.sort(reverse=True)
        space = os.statvfs(folder)
        most, oldest_s = min(bounds.num_bytes, space.f_blocks * space.f_frsize // 4), time.time() - bounds.age_s
        num_bytes = 0
        for number, (made_s, size, path) in enumerate(found):
            num_bytes += size
            if number >= bounds.num_responses or num_bytes > most or made_s < oldest_s:
                Path(path).unlink(missing_ok=True)
