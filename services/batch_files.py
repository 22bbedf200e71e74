"""The two files of `octavo batch`, in OpenAI's format: requests in, results out, a JSON object a line."""

import os
import secrets
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from octavo.shared.errors import ConfigError

MAX_ID_CHARS = 512


@dataclass(frozen=True)
class Request:
    """A line that can be sent."""

    line: int
    custom_id: str
    path: str
    body: bytes


@dataclass(frozen=True)
class BadLine:
    """A line that cannot be sent, and why."""

    line: int
    reason: str


@dataclass
class Done:
    """What an output file has already."""

    ids: dict[str, bool] = field(default_factory=dict)
    """Of requests, with whether they succeeded."""
    bad_lines: set[int] = field(default_factory=set)


class _Line(msgspec.Struct):
    custom_id: str
    method: str
    url: str
    body: msgspec.Raw


class _Body(msgspec.Struct):
    stream: bool | None = None


class _Error(msgspec.Struct):
    line: int | None = None


class _Response(msgspec.Struct):
    status_code: int


class _Result(msgspec.Struct):
    custom_id: str | None
    response: _Response | None
    error: _Error | None


_decode_line = msgspec.json.Decoder(_Line).decode
_decode_body = msgspec.json.Decoder(_Body).decode
_decode_result = msgspec.json.Decoder(_Result).decode


def read_requests(path: Path) -> Iterator[Request | BadLine]:
    """All lines but empty ones. Raises OSError."""
    lines_of: dict[str, int] = {}
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            request = _read(number, line)
            if isinstance(request, Request):
                first = lines_of.setdefault(request.custom_id, number)
                if first != number:
                    request = BadLine(number, f"custom_id {request.custom_id!r} is that of line {first} too")
            yield request


def read_done(path: Path) -> Done:
    """What a results file has; a last line that was cut off is removed from it. Raises ConfigError."""
    done, kept = Done(), 0
    if not path.exists():
        return done
    with path.open("r+b") as file:
        for number, line in enumerate(file, 1):
            try:
                result = _decode_result(line)
            except (msgspec.DecodeError, UnicodeDecodeError):
                if line.endswith(b"\n"):
                    raise ConfigError(
                        f"{path}, line {number}: this is no result of a batch; nothing is changed"
                    ) from None
                file.truncate(kept)
                break
            kept += len(line)
            if result.error is not None and result.error.line is not None:
                done.bad_lines.add(result.error.line)
            elif result.custom_id is not None:
                done.ids[result.custom_id] = result.response is not None and result.response.status_code == 200
            if not line.endswith(b"\n"):
                file.seek(0, os.SEEK_END)
                file.write(b"\n")
    return done


def result_line(request: Request, status: int, request_id: str, body: bytes) -> bytes:
    """A line for an answer, whatever its status."""
    try:
        content = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        message = f"the server answered {status} with what is not JSON: {body[:200].decode(errors='replace')}"
        return _line(request.custom_id, None, {"code": "invalid_answer", "message": message})
    response = {"status_code": status, "request_id": request_id or _id_of(content), "body": content}
    return _line(request.custom_id, response, None)


def bad_line_result(bad: BadLine) -> bytes:
    """A line for a line that could not be sent."""
    error = {"code": "invalid_line", "message": f"line {bad.line}: {bad.reason}", "line": bad.line}
    return _line(None, None, error)


def _line(custom_id: str | None, response: dict[str, Any] | None, error: dict[str, Any] | None) -> bytes:
    name = f"batch_req_{secrets.token_hex(12)}"
    return msgspec.json.encode({"id": name, "custom_id": custom_id, "response": response, "error": error}) + b"\n"


def _read(number: int, line: bytes) -> Request | BadLine:
    try:
        fields = _decode_line(line)
        streams = _decode_body(fields.body).stream
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        return BadLine(number, str(error))
    if not 0 < len(fields.custom_id) <= MAX_ID_CHARS:
        return BadLine(number, f"custom_id has {len(fields.custom_id)} characters; 1 to {MAX_ID_CHARS} are taken")
    if fields.method != "POST":
        return BadLine(number, f"method is {fields.method!r}; only POST is taken")
    if not fields.url.startswith("/v1/"):
        return BadLine(number, f"url is {fields.url!r}; it must be a path like /v1/chat/completions")
    if streams:
        return BadLine(number, "stream is true; a batch has whole answers")
    return Request(number, fields.custom_id, fields.url, bytes(fields.body))


def _id_of(content: object) -> str:
    return str(content.get("id", "")) if isinstance(content, dict) else ""
