"""`LLM`: a model in a Python program, served by the same processes as over HTTP."""

import weakref
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

from octavo.services.llm.background import Background
from octavo.services.llm.client import Client, affordable_connections, run_all
from octavo.services.llm.outputs import RequestOutput, error_of
from octavo.services.llm.progress import progress
from octavo.services.llm.prompts import Job, Message, Params, Prompt, chat_jobs, generate_jobs
from octavo.services.llm.server import LocalServer
from octavo.shared.config import from_settings

CONCURRENCY = 1536  # open requests: more than run at once, so that none of their places is empty
RETRIES = 8


class LLM:
    """Starts a model, completes prompts, and ends it with `close`, with a `with` block or with the program.

    One object may be used by several threads.
    """

    def __init__(self, model: str | None = None, **settings: Any) -> None:
        """Returns when the model is ready.

        Args:
            model: folder, GGUF file or Hub id; none: SmolLM2-135M-Instruct.
            settings: those of `octavo serve --help`, with _ for -.

        Raises:
            ConfigError: a setting is not known or out of its bounds.
            ModelError: the model cannot be read or served.
        """
        self._server = LocalServer(from_settings({"model": model, **settings}))
        self._background = Background()
        try:
            server = self._server
            url = server.address.result()
            self._client = Client(url, server.api_key, RETRIES, is_alive=lambda: server.is_alive)
        except BaseException:
            self.close()
            raise
        # Its connections need the loop, so they are closed before it ends, whatever ends it.
        self._end = weakref.finalize(self, _close, self._client, self._background)

    def generate(
        self, prompts: Prompt | Sequence[Prompt], sampling_params: Params = None, use_tqdm: bool = True
    ) -> list[RequestOutput]:
        """Complete prompts: texts, `{"prompt": text}`, `{"prompt_token_ids": ids}`, or a list of them.

        Returns the outputs in the order of the prompts. Raises RequestError for the first prompt that fails, with its
        place in the list; the others are then given up.
        """
        return self._run(generate_jobs(prompts, sampling_params), use_tqdm)

    def chat(
        self,
        messages: Sequence[Message] | Sequence[Sequence[Message]],
        sampling_params: Params = None,
        use_tqdm: bool = True,
        **fields: Any,
    ) -> list[RequestOutput]:
        """Answer one conversation or a list of them.

        Args:
            messages: of one conversation, or of each.
            sampling_params: one for all, or one for each.
            use_tqdm: whether a progress bar is shown.
            fields: others of the API's body: add_generation_prompt, continue_final_message, chat_template,
                chat_template_kwargs, tools, tool_choice, …

        Raises as `generate` does.
        """
        return self._run(chat_jobs(messages, sampling_params, fields), use_tqdm)

    def close(self) -> None:
        """End the model's processes; may be called again."""
        if hasattr(self, "_end"):
            self._end()
        self._background.close()
        self._server.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _run(self, jobs: Sequence[Job], use_tqdm: bool) -> list[RequestOutput]:
        outputs: list[RequestOutput | None] = [None] * len(jobs)
        with progress("Prompts", len(jobs) if use_tqdm else 0) as bar:

            async def do(job: Job) -> None:
                answer = await self._client.post(job.path, job.body())
                if answer.status != 200:
                    raise error_of(answer.status, answer.body, f"prompt {job.index}: ")
                collector = job.collector(str(job.index))
                collector.add(answer.body)
                outputs[job.index] = collector.output
                bar.update()

            concurrency = affordable_connections(min(CONCURRENCY, len(jobs)))
            self._background.run(run_all(jobs, do, concurrency))
        return [output for output in outputs if output is not None]


def _close(client: Client, background: Background) -> None:
    if not background.is_current:
        background.run(client.close())
