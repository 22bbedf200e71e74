"""Spans as a collector receives them, and collectors that are not there."""

import asyncio
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import msgspec
import pytest
from tests.gateway.harness import CHAT_BODY, MODEL, Running, running, until, until_ready
from tests.tools.fake_tokenizer import DONE, FakeTokenizer, nothing, text

from octavo.services.gateway.traces import Traces
from octavo.shared.errors import ConfigError
from octavo.shared.messages import TO_GATEWAY, Begin, Generate, Spent

trace_service = pytest.importorskip("opentelemetry.proto.collector.trace.v1.trace_service_pb2")
pytest.importorskip("opentelemetry.exporter.otlp.proto.http")

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
Attributes = dict[str, str | int | float]


class Collector:
    """Takes OTLP over HTTP and keeps what it gets."""

    def __init__(self) -> None:
        self.spans: list[tuple[str, str, str, int, Attributes]] = []
        """Name, trace, parent, duration in nanoseconds, attributes."""
        self.paths: set[str] = set()
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                collector.paths.add(self.path)
                collector._take(self.rfile.read(int(self.headers["Content-Length"])))
                self.send_response(200)
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._server = HTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _take(self, body: bytes) -> None:
        for resource in trace_service.ExportTraceServiceRequest.FromString(body).resource_spans:
            for span in (span for scope in resource.scope_spans for span in scope.spans):
                attributes = {each.key: getattr(each.value, each.value.WhichOneof("value")) for each in span.attributes}
                duration = span.end_time_unix_nano - span.start_time_unix_nano
                entry = (span.name, span.trace_id.hex(), span.parent_span_id.hex(), duration, attributes)
                self.spans.append(entry)


@pytest.fixture
def collector() -> Iterator[Collector]:
    collector = Collector()
    yield collector
    collector.close()


def answer(generate: Generate) -> list[TO_GATEWAY]:
    """Two chunks, or one body; what it has come to; what another worker began lacks times."""
    if b'"stream": true' in generate.body:
        chunks = (b"data: 1\n\n", [1, 2]), (b"data: 2\n\n", [3, 4, 5])
        last = msgspec.structs.replace(
            text(generate, DONE, is_last=True), spent={0: Spent(9, 5, Begin(0.25, 0.5), decode_s=2.0)}
        )
        return [*(text(generate, chunk, token_ids=ids) for chunk, ids in chunks), last]
    return [msgspec.structs.replace(text(generate, b"{}", is_last=True), spent={0: Spent(11, 6)})]


async def ask(server: Running, headers: dict[str, str], **options: object) -> int:
    response = await server.client.post("/v1/chat/completions", json=CHAT_BODY | options, headers=headers)
    await response.read()
    return response.status


def test_each_request_is_a_span_in_the_trace_of_its_client(tmp_path: Path, collector: Collector) -> None:
    async def scenario() -> None:
        async with running(tmp_path, otlp_endpoint=collector.address) as server:
            with FakeTokenizer(tmp_path, answer):
                await until_ready(server.client)
                parent = {"Traceparent": f"00-{TRACE}-{PARENT}-01", "X-Request-Id": "mine"}
                options = {"temperature": 0.5, "max_completion_tokens": 9, "top_p": 0.75}
                assert await ask(server, parent, stream=True, **options) == 200
                assert await ask(server, {}) == 200
                assert await ask(server, {}, n=999) == 400
                await until(lambda: len(collector.spans) == 3)

    asyncio.run(scenario())
    assert collector.paths == {"/v1/traces"}
    streamed, whole, refused = sorted(collector.spans, key=lambda span: (span[1] != TRACE, "error.type" in span[4]))
    name, trace, parent, duration, attributes = streamed
    assert (name, trace, parent) == ("llm_request", TRACE, PARENT)
    first, end = (attributes.pop(f"gen_ai.latency.{each}") for each in ("time_to_first_token", "e2e"))
    assert isinstance(first, float) and isinstance(end, float)
    assert 0 < first < end <= duration / 1e9
    assert attributes == {
        "http.request.method": "POST",
        "http.route": "/v1/chat/completions",
        "http.response.status_code": 200,
        "gen_ai.operation.name": "chat",
        "gen_ai.request.id": "mine",
        "gen_ai.request.model": MODEL,
        "gen_ai.response.model": MODEL,
        "gen_ai.request.max_tokens": 9,
        "gen_ai.request.temperature": 0.5,
        "gen_ai.request.top_p": 0.75,
        "gen_ai.request.n": 1,
        "gen_ai.usage.prompt_tokens": 9,
        "gen_ai.usage.completion_tokens": 5,
        "gen_ai.latency.time_in_queue": 0.25,
        "gen_ai.latency.time_in_model_prefill": 0.5,
        "gen_ai.latency.time_in_model_decode": 2.0,
        "gen_ai.latency.time_in_model_inference": 2.5,
    }
    assert whole[1] != TRACE and whole[2] == ""
    assert (whole[4]["gen_ai.usage.prompt_tokens"], whole[4]["gen_ai.usage.completion_tokens"]) == (11, 6)
    assert not any("time_in" in name for name in whole[4])
    assert (refused[4]["http.response.status_code"], refused[4]["error.type"]) == (400, "400")
    assert "gen_ai.latency.e2e" not in refused[4]


def test_spans_of_the_last_moment_are_sent_and_one_of_a_client_that_left_ends(
    tmp_path: Path, collector: Collector
) -> None:
    async def scenario() -> None:
        async with running(tmp_path, otlp_endpoint=collector.address) as server:
            with FakeTokenizer(tmp_path, nothing) as tokenizer:
                await until_ready(server.client)
                post = asyncio.create_task(server.client.post("/v1/chat/completions", json=CHAT_BODY))
                await until(lambda: len(tokenizer.generates()) == 1)
                post.cancel()
                await until(lambda: len(tokenizer.cancels()) == 1)
                await server.stop()

    asyncio.run(scenario())
    ((_, _, _, _, attributes),) = collector.spans
    assert attributes["http.response.status_code"] == 499


def test_a_collector_that_is_not_there_costs_a_line_in_the_log(
    tmp_path: Path, collector: Collector, caplog: pytest.LogCaptureFixture
) -> None:
    collector.close()

    async def scenario() -> float:
        async with running(tmp_path, otlp_endpoint=collector.address) as server:
            with FakeTokenizer(tmp_path, answer):
                await until_ready(server.client)
                for _ in range(20):
                    assert await ask(server, {}) == 200
                await until(lambda: any("opentelemetry" in record.name for record in caplog.records))
                assert await ask(server, {}) == 200
                await asyncio.sleep(1.5)  # for another attempt
                began = time.monotonic()
                await server.stop()
                return time.monotonic() - began

    assert asyncio.run(scenario()) < 5.0
    assert len([record for record in caplog.records if "opentelemetry" in record.name]) == 1


def test_without_the_package_the_flag_is_refused_with_its_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    with pytest.raises(ConfigError, match=r"pip install 'octavo\[otlp\]'"):
        Traces("http://localhost:4318", 0)


@pytest.mark.parametrize("endpoint", ["localhost:4318", "grpc://collector:4317", "http://"])
def test_an_endpoint_that_is_no_url_is_refused(endpoint: str) -> None:
    with pytest.raises(ConfigError, match="--otlp-endpoint"):
        Traces(endpoint, 0)
