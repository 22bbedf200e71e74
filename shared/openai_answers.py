"""What the OpenAI routes answer, as the documentation describes it.

The tokenizer writes most of these bytes by hand, chunk by chunk; tests hold them to what is said here.
"""

from typing import Annotated, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

TokenIds = Annotated[list[int], Meta(description="of this choice's text, with return_token_ids")]
PromptTokenIds = Annotated[list[int], Meta(description="of the prompt, with return_token_ids")]
StopReason = Annotated[
    int | str | None,
    Meta(description="the stop string, or the token of stop_token_ids, at which the text ended"),
]
Reason = Annotated[
    Literal["stop", "length", "tool_calls"],
    Meta(description="stop: at a stop string or the model's own end; length: at max_tokens or the model's limit"),
]
Index = Annotated[int, Meta(ge=0, description="which choice this is of; prompts come one after the other, n for each")]
CallName = Annotated[str, Meta(description="one for each request; all chunks of a stream have the same")]
Seconds = Annotated[int, Meta(ge=0, description="Unix time in seconds")]
Count = Annotated[int, Meta(ge=0)]


class Usage(msgspec.Struct, frozen=True):
    prompt_tokens: Annotated[Count, Meta(description="tokens of all prompts")]
    completion_tokens: Annotated[Count, Meta(description="tokens generated, of all choices")]
    total_tokens: Annotated[Count, Meta(description="both together")]
    completion_tokens_details: (
        Annotated[dict[str, int], Meta(description="reasoning_tokens: of reasoning alone")] | UnsetType
    ) = UNSET


class TokenLogprob(msgspec.Struct, frozen=True):
    token: str
    logprob: float
    bytes: list[int]


class ChosenLogprob(TokenLogprob, frozen=True):
    top_logprobs: Annotated[list[TokenLogprob], Meta(description="the likeliest tokens, with top_logprobs")]


class ChatLogprobs(msgspec.Struct, frozen=True):
    content: list[ChosenLogprob]
    refusal: None


class CompletionLogprobs(msgspec.Struct, frozen=True):
    """One entry a token in each list; of an echoed prompt's first token nothing is known."""

    text_offset: list[int]
    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]


class PromptLogprob(msgspec.Struct, frozen=True):
    logprob: float
    rank: Annotated[int, Meta(description="1 for the likeliest token")]
    decoded_token: str


PromptLogprobs = Annotated[
    list[dict[str, PromptLogprob] | None],
    Meta(description="of each token of the prompt but the first, by token id, with prompt_logprobs"),
]


class FunctionCalled(msgspec.Struct, frozen=True):
    arguments: Annotated[str, Meta(description="a JSON object, as the model wrote it")]
    name: str | UnsetType = UNSET


class ToolCalled(msgspec.Struct, frozen=True):
    function: FunctionCalled
    id: str | UnsetType = UNSET
    type: Literal["function"] | UnsetType = UNSET
    index: Annotated[Count, Meta(description="in chunks: which call this is of")] | UnsetType = UNSET


ReasoningText = Annotated[str, Meta(description="what the model says to itself, if it tells that apart")]


class AnswerMessage(msgspec.Struct, frozen=True):
    role: Literal["assistant"]
    content: str | None
    refusal: None
    reasoning: ReasoningText | UnsetType = UNSET
    reasoning_content: ReasoningText | UnsetType = UNSET
    tool_calls: list[ToolCalled] | UnsetType = UNSET


class ChatChoice(msgspec.Struct, frozen=True):
    index: Index
    message: AnswerMessage
    finish_reason: Reason
    logprobs: ChatLogprobs | None
    stop_reason: StopReason
    token_ids: TokenIds | UnsetType = UNSET


class ChatCompletion(msgspec.Struct, frozen=True):
    id: CallName
    object: Literal["chat.completion"]
    created: Seconds
    model: str
    choices: list[ChatChoice]
    usage: Usage
    prompt_logprobs: PromptLogprobs | UnsetType = UNSET
    prompt_token_ids: PromptTokenIds | UnsetType = UNSET


class Delta(msgspec.Struct, frozen=True):
    role: Annotated[Literal["assistant"], Meta(description="in the first chunk of a choice")] | UnsetType = UNSET
    content: Annotated[str, Meta(description="text that follows on that of earlier chunks")] | UnsetType = UNSET
    reasoning: ReasoningText | UnsetType = UNSET
    reasoning_content: ReasoningText | UnsetType = UNSET
    tool_calls: list[ToolCalled] | UnsetType = UNSET


class ChatChunkChoice(msgspec.Struct, frozen=True):
    index: Index
    delta: Delta
    finish_reason: Reason | None
    logprobs: ChatLogprobs | None
    stop_reason: StopReason | UnsetType = UNSET
    token_ids: TokenIds | UnsetType = UNSET
    prompt_token_ids: PromptTokenIds | UnsetType = UNSET


class ChatCompletionChunk(msgspec.Struct, frozen=True):
    id: CallName
    object: Literal["chat.completion.chunk"]
    created: Seconds
    model: str
    choices: list[ChatChunkChoice]
    usage: Annotated[Usage, Meta(description="in a last chunk without choices, with include_usage")] | UnsetType = UNSET


class CompletionChoice(msgspec.Struct, frozen=True):
    index: Index
    text: str
    finish_reason: Reason
    logprobs: CompletionLogprobs | None
    stop_reason: StopReason
    prompt_logprobs: PromptLogprobs | UnsetType = UNSET
    token_ids: TokenIds | UnsetType = UNSET
    prompt_token_ids: PromptTokenIds | UnsetType = UNSET


class Completion(msgspec.Struct, frozen=True):
    id: CallName
    object: Literal["text_completion"]
    created: Seconds
    model: str
    choices: list[CompletionChoice]
    usage: Usage


class CompletionChunkChoice(msgspec.Struct, frozen=True):
    index: Index
    text: Annotated[str, Meta(description="follows on that of earlier chunks")]
    finish_reason: Reason | None
    logprobs: CompletionLogprobs | None
    stop_reason: StopReason | UnsetType = UNSET
    token_ids: TokenIds | UnsetType = UNSET
    prompt_token_ids: PromptTokenIds | UnsetType = UNSET


class CompletionChunk(msgspec.Struct, frozen=True):
    id: CallName
    object: Literal["text_completion"]
    created: Seconds
    model: str
    choices: list[CompletionChunkChoice]
    usage: Annotated[Usage, Meta(description="in a last chunk without choices, with include_usage")] | UnsetType = UNSET


class ModelPermission(msgspec.Struct, frozen=True, kw_only=True):
    """The same for every model; some clients look for it."""

    id: str
    object: Literal["model_permission"] = "model_permission"
    created: Seconds
    allow_create_engine: bool = False
    allow_sampling: bool = True
    allow_logprobs: bool = True
    allow_search_indices: bool = False
    allow_view: bool = True
    allow_fine_tuning: bool = False
    organization: str = "*"
    group: None = None
    is_blocking: bool = False


class ModelCard(msgspec.Struct, frozen=True, kw_only=True):
    id: Annotated[str, Meta(description="the name that requests give as their model")]
    object: Literal["model"] = "model"
    created: Seconds
    owned_by: str = "octavo"
    root: Annotated[str, Meta(description="the folder, file or Hub id that it was loaded from")]
    parent: None = None
    permission: list[ModelPermission]
    max_model_len: Annotated[int | None, Meta(description="prompt and completion together, in tokens")] = None


class ModelList(msgspec.Struct, frozen=True, kw_only=True):
    object: Literal["list"] = "list"
    data: list[ModelCard]


class ErrorFields(msgspec.Struct, frozen=True):
    message: Annotated[str, Meta(min_length=1, description="a sentence that names what is wrong, and the bound")]
    type: Annotated[str, Meta(description="the kind of error, one for each status")]
    param: Annotated[str | None, Meta(description="the field of the request that is wrong")]
    code: Annotated[str | None, Meta(description="a word for programs to go by")]


class ErrorAnswer(msgspec.Struct, frozen=True):
    error: ErrorFields
