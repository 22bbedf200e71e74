"""What a whole server answers is what its document says, to the field."""

import json
import urllib.request
from itertools import product

import pytest
from tests.tools.document import Document
from tests.tools.server import WAIT_S, Server

MAIN = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "Hi"}]},
    "/v1/completions": {"prompt": ["Once", "upon"]},
}
OPTIONS: list[dict[str, object]] = [
    {},
    {"n": 2, "temperature": 0, "return_token_ids": True},
    {"max_tokens": 1, "skip_special_tokens": False, "seed": 3},
    {"ignore_eos": True, "stop": ["a", "e", "i"], "return_token_ids": False},
]


@pytest.fixture(scope="module")
def server(sim_server: Server) -> Server:
    return sim_server


@pytest.mark.parametrize(("path", "options"), list(product(MAIN, OPTIONS)))
def test_an_answer_and_a_stream_are_as_the_document_says(server: Server, path: str, options: dict[str, object]) -> None:
    document = Document(json.loads(server.get("/openapi.json")))
    for stream in ({}, {"stream": True}, {"stream": True, "stream_options": {"include_usage": True}}):
        body = json.dumps({"max_tokens": 12, **MAIN[path], **options, **stream}).encode()
        request = urllib.request.Request(server.url + path, body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=WAIT_S) as answer:
            kind = answer.headers.get_content_type()
            assert kind == ("text/event-stream" if stream else "application/json")
            document.check_answer("POST", path, 200, kind, answer.read())
