"""Calls: from an HTTP request to the call that a tokenizer works on, and its answer; what all such routes share."""

import asyncio
import os
import time

from aiohttp import web

from octavo.services.gateway import stream
from octavo.services.gateway.auth import SALT
from octavo.services.gateway.call import Call
from octavo.services.gateway.kept_events import KeptEvents
from octavo.services.gateway.manner import OPENAI, Manner
from octavo.services.gateway.metrics import Metrics
from octavo.services.gateway.workers import Workers
from octavo.shared.anthropic import CountTokensRequest
from octavo.shared.config import Config
from octavo.shared.endpoints import CallRequest, Completing, in_words_of, options_of, read_request
from octavo.shared.errors import InvalidRequest, NotFound
from octavo.shared.messages import CallId, Generate

BODY_S = 30.0  # for a body to arrive


class Calls:
    """Begins, answers and ends calls."""

    def __init__(self, config: Config, workers: Workers, metrics: Metrics) -> None:
        self._names = config.model_names
        self._workers = workers
        self._metrics = metrics

    async def complete(self, request: web.Request, endpoint: str, manner: Manner = OPENAI) -> web.StreamResponse:
        """The whole way, for a route that adds nothing to it."""
        started_s = time.monotonic()
        body, wanted = await self.read(request, endpoint)
        return await self.answer(request, self.generate(request, endpoint, body, wanted), wanted, started_s, manner)

    async def read(self, request: web.Request, endpoint: str) -> tuple[bytes, CallRequest]:
        """The body, and what it asks for, checked. Raises RequestError."""
        body = await _read_body(request)
        wanted = read_request(endpoint, body)
        if wanted.model is not None:
            self.check_model(wanted.model)
        if isinstance(wanted, Completing):
            self._metrics.note_request(request, options_of(wanted))
        return body, wanted

    def generate(self, request: web.Request, endpoint: str, body: bytes, wanted: CallRequest) -> Generate:
        """The message that begins a call."""
        return Generate(
            id=CallId(os.urandom(16)),
            endpoint=endpoint,
            body=body,
            created_s=int(time.time()),
            model=wanted.model or self._names[0],
            salt=request[SALT],
        )

    async def answer(
        self, request: web.Request, generate: Generate, wanted: CallRequest, started_s: float, manner: Manner = OPENAI
    ) -> web.StreamResponse:
        """Send a call to a tokenizer and its bytes to the client. Raises RequestError."""
        is_streamed = wanted.stream and not isinstance(wanted, CountTokensRequest)
        answer = stream.answer_stream if is_streamed else stream.answer_whole
        call = self.open(generate)
        try:
            return await answer(request, call, self._metrics, started_s, manner)
        except InvalidRequest as error:
            raise in_words_of(wanted, error) from None
        finally:
            self.settle(call)

    def open(self, generate: Generate) -> Call:
        """Begin a call, which is to be settled. Raises RequestError."""
        return self._workers.open(generate)

    def settle(self, call: Call) -> None:
        """End a call, whether it has ended or not."""
        self._workers.settle(call)

    async def replay(self, request: web.Request, events: KeptEvents) -> web.StreamResponse:
        """Send kept events to a client."""
        return await stream.answer_stream(request, events, self._metrics, 0.0, OPENAI)

    def note_first_token(self, started_s: float) -> None:
        """The first events of a call in the background have come."""
        self._metrics.note_first_token(None, time.monotonic() - started_s)

    def note_end(self, call: Call, started_s: float) -> None:
        """The whole answer of a call in the background is kept."""
        self._metrics.note_end(None, call, time.monotonic() - started_s)

    def check_model(self, name: str) -> None:
        """Raises NotFound."""
        if name not in self._names:
            sentence = f"the model {name[:200]!a} does not exist; served: {', '.join(self._names)}"
            raise NotFound(sentence, param="model", code="model_not_found")


async def _read_body(request: web.Request) -> bytes:
    try:
        async with asyncio.timeout(BODY_S):
            return await request.read()
    except TimeoutError:
        raise InvalidRequest(f"the body did not arrive within {BODY_S:.0f} s") from None
