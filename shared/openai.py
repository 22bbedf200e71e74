"""Request bodies of OpenAI's chat and plain completions with vLLM's additions, and the bounds of every field.

The gateway validates with these and forwards the bytes; the tokenizer reads the same bytes again. Fields that are
not named here are ignored, as clients of such servers expect.
"""

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from octavo.shared.errors import InvalidRequest
from octavo.shared.fields import (
    AllowedTokens,
    BadWords,
    Biases,
    Choices,
    Label,
    MinP,
    Penalty,
    Priority,
    Repetition,
    Seed,
    Stop,
    StopTokens,
    Temperature,
    TokenId,
    Tokens,
    TokensOrNone,
    Top,
    TopK,
    TopP,
    Truncation,
)
from octavo.shared.openai_parts import (
    ChatMessage,
    ResponseFormat,
    StructuredOutputs,
    ToolChoice,
    Tools,
    check_messages,
    check_tools,
)

MAX_PROMPTS = 64

Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]


class StreamOptions(msgspec.Struct, frozen=True):
    include_usage: bool = False
    continuous_usage_stats: bool = False


class Sampling(msgspec.Struct, frozen=True, kw_only=True):
    """What every endpoint that generates text takes, under the same names: vLLM's additions among it."""

    model: str | None = None
    min_tokens: TokensOrNone | None = None
    temperature: Temperature | None = None
    top_p: TopP | None = None
    top_k: TopK | None = None
    min_p: MinP | None = None
    seed: Seed | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    repetition_penalty: Repetition | None = None
    logit_bias: Biases | None = None
    allowed_token_ids: AllowedTokens | None = None
    bad_words: BadWords | None = None
    stop: Stop | None = None
    stop_token_ids: StopTokens | None = None
    include_stop_str_in_output: bool | None = None
    ignore_eos: bool | None = None
    skip_special_tokens: bool | None = None
    spaces_between_special_tokens: bool | None = None
    structured_outputs: StructuredOutputs | None = None
    stream: bool | None = None
    priority: Priority | None = None
    cache_salt: Annotated[str, Meta(min_length=1, max_length=1024)] | None = None
    user: str | None = None


class Options(Sampling, frozen=True, kw_only=True):
    """What chat and plain completions have in common."""

    max_tokens: TokensOrNone | None = None
    """0: only the prompt is wanted, to be echoed."""
    prompt_logprobs: Top | None = None
    n: Choices | None = None
    best_of: Choices | None = None
    stream_options: StreamOptions | None = None
    add_special_tokens: bool | None = None
    truncate_prompt_tokens: Truncation | None = None
    response_format: ResponseFormat | None = None
    request_id: Label | None = None
    return_token_ids: bool | None = None
    return_tokens_as_token_ids: bool | None = None
    echo: bool | None = None

    @property
    def stops(self) -> list[str]:
        if self.stop is None:
            return []
        return [self.stop] if isinstance(self.stop, str) else self.stop

    @property
    def num_choices(self) -> int:
        """That are shown of each prompt."""
        return self.n or 1

    @property
    def num_copies(self) -> int:
        """That are generated of each prompt."""
        return max(self.num_choices, self.best_of or 0)

    @property
    def num_top(self) -> int | None:
        """How many alternatives a token's logprobs name; None: no logprobs at all."""
        raise NotImplementedError

    @property
    def echoes(self) -> bool:
        """The answer begins with the prompt."""
        return bool(self.echo)

    @property
    def includes_usage(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage

    def check(self) -> None:
        """What no single field's bounds can say. Raises InvalidRequest."""
        if self.stream_options is not None and not self.stream:
            raise InvalidRequest("stream_options: only allowed when stream is true", "stream_options")
        if self.best_of is not None and self.best_of < self.num_choices:
            raise InvalidRequest(f"best_of: {self.best_of} is less than n, {self.num_choices}", "best_of")
        if self.stream and self.num_copies > self.num_choices:
            raise InvalidRequest("best_of: which ones are best is not known while they are streamed", "best_of")
        if self.max_tokens == 0 and not (self.echo and isinstance(self, CompletionRequest)):
            raise InvalidRequest(
                "max_tokens: expected `int` >= 1, or 0 together with echo in a completion", "max_tokens"
            )
        if self.max_tokens is not None and (self.min_tokens or 0) > self.max_tokens:
            raise InvalidRequest(f"min_tokens: {self.min_tokens} is above max_tokens, {self.max_tokens}", "min_tokens")
        if self.stream and self.prompt_logprobs is not None:
            raise InvalidRequest("prompt_logprobs: not available when stream is true", "prompt_logprobs")
        for key in self.logit_bias or ():
            if not (key.isascii() and key.isdigit() and len(key) < 11):
                raise InvalidRequest(f"logit_bias: {key[:40]!r} is no token id", "logit_bias")
        if self.response_format is not None:
            self.response_format.check()
        if self.structured_outputs is not None:
            self.structured_outputs.check()
            if self.response_format is not None and self.response_format.type != "text":
                raise InvalidRequest("structured_outputs: not together with response_format", "structured_outputs")


class ChatRequest(Options, frozen=True, kw_only=True):
    messages: Annotated[list[ChatMessage], Meta(min_length=1, max_length=2048)]
    max_completion_tokens: Tokens | None = None
    logprobs: bool | None = None
    top_logprobs: Top | None = None
    tools: Tools | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    reasoning_effort: Effort | None = None
    include_reasoning: bool | None = None
    thinking_token_budget: Tokens | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    documents: list[dict[str, str]] | None = None
    chat_template: Annotated[str, Meta(max_length=2**18)] | None = None
    chat_template_kwargs: dict[str, Any] | None = None

    @property
    def num_top(self) -> int | None:
        return (self.top_logprobs or 0) if self.logprobs else None

    def check(self) -> None:
        super().check()
        check_messages(self.messages)
        check_tools(self.tools, self.tool_choice)
        if self.max_completion_tokens is not None and (self.min_tokens or 0) > self.max_completion_tokens:
            raise InvalidRequest(
                f"min_tokens: {self.min_tokens} is above max_completion_tokens, {self.max_completion_tokens}",
                "min_tokens",
            )
        if self.top_logprobs and not self.logprobs:
            raise InvalidRequest("top_logprobs: only allowed when logprobs is true", "top_logprobs")
        if self.continue_final_message and self.add_generation_prompt:
            raise InvalidRequest(
                "continue_final_message: not together with add_generation_prompt", "continue_final_message"
            )


class CompletionRequest(Options, frozen=True, kw_only=True):
    prompt: str | Annotated[list[str | TokenId | list[TokenId]], Meta(min_length=1)]
    logprobs: Top | None = None
    suffix: str | None = None

    @property
    def num_top(self) -> int | None:
        return self.logprobs

    def check(self) -> None:
        super().check()
        if self.suffix:
            raise InvalidRequest("suffix: not supported; text is only generated at the end", "suffix")
        prompts = self.prompts()
        if len(prompts) > MAX_PROMPTS:
            raise InvalidRequest(f"prompt: {len(prompts)} prompts; at most {MAX_PROMPTS} are taken", "prompt")
        for place, prompt in enumerate(prompts):
            if not prompt:
                raise InvalidRequest(f"prompt: prompt {place} is empty", "prompt")

    def prompts(self) -> list[str] | list[list[int]]:
        """One entry a prompt, text or token ids. Raises InvalidRequest for a mixture."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        kinds = {type(each) for each in self.prompt}
        if kinds == {int}:
            return [self.prompt]  # type: ignore[return-value]  # all are ints
        if kinds == {str} or kinds == {list}:
            return self.prompt  # type: ignore[return-value]  # all are of one kind
        raise InvalidRequest("prompt: a list must hold only texts, only token ids or only lists of them", "prompt")
