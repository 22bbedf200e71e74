"""Bodies that no server may accept, against the whole pipeline: it says what is wrong and goes on."""

import json
import urllib.error
import urllib.request
from http.client import HTTPConnection

import pytest
from tests.tools.malformed import CHAT, COMPLETION, MESSAGES, malformed_bodies
from tests.tools.server import Server

TIMEOUT_S = 120.0
NAMED = (
    "max_tokens",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "seed",
    "stop",
    "stream",
    "prompt",
    "messages",
)


@pytest.fixture(scope="module")
def server(sim_server: Server) -> Server:
    return sim_server


def post(server: Server, path: str, body: bytes) -> tuple[int, dict[str, object]]:
    connection = HTTPConnection(server.host, server.port, timeout=TIMEOUT_S)
    try:
        connection.request("POST", path, body, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())
    finally:
        connection.close()


def fault(server: Server, path: str, body: bytes) -> str:
    """What is wrong with the answer to a bad body; empty: nothing."""
    try:
        status, answer = post(server, path, body)
    except (OSError, ValueError) as error:
        return f"{error!r}"
    shown = answer.get("error")
    if not 400 <= status < 500:
        return f"status {status}"
    shape = {"message", "type"} if path == MESSAGES else {"message", "type", "param", "code"}
    if not isinstance(shown, dict) or set(shown) != shape:
        return f"no error of the shape that the clients of {path} know: {answer}"
    return "" if shown["message"] and shown["type"] else f"nothing is said: {shown}"


def test_every_malformed_body_is_refused_and_nothing_restarts(server: Server) -> None:
    pids, corpus = server.pids(), malformed_bodies()
    assert len(corpus) >= 500
    faults = [(fault(server, path, body), path, body[:200]) for path, body, _ in corpus]
    assert [each for each in faults if each[0]] == []
    assert server.pids() == pids
    status, answer = post(server, COMPLETION, b'{"prompt": [1, 2, 3], "max_tokens": 3}')
    assert (status, answer["object"]) == (200, "text_completion")


@pytest.mark.parametrize(
    ("path", "fields", "words"),
    [
        (COMPLETION, {"prompt": [1, 49152]}, ["prompt", "49152", "49151"]),
        (COMPLETION, {"prompt": [1] * 9000}, ["prompt", "9000", "8192"]),
        (COMPLETION, {"prompt": "a b " * 5000}, ["prompt", "8192"]),
        (COMPLETION, {"prompt": "a", "temperature": 3}, ["temperature", "2"]),
        (CHAT, {"messages": [{"role": "user", "content": "a b " * 5000}]}, ["messages", "8192"]),
        (CHAT, {"messages": [{"role": "user", "content": "a b " * 500_000}]}, ["messages", "8192"]),
        (CHAT, {"messages": []}, ["messages", "1"]),
        (
            CHAT,
            {"messages": [{"role": "user", "content": "a"}], "model": "other"},
            ["other", "SmolLM2-135M-Instruct"],
        ),
    ],
)
def test_a_message_names_the_field_the_value_and_the_limit(
    server: Server, path: str, fields: dict[str, object], words: list[str]
) -> None:
    status, answer = post(server, path, json.dumps(fields).encode())
    assert 400 <= status < 500
    error = answer["error"]
    assert isinstance(error, dict)
    assert [word for word in words if word not in error["message"]] == []
    assert error["param"] in (words[0], "model")


def test_a_refused_stream_has_a_status_and_not_an_event(server: Server) -> None:
    status, answer = post(server, COMPLETION, b'{"prompt": [49152], "stream": true}')
    assert status == 400
    assert "49152" in str(answer["error"])


def test_one_bad_prompt_among_good_ones_refuses_the_call(server: Server) -> None:
    status, answer = post(server, COMPLETION, b'{"prompt": [[1, 2], [49152], [3]], "n": 2, "max_tokens": 4}')
    assert status == 400
    assert "49152" in str(answer["error"])


def test_fields_that_nobody_knows_are_ignored(server: Server) -> None:
    body = b'{"prompt": [5], "max_tokens": 2, "logit_bias": {}, "best_of": 1, "something": {"deep": [null]}}'
    assert post(server, COMPLETION, body)[0] == 200


def test_an_unknown_path_is_a_404_in_openais_shape(server: Server) -> None:
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(server.url + "/v1/nothing", timeout=TIMEOUT_S)
    with caught.value as error:
        assert error.code == 404
        assert "/v1/nothing" in json.loads(error.read())["error"]["message"]
