"""A running server as the commands in the terminal see it: where it is, and streams of text from it."""

import argparse
import http.client
import json
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping

from octavo.shared.config import API_KEY_VARIABLE, key_to_send
from octavo.shared.errors import ConfigError

TIMEOUT_S = 600.0


def add_server_options(parser: argparse.ArgumentParser) -> None:
    """--url, --model and --api-key."""
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="the server's address (default: %(default)s)")
    parser.add_argument("--model", help="model name (default: the server's)")
    parser.add_argument("--api-key", default=key_to_send(), help=f"or {API_KEY_VARIABLE}")


def checked_url(url: str) -> str:
    """Without a slash or /v1 at its end. Raises ConfigError for what is no address of a server."""
    if not url.startswith(("http://", "https://")):
        raise ConfigError(f"--url {url}: it must begin with http:// or https://")
    return url.rstrip("/").removesuffix("/v1")


def stream_text(options: argparse.Namespace, path: str, fields: Mapping[str, object]) -> Iterator[str]:
    """Pieces of an answer's text as they come. Raises ConfigError with what the server says is wrong.

    Args:
        options: those of `add_server_options`.
        path: /v1/chat/completions or /v1/completions.
        fields: of the body; those that are None are left out.
    """
    body = {name: value for name, value in fields.items() if value is not None}
    if options.model:
        body["model"] = options.model
    headers = {"Content-Type": "application/json"}
    if options.api_key:
        headers["Authorization"] = f"Bearer {options.api_key}"
    url = checked_url(options.url)
    request = urllib.request.Request(url + path, json.dumps({**body, "stream": True}).encode(), headers)
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:
            for line in answer:
                if line.startswith(b"data: {"):
                    yield _piece(json.loads(line[6:]))
    except urllib.error.HTTPError as error:
        hint = f" (the key is read from {API_KEY_VARIABLE})" if error.code == 401 else ""
        raise ConfigError(f"{options.url} answered {error.code}: {_reason(error.read())}{hint}") from None
    except (http.client.HTTPException, ValueError):
        raise ConfigError(f"{options.url} broke off in the middle of the answer") from None
    except OSError as error:
        raise ConfigError(f"{options.url} does not answer ({error}): is `octavo serve` running?") from None


def _piece(event: dict[str, object]) -> str:
    if "error" in event:
        raise ConfigError(f"the server ended the answer: {event['error']}")
    choices = event.get("choices")
    if not isinstance(choices, list) or not choices:
        return ""
    return str(choices[0].get("text") or choices[0].get("delta", {}).get("content") or "")


def _reason(body: bytes) -> str:
    try:
        return str(json.loads(body)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return body.decode(errors="replace")[:200]
