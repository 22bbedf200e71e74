"""From the options of a request to the parameters that one completion is sampled with."""

from collections.abc import Iterable
from hashlib import blake2b
from typing import TypeVar

import msgspec

from octavo.services.tokenizer.vocabulary import Vocabulary
from octavo.shared.errors import InvalidRequest
from octavo.shared.messages import CallId, ModelInfo, pack
from octavo.shared.openai import ChatRequest, CompletionRequest, Options
from octavo.shared.sampling import MAX_SEED, SamplingParams

COMPLETION_MAX_TOKENS = 16  # of /v1/completions when the client names none, as OpenAI and vLLM have it


Number = TypeVar("Number", int, float)


class Defaults(msgspec.Struct, frozen=True):
    """What the model's generation_config.json says for requests that say nothing."""

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    max_new_tokens: int | None = None


class ParamsMaker:
    """Makes sampling parameters for one model's requests."""

    def __init__(self, vocabulary: Vocabulary | None, eos_ids: Iterable[int], defaults: Defaults) -> None:
        self._vocabulary = vocabulary
        self._eos_ids = tuple(sorted(eos_ids))
        self._defaults = defaults

    def make(
        self, request: Options, call: CallId, copy: int, num_prompt: int, model: ModelInfo, grammar: str = ""
    ) -> SamplingParams:
        """Of choice number `copy` of a prompt. Raises InvalidRequest."""
        if request.seed is None:
            seed = int.from_bytes(blake2b(call, digest_size=8).digest(), "little")
        else:
            seed = request.seed
        defaults, room = self._defaults, model.max_model_len - num_prompt
        num_top = request.num_top
        if num_top is None and request.num_copies > request.num_choices:
            num_top = 0  # by which the best ones are known
        prompt_top = request.prompt_logprobs
        if prompt_top is None and request.echoes and isinstance(request, CompletionRequest):
            prompt_top = num_top
        wanted = self._max_tokens(request)
        return SamplingParams(
            max_tokens=room if wanted is None else max(1, min(wanted, room)),
            temperature=_first(request.temperature, defaults.temperature, 1.0),
            top_p=_first(request.top_p, defaults.top_p, 1.0),
            top_k=max(_first(request.top_k, defaults.top_k, 0), 0),
            min_p=_first(request.min_p, defaults.min_p, 0.0),
            seed=(seed + copy) & MAX_SEED,
            stop_token_ids=self._stop_ids(request),
            repetition_penalty=_first(request.repetition_penalty, defaults.repetition_penalty, 1.0),
            frequency_penalty=request.frequency_penalty or 0.0,
            presence_penalty=request.presence_penalty or 0.0,
            logprobs=None if num_top is None else min(num_top, model.vocab_size),
            prompt_logprobs=None if prompt_top is None else min(prompt_top, model.vocab_size),
            min_tokens=request.min_tokens or 0,
            biases=_biases(request, model),
            allowed_token_ids=_allowed(request, model),
            bad_words=self._bad_words(request),
            grammar=grammar,
        )

    def _max_tokens(self, request: Options) -> int | None:
        """None: as many as there is room for."""
        if isinstance(request, CompletionRequest):
            return COMPLETION_MAX_TOKENS if request.max_tokens is None else request.max_tokens
        wanted = request.max_tokens
        if isinstance(request, ChatRequest):
            wanted = request.max_completion_tokens or wanted
        return wanted or self._defaults.max_new_tokens

    def _stop_ids(self, request: Options) -> tuple[int, ...]:
        eos_ids = () if request.ignore_eos else self._eos_ids
        return eos_ids if not request.stop_token_ids else tuple(sorted({*eos_ids, *request.stop_token_ids}))

    def _bad_words(self, request: Options) -> tuple[bytes, ...]:
        """Each as the tokens that it is at the beginning of a text, and behind a space."""
        if not request.bad_words:
            return ()
        if self._vocabulary is None:
            raise InvalidRequest("bad_words: this model has no tokenizer", "bad_words")
        spellings: dict[bytes, None] = {}
        for word in request.bad_words:
            for text in (word.lstrip(), " " + word.lstrip()):
                if token_ids := self._vocabulary.encode(text, add_special_tokens=False):
                    spellings[pack(token_ids)] = None
        return tuple(spellings)


def _biases(request: Options, model: ModelInfo) -> dict[int, float]:
    biases = {int(token): value for token, value in (request.logit_bias or {}).items() if value}
    _check_ids("logit_bias", biases, model)
    return biases


def _allowed(request: Options, model: ModelInfo) -> bytes:
    allowed = request.allowed_token_ids or []
    _check_ids("allowed_token_ids", allowed, model)
    return pack(sorted(set(allowed)))


def _check_ids(field: str, token_ids: Iterable[int], model: ModelInfo) -> None:
    highest = max(token_ids, default=0)
    if highest >= model.vocab_size:
        raise InvalidRequest(
            f"{field}: token id {highest} is outside the vocabulary; ids are 0 to {model.vocab_size - 1}", field
        )


def _first(*values: Number | None) -> Number:
    return next(value for value in values if value is not None)
