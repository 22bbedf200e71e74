"""The pulse of a process: a small file that says that its main loop turns, and what it costs.

Health checks look at a file's age, gateways show what all files say in /metrics. Every process that shares the folder
of the sockets is seen, in whatever container it runs.
"""

import logging
import os
import socket
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from octavo.shared.errors import ConfigError
from octavo.shared.histogram import HistogramCounts
from octavo.shared.transport import HEARTBEAT_S

log = logging.getLogger(__name__)

FRESH_S = 3.0  # six missed beats
KEPT_S = 3600.0  # what crashed longer ago and did not come back is of containers that are gone
MAX_BYTES = 64 * 1024  # of a file that is read
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


class HttpCounts(msgspec.Struct, frozen=True):
    """What a gateway has counted, so that another one can show it."""

    requests: list[tuple[str, int, int]] = []
    """Route, status, and how many there were."""
    histograms: list[HistogramCounts] = []
    num_open: int = 0


class Vitals(msgspec.Struct, frozen=True):
    """What a process says of itself."""

    role: str
    index: int
    """Which of those of its role on this host."""
    host: str
    is_ready: bool
    started_s: float
    """Seconds since 1970."""
    num_restarts: int
    """Processes in its place that ended without being told to."""
    cpu_s: float
    """User and system time."""
    resident_bytes: int
    num_steps: int | None = None
    """Steps that it has planned or run; None: it knows no steps."""
    delay_s: float | None = None
    """The longest turn of its loop since the last beat; None: not measured."""
    http: HttpCounts | None = None


class Pulse:
    """Says to peers, and through a file to health checks and /metrics, that a main loop turns."""

    def __init__(self, folder: Path, role: str, index: int = 0) -> None:
        """Take the place of a predecessor, if it left a file: then it crashed.

        Args:
            folder: where the files of all processes lie.
            role: "gateway", "tokenizer", "scheduler" or "executor".
            index: which of those of its role on this host.
        """
        self._role, self._index = role, index
        self._path = pulse_path(folder, role, index)
        predecessor = _read(self._path)
        self.num_restarts = 0 if predecessor is None else predecessor.num_restarts + 1
        self._started_s = _started_s()
        self._next = 0.0
        for path in folder.glob("*.pulse"):
            if _age_s(path) > KEPT_S:
                path.unlink(missing_ok=True)
        self.beat(is_ready=False)  # what the predecessor said must not count

    def is_due(self, now: float) -> bool:
        """True every HEARTBEAT_S; the caller then beats."""
        if now < self._next:
            return False
        self._next = now + HEARTBEAT_S
        return True

    def beat(
        self,
        is_ready: bool,
        num_steps: int | None = None,
        delay_s: float | None = None,
        http: HttpCounts | None = None,
    ) -> None:
        """Leave a fresh mark; see `Vitals` for the arguments."""
        vitals = Vitals(
            self._role, self._index, socket.gethostname(), is_ready, self._started_s, self.num_restarts,
            time.process_time(), _resident_bytes(), num_steps, delay_s, http,
        )  # fmt: skip
        unfinished = self._path.with_suffix(".beat")
        try:
            unfinished.write_bytes(msgspec.json.encode(vitals))
            unfinished.replace(self._path)
        except OSError as error:  # a full disk costs the health check, not the service
            log.warning("no pulse", extra={"file": str(self._path), "reason": str(error)})

    def end(self) -> None:
        """The process ends as it was told to."""
        self._path.unlink(missing_ok=True)


def pulse_path(folder: Path, role: str, index: int) -> Path:
    """One file for each process of a host (in compose each container is a host)."""
    return folder / f"{role}-{index}-{socket.gethostname()}.pulse"


def read_pulses(folder: Path) -> Iterator[Vitals]:
    """What every process said last, those apart that have been silent for FRESH_S."""
    for path in sorted(folder.glob("*.pulse")):
        if _age_s(path) < FRESH_S and (vitals := _read(path)) is not None:
            yield vitals


def is_alive(folder: Path, name: str) -> bool:
    """Whether a service of this name ("tokenizer", "gateway-0") on this host was ready a moment ago."""
    host = socket.gethostname()
    return any(
        vitals.is_ready and vitals.host == host and name in (vitals.role, f"{vitals.role}-{vitals.index}")
        for vitals in read_pulses(folder)
    )


def health(arguments: Sequence[str]) -> int:
    """`octavo health ROLE FOLDER`: exit code 0 if that service on this host was ready a moment ago."""
    if len(arguments) != 2:
        raise ConfigError("usage: octavo health ROLE RUNTIME_DIR")
    return 0 if is_alive(Path(arguments[1]), arguments[0]) else 1


def _read(path: Path) -> Vitals | None:
    try:
        with path.open("rb") as file:
            return msgspec.json.decode(file.read(MAX_BYTES), type=Vitals)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError):
        return None  # of a process that has just ended, or of another version


def _age_s(path: Path) -> float:
    try:
        return time.time() - path.stat().st_mtime
    except OSError:
        return float("inf")


def _started_s() -> float:
    """When this process began, in seconds since 1970: proc(5), `starttime`."""
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    since_boot = int(fields[19]) / os.sysconf("SC_CLK_TCK")
    return time.time() - time.clock_gettime(time.CLOCK_BOOTTIME) + since_boot


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * _PAGE_BYTES
