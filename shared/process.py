"""What every service process does alike: signals, start-up reports, logs, and a pulse that others can look at."""

import ctypes
import gc
import json
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from octavo.shared.config import Config, parse
from octavo.shared.errors import ConfigError, OctavoError
from octavo.shared.transport import HEARTBEAT_S

PR_SET_PDEATHSIG = 1
PULSE_FRESH_S = 3.0  # six missed beats
MAX_FOLDER_CHARS = 80  # a unix socket's path has 107, and the longest file name here is gateway-63.sock


class StopFlag:
    """Set by SIGTERM and SIGINT; main loops look at it once a turn."""

    def __init__(self) -> None:
        self.is_set = False
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._set)

    def _set(self, number: int, frame: object) -> None:
        self.is_set = True


def report(stage: str, **fields: str | float) -> None:
    """One line of JSON on standard output: a stage of the start-up is done."""
    print(json.dumps({"stage": stage, **fields}), flush=True)


def die_with_parent(parent: int) -> None:
    """In a child process: be killed by the kernel when the parent, a process id, dies, or now if it has."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)


def keep_what_is_loaded() -> None:
    """Have the garbage collector pass over all that a start-up has made: where torch is loaded a walk takes 100 ms."""
    gc.freeze()


class Stopwatch:
    """Reports stages of a start-up, each with the time since the one before."""

    def __init__(self) -> None:
        self._since = time.monotonic()

    def report(self, stage: str, **fields: str | float) -> None:
        """Report the stage that ends here."""
        now = time.monotonic()
        report(stage, took_s=round(now - self._since, 3), **fields)
        self._since = now


class Pulse:
    """Says to peers, and through a file to health checks, that a main loop turns."""

    def __init__(self, folder: Path, role: str) -> None:
        self._path = pulse_path(folder, role)
        self._path.unlink(missing_ok=True)  # left by one that crashed
        self._next = 0.0

    def is_due(self, now: float) -> bool:
        """True every HEARTBEAT_S; the caller then beats."""
        if now < self._next:
            return False
        self._next = now + HEARTBEAT_S
        return True

    def beat(self, is_ready: bool) -> None:
        """Leave a fresh mark if the service can do its work."""
        if is_ready:
            self._path.touch()

    def end(self) -> None:
        self._path.unlink(missing_ok=True)


def pulse_path(folder: Path, role: str) -> Path:
    """One file for each role and host (in compose each container is a host)."""
    return folder / f"{role}-{socket.gethostname()}.pulse"


def is_alive(folder: Path, role: str) -> bool:
    """Whether a service of this role on this host was ready a moment ago."""
    try:
        return time.time() - pulse_path(folder, role).stat().st_mtime < PULSE_FRESH_S
    except OSError:
        return False


class _FieldsFormatter(logging.Formatter):
    """`time level process event key=value …`; the values come from `extra`."""

    _KNOWN = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}

    def format(self, record: logging.LogRecord) -> str:
        fields = " ".join(f"{name}={value}" for name, value in vars(record).items() if name not in self._KNOWN)
        return f"{super().format(record)} {fields}".rstrip()


def set_up_logs(role: str, level: str) -> None:
    """Log to standard error, one line an event."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_FieldsFormatter(f"%(asctime)s %(levelname)s {role}[{os.getpid()}] %(message)s"))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)


def run_service(role: str, serve: Callable[[Config, Path], None], argv: Sequence[str]) -> None:
    """The main of a service: read its flags, run it, and end with one plain sentence if it cannot run."""
    try:
        config = parse(argv, f"octavo {role}", f"The {role} process of Octavo; takes the flags of `octavo serve`.")
        set_up_logs(role, config.log_level)
        serve(config, runtime_folder(config))
    except OctavoError as error:
        report("failed", role=role, reason=str(error))
        sys.exit(2)


def runtime_folder(config: Config) -> Path:
    """The folder of the sockets; only its owner may look into it. Raises ConfigError."""
    if config.runtime_dir is None:
        raise ConfigError("--runtime-dir must name the folder that all services share")
    folder = Path(config.runtime_dir)
    if len(str(folder)) > MAX_FOLDER_CHARS:
        raise ConfigError(f"--runtime-dir has {len(str(folder))} characters; a socket's path allows {MAX_FOLDER_CHARS}")
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return folder


def health(arguments: Sequence[str]) -> int:
    """`octavo health ROLE FOLDER`: exit code 0 if that service on this host was ready a moment ago."""
    if len(arguments) != 2:
        raise ConfigError("usage: octavo health ROLE RUNTIME_DIR")
    return 0 if is_alive(Path(arguments[1]), arguments[0]) else 1
