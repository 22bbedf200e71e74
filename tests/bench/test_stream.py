"""A streamed answer is read the same however it is cut into pieces."""

import json

from hypothesis import given
from hypothesis import strategies as st

from octavo.services.bench.stream import Answer, read_answer

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
USAGE = {"choices": [], "usage": {"prompt_tokens": 4, "completion_tokens": 3}}


def chunk(*events: object) -> bytes:
    data = b"".join(b"data: %s\n\n" % (json.dumps(each).encode() if each else b"[DONE]") for each in events)
    return b"%x\r\n%s\r\n" % (len(data), data)


def text(piece: str) -> dict[str, object]:
    return {"choices": [{"index": 0, "text": piece}]}


WHOLE = HEAD + chunk(text("a")) + chunk(text('"error": data: [DONE]'), text("c")) + chunk(USAGE, None) + b"0\r\n\r\n"


def read(*pieces: bytes) -> Answer:
    return read_answer(pieces, [float(index) for index in range(len(pieces))])


@given(st.sets(st.integers(1, len(WHOLE) - 1)))
def test_pieces_may_end_anywhere(cuts: set[int]) -> None:
    places = [0, *sorted(cuts), len(WHOLE)]
    answer = read(*(WHOLE[begin:end] for begin, end in zip(places, places[1:], strict=False)))

    assert (answer.error, answer.input_tokens, answer.output_tokens) == ("", 4, 3)
    assert 1 <= len(answer.token_times) <= 3
    assert answer.token_times == sorted(set(answer.token_times))


def test_only_pieces_with_tokens_are_timed() -> None:
    role = {"choices": [{"delta": {"role": "assistant", "content": ""}}]}
    first, second = ({"choices": [{"delta": {"content": each}}]} for each in "ab")

    answer = read(HEAD, chunk(role), chunk(first), chunk(second), chunk(USAGE), chunk(None))

    assert (answer.error, answer.token_times) == ("", [2.0, 3.0])


def test_a_server_without_usage_is_taken_at_one_token_an_event() -> None:
    assert read(HEAD, chunk(text("a"), text("b")), chunk(None)).output_tokens == 2


def test_a_body_without_chunks_is_read_to_its_end() -> None:
    head = b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n"
    answer = read(head + b'data: {"choices": [{"text": "a"}]}\r\n\r\ndata: [DONE]\r\n\r\n')

    assert (answer.error, answer.output_tokens) == ("", 1)


def test_what_is_wrong_is_named() -> None:
    assert read().error == "no answer: the connection was closed"
    assert read(HEAD, chunk(text("a"))).error == "the stream broke off after 1 events"
    assert read(b"SSH-2.0-OpenSSH\r\n\r\n").error.startswith("the answer is not understood: it does not begin with")
    assert read(HEAD, b"5\r\nhello\r\nzz\r\n").error.startswith("the answer is not understood")
    assert read(HEAD, b'f\r\ndata: {"broken\n\r\n').error.startswith("the answer is not understood")
    assert read(b"HTTP/1.1 502 Bad\r\nContent-Length: 4\r\n\r\noops").error == "502: oops"
    assert read(b'HTTP/1.1 429 Busy\r\nContent-Length: 22\r\n\r\n{"detail": "too many"}').error == "429: too many"
    failed = read(HEAD, chunk({"error": {"message": "gone", "code": 500}}, None))
    assert failed.error == "the stream ended with: gone"
