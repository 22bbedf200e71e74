"""What every service process does alike: signals, flags, start-up reports and logs."""

import argparse
import ctypes
import gc
import json
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from octavo.shared.config import Config, parse
from octavo.shared.errors import ConfigError, OctavoError

PR_SET_PDEATHSIG = 1
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


def die_with_parent(parent: int, by: int = signal.SIGKILL) -> None:
    """In a child process: get a signal from the kernel when the parent, a process id, dies, or now if it has."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, by)
    if os.getppid() != parent:
        os.kill(os.getpid(), by)


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


def run_service(role: str, serve: Callable[[Config, Path, int], None], argv: Sequence[str]) -> None:
    """The main of a service: read its flags, run it, and end with one plain sentence if it cannot run."""
    try:
        index, rest = take_index(argv)
        config = parse(rest, f"octavo {role}", f"The {role} process of Octavo; takes the flags of `octavo serve`.")
        set_up_logs(role, config.log_level)
        serve(config, runtime_folder(config), index)
    except OctavoError as error:
        report("failed", role=role, reason=str(error))
        sys.exit(2)


def take_index(argv: Sequence[str]) -> tuple[int, list[str]]:
    """The value of --index, which of several processes of a role this is, and the other arguments."""
    parser = argparse.ArgumentParser("octavo", add_help=False, allow_abbrev=False)
    parser.add_argument("--index", type=int, default=0)
    given, rest = parser.parse_known_args(argv)
    return given.index, rest


def runtime_folder(config: Config) -> Path:
    """The folder of the sockets; only its owner may look into it. Raises ConfigError."""
    if config.runtime_dir is None:
        raise ConfigError("--runtime-dir must name the folder that all services share")
    folder = Path(config.runtime_dir)
    if len(str(folder)) > MAX_FOLDER_CHARS:
        raise ConfigError(
            f"--runtime-dir {folder} has {len(str(folder))} characters; a socket's path allows {MAX_FOLDER_CHARS} "
            "(where none is named, it lies in TMPDIR)"
        )
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return folder
