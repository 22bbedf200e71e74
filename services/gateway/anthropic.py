"""The routes of Anthropic's API."""

from aiohttp import web

from octavo.services.gateway.calls import Calls
from octavo.services.gateway.manner import ANTHROPIC
from octavo.services.gateway.route import CALL_ERRORS, Route
from octavo.shared.anthropic import CountTokensRequest, MessagesRequest, TokenCount
from octavo.shared.anthropic_answers import MessageAnswer, MessageEvent, MessageFailure

GROUP = "Anthropic"


class AnthropicRoutes:
    """Handlers and what they share."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls

    def table(self) -> list[Route]:
        return [
            Route(
                method="POST",
                path="/v1/messages",
                handler=self.messages,
                group=GROUP,
                summary="The next message of a conversation",
                body=MessagesRequest,
                example={"messages": [{"role": "user", "content": "Say hello."}], "max_tokens": 30},
                answer=MessageAnswer,
                events=MessageEvent,
                failure=MessageFailure,
                errors=CALL_ERRORS,
            ),
            Route(
                method="POST",
                path="/v1/messages/count_tokens",
                handler=self.count_tokens,
                group=GROUP,
                summary="How many tokens a conversation has",
                body=CountTokensRequest,
                example={"messages": [{"role": "user", "content": "Say hello."}]},
                answer=TokenCount,
                failure=MessageFailure,
                errors=CALL_ERRORS,
            ),
        ]

    async def messages(self, request: web.Request) -> web.StreamResponse:
        return await self._calls.complete(request, "messages", ANTHROPIC)

    async def count_tokens(self, request: web.Request) -> web.StreamResponse:
        return await self._calls.complete(request, "count_tokens", ANTHROPIC)
