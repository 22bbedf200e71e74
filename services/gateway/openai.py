"""The routes of OpenAI's API: chat completions, completions and the list of models."""

import time

import msgspec
from aiohttp import web

from octavo.services.gateway.calls import Calls
from octavo.services.gateway.route import CALL_ERRORS, Route
from octavo.services.gateway.workers import Workers
from octavo.shared.config import Config
from octavo.shared.openai import ChatRequest, CompletionRequest
from octavo.shared.openai_answers import (
    ChatCompletion,
    ChatCompletionChunk,
    Completion,
    CompletionChunk,
    ModelCard,
    ModelList,
    ModelPermission,
)
from octavo.shared.tokenization import Detokenized, DetokenizeRequest, Tokenized, TokenizeRequest


class OpenAIRoutes:
    """Handlers and what they share."""

    def __init__(self, config: Config, workers: Workers, calls: Calls) -> None:
        self._names = config.model_names
        self._root = config.model or self._names[0]
        self._workers = workers
        self._calls = calls
        self._created_s = int(time.time())

    def table(self) -> list[Route]:
        return [
            Route(
                method="POST",
                path="/v1/chat/completions",
                handler=self.chat_completions,
                group="Text",
                summary="The next message of a conversation",
                body=ChatRequest,
                example={"messages": [{"role": "user", "content": "Say hello."}], "max_tokens": 30},
                answer=ChatCompletion,
                events=ChatCompletionChunk,
                last_event="[DONE]",
                errors=CALL_ERRORS,
            ),
            Route(
                method="POST",
                path="/v1/completions",
                handler=self.completions,
                group="Text",
                summary="Text that goes on from a prompt",
                body=CompletionRequest,
                example={"prompt": "Once upon a time", "max_tokens": 30},
                answer=Completion,
                events=CompletionChunk,
                last_event="[DONE]",
                errors=CALL_ERRORS,
            ),
            *self._token_routes(),
            *self._model_routes(),
        ]

    def _token_routes(self) -> list[Route]:
        return [
            Route(
                method="POST",
                path="/tokenize",
                handler=self.tokenize,
                group="Tokens",
                summary="The token ids of a text or of a conversation",
                body=TokenizeRequest,
                example={"prompt": "Once upon a time"},
                answer=Tokenized,
                errors=CALL_ERRORS,
            ),
            Route(
                method="POST",
                path="/detokenize",
                handler=self.detokenize,
                group="Tokens",
                summary="The text of token ids",
                body=DetokenizeRequest,
                example={"tokens": [1, 2, 3]},
                answer=Detokenized,
                errors=CALL_ERRORS,
            ),
        ]

    def _model_routes(self) -> list[Route]:
        return [
            Route(
                method="GET",
                path="/v1/models",
                handler=self.models,
                group="Models",
                summary="The names under which the model is served",
                answer=ModelList,
            ),
            Route(
                method="GET",
                path="/v1/models/{name:.+}",
                handler=self.model,
                group="Models",
                summary="One of these names",
                variables={"name": "one of the names at /v1/models"},
                answer=ModelCard,
                errors=(404,),
            ),
        ]

    async def chat_completions(self, request: web.Request) -> web.StreamResponse:
        return await self._calls.complete(request, "chat")

    async def completions(self, request: web.Request) -> web.StreamResponse:
        return await self._calls.complete(request, "completion")

    async def tokenize(self, request: web.Request) -> web.StreamResponse:
        return await self._calls.complete(request, "tokenize")

    async def detokenize(self, request: web.Request) -> web.StreamResponse:
        return await self._calls.complete(request, "detokenize")

    async def models(self, request: web.Request) -> web.Response:
        return _json(ModelList(data=[self._card(name) for name in self._names]))

    async def model(self, request: web.Request) -> web.Response:
        name = request.match_info["name"]
        self._calls.check_model(name)
        return _json(self._card(name))

    def _card(self, name: str) -> ModelCard:
        permission = ModelPermission(id=f"modelperm-{name}", created=self._created_s)
        model = self._workers.model
        length = None if model is None else model.max_model_len
        return ModelCard(
            id=name, created=self._created_s, root=self._root, permission=[permission], max_model_len=length
        )


def _json(answer: msgspec.Struct) -> web.Response:
    return web.Response(body=msgspec.json.encode(answer), content_type="application/json")
