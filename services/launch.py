"""`octavo serve`: starts the services as processes, watches them, and ends them. Imports none of them.

Every child leads a session of its own, so that Ctrl-C reaches this process alone, and is killed by the
kernel when this process dies, however it dies.
"""

import functools
import json
import os
import selectors
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

import msgspec

from octavo.shared.config import API_KEY_VARIABLE, Config, to_flags
from octavo.shared.errors import ConfigError
from octavo.shared.process import StopFlag, die_with_parent, report
from octavo.shared.pulse import is_alive
from octavo.shared.tls import server_context

GATEWAYS_STOP_S = 1.5
"""What gateways get to end open streams before they are killed."""
STOP_S = 0.4
"""What the others get, which have nothing to lose."""
MAX_RESTARTS = 5
RESTARTS_S = 60.0
"""More than MAX_RESTARTS of one child in this time end the whole server."""
TURN_S = 0.05


class StartFailed(Exception):
    """A service ended before the server was ready, or too often afterwards."""


class Child:
    """One service process, and its successors."""

    def __init__(self, role: str, arguments: Sequence[str], environment: dict[str, str]) -> None:
        self.role = role
        self._command = [sys.executable, "-P", "-m", f"octavo.services.{role}", *arguments]
        self._environment = environment
        self._starts: deque[float] = deque(maxlen=MAX_RESTARTS)
        self.reason = ""
        """The last thing it reported as a failure."""
        self._unfinished = b""
        self.process = self._start()

    @property
    def output(self) -> IO[bytes]:
        assert self.process.stdout is not None
        return self.process.stdout

    def read_lines(self) -> list[str] | None:
        """The lines that have come on its standard output, which must be readable; None at its end."""
        data = os.read(self.output.fileno(), 65536)
        *lines, self._unfinished = (self._unfinished + data).split(b"\n")
        if not data:
            return None
        return [line.decode(errors="replace") for line in lines]

    def restart(self) -> None:
        """Start anew. Raises StartFailed when that has been done too often of late."""
        if len(self._starts) == MAX_RESTARTS and time.monotonic() - self._starts[0] < RESTARTS_S:
            raise StartFailed(f"{self.role} ended {MAX_RESTARTS} times within {RESTARTS_S:.0f} s; see the log above")
        self.output.close()
        self.reason, self._unfinished = "", b""
        self.process = self._start()

    def _start(self) -> "subprocess.Popen[bytes]":
        self._starts.append(time.monotonic())
        return subprocess.Popen(
            self._command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, env=self._environment,
            start_new_session=True, preexec_fn=functools.partial(die_with_parent, os.getpid()),
        )  # fmt: skip


def serve(config: Config, is_embedded: bool = False) -> int:
    """Run the whole server until SIGINT or SIGTERM; returns the exit code.

    is_embedded: a program has started it, and is told that all is ready, or why not, in one line of JSON.
    """
    stop, began = StopFlag(), time.monotonic()
    server_context(config)  # what is wrong with it should be said before anything starts
    with _reserve_port(config.host, config.port) as reserved:
        config = msgspec.structs.replace(config, port=reserved.getsockname()[1])
        folder = Path(tempfile.mkdtemp(prefix="octavo-"))
        children: list[Child] = []
        try:
            if not is_embedded:
                _say(f"Octavo is starting {config.model_names[0]}")
            config = msgspec.structs.replace(config, runtime_dir=str(folder))
            for child in _start_children(config):
                children.append(child)
            return _Supervisor(config, children, stop, began, is_embedded).run()
        except StartFailed as error:
            if is_embedded:
                report("failed", reason=str(error))
            else:
                _say(f"octavo: {error}", sys.stderr)
            return 1
        finally:
            _end(children)
            shutil.rmtree(folder, ignore_errors=True)


class _Supervisor:
    """Shows the start-up, then restarts what ends."""

    def __init__(self, config: Config, children: list[Child], stop: StopFlag, began: float, is_embedded: bool) -> None:
        self._config, self._children, self._stop, self._began = config, children, stop, began
        self._is_embedded = is_embedded
        self._is_ready = False
        self._selector = selectors.DefaultSelector()
        for child in children:
            self._watch(child)

    def run(self) -> int:
        while not self._stop.is_set:
            for key, _ in self._selector.select(TURN_S):
                self._read(key.data)
            if not self._is_ready and _all_serve(self._config):
                self._is_ready = True
                self._welcome()
        return 0

    def _watch(self, child: Child) -> None:
        self._selector.register(child.output, selectors.EVENT_READ, child)

    def _read(self, child: Child) -> None:
        """What a child reports, or its end."""
        lines = child.read_lines()
        for line in lines or ():
            self._show(child, line)
        if lines is not None:
            return
        self._selector.unregister(child.output)
        code = child.process.wait()
        if self._stop.is_set:
            return
        if not self._is_ready:
            raise StartFailed(child.reason or f"the {child.role} process ended with code {code} before it was ready")
        because = f": {child.reason}" if child.reason else ""
        _say(
            f"octavo: the {child.role} process ended with code {code}{because}; it is started again",
            sys.stderr,
        )
        child.restart()
        self._watch(child)

    def _show(self, child: Child, line: str) -> None:
        try:
            fields = json.loads(line)
            stage = fields["stage"]
        except (ValueError, KeyError, TypeError):
            _say(line.rstrip(), sys.stderr if self._is_embedded else sys.stdout)
            return
        if stage == "failed":
            child.reason = fields.get("reason", "")
        elif not (self._is_ready or self._is_embedded) and "took_s" in fields:
            _say(f"  {stage:<12}{fields['took_s']:6.2f} s  {fields.get('detail', '')}".rstrip())

    def _welcome(self) -> None:
        config, host = self._config, self._config.host
        scheme = "https" if config.ssl_certfile else "http"
        address = f"{scheme}://{'localhost' if host in ('0.0.0.0', '::') else host}:{config.port}"
        if self._is_embedded:
            report("ready", address=address)
            return
        key = ' -H "Authorization: Bearer $OCTAVO_API_KEY"' if config.api_key else ""
        _say(f"Ready after {time.monotonic() - self._began:.1f} s at {address}\n\nTry:")
        _say(
            f"  curl {address}/v1/chat/completions -H 'Content-Type: application/json'{key} "
            """-d '{"messages": [{"role": "user", "content": "Say hello."}], "max_tokens": 30}'"""
        )
        _say(f"  octavo chat --url {address}\n\nCtrl-C ends it.")


def new_environment() -> dict[str, str]:
    """The variables that every service is started with."""
    # Threads of a product that wait for the last one spin for a millisecond by default: on cores that the other
    # services need too, that keeps the last one from running.
    return {"GOMP_SPINCOUNT": "10000", **os.environ}


def _start_children(config: Config) -> Iterator[Child]:
    environment = new_environment()
    if config.api_key:
        environment[API_KEY_VARIABLE] = ",".join(config.api_key)
    flags = to_flags(config)
    # The executor takes longest to start, so it comes first.
    roles = [("executor", flags), ("scheduler", flags)]
    for role, count in (("tokenizer", config.tokenizers), ("gateway", config.gateways)):
        roles += [(role, ["--index", str(index), *flags]) for index in range(count)]
    for role, arguments in roles:
        yield Child(role, arguments, environment)


def _end(children: Sequence[Child]) -> None:
    """Gateways first, since they let open streams finish; then the others, each before what it would miss."""
    gateways = [child for child in children if child.role == "gateway"]
    others = [child for child in reversed(children) if child.role != "gateway"]
    end_within(gateways, GATEWAYS_STOP_S)
    end_within(others, STOP_S)


def end_within(children: Sequence[Child], timeout_s: float) -> None:
    """Ask them to end, then make them."""
    for child in children:
        child.process.terminate()
    deadline = time.monotonic() + timeout_s
    for child in children:
        try:
            child.process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            child.process.kill()
            child.process.wait()
        child.output.close()


def _reserve_port(host: str, port: int) -> socket.socket:
    """A socket that keeps the port for us; gateways bind beside it. Raises ConfigError if it is taken."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(family) as probe:
            # Without SO_REUSEPORT this fails where another server listens, even one that would share.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
        reserved = socket.socket(family)
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        reserved.bind((host, port))
    except OSError as error:
        raise ConfigError(f"cannot listen on {host}:{port}: {error.strerror}; choose another with --port") from None
    return reserved


def _all_serve(config: Config) -> bool:
    """Whether all gateways say that they and all behind them serve.

    By their pulses, since over HTTP any one of them would answer, and with TLS ask for a certificate that we have not.
    """
    assert config.runtime_dir is not None
    return all(is_alive(Path(config.runtime_dir), f"gateway-{index}") for index in range(config.gateways))


def _say(line: str, to: "IO[str] | None" = None) -> None:
    print(line, file=to or sys.stdout, flush=True)
