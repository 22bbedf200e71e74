"""The routes of OpenAI's API: chat completions, completions and the list of models."""

import asyncio
import os
import time

import msgspec
from aiohttp import web

from octavo.services.gateway import stream
from octavo.services.gateway.auth import SALT
from octavo.services.gateway.metrics import Metrics
from octavo.services.gateway.workers import Workers
from octavo.shared.config import Config
from octavo.shared.endpoints import read_request
from octavo.shared.errors import InvalidRequest, NotFound
from octavo.shared.messages import CallId, Generate
from octavo.shared.openai import Options

BODY_S = 30.0  # for a body to arrive


class OpenAIRoutes:
    """Handlers and what they share."""

    def __init__(self, config: Config, workers: Workers, metrics: Metrics) -> None:
        self._names = config.model_names
        self._workers = workers
        self._metrics = metrics
        self._created_s = int(time.time())

    def table(self) -> list[web.RouteDef]:
        return [
            web.post("/v1/chat/completions", self.chat_completions),
            web.post("/v1/completions", self.completions),
            web.post("/tokenize", self.tokenize),
            web.post("/detokenize", self.detokenize),
            web.get("/v1/models", self.models),
            web.get("/v1/models/{name:.+}", self.model),
        ]

    async def chat_completions(self, request: web.Request) -> web.StreamResponse:
        return await self._complete(request, "chat")

    async def completions(self, request: web.Request) -> web.StreamResponse:
        return await self._complete(request, "completion")

    async def tokenize(self, request: web.Request) -> web.StreamResponse:
        return await self._complete(request, "tokenize")

    async def detokenize(self, request: web.Request) -> web.StreamResponse:
        return await self._complete(request, "detokenize")

    async def models(self, request: web.Request) -> web.Response:
        return _json({"object": "list", "data": [self._card(name) for name in self._names]})

    async def model(self, request: web.Request) -> web.Response:
        name = request.match_info["name"]
        self._check_model(name)
        return _json(self._card(name))

    async def _complete(self, request: web.Request, endpoint: str) -> web.StreamResponse:
        started_s = time.monotonic()
        body = await _read_body(request)
        wanted = read_request(endpoint, body)
        if wanted.model is not None:
            self._check_model(wanted.model)
        if isinstance(wanted, Options):
            self._metrics.note_request(request, wanted)
        generate = Generate(
            id=CallId(os.urandom(16)),
            endpoint=endpoint,
            body=body,
            created_s=int(time.time()),
            model=wanted.model or self._names[0],
            salt=request[SALT],
        )
        answer = stream.answer_stream if wanted.stream else stream.answer_whole
        call = self._workers.open(generate)
        try:
            return await answer(request, call, self._metrics, started_s)
        finally:
            self._workers.settle(call)

    def _check_model(self, name: str) -> None:
        if name not in self._names:
            sentence = f"the model {name[:200]!a} does not exist; served: {', '.join(self._names)}"
            raise NotFound(sentence, param="model", code="model_not_found")

    def _card(self, name: str) -> dict[str, object]:
        card: dict[str, object] = {"id": name, "object": "model", "created": self._created_s, "owned_by": "octavo"}
        card |= {"root": self._names[0], "parent": None, "permission": []}
        model = self._workers.model
        return card if model is None else card | {"max_model_len": model.max_model_len}


async def _read_body(request: web.Request) -> bytes:
    try:
        async with asyncio.timeout(BODY_S):
            return await request.read()
    except TimeoutError:
        raise InvalidRequest(f"the body did not arrive within {BODY_S:.0f} s") from None


def _json(fields: dict[str, object]) -> web.Response:
    return web.Response(body=msgspec.json.encode(fields), content_type="application/json")
