"""`octavo chat`: a conversation in the terminal with a running server, streamed as it is written."""

import argparse
import http.client
import json
import os
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence

from octavo.shared.config import API_KEY_VARIABLE
from octavo.shared.errors import ConfigError

TIMEOUT_S = 600.0


def chat(arguments: Sequence[str]) -> int:
    """Read lines, answer each; returns the exit code."""
    options = _parser().parse_args(arguments)
    messages: list[dict[str, str]] = []
    if options.system:
        messages.append({"role": "system", "content": options.system})
    is_terminal = sys.stdin.isatty()
    if is_terminal:
        print(f"Talking to {options.url}. An empty line or Ctrl-D ends it.")
    while True:
        try:
            line = input("> " if is_terminal else "").strip()
        except (EOFError, KeyboardInterrupt):
            return 0
        if not line:
            return 0
        messages.append({"role": "user", "content": line})
        answer = ""
        try:
            for piece in _stream(options, messages):
                answer += piece
                print(piece, end="", flush=True)
        except KeyboardInterrupt:
            pass  # what has come of the answer stays in the conversation
        print(flush=True)
        messages.append({"role": "assistant", "content": answer})


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("octavo chat", description="Talk to a running server; one line, one turn.")
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="the server's address (default: %(default)s)")
    parser.add_argument("--model", help="model name (default: the server's)")
    parser.add_argument("--system", help="a system message to begin with")
    parser.add_argument("--temperature", type=float, default=0.7, help="0 is greedy (default: %(default)s)")
    parser.add_argument("--max-tokens", type=int, default=512, help="of each answer (default: %(default)s)")
    parser.add_argument("--api-key", default=os.environ.get(API_KEY_VARIABLE), help=f"or {API_KEY_VARIABLE}")
    return parser


def _stream(options: argparse.Namespace, messages: list[dict[str, str]]) -> Iterator[str]:
    """Pieces of the answer as they come. Raises ConfigError with what the server says is wrong."""
    body = {
        "messages": messages,
        "stream": True,
        "temperature": options.temperature,
        "max_tokens": options.max_tokens,
    }
    if options.model:
        body["model"] = options.model
    headers = {"Content-Type": "application/json"}
    if options.api_key:
        headers["Authorization"] = f"Bearer {options.api_key}"
    if not options.url.startswith(("http://", "https://")):
        raise ConfigError(f"--url {options.url}: it must begin with http:// or https://")
    url = options.url.rstrip("/") + "/v1/chat/completions"
    request = urllib.request.Request(url, json.dumps(body).encode(), headers)
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:
            for line in answer:
                if line.startswith(b"data: {"):
                    yield _piece(json.loads(line[6:]))
    except urllib.error.HTTPError as error:
        raise ConfigError(f"{options.url} answered {error.code}: {_reason(error.read())}") from None
    except http.client.HTTPException:
        raise ConfigError(f"{options.url} broke off in the middle of the answer") from None
    except OSError as error:
        raise ConfigError(f"{options.url} does not answer ({error}): is `octavo serve` running?") from None


def _piece(event: dict[str, object]) -> str:
    if "error" in event:
        raise ConfigError(f"the server ended the answer: {event['error']}")
    choices = event.get("choices")
    delta = choices[0].get("delta", {}) if isinstance(choices, list) and choices else {}
    return str(delta.get("content") or "")


def _reason(body: bytes) -> str:
    try:
        return str(json.loads(body)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return body.decode(errors="replace")[:200]
