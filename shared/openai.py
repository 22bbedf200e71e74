"""Request bodies of the OpenAI API, as far as text generation needs them, with the bounds of every field.

The gateway validates with these and forwards the bytes; the tokenizer reads the same bytes again. Fields that are
not named here are ignored, as clients of such servers expect.
"""

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from octavo.shared.errors import InvalidRequest
from octavo.shared.sampling import MAX_SEED

MAX_PROMPTS = 64
MAX_CHOICES = 16
MAX_TOKENS = 2**24  # far above any context; the model's own limit is checked against the prompt's length

Tokens = Annotated[int, Meta(ge=1, le=MAX_TOKENS)]
Temperature = Annotated[float, Meta(ge=0.0, le=2.0)]
TopP = Annotated[float, Meta(gt=0.0, le=1.0)]
TopK = Annotated[int, Meta(ge=-1, le=2**31 - 1)]
MinP = Annotated[float, Meta(ge=0.0, le=1.0)]
Seed = Annotated[int, Meta(ge=-(2**63), le=MAX_SEED)]
Choices = Annotated[int, Meta(ge=1, le=MAX_CHOICES)]
StopString = Annotated[str, Meta(min_length=1, max_length=1024)]
Stop = StopString | Annotated[list[StopString], Meta(max_length=16)]
TokenId = Annotated[int, Meta(ge=0, le=2**31 - 1)]


class StreamOptions(msgspec.Struct, frozen=True):
    include_usage: bool = False


class ContentPart(msgspec.Struct, frozen=True):
    type: str
    text: str | None = None


class ChatMessage(msgspec.Struct, frozen=True, omit_defaults=True):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[ContentPart] | None = None
    name: str | None = None


class _Options(msgspec.Struct, frozen=True, kw_only=True):
    """What chat and plain completions have in common."""

    model: str | None = None
    max_tokens: Tokens | None = None
    temperature: Temperature | None = None
    top_p: TopP | None = None
    top_k: TopK | None = None
    min_p: MinP | None = None
    stop: Stop | None = None
    seed: Seed | None = None
    n: Choices | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    ignore_eos: bool | None = None
    skip_special_tokens: bool | None = None
    return_token_ids: bool | None = None
    user: str | None = None

    @property
    def stops(self) -> list[str]:
        if self.stop is None:
            return []
        return [self.stop] if isinstance(self.stop, str) else self.stop

    def check(self) -> None:
        """What no single field's bounds can say. Raises InvalidRequest."""
        if self.stream_options is not None and not self.stream:
            raise InvalidRequest("stream_options: only allowed when stream is true", "stream_options")


class ChatRequest(_Options, frozen=True, kw_only=True):
    messages: Annotated[list[ChatMessage], Meta(min_length=1, max_length=2048)]
    max_completion_tokens: Tokens | None = None

    def check(self) -> None:
        super().check()
        for place, message in enumerate(self.messages):
            for part in message.content if isinstance(message.content, list) else ():
                if part.type != "text" or part.text is None:
                    raise InvalidRequest(
                        f"messages[{place}].content: parts of type {part.type[:40]!r} are not supported; only text is",
                        "messages",
                    )


class CompletionRequest(_Options, frozen=True, kw_only=True):
    prompt: str | Annotated[list[str | TokenId | list[TokenId]], Meta(min_length=1)]

    def check(self) -> None:
        super().check()
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


CallRequest = ChatRequest | CompletionRequest

ENDPOINTS: dict[str, msgspec.json.Decoder[Any]] = {
    "chat": msgspec.json.Decoder(ChatRequest),
    "completion": msgspec.json.Decoder(CompletionRequest),
}


def read_request(endpoint: str, body: bytes) -> CallRequest:
    """The checked request of an endpoint in ENDPOINTS.

    Raises:
        InvalidRequest: not JSON, not of the right shape, or out of bounds; the message names the field.
    """
    try:
        request: CallRequest = ENDPOINTS[endpoint].decode(body)
    except msgspec.ValidationError as error:
        raise _invalid_field(str(error)) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"the body is not valid JSON: {error}") from None
    except RecursionError:
        raise InvalidRequest("the body is nested too deeply") from None
    request.check()
    return request


def _invalid_field(reason: str) -> InvalidRequest:
    """msgspec's "Expected `int`, got `str` - at `$.n`" as "n: expected `int`, got `str`"."""
    what, _, place = reason.partition(" - at `")
    path = place.rstrip("`").removeprefix("$").removeprefix(".")
    if what.startswith("Object missing required field"):
        path = ".".join(part for part in (path, what.split("`")[1]) if part)
        what = "this field is required"
    param = path.split(".")[0].split("[")[0] or None
    return InvalidRequest(f"{path or 'the body'}: {what[:1].lower()}{what[1:]}", param)
