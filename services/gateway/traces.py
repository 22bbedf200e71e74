"""Traces: with --otlp-endpoint one OpenTelemetry span for each request that generates text.

Spans are sent by the SDK's own thread. What it cannot send is dropped: a collector that is away costs a warning in the
log, and no request waits for it. Attributes are named as the semantic conventions for generative AI and vLLM name them.
"""

import logging
import threading
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from aiohttp import web

import octavo
from octavo.services.gateway.call import Call
from octavo.services.gateway.errors import LABEL
from octavo.shared.errors import ConfigError
from octavo.shared.openai import ChatRequest, Options

if TYPE_CHECKING:
    from opentelemetry.trace import Span

SPAN: "web.RequestKey[Span]" = web.RequestKey("span", object)
MAX_QUEUED_SPANS = 2048
SEND_EVERY_S = 1.0
SEND_S = 3.0  # a collector may take so long
CLOSE_S = 0.5  # for the last spans, when the gateway ends
COMPLAINTS_S = 60.0  # between lines in the log about a collector that does not answer


class Traces:
    """Begins and ends spans."""

    def __init__(self, endpoint: str, index: int) -> None:
        """Set up the exporter.

        Args:
            endpoint: URL of a collector that takes OTLP over HTTP; without a path, /v1/traces is meant.
            index: which of several gateways this is.

        Raises:
            ConfigError: OpenTelemetry is not installed, or the endpoint is no URL.
        """
        try:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
            from opentelemetry.trace import SpanKind
            from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
        except ImportError:
            raise ConfigError("--otlp-endpoint needs OpenTelemetry: pip install 'octavo[otlp]'") from None
        url = urlsplit(endpoint)
        if url.scheme not in ("http", "https") or not url.netloc:
            raise ConfigError(f"--otlp-endpoint {endpoint} is no URL like http://localhost:4318")
        address = endpoint if url.path.strip("/") else f"{url.scheme}://{url.netloc}/v1/traces"
        names = {"service.version": octavo.__version__, "service.instance.id": f"gateway-{index}"}
        resource = Resource.create({"service.name": "octavo", **names})
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(
            BatchSpanProcessor(
                OTLPSpanExporter(address, timeout=SEND_S),
                max_queue_size=MAX_QUEUED_SPANS,
                schedule_delay_millis=SEND_EVERY_S * 1e3,
            )
        )
        self._log, self._sparsely = logging.getLogger(OTLPSpanExporter.__module__), _Sparsely()
        self._log.addFilter(self._sparsely)
        self._tracer = self._provider.get_tracer("octavo.gateway", octavo.__version__)
        self._propagator, self._kind = TraceContextTextMapPropagator(), SpanKind.SERVER

    def begin(self, request: web.Request, route: str) -> None:
        """Begin a request's span, as part of the trace that its `traceparent` names."""
        headers = {name.lower(): value for name, value in request.headers.items()}
        request[SPAN] = self._tracer.start_span(
            "llm_request",
            self._propagator.extract(headers),
            self._kind,
            {"http.request.method": request.method, "http.route": route, "gen_ai.request.id": request[LABEL]},
        )

    def end(self, request: web.Request, status: int) -> None:
        """End a request's span, if it has one."""
        span = request.get(SPAN)
        if span is not None:
            span.set_attribute("http.response.status_code", status)
            if status >= 400:
                span.set_attribute("error.type", str(status))
            span.end()

    def close(self) -> None:
        """Send what is left, as long as that takes no longer than CLOSE_S."""
        last = threading.Thread(target=self._provider.shutdown, daemon=True)
        last.start()
        last.join(CLOSE_S)
        self._log.removeFilter(self._sparsely)


def note(request: web.Request, attributes: Mapping[str, str | int | float]) -> None:
    """Say something of a request, if it has a span."""
    span = request.get(SPAN)
    if span is not None:
        span.set_attributes(attributes)


def note_request(request: web.Request, wanted: Options, model: str) -> None:
    """What a request asks for; `model` is what serves it."""
    if SPAN not in request:
        return
    max_tokens = wanted.max_tokens
    if isinstance(wanted, ChatRequest):
        max_tokens = wanted.max_completion_tokens or max_tokens
    attributes = {
        "gen_ai.operation.name": "chat" if isinstance(wanted, ChatRequest) else "text_completion",
        "gen_ai.request.model": wanted.model or model,
        "gen_ai.response.model": model,
        "gen_ai.request.max_tokens": max_tokens,
        "gen_ai.request.temperature": wanted.temperature,
        "gen_ai.request.top_p": wanted.top_p,
        "gen_ai.request.top_k": wanted.top_k,
        "gen_ai.request.n": wanted.n or 1,
    }
    note(request, {name: value for name, value in attributes.items() if value is not None})


def note_end(request: web.Request, call: Call, seconds: float) -> None:
    """A whole answer was sent, so many seconds after the request's headers."""
    if SPAN not in request:
        return
    attributes: dict[str, int | float] = {"gen_ai.latency.e2e": seconds}
    spent = call.spent
    if spent is not None:
        attributes |= {
            "gen_ai.usage.prompt_tokens": spent.prompt_tokens,
            "gen_ai.usage.completion_tokens": spent.output_tokens,
        }
        if spent.begin is not None:
            attributes |= {
                "gen_ai.latency.time_in_queue": spent.begin.queue_s,
                "gen_ai.latency.time_in_model_prefill": spent.begin.prefill_s,
                "gen_ai.latency.time_in_model_decode": spent.decode_s,
                "gen_ai.latency.time_in_model_inference": spent.begin.prefill_s + spent.decode_s,
            }
    note(request, attributes)


class _Sparsely(logging.Filter):
    """Lets one line through every COMPLAINTS_S."""

    def __init__(self) -> None:
        super().__init__()
        self._next_s = 0.0

    def filter(self, record: logging.LogRecord) -> bool:
        now = time.monotonic()
        if now < self._next_s:
            return False
        self._next_s = now + COMPLAINTS_S
        return True
