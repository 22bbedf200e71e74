"""From a checked request to the token ids of its prompts."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import msgspec

from octavo.services.tokenizer.detokenizer import Detokenizer
from octavo.services.tokenizer.template import ChatTemplate
from octavo.services.tokenizer.vocabulary import Vocabulary
from octavo.shared.errors import InvalidRequest
from octavo.shared.messages import ModelInfo
from octavo.shared.openai import ChatRequest, CompletionRequest, Options
from octavo.shared.openai_parts import ChatMessage, Tool
from octavo.shared.tokenization import Detokenized, DetokenizeRequest, Tokenized, TokenizeRequest

MAX_CHARS_PER_TOKEN = 64  # a text longer than this times the context cannot fit; it is refused before it is encoded


class Prompt(NamedTuple):
    token_ids: list[int]
    echo: str = ""
    """Where the answer begins with it."""
    rendered: str = ""
    """Of a chat: the text that the template has made of it."""


class Prompter:
    """A model's ways from text to token ids and back."""

    def __init__(self, vocabulary: Vocabulary | None, trusts_templates: bool = False) -> None:
        """trusts_templates: requests may bring chat templates of their own."""
        self.vocabulary = vocabulary
        self._trusts_templates = trusts_templates
        self._template = self._compile(None if vocabulary is None else vocabulary.chat_template)

    def prompts(self, request: Options, model: ModelInfo) -> list[Prompt]:
        """One or more. Raises InvalidRequest."""
        if isinstance(request, ChatRequest):
            prompts, field = [self._chat(request, model)], "messages"
        else:
            assert isinstance(request, CompletionRequest)
            prompts, field = [self._plain(each, request, model) for each in request.prompts()], "prompt"
        prompts = [prompt._replace(token_ids=_truncated(prompt.token_ids, request, model)) for prompt in prompts]
        for prompt in prompts:
            _check_length(prompt.token_ids, field, model)
        return prompts

    def count(self, request: ChatRequest, model: ModelInfo) -> int:
        """Tokens of a chat's prompt, whether it fits or not. Raises InvalidRequest."""
        return len(self._chat(request, model).token_ids)

    def tokenize(self, request: TokenizeRequest, model: ModelInfo) -> Tokenized:
        if request.messages is not None:
            text = self._render(
                request.messages, request.tools, request.chat_template_kwargs, request.add_generation_prompt,
                bool(request.continue_final_message),
            )  # fmt: skip
            token_ids = self._encode(text, model, "messages", bool(request.add_special_tokens))
        else:
            token_ids = self._encode(request.prompt or "", model, "prompt", request.add_special_tokens is not False)
        pieces = () if self.vocabulary is None else self.vocabulary.pieces
        texts = [pieces[token].decode(errors="replace") for token in token_ids] if request.return_token_strs else None
        return Tokenized(len(token_ids), model.max_model_len, token_ids, texts)

    def detokenize(self, request: DetokenizeRequest, model: ModelInfo) -> Detokenized:
        if outside := next((token for token in request.tokens if token >= model.vocab_size), None):
            raise InvalidRequest(
                f"tokens: token id {outside} is outside the vocabulary; ids are 0 to {model.vocab_size - 1}", "tokens"
            )
        return Detokenized(self._decode(request.tokens))

    def _plain(self, prompt: str | list[int], request: CompletionRequest, model: ModelInfo) -> Prompt:
        if isinstance(prompt, str):
            token_ids = self._encode(prompt, model, "prompt", request.add_special_tokens is not False)
            return Prompt(token_ids, prompt if request.echo else "")
        return Prompt(prompt, self._decode(prompt) if request.echo else "")

    def _chat(self, request: ChatRequest, model: ModelInfo) -> Prompt:
        if self.vocabulary is None:
            raise InvalidRequest("messages: this model has no tokenizer; send token ids to /v1/completions", "messages")
        template = self._template
        if request.chat_template is not None:
            if not self._trusts_templates:
                raise InvalidRequest(
                    "chat_template: the server takes none from requests (--trust-request-chat-template allows it)",
                    "chat_template",
                )
            template = self._compile(request.chat_template)
        settings = dict(request.chat_template_kwargs or {})
        if request.documents is not None:
            settings.setdefault("documents", request.documents)
        if request.reasoning_effort is not None:
            settings.setdefault("reasoning_effort", request.reasoning_effort)
        tools = None if request.tool_choice == "none" else request.tools
        text = self._render(
            request.messages, tools, settings, request.add_generation_prompt, bool(request.continue_final_message),
            template,
        )  # fmt: skip
        last = request.messages[-1]
        echo = last.content if request.echo and last.role == "assistant" and isinstance(last.content, str) else ""
        return Prompt(self._encode(text, model, "messages", bool(request.add_special_tokens)), echo, text)

    def _render(
        self,
        messages: Sequence[ChatMessage],
        tools: Sequence[Tool] | None,
        settings: Mapping[str, object] | None,
        add_generation_prompt: bool | None,
        continues: bool,
        template: ChatTemplate | None = None,
    ) -> str:
        return (template or self._template).render(
            [msgspec.to_builtins(message) for message in messages],
            add_generation_prompt=not continues if add_generation_prompt is None else add_generation_prompt,
            continue_final_message=continues,
            tools=[msgspec.to_builtins(tool) for tool in tools] if tools else None,
            chat_template_kwargs=settings,
        )

    def _compile(self, source: str | None) -> ChatTemplate:
        bos, eos = ("", "") if self.vocabulary is None else (self.vocabulary.bos_token, self.vocabulary.eos_token)
        return ChatTemplate(source, bos_token=bos, eos_token=eos)

    def _encode(self, text: str, model: ModelInfo, field: str, adds_special_tokens: bool) -> list[int]:
        """The token ids of a field's text; a rendered template most often brings its special tokens itself."""
        if self.vocabulary is None:
            raise InvalidRequest("prompt: this model has no tokenizer; send token ids", field)
        if len(text) > MAX_CHARS_PER_TOKEN * model.max_model_len:
            raise InvalidRequest(
                f"{field}: it has {len(text)} characters; this model takes {model.max_model_len} tokens",
                field,
                "context_length_exceeded",
            )
        return self.vocabulary.encode(text, add_special_tokens=adds_special_tokens)

    def _decode(self, token_ids: Sequence[int]) -> str:
        if self.vocabulary is None:
            return ""
        text = Detokenizer(self.vocabulary, skip_special_tokens=False, follows_prompt=False)
        return text.feed(token_ids) + text.finish()


def _truncated(token_ids: list[int], request: Options, model: ModelInfo) -> list[int]:
    """The end of a prompt, where only so much of it is wanted."""
    wanted = request.truncate_prompt_tokens
    if wanted is None:
        return token_ids
    limit = model.max_model_len - 1
    if wanted > limit:
        raise InvalidRequest(
            f"truncate_prompt_tokens: {wanted} is more than the {limit} tokens that a prompt may have",
            "truncate_prompt_tokens",
        )
    kept = limit if wanted == -1 else wanted
    return token_ids[max(0, len(token_ids) - kept) :]


def _check_length(token_ids: list[int], field: str, model: ModelInfo) -> None:
    if not token_ids:
        raise InvalidRequest(f"{field}: it has no tokens", field)
    if len(token_ids) >= model.max_model_len:
        raise InvalidRequest(
            f"{field}: it has {len(token_ids)} tokens; this model takes {model.max_model_len} with the "
            f"completion, so a prompt may have at most {model.max_model_len - 1}",
            field,
            "context_length_exceeded",
        )
