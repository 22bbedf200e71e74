"""What `LLM` returns, in vLLM's shape, and how it is read from the bodies and chunks of the HTTP API."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import msgspec

from octavo.shared.errors import BY_STATUS, RequestError

TOKEN_ID = "token_id:"


@dataclass
class Logprob:
    """Of one token at one position."""

    logprob: float
    rank: int | None = None
    """1 is the likeliest; None where the server does not tell."""
    decoded_token: str | None = None


Logprobs = dict[int, Logprob]
"""The tokens of one position, by id."""


@dataclass
class CompletionOutput:
    """One completion of a prompt."""

    index: int
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    cumulative_logprob: float | None = None
    logprobs: list[Logprobs] | None = None
    """One entry a token, if they were asked for."""
    finish_reason: str | None = None
    """`stop`, `length`, or what else the server says; None while it runs."""
    stop_reason: int | str | None = None
    """The stop string or token id that ended it; None for the end of the sequence."""
    message: dict[str, Any] | None = None
    """Of a chat that is whole: the assistant's message as the API has it, with tool calls and reasoning."""


@dataclass
class RequestOutput:
    """A prompt and its completions."""

    request_id: str
    prompt: str | None
    """Its text; None if it was given as token ids or as messages."""
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput]
    finished: bool
    prompt_logprobs: list[Logprobs | None] | None = None


class _Top(msgspec.Struct, frozen=True):
    token: str
    logprob: float


class _Position(_Top, frozen=True):
    top_logprobs: list[_Top] = []


class _Logprobs(msgspec.Struct, frozen=True):
    """Both forms: chats have `content`, completions the other fields."""

    content: list[_Position] | None = None
    tokens: list[str] = []
    token_logprobs: list[float | None] = []
    top_logprobs: list[dict[str, float] | None] | None = None


class _PromptLogprob(msgspec.Struct, frozen=True):
    logprob: float
    rank: int | None = None
    decoded_token: str | None = None


class _Piece(msgspec.Struct, frozen=True):
    """What a chunk of a chat adds to a choice."""

    content: str | None = None


class _Choice(msgspec.Struct, frozen=True):
    index: int
    text: str | None = None
    message: dict[str, Any] | None = None
    delta: _Piece | None = None
    token_ids: list[int] | None = None
    prompt_token_ids: list[int] | None = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    logprobs: _Logprobs | None = None
    prompt_logprobs: list[dict[int, _PromptLogprob] | None] | None = None


class _Error(msgspec.Struct, frozen=True):
    message: str
    param: str | None = None
    code: int | str | None = None


class _Body(msgspec.Struct, frozen=True):
    choices: list[_Choice] = []
    error: _Error | None = None
    prompt_token_ids: list[int] | None = None
    prompt_logprobs: list[dict[int, _PromptLogprob] | None] | None = None


_decode = msgspec.json.Decoder(_Body, strict=False).decode


def error_of(status: int, body: bytes, before: str = "") -> RequestError:
    """The error that an answer tells of, in the server's words after some of ours."""
    kind = BY_STATUS.get(status, RequestError)
    try:
        error = _decode(body).error
    except msgspec.DecodeError:
        error = None
    if error is None:
        return kind(f"{before}the server answered {status}: {body[:200].decode(errors='replace')}")
    return kind(before + error.message, error.param, None if error.code is None else str(error.code))


class Collector:
    """A RequestOutput that grows with the pieces of its answer."""

    def __init__(
        self, request_id: str, prompt: str | None, num_choices: int = 1, num_top: int = 0, with_text: bool = True
    ) -> None:
        """num_top: how many likeliest tokens were asked for at each position."""
        outputs = [CompletionOutput(index) for index in range(num_choices)]
        self.output = RequestOutput(request_id, prompt, [], outputs, finished=False)
        self._num_top, self._with_text = num_top, with_text

    def add(self, data: bytes) -> None:
        """Take in a whole body, or the data of one event of a stream. Raises RequestError if it tells of one."""
        body = _decode(data)
        if body.error is not None:
            raise error_of(500, data)
        for choice in body.choices:
            self._add_choice(choice)
        self.output.prompt_token_ids = body.prompt_token_ids or self.output.prompt_token_ids
        self._add_prompt_logprobs(body.prompt_logprobs)
        self.output.finished = all(each.finish_reason is not None for each in self.output.outputs)

    def copy(self) -> RequestOutput:
        """As it stands now; it does not grow."""
        outputs = [replace(each, token_ids=each.token_ids.copy()) for each in self.output.outputs]
        return replace(self.output, outputs=outputs)

    def _add_choice(self, choice: _Choice) -> None:
        output = self.output.outputs[choice.index]
        if choice.prompt_token_ids is not None:
            self.output.prompt_token_ids = choice.prompt_token_ids
        self._add_prompt_logprobs(choice.prompt_logprobs)
        new_ids = choice.token_ids or []
        output.token_ids += new_ids
        if self._with_text:
            message = choice.message or {}
            output.text += choice.text or message.get("content") or (choice.delta and choice.delta.content) or ""
        output.message = choice.message
        output.finish_reason = choice.finish_reason or output.finish_reason
        output.stop_reason = choice.stop_reason
        if choice.logprobs is not None:
            new = list(_positions(choice.logprobs, new_ids, self._num_top))
            output.logprobs = [*(output.logprobs or []), *new]
            output.cumulative_logprob = (output.cumulative_logprob or 0.0) + sum(
                position[token].logprob for position, token in zip(new, new_ids, strict=True)
            )

    def _add_prompt_logprobs(self, positions: list[dict[int, _PromptLogprob] | None] | None) -> None:
        if positions is not None:
            self.output.prompt_logprobs = [
                None
                if each is None
                else {token: Logprob(of.logprob, of.rank, of.decoded_token) for token, of in each.items()}
                for each in positions
            ]


def _positions(logprobs: _Logprobs, token_ids: Sequence[int], num_top: int) -> Iterator[Logprobs]:
    """Of each new token: itself, and the likeliest ones, likeliest first.

    Completions name the token itself among the likeliest, also where it is none of them: then its rank is not known.
    """
    if logprobs.content is not None:
        taken = [each.logprob for each in logprobs.content]
        likeliest = [[(top.token, top.logprob) for top in each.top_logprobs] for each in logprobs.content]
    else:
        taken = [0.0 if each is None else each for each in logprobs.token_logprobs]
        likeliest = [list((each or {}).items()) for each in logprobs.top_logprobs or [None] * len(taken)]
    for token_id, logprob, tops in zip(token_ids, taken, likeliest, strict=True):
        ranked = sorted(tops, key=lambda top: -top[1])
        found = {
            int(token.removeprefix(TOKEN_ID)): Logprob(each, rank if rank <= num_top else None)
            for rank, (token, each) in enumerate(ranked, 1)
            if token.startswith(TOKEN_ID)
        }
        yield {token_id: Logprob(logprob)} | found
