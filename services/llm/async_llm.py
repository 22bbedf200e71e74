"""`AsyncLLM`: as `LLM`, for programs with an event loop; outputs are streamed as they grow."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from types import TracebackType
from typing import Any, Self

from octavo.services.llm.client import Client, read_events
from octavo.services.llm.outputs import RequestOutput
from octavo.services.llm.prompts import Job, Message, Prompt, chat_jobs, generate_jobs
from octavo.services.llm.sampling_params import SamplingParams
from octavo.services.llm.server import LocalServer
from octavo.shared.config import from_settings


class AsyncLLM:
    """Starts a model at once; whatever is asked of it waits until it is ready. Used by one event loop.

    Its processes end with `close`, with an `async with` block or with the program.
    """

    def __init__(self, model: str | None = None, **settings: Any) -> None:
        """The arguments are those of `LLM`. Raises ConfigError for a setting that is unknown or out of bounds."""
        self._server = LocalServer(from_settings({"model": model, **settings}))
        self._client: Client | None = None
        self._num_requests = 0

    async def ready(self) -> None:
        """Wait until the model is ready. Raises ModelError with the reason if it cannot be."""
        await self._ready_client()

    def generate(
        self, prompt: Prompt, sampling_params: SamplingParams | None = None, request_id: str | None = None
    ) -> AsyncGenerator[RequestOutput, None]:
        """Complete a prompt: yields all that there is of it with every new token, and at last the whole.

        Leaving the loop, closing the iterator or cancelling its task ends the request. Raises RequestError.
        """
        (job,) = generate_jobs([prompt], sampling_params)
        return self._run(job, request_id)

    def chat(
        self,
        messages: Sequence[Message],
        sampling_params: SamplingParams | None = None,
        request_id: str | None = None,
        **fields: Any,
    ) -> AsyncGenerator[RequestOutput, None]:
        """Answer one conversation, as `generate` completes a prompt; fields are others of the API's body."""
        (job,) = chat_jobs([messages], sampling_params, fields)
        return self._run(job, request_id)

    async def close(self) -> None:
        """End the model's processes; may be called again."""
        if self._client is not None:
            await self._client.close()
        await asyncio.to_thread(self._server.close)

    async def __aenter__(self) -> Self:
        try:
            await self.ready()
        except BaseException:
            await self.close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _run(self, job: Job, request_id: str | None) -> AsyncGenerator[RequestOutput, None]:
        client = await self._ready_client()
        self._num_requests += 1
        collector = job.collector(request_id or str(self._num_requests - 1))
        response = await client.open(job.path, job.body(stream=True))
        try:
            async for data in read_events(response):
                collector.add(data)
                yield collector.copy()
        finally:
            response.close()

    async def _ready_client(self) -> Client:
        if self._client is None:
            # Others wait for the same future: whoever gives up must not cancel it.
            url = await asyncio.shield(asyncio.wrap_future(self._server.address))
            self._client = self._client or Client(url, self._server.api_key)
        return self._client
