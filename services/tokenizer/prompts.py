"""From a checked request to token ids and sampling parameters."""

from hashlib import blake2b

import msgspec

from octavo.services.tokenizer.template import ChatTemplate
from octavo.services.tokenizer.vocabulary import Vocabulary
from octavo.shared.errors import InvalidRequest
from octavo.shared.messages import CallId, ModelInfo
from octavo.shared.openai import CallRequest, ChatRequest, CompletionRequest
from octavo.shared.sampling import MAX_SEED, SamplingParams

COMPLETION_MAX_TOKENS = 16  # of /v1/completions when the client names none, as OpenAI and vLLM have it
MAX_CHARS_PER_TOKEN = 64  # a text longer than this times the context cannot fit; it is refused before it is encoded


class Prompter:
    """A model's ways from text to token ids."""

    def __init__(self, vocabulary: Vocabulary | None, eos_ids: frozenset[int]) -> None:
        self.vocabulary = vocabulary
        self._eos_ids = tuple(sorted(eos_ids))
        template = None if vocabulary is None else vocabulary.chat_template
        bos, eos = ("", "") if vocabulary is None else (vocabulary.bos_token, vocabulary.eos_token)
        self._template = ChatTemplate(template, bos_token=bos, eos_token=eos)

    def prompts(self, request: CallRequest, model: ModelInfo) -> list[list[int]]:
        """The token ids of each prompt. Raises InvalidRequest."""
        if isinstance(request, ChatRequest):
            prompts = [self._chat_prompt(request, model)]
        else:
            prompts = [
                self._encode(each, model, "prompt") if isinstance(each, str) else each for each in request.prompts()
            ]
        for prompt in prompts:
            _check_length(prompt, request, model)
        return prompts

    def params(
        self, request: CallRequest, call: CallId, copy: int, num_prompt: int, model: ModelInfo
    ) -> SamplingParams:
        """The sampling parameters of choice number `copy` of a prompt."""
        wanted = request.max_tokens
        if isinstance(request, ChatRequest):
            wanted = request.max_completion_tokens or wanted
        elif wanted is None:
            wanted = COMPLETION_MAX_TOKENS
        room = model.max_model_len - num_prompt
        if request.seed is None:
            seed = int.from_bytes(blake2b(call, digest_size=8).digest(), "little")
        else:
            seed = request.seed
        return SamplingParams(
            max_tokens=room if wanted is None else min(wanted, room),
            temperature=1.0 if request.temperature is None else request.temperature,
            top_p=1.0 if request.top_p is None else request.top_p,
            top_k=max(request.top_k or 0, 0),
            min_p=request.min_p or 0.0,
            seed=(seed + copy) & MAX_SEED,
            stop_token_ids=() if request.ignore_eos else self._eos_ids,
        )

    def _chat_prompt(self, request: ChatRequest, model: ModelInfo) -> list[int]:
        if self.vocabulary is None:
            raise InvalidRequest("messages: this model has no tokenizer; send token ids to /v1/completions", "messages")
        messages = [msgspec.to_builtins(message) for message in request.messages]
        return self._encode(self._template.render(messages), model, "messages")

    def _encode(self, text: str, model: ModelInfo, field: str) -> list[int]:
        """The token ids of a field's text; a rendered template brings its special tokens itself."""
        if self.vocabulary is None:
            raise InvalidRequest("prompt: this model has no tokenizer; send token ids", field)
        if len(text) > MAX_CHARS_PER_TOKEN * model.max_model_len:
            raise InvalidRequest(
                f"{field}: it has {len(text)} characters; this model takes {model.max_model_len} tokens",
                field,
                "context_length_exceeded",
            )
        return self.vocabulary.encode(text, add_special_tokens=field == "prompt")


def _check_length(prompt: list[int], request: CallRequest, model: ModelInfo) -> None:
    field = "prompt" if isinstance(request, CompletionRequest) else "messages"
    if not prompt:
        raise InvalidRequest(f"{field}: it has no tokens", field)
    if len(prompt) >= model.max_model_len:
        raise InvalidRequest(
            f"{field}: it has {len(prompt)} tokens; this model takes {model.max_model_len} with the "
            f"completion, so a prompt may have at most {model.max_model_len - 1}",
            field,
            "context_length_exceeded",
        )
