"""An answer of server-sent events over HTTP/1.1, read from the pieces in which it came."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import msgspec

DONE = b"[DONE]"
MOST_REASON_CHARS = 200


class _Delta(msgspec.Struct):
    role: str | None = None
    content: str | None = None


class _Choice(msgspec.Struct):
    delta: _Delta | None = None

    @property
    def only_names_role(self) -> bool:
        """The first event of a chat, sent before there is a token."""
        return self.delta is not None and self.delta.role is not None and not self.delta.content


class _Usage(msgspec.Struct):
    prompt_tokens: int = 0
    completion_tokens: int = 0


class _Event(msgspec.Struct):
    choices: list[_Choice] = []
    usage: _Usage | None = None
    error: dict[str, object] | str | None = None


_decode = msgspec.json.Decoder(_Event).decode


@dataclass
class Answer:
    """What a stream brought, and when."""

    token_times: list[float] = field(default_factory=list)
    """When the pieces came that had tokens in them."""
    input_tokens: int = 0
    output_tokens: int = 0
    error: str = ""
    """Why it is not whole; empty: it is."""


def read_answer(pieces: Sequence[bytes], times: Sequence[float]) -> Answer:
    """Never raises: what is wrong with the answer is in its `error`."""
    answer, reader = Answer(), _Reader()
    num_events, is_done = 0, False
    try:
        for piece, time in zip(pieces, times, strict=True):
            has_tokens = False
            for data in reader.feed(piece):
                if data == DONE:
                    is_done = True
                    continue
                event = _decode(data)
                if event.error is not None:
                    answer.error = f"the stream ended with: {_sentence(event.error)}"
                if event.usage is not None:
                    answer.input_tokens = event.usage.prompt_tokens
                    answer.output_tokens = event.usage.completion_tokens
                if event.choices and not event.choices[0].only_names_role:
                    num_events += 1
                    has_tokens = True
            if has_tokens:
                answer.token_times.append(time)
    except (ValueError, msgspec.DecodeError) as error:
        answer.error = f"the answer is not understood: {error}"
    if not answer.error:
        answer.error = reader.refusal() or ("" if is_done else f"the stream broke off after {num_events} events")
    # A server that does not report usage is taken at one token an event.
    answer.output_tokens = answer.output_tokens or num_events
    return answer


class _Reader:
    """Takes an HTTP answer as it came from the socket; gives what follows `data:` in its lines."""

    def __init__(self) -> None:
        self._status = 0
        self._is_chunked = False
        self._head = b""
        self._raw = b""  # of the body, not yet cut into chunks
        self._line = b""  # the beginning of one
        self._refusal = b""

    def feed(self, data: bytes) -> list[bytes]:
        """The events that this piece completes. Raises ValueError if it is no HTTP."""
        if not self._status:
            self._head += data
            head, end, data = self._head.partition(b"\r\n\r\n")
            if not end:
                return []
            status_line, *headers = head.lower().split(b"\r\n")
            if not status_line.startswith(b"http/1."):
                raise ValueError("it does not begin with HTTP/1.1")
            self._status = int(status_line.split()[1])
            self._is_chunked = any(each.startswith(b"transfer-encoding:") and b"chunked" in each for each in headers)
        content = self._unchunk(data) if self._is_chunked else data
        if self._status != 200:
            self._refusal += content
            return []
        *lines, self._line = (self._line + content).split(b"\n")
        return [line[5:].strip() for line in lines if line.startswith(b"data:")]

    def refusal(self) -> str:
        """What the server says instead of a stream; empty if it does not."""
        if not self._status:
            return "no answer: the connection was closed"
        if self._status == 200:
            return ""
        try:
            body = msgspec.json.decode(self._refusal)
            reason = _sentence(body.get("error") or body.get("message") or body.get("detail"))
        except (msgspec.DecodeError, AttributeError):
            reason = self._refusal.decode(errors="replace")
        return f"{self._status}: {reason[:MOST_REASON_CHARS]}"

    def _unchunk(self, data: bytes) -> bytes:
        """The content of the chunks that this data completes."""
        self._raw += data
        content = []
        while (end := self._raw.find(b"\r\n")) >= 0:
            size = int(self._raw[:end].split(b";")[0], 16)
            if len(self._raw) < end + 2 + size + 2:
                break
            content.append(self._raw[end + 2 : end + 2 + size])
            self._raw = self._raw[end + 2 + size + 2 :]
        return b"".join(content)


def _sentence(error: object) -> str:
    """Of OpenAI's error object, or of whatever stands in its place."""
    return str(error["message"]) if isinstance(error, dict) and "message" in error else str(error)
