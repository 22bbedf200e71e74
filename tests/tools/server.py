"""Starts `octavo serve` as its users do, and makes sure that nothing is left of it afterwards.

The command is the one beside the Python that runs the tests, or what OCTAVO names.
"""

import ctypes
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]  # it has no type information

START_S = 400.0  # loading torch and the model on a busy machine
STOP_S = 30.0
WAIT_S = 90.0
PR_SET_PDEATHSIG = 1
_READY = re.compile(r"Ready after .* at https?://([^:/]+):(\d+)")


@dataclass(frozen=True)
class Server:
    """A running `octavo serve`."""

    process: psutil.Popen
    folder: Path
    """What the server takes for the machine's folder of temporary files."""
    host: str = ""
    port: int = 0

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"

    @property
    def output(self) -> str:
        """All that it has printed."""
        return (self.folder / "stdout").read_text()

    @property
    def errors(self) -> str:
        """All that it has printed to standard error, its services' logs included."""
        return (self.folder / "stderr").read_text()

    def services(self, role: str = "") -> list[psutil.Process]:
        """The service processes, oldest first; of one role, if it is named."""
        found = []
        for process in self.process.children() if is_alive(self.process) else ():
            try:
                is_meant = f"octavo.services.{role}" in " ".join(process.cmdline())
            except psutil.Error:
                continue  # it has just ended
            if is_meant and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        return found

    def pids(self) -> list[int]:
        return sorted(process.pid for process in self.services())

    @property
    def is_ready(self) -> bool:
        """Whether /readyz says so."""
        try:
            self.get("/readyz")
        except OSError:
            return False
        return True

    def get(self, path: str) -> str:
        """The body that a path answers. Raises OSError where the status is an error."""
        with urllib.request.urlopen(self.url + path, timeout=WAIT_S) as answer:
            return str(answer.read().decode())

    def post(self, path: str, body: object) -> Any:
        """What is answered to JSON, and is JSON. Raises HTTPError where the status is an error."""
        content = {"Content-Type": "application/json"}
        request = urllib.request.Request(self.url + path, json.dumps(body).encode(), content)
        with urllib.request.urlopen(request, timeout=WAIT_S) as answer:
            return json.load(answer)

    def metric(self, name: str) -> float:
        """The sum of a metric over its labels."""
        lines = [line for line in self.get("/metrics").splitlines() if re.match(re.escape(name) + r"[{ ]", line)]
        assert lines, f"/metrics has no {name}"
        return sum(float(line.rpartition(" ")[2]) for line in lines)


@contextmanager
def running(*flags: str, environment: dict[str, str] | None = None) -> Iterator[Server]:
    """Serve on a free port until the end of the block, then see that it ends, with all that it started."""
    with started(*flags, environment=environment) as process_and_folder:
        server = _wait_until_ready(*process_and_folder)
        yield server
        services = server.services()
        if is_alive(server.process):
            server.process.send_signal(signal.SIGINT)
            assert server.process.wait(STOP_S) == 0, server.errors
        wait_until(lambda: not any(is_alive(each) for each in services), "its services end", STOP_S)
        assert list(server.folder.glob("octavo-*")) == [], "the folder of its sockets is left"


@contextmanager
def started(*flags: str, environment: dict[str, str] | None = None) -> Iterator[tuple[psutil.Popen, Path]]:
    """A server that may be anything but ready; its whole family is killed at the end of the block."""
    # Short, for it goes into the paths of sockets.
    folder = Path(tempfile.mkdtemp(prefix="ot-", dir="/tmp"))
    octavo = os.environ.get("OCTAVO") or str(Path(sys.executable).parent / "octavo")
    command = [octavo, "serve", "--port", "0", *flags]
    variables = os.environ | {"TMPDIR": str(folder)} | (environment or {})
    with (folder / "stdout").open("w") as stdout, (folder / "stderr").open("w") as stderr:
        process = psutil.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
            env=variables,
            preexec_fn=_die_with_parent,
        )
    try:
        yield process, folder
    finally:
        family = [process, *process.children(recursive=True)] if is_alive(process) else [process]
        kill(family)
        process.wait(STOP_S)
        shutil.rmtree(folder)


def kill(processes: Sequence[psutil.Process]) -> None:
    """Kill those of the processes that still live."""
    for process in processes:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue


def is_alive(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def wait_until(is_true: Callable[[], object], what: str, timeout_s: float = WAIT_S) -> float:
    """Wait for a condition; returns how long that took, in seconds.

    Raises:
        AssertionError: it did not come true in time.
    """
    began = time.monotonic()
    while not is_true():
        assert time.monotonic() - began < timeout_s, f"not within {timeout_s} s: {what}"
        time.sleep(0.02)
    return time.monotonic() - began


def _die_with_parent() -> None:
    """In the child: be killed when the tests are, so that nothing of them stays."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _wait_until_ready(process: psutil.Popen, folder: Path) -> Server:
    server = Server(process, folder)
    wait_until(lambda: _READY.search(server.output) or not is_alive(process), "the server is ready", START_S)
    found = _READY.search(server.output)
    assert found, f"the server ended before it was ready: {server.output} {server.errors}"
    return Server(process, folder, found[1], int(found[2]))
