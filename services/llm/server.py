"""The engine of one program: an `octavo serve` of its own, which ends with it."""

import json
import logging
import os
import secrets
import subprocess
import sys
import threading
import weakref
from concurrent.futures import Future

import msgspec

from octavo.shared.config import API_KEY_VARIABLE, Config, to_flags
from octavo.shared.errors import ConfigError, ModelError

log = logging.getLogger(__name__)

STOP_S = 10.0  # it ends within two seconds, if the machine lets it
NOT_ITS_OWN = ("host", "port", "runtime_dir", "ssl_certfile")


class LocalServer:
    """Starts the processes of `octavo serve` on a free port of the loopback, with a key that nobody else has.

    They end with `close`, with this object, with the interpreter, or when this process is killed.
    """

    def __init__(self, config: Config) -> None:
        """Begin to start; `address` says when that is done. Raises ConfigError for a setting that makes no sense."""
        for name in NOT_ITS_OWN:
            if getattr(config, name) != getattr(Config(), name):
                raise ConfigError(f"{name} is no setting of an engine that only its own program can reach")
        self.api_key = secrets.token_urlsafe(32)
        self.address: Future[str] = Future()
        """The server's, once it is ready; or ModelError with the reason why it is not."""
        started: Future[subprocess.Popen[bytes]] = Future()
        command = [sys.executable, "-P", "-m", "octavo.services.llm.host", str(os.getpid())]
        command += to_flags(msgspec.structs.replace(config, port=0))
        environment = {**os.environ, API_KEY_VARIABLE: self.api_key}
        # The kernel tells a child that its parent has died when the thread ends which started it: this one stays.
        keeper = threading.Thread(
            target=_keep, args=(command, environment, started, self.address), name="octavo server", daemon=True
        )
        keeper.start()
        self._process = started.result()
        self._end = weakref.finalize(self, _end, self._process, keeper, os.getpid())

    @property
    def is_alive(self) -> bool:
        return self._process.poll() is None

    def close(self) -> None:
        """End all of its processes and wait for that; may be called again."""
        self._end()


def _keep(
    command: list[str],
    environment: dict[str, str],
    started: "Future[subprocess.Popen[bytes]]",
    address: "Future[str]",
) -> None:
    """Start the server and read what it reports until its end."""
    try:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, env=environment, start_new_session=True
        )
    except OSError as error:
        started.set_exception(ModelError(f"the engine cannot be started: {error}"))
        return
    started.set_result(process)
    reason = ""
    assert process.stdout is not None
    with process.stdout:
        for line in process.stdout:
            fields = json.loads(line)
            if fields["stage"] == "ready":
                address.set_result(fields["address"])
            elif fields["stage"] == "failed":
                reason = fields["reason"]
    code = process.wait()
    if address.done():
        if code:
            log.error("the engine has ended: %s", reason or f"code {code}")
    else:
        address.set_exception(ModelError(reason or f"the engine ended with code {code} before it was ready"))


def _end(process: "subprocess.Popen[bytes]", keeper: threading.Thread, owner: int) -> None:
    if os.getpid() != owner:
        return  # a fork of the program; the server is its parent's
    process.terminate()
    try:
        process.wait(STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()  # its children go with it
        process.wait()
    keeper.join(STOP_S)
