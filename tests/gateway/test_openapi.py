"""The OpenAPI document and its page: complete, valid, and what the server really does."""

import asyncio
import base64
import io
import json
import re
from hashlib import sha256
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, Literal

import jsonschema
import pytest
from aiohttp import web
from openapi_spec_validator import validate
from tests.gateway.harness import CHAT_BODY, MODEL, running, until_ready
from tests.tokenizer.dialect_streams import CALLED, THOUGHT, message, streamed, whole
from tests.tokenizer.test_answers import make_chat, make_plain
from tests.tokenizer.test_anthropic_answer import FIELDS as MESSAGE
from tests.tokenizer.test_responses_answer import FIELDS as RESPONSE
from tests.tools.document import Document
from tests.tools.fake_tokenizer import FakeTokenizer
from tests.tools.malformed import malformed_bodies

from octavo.services.gateway import app
from octavo.services.gateway.auth import OPEN_ROUTES
from octavo.services.gateway.metrics import Metrics
from octavo.services.gateway.workers import Workers
from octavo.services.tokenizer.answers.common import Delta, Finished, Opening, ToolCall, Usage
from octavo.services.tokenizer.logprobs import TokenLogprobs
from octavo.services.tokenizer.parsing.events import Content, Reasoning, ToolArguments, ToolBegin
from octavo.shared.config import Config
from octavo.shared.endpoints import BODIES, read_request
from octavo.shared.errors import RequestError
from octavo.shared.messages import TO_GATEWAY
from octavo.shared.transport import Hub, gateway_endpoint, new_context

ENDPOINT = {"/v1/chat/completions": "chat", "/v1/completions": "completion"}
OTHERS = {"/v1/responses": "responses", "/v1/messages": "messages", "/v1/messages/count_tokens": "count_tokens"}


@pytest.fixture(scope="module")
def application(tmp_path_factory: pytest.TempPathFactory) -> web.Application:
    context = new_context()
    folder = tmp_path_factory.mktemp("gateway")
    hub: Hub[TO_GATEWAY] = Hub(context, gateway_endpoint(folder, 0), TO_GATEWAY)
    workers = Workers(hub, 1)
    built = app.build(Config(), workers, Metrics(Config(), folder, 0, workers), None, folder)
    hub.close()
    context.term()
    return built


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], str, str]:
    """The document, the page, and the page's policy, as they are served."""

    async def scenario() -> tuple[dict[str, Any], str, str]:
        async with running(tmp_path_factory.mktemp("gateway")) as server:
            document = await (await server.client.get("/openapi.json")).json()
            page = await server.client.get("/docs")
            assert page.content_type == "text/html"
            return document, await page.text(), page.headers["Content-Security-Policy"]

    return asyncio.run(scenario())


@pytest.fixture(scope="module")
def document(texts: tuple[dict[str, Any], str, str]) -> Document:
    return Document(texts[0])


def test_the_document_is_valid_openapi(document: Document) -> None:
    assert document.document["openapi"].startswith("3.1")
    validate(document.document)


def test_every_route_of_the_application_is_in_the_document_and_no_other(
    application: web.Application, document: Document
) -> None:
    routes = {
        (route.method, route.resource.canonical)
        for route in application.router.routes()
        if route.resource is not None and route.method != "HEAD"
    }
    paths = document.document["paths"]
    assert routes == {(method.upper(), path) for path, methods in paths.items() for method in methods}
    assert len(routes) >= 11


def test_only_the_health_checks_need_no_key(document: Document) -> None:
    for path, methods in document.document["paths"].items():
        for operation in methods.values():
            assert (operation["security"] == []) == (path in OPEN_ROUTES)
            assert ("401" in operation["responses"]) == (path not in OPEN_ROUTES)


def test_every_field_of_a_request_has_a_meaning(document: Document) -> None:
    schemas = document.document["components"]["schemas"]
    seen, left = set(), [body.__name__ for body in BODIES.values()]
    while left:
        name = left.pop()
        seen.add(name)
        for field, schema in schemas[name]["properties"].items():
            assert any("description" in each for each in (schema, *schema.get("anyOf", ()))), f"{name}.{field}"
        left += set(re.findall(r"schemas/(\w+)", json.dumps(schemas[name]))) - seen
    assert len(seen) >= 5


def test_an_example_is_what_its_schema_says_and_is_taken(document: Document) -> None:
    for path, endpoint in (ENDPOINT | OTHERS).items():
        media = document.document["paths"][path]["post"]["requestBody"]["content"]["application/json"]
        document.check(media["schema"], media["example"])
        read_request(endpoint, json.dumps(media["example"]).encode())


def test_what_the_schema_refuses_the_server_refuses_too(document: Document) -> None:
    num_refused = 0
    for path, body, needs_model in malformed_bodies():
        try:
            value = json.loads(body)
        except (ValueError, RecursionError):
            continue
        if needs_model or not isinstance(value, dict) or len(body) > 2**16:
            continue
        endpoint = (ENDPOINT | OTHERS)[path]
        name = BODIES[endpoint].__name__
        whole = {**document.schema(name), "components": document.document["components"]}
        if not jsonschema.Draft202012Validator(whole).is_valid(value):
            num_refused += 1
            with pytest.raises(RequestError):
                read_request(endpoint, body)
    assert num_refused > 100


def test_answers_and_errors_of_every_route_are_as_described(tmp_path: Path, document: Document) -> None:
    async def scenario() -> None:
        async with running(tmp_path, api_key="sk-key") as server:

            async def check(method: str, path: str, status: int, body: bytes | None = None, **headers: str) -> None:
                key = {"X-Api-Key": "sk-key", **headers}
                real = path.replace("{name}", MODEL if status != 404 else "other")
                response = await server.client.request(method, real, data=body and io.BytesIO(body), headers=key)
                assert response.status == status, (method, path)
                document.check_answer(method, path, status, response.content_type, await response.read())

            for path in ("/health", "/readyz"):
                await check("GET", path, 503)
            await check("POST", "/v1/chat/completions", 503, json.dumps(CHAT_BODY).encode())
            with FakeTokenizer(tmp_path):
                await until_ready(server.client)
                paths = document.document["paths"]
                gets = [path for path, methods in paths.items() if "get" in methods]
                assert len(gets) >= 9
                for path in gets:
                    await check("GET", path, 404 if "{id}" in path else 200)
                    await check("GET", path, 415, **{"Content-Encoding": "gzip"})
                    if path not in OPEN_ROUTES:
                        await check("GET", path, 401, **{"X-Api-Key": "wrong"})
                await check("GET", "/v1/models/{name}", 404)
                for path in ENDPOINT | OTHERS:
                    await check("POST", path, 400, b'{"temperature": 9}')
                    await check("POST", path, 413, b"a" * 5 * 2**20)

    asyncio.run(scenario())


@pytest.mark.parametrize("kind", ["chat", "completion"])
@pytest.mark.parametrize("ids", [None, [1, 2]])
def test_what_the_tokenizer_writes_is_as_described(
    document: Document, kind: Literal["chat", "completion"], ids: list[int] | None
) -> None:
    path = {endpoint: path for path, endpoint in ENDPOINT.items()}[kind]
    fields: dict[str, Any] = {"return_token_ids": bool(ids), "stream_options": {"include_usage": True}, "stream": True}
    answer = make_chat(**fields) if kind == "chat" else make_plain(**fields)
    usage, known = Usage(1, 2, 3, {"reasoning_tokens": 1}), [TokenLogprobs(5, -1.0, [(6, -0.5)], 2)]
    opening = Opening(ids or [1], prompt_logprobs=known)
    first = Finished(0, opening, "Hi", "hm", [ToolCall("f", "{}")], "tool_calls", None, ids or [], known)
    second = Finished(1, opening, "", "", [], "length", None, ids or [], None)
    document.check_answer("POST", path, 200, "application/json", answer.body([first, second], usage))
    events = [Reasoning("hm"), Content("Hi"), ToolBegin(0, "f"), ToolArguments(0, "{}")]
    stream = [
        answer.open(0, opening),
        answer.chunk(Delta(0, "Hi", None, None, None, ids or [], known)),
        answer.chunk(Delta(0, "x", events, "stop", "END", ids or [], None, usage)),
        answer.end(usage),
    ]
    document.check_answer("POST", path, 200, "text/event-stream", b"".join(stream))


TEXT = THOUGHT + "Yes." + CALLED


@pytest.mark.parametrize(("path", "fields"), [("/v1/responses", RESPONSE), ("/v1/messages", MESSAGE)])
@pytest.mark.parametrize("reason", ["stop", "length"])
def test_what_the_tokenizer_writes_in_other_words_is_as_described(
    document: Document, path: str, fields: dict[str, Any], reason: str
) -> None:
    told = streamed(message(OTHERS[path], **fields), TEXT, reason=reason)
    stream = b"".join(chunk for text in told for chunk in text.chunks)
    document.check_answer("POST", path, 200, "text/event-stream", stream)
    body = json.dumps(whole(message(OTHERS[path], **fields | {"stream": False}), TEXT, reason)).encode()
    document.check_answer("POST", path, 200, "application/json", body)


class _Page(HTMLParser):
    """All tags with their attributes, and the text of the style."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.style = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self.tags[-1][0] == "style" and not self.style:
            self.style = data


def test_the_page_needs_nothing_from_elsewhere_and_may_do_nothing(texts: tuple[dict[str, Any], str, str]) -> None:
    _, page, policy = texts
    read = _Page(page)
    assert not {"script", "link", "img", "iframe", "form", "object"} & {tag for tag, _ in read.tags}
    attributes = {name for _, each in read.tags for name in each}
    assert attributes <= {"lang", "charset", "name", "content", "id", "class", "href"}
    ids = {each["id"] for _, each in read.tags if "id" in each}
    for link in (each["href"] or "" for _, each in read.tags if "href" in each):
        assert link == "openapi.json" or (link.startswith("#") and link[1:] in ids), link
    assert "url(" not in read.style and "@import" not in read.style
    digest = base64.b64encode(sha256(read.style.encode()).digest()).decode()
    assert policy.startswith(f"default-src 'none'; style-src 'sha256-{digest}';")


def test_the_page_shows_every_route_and_every_field_with_its_bounds(texts: tuple[dict[str, Any], str, str]) -> None:
    document, page, _ = texts
    for path, methods in document["paths"].items():
        for method in methods:
            assert f'<span class="method">{method.upper()}</span> <code>{path}</code>' in page
    for schema in document["components"]["schemas"].values():
        for field in schema["properties"]:
            assert f"<code>{field}</code>" in page
    row = page[page.index("<code>temperature</code>") :]
    row = row[: row.index("<tr>")]
    assert "number" in row and "≥ 0.0" in row and "≤ 2.0" in row and "likeliest" in row


def test_a_copied_example_is_a_command_that_sends_the_example(texts: tuple[dict[str, Any], str, str]) -> None:
    document, page, _ = texts
    examples = re.findall(r"<pre>(.*?)</pre>", page, re.DOTALL)
    assert len(examples) == sum(map(len, document["paths"].values()))
    [chat] = [each for each in examples if "/v1/chat/completions" in each]
    body = chat[chat.index("-d &#x27;") + len("-d &#x27;") : chat.rindex("&#x27;")].replace("&quot;", '"')
    assert json.loads(body)["messages"][0]["content"] == "Say hello."
    assert "Authorization: Bearer" in chat and "{" not in chat[: chat.index("-d ")]
