"""Scheduler and engine in one process, without sockets: prompts in, token ids out."""

from collections.abc import Sequence
from itertools import count

from octavo.services.executor.service import RunsSteps
from octavo.services.scheduler.core import Inbox, Scheduler
from octavo.shared.messages import (
    CallId,
    Enqueue,
    ExecutorReady,
    Message,
    Refused,
    RequestId,
    Stats,
    Step,
    StepResult,
    Tokens,
    pack,
    request_id,
    unpack,
)
from octavo.shared.prefix_hash import hash_blocks, root_hash
from octavo.shared.sampling import SamplingParams
from octavo.shared.transport import Address

EXECUTOR, TOKENIZER = Address(b"executor"), Address(b"tokenizer")


class Pipeline:
    """One scheduler that drives one engine, a step at a time, planning ahead as the real one does."""

    def __init__(self, engine: RunsSteps) -> None:
        engine.reset()
        self._engine = engine
        self._scheduler = Scheduler(b"boot", max_queued_requests=10_000)
        self._numbers = count()
        self._now = 0.0
        self._steps: list[Step] = []
        self._tokens: dict[RequestId, list[int]] = {}
        self._open: set[RequestId] = set()
        self._turn(Inbox(from_executor=[(EXECUTOR, ExecutorReady(b"boot", engine.info))]))

    @property
    def stats(self) -> Stats:
        return self._scheduler.stats()

    def generate(self, prompts: Sequence[Sequence[int]], params: SamplingParams) -> list[list[int]]:
        """The completion of each prompt, all sent at once."""
        ids = [request_id(CallId(next(self._numbers).to_bytes(16, "little")), 0) for _ in prompts]
        block_size = self._engine.info.block_size
        requests: list[tuple[Address, Message]] = []
        for id, prompt in zip(ids, prompts, strict=True):
            packed = pack(prompt)
            hashes = root_hash(b"") + hash_blocks(packed, block_size, b"")
            requests.append((TOKENIZER, Enqueue(id, packed, params, hashes)))
            self._tokens[id] = []
            self._open.add(id)
        self._turn(Inbox(from_tokenizers=requests))
        while self._open:
            result: StepResult = self._engine.launch(self._steps.pop(0)).result()
            self._turn(Inbox(from_executor=[(EXECUTOR, result)]))
        return [self._tokens[id] for id in ids]

    def _turn(self, inbox: Inbox) -> None:
        self._now += 0.001
        outbox = self._scheduler.step(self._now, inbox)
        for _, message in outbox.to_executor:
            if isinstance(message, Step):
                self._steps.append(message)
        for _, message in outbox.to_tokenizers:
            assert not isinstance(message, Refused), message
            if isinstance(message, Tokens):
                self._take(message)

    def _take(self, message: Tokens) -> None:
        starts, tokens = unpack(message.starts), unpack(message.token_ids)
        assert not message.counts, "nothing is sent twice here"
        for index, (id, start, token) in enumerate(zip(message.ids, starts, tokens, strict=True)):
            assert start == len(self._tokens[id]), "a token is lost or repeated"
            self._tokens[id].append(token)
            if index in message.finished:
                self._open.discard(id)
