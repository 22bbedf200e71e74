"""The server that is to be measured: where it is, what it calls itself, and what a request to it looks like."""

import json
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from urllib.parse import urlsplit

from octavo.shared.config import API_KEY_VARIABLE, key_to_send
from octavo.shared.errors import ConfigError

ASK_S = 5.0
PAUSE_S = 0.25
PATHS = {"completions": "/v1/completions", "chat": "/v1/chat/completions"}


@dataclass(frozen=True)
class Target:
    """A server that has answered."""

    url: str
    model: str
    engine: str
    """Who it says serves the model."""
    version: str | None
    waited_s: float
    """For it to be ready."""

    @property
    def address(self) -> tuple[str, int, bool]:
        """Host, port, and whether it speaks TLS."""
        return _address(self.url)

    def head(self, endpoint: str) -> str:
        """Of a request, up to the length of its body."""
        parts = urlsplit(self.url)
        lines = [f"POST {parts.path}{PATHS[endpoint]} HTTP/1.1", f"Host: {parts.netloc}", "Connection: close"]
        lines += [f"{name}: {value}" for name, value in _headers().items()]
        return "\r\n".join([*lines, "Content-Type: application/json", ""])


def find(url: str, model: str | None, engine: str | None, wait_s: float) -> Target:
    """Wait until the server is ready and ask what it serves. Raises ConfigError with what is wrong with it."""
    url = url.rstrip("/").removesuffix("/v1")
    _address(url)
    began = time.monotonic()
    while True:
        try:
            _ask(url, "/health", may_lack=True)
            models = _ask(url, "/v1/models")
            break
        except ConfigError as error:
            if time.monotonic() - began >= wait_s:
                raise ConfigError(f"{error}; is it running? --wait gives it time to start") from None
        time.sleep(PAUSE_S)
    waited_s = time.monotonic() - began
    try:
        card = json.loads(models)["data"][0]
        model, engine = model or str(card["id"]), engine or str(card.get("owned_by", "unknown"))
    except (ValueError, LookupError, TypeError, AttributeError):
        raise ConfigError(f"{url}/v1/models does not answer as OpenAI's API does: {models[:200]!r}") from None
    return Target(url, model, engine, _version(_ask(url, "/version", may_lack=True)), waited_s)


def _address(url: str) -> tuple[str, int, bool]:
    parts = urlsplit(url)
    try:
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise ConfigError(f"--url {url}: {error}") from None
    if parts.scheme not in ("http", "https") or not host:
        raise ConfigError(f"--url {url}: it must begin with http:// or https:// and name a host")
    is_tls = parts.scheme == "https"
    return host, port or (443 if is_tls else 80), is_tls


def _ask(url: str, path: str, may_lack: bool = False) -> str:
    """The body of a path, empty where there is none and that is no error. Raises ConfigError."""
    try:
        request = urllib.request.Request(url + path, headers=_headers())
        with urllib.request.urlopen(request, timeout=ASK_S) as answer:
            return str(answer.read().decode(errors="replace"))
    except urllib.error.HTTPError as error:
        if may_lack and error.code in (404, 405):
            return ""
        hint = f" (the key is read from {API_KEY_VARIABLE})" if error.code in (401, 403) else ""
        raise ConfigError(f"{url}{path} answered {error.code} {error.reason}{hint}") from None
    except urllib.error.URLError as error:
        raise ConfigError(f"{url} does not answer ({error.reason})") from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{url} does not answer ({error})") from None


def _headers() -> dict[str, str]:
    key = key_to_send()
    return {"Authorization": f"Bearer {key}"} if key else {}


def _version(body: str) -> str | None:
    try:
        return str(json.loads(body)["version"])
    except (ValueError, LookupError, TypeError):
        return None
