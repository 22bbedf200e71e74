"""Every message of the system: who sends it to whom, and what each field is.

A *call* is one HTTP request. It has one or more *requests*: one for each prompt and choice. The gateway and
the tokenizer speak of calls; the tokenizer, the scheduler and the executor of requests.

    gateway -> tokenizer   Generate  CancelCall  Heartbeat
    tokenizer -> gateway   Serving   Text  CallFailed  Heartbeat
    tokenizer -> scheduler Join  Enqueue  Cancel  Heartbeat
    scheduler -> tokenizer Ready  Tokens  Refused  Heartbeat
    scheduler -> executor  Reset  Step
    executor -> scheduler  ExecutorReady  StepResult  StepFailed

Fields are appended with defaults, never moved or removed: an old reader ignores new ones. Lists of token ids,
blocks and slots travel as raw little-endian int32 (see `pack` and `unpack`).
"""

import sys
from array import array
from collections.abc import Iterable
from typing import NewType

import msgspec

from octavo.shared.errors import ErrorInfo
from octavo.shared.histogram import HistogramCounts
from octavo.shared.sampling import SamplingParams

CallId = NewType("CallId", bytes)
"""16 random bytes from the gateway."""
RequestId = NewType("RequestId", bytes)
"""The call's id and two bytes of index: 18 bytes."""

INT32_BYTES = 4


def pack(values: Iterable[int]) -> bytes:
    """Values within int32 as raw little-endian bytes."""
    packed = values if isinstance(values, array) else array("i", values)
    if sys.byteorder == "big":
        packed = array("i", packed)
        packed.byteswap()
    return packed.tobytes()


def unpack(data: bytes) -> "array[int]":
    """The values that `pack` packed.

    Raises:
        ValueError: the length is not a multiple of four bytes.
    """
    values = array("i")
    values.frombytes(data)
    if sys.byteorder == "big":
        values.byteswap()
    return values


def request_id(call: CallId, index: int) -> RequestId:
    return RequestId(call + index.to_bytes(2, "little"))


def call_of(request: RequestId) -> tuple[CallId, int]:
    """The call and the index that `request_id` joined."""
    return CallId(request[:16]), int.from_bytes(request[16:], "little")


class Message(msgspec.Struct, frozen=True, tag=True, array_like=True, gc=False):
    """Base of all messages: tagged by class name, fields by place."""


class Stats(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The scheduler's counters, for /metrics and for admission."""

    num_running: int = 0
    num_waiting: int = 0
    num_blocks: int = 0
    num_blocks_used: int = 0
    num_steps: int = 0
    num_preemptions: int = 0
    prompt_tokens: int = 0
    generation_tokens: int = 0
    prefix_queries: int = 0
    """Prompt tokens looked up in the prefix cache."""
    prefix_hits: int = 0
    """Prompt tokens found there."""
    num_positions: int = 0
    """Tokens that the used blocks have room for."""
    num_unfilled: int = 0
    """Of these positions, those that hold no token and are for none of a known prompt."""
    block_size: int = 0
    prompt_tokens_cached: int = 0
    """Of `prompt_tokens`, those found in the prefix cache when their request was first admitted."""
    num_deferred: int = 0
    """Of those that wait, those that wait for an executor."""
    num_rejected: int = 0
    """Requests refused because too many wait."""
    num_ended_by_stop: int = 0
    num_ended_by_length: int = 0
    num_ended_by_abort: int = 0
    num_ended_by_error: int = 0
    histograms: list[HistogramCounts] = []
    """Those in which something was observed."""
    made_at_s: float = 0.0
    """By the machine's monotonic clock: of two the later is newer, whichever way they took."""


class ModelInfo(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """All that the rest of the system must know of the executor's model."""

    vocab_size: int
    """Width of the logits; every token id is below it."""
    max_model_len: int
    """Prompt and completion together, in tokens."""
    block_size: int
    """Tokens in a KV block."""
    num_blocks: int
    num_slots: int
    """Requests that may run at once."""
    max_num_batched_tokens: int
    """Tokens that a step may compute."""
    device: str
    dtype: str


class Heartbeat(Message, frozen=True):
    """Both ways on every edge, from the main loop, so that silence means a dead or stuck process."""

    is_ready: bool = True
    """The sender and all that it depends on can serve."""
    stats: Stats | None = None
    model: ModelInfo | None = None
    """What is served, as far as the sender knows; from tokenizers to gateways."""


class Begin(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """How a request's time went until its first token, in seconds."""

    queue_s: float
    prefill_s: float


# gateway <-> tokenizer


class Progress(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What a client has already been sent of one choice: a new tokenizer goes on from here."""

    token_ids: bytes = b""
    num_chars: int = 0
    num_events: int = 0
    """Of the call, where its events are numbered."""


class Generate(Message, frozen=True):
    """One call. Sent again, to another tokenizer, when the first one dies."""

    id: CallId
    endpoint: str
    """Key of `shared.endpoints.BODIES`; says how to read `body`."""
    body: bytes
    """The JSON of the HTTP request, validated."""
    created_s: int
    model: str
    """The name that the client asked for."""
    salt: bytes = b""
    """Separates the prefix caches of tenants."""
    progress: dict[int, Progress] = {}
    """By choice; empty at first."""
    attempt: int = 1
    """How often it has been sent."""


class CancelCall(Message, frozen=True):
    id: CallId


class Serving(Message, frozen=True):
    """A tokenizer's greeting: it can take calls."""

    boot: bytes


class Spent(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What a whole call has come to."""

    prompt_tokens: int
    output_tokens: int
    begin: Begin | None = None
    """Of the request that had the first token of all; None: another tokenizer was told of it."""
    decode_s: float = 0.0
    """From that token to the last of all, if `begin` is known."""


class Text(Message, frozen=True):
    """Finished bytes of many calls, one entry a chunk, in columns."""

    ids: list[CallId]
    chunks: list[bytes]
    """Server-sent events, or the whole JSON body of a call that does not stream."""
    choices: list[int]
    token_ids: list[bytes]
    """The tokens that this chunk comes from, for the gateway's journal."""
    num_chars: list[int]
    """Characters of this choice sent up to and with this chunk."""
    finished: list[int]
    """Entries after which nothing follows for their call."""
    attempts: list[int] = []
    """Of the Generate that each entry answers: what a worker still says of an earlier one must not be mixed in."""
    num_events: list[int] = []
    """Events of the call up to and with this chunk, if any call here has numbered ones."""
    spent: dict[int, Spent] = {}
    """Entry after which nothing follows -> what its call has come to; of calls that led to completions."""


class CallFailed(Message, frozen=True):
    id: CallId
    error: ErrorInfo


# tokenizer <-> scheduler


class Join(Message, frozen=True):
    """A tokenizer's greeting, answered by Ready as soon as there is a model."""

    boot: bytes


def logprob_bytes(num_top: int) -> int:
    """Size of one token's logprobs: float32 of itself and of each alternative, highest first; int32 of their ids."""
    return 4 + 8 * num_top


class Enqueue(Message, frozen=True):
    """One request. Idempotent by id: sent again it re-attaches, and what it lacks is sent once more."""

    id: RequestId
    prompt_ids: bytes
    params: SamplingParams
    block_hashes: bytes = b""
    """16 bytes for the root of the chain and for each full block of the prompt; empty: nothing is shared."""
    output_ids: bytes = b""
    """Tokens of the completion that the sender already has."""
    output_logprobs: bytes = b""
    """Their logprobs, `logprob_bytes` each, if the request asks for them."""
    priority: int = 0
    """Lower ones are admitted first."""


class Cancel(Message, frozen=True):
    ids: list[RequestId]
    reason: str = "abort"
    """"stop" if they ended with a stop string, which only a tokenizer sees."""


class Ready(Message, frozen=True):
    """The scheduler has an executor. A new `boot` means that it knows nothing of earlier requests."""

    boot: bytes
    model: ModelInfo
    stats: Stats = Stats()
    """So that whoever is told that all is ready can be shown the counters."""


class Tokens(Message, frozen=True):
    """New tokens of many requests, in columns."""

    ids: list[RequestId]
    starts: bytes
    """int32: the place in its completion of each entry's first token."""
    counts: bytes
    """int32: tokens of each entry; empty when every entry has one."""
    token_ids: bytes
    """int32: all entries' tokens, one after another."""
    finished: dict[int, str] = {}
    """Entry -> finish reason: "stop" or "length"."""
    logprobs: dict[int, bytes] = {}
    """Entry -> those of its tokens, `logprob_bytes` each, of requests that ask for them."""
    prompt_logprobs: dict[int, bytes] = {}
    """Entry -> those of its prompt's tokens but the first, each behind its int32 rank; with its first tokens."""
    begins: dict[int, Begin] = {}
    """Entry -> how it came to its first token, with that token."""


class Refused(Message, frozen=True):
    """A request ends without (more) tokens."""

    id: RequestId
    error: ErrorInfo


# scheduler <-> executor


class Reset(Message, frozen=True):
    """A new epoch begins: forget every slot."""

    epoch: int


class NewRequest(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A request as the executor first hears of it."""

    slot: int
    token_ids: bytes
    """All known tokens: the prompt, then what was generated before a preemption."""
    num_computed: int
    """Tokens whose KV already lies in the blocks: a cached prefix."""
    blocks: bytes
    """int32 block ids, one for each `block_size` positions."""
    params: SamplingParams
    num_prompt: int | None = None
    """How many of the known tokens are the prompt; None: all."""


class Step(Message, frozen=True):
    """One step, as the difference to the one before.

    The executor computes one token for every slot that is decoding, and for each entry of `chunk_slots` the next
    `chunk_lengths` tokens of its known ones. A slot begins to decode once all its known tokens are computed: the
    step that computes the last of them samples its first new token.
    """

    epoch: int
    number: int
    released: bytes = b""
    """int32 slots to forget before anything else."""
    new: list[NewRequest] = []
    grown_slots: bytes = b""
    """int32: slots that get another block in this step."""
    grown_blocks: bytes = b""
    """int32: the block that each of them gets."""
    chunk_slots: bytes = b""
    chunk_lengths: bytes = b""


class StepResult(Message, frozen=True):
    """The tokens that a step sampled: one for each decoding slot and each finished prompt."""

    epoch: int
    number: int
    slots: bytes
    token_ids: bytes
    logprobs: dict[int, bytes] = {}
    """Slot -> those of its token, `logprob_bytes`, of requests that ask for them."""
    prompt_logprobs: dict[int, bytes] = {}
    """Slot -> logprobs that follow from this step's chunk of its prompt: for each token an int32 of its rank, 1 for
    the likeliest, then `logprob_bytes`."""
    failures: dict[int, str] = {}
    """Slot -> why its request alone cannot go on."""


class ExecutorReady(Message, frozen=True):
    """An executor's greeting, repeated as its heartbeat. From an unknown address it begins an epoch."""

    boot: bytes
    model: ModelInfo


class StepFailed(Message, frozen=True):
    """The executor could not run a step and is about to end."""

    epoch: int
    number: int
    reason: str


TO_TOKENIZER_FROM_GATEWAY = Generate | CancelCall | Heartbeat
TO_GATEWAY = Serving | Text | CallFailed | Heartbeat
TO_SCHEDULER_FROM_TOKENIZER = Join | Enqueue | Cancel | Heartbeat
TO_TOKENIZER_FROM_SCHEDULER = Ready | Tokens | Refused | Heartbeat
TO_EXECUTOR = Reset | Step | Heartbeat
TO_SCHEDULER_FROM_EXECUTOR = ExecutorReady | StepResult | StepFailed
