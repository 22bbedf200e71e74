"""Finished requests, kept for a while: a tokenizer that takes over from a dead one may lack their end."""

from collections import OrderedDict

import msgspec

from octavo.services.scheduler.request import Request
from octavo.shared.messages import INT32_BYTES, RequestId, pack

KEPT_REQUESTS = 4096
KEPT_TOKENS = 4_000_000


class Finished(msgspec.Struct, frozen=True):
    """What is left of a request."""

    output_ids: bytes
    reason: str
    logprobs: bytes = b""
    prompt_logprobs: bytes = b""

    @property
    def num_tokens(self) -> int:
        """What it takes of the bound, logprobs counted as tokens of their size."""
        return (len(self.output_ids) + len(self.logprobs) + len(self.prompt_logprobs)) // INT32_BYTES


class FinishedRequests:
    """The latest finished requests, bounded in number and in tokens."""

    def __init__(self) -> None:
        self._kept: OrderedDict[RequestId, Finished] = OrderedDict()
        self._num_tokens = 0

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, id: RequestId) -> Finished | None:
        return self._kept.get(id)

    def keep(self, request: Request) -> None:
        """Keep a request that has just finished; the oldest ones make room."""
        output_ids = pack(request.token_ids[request.num_prompt :])
        assert request.id not in self._kept, "a request finished twice"
        logprobs, prompt_logprobs = bytes(request.logprobs), bytes(request.prompt_logprobs)
        self._kept[request.id] = Finished(output_ids, request.finish_reason, logprobs, prompt_logprobs)
        self._num_tokens += self._kept[request.id].num_tokens
        while len(self._kept) > KEPT_REQUESTS or self._num_tokens > KEPT_TOKENS:
            _, oldest = self._kept.popitem(last=False)
            self._num_tokens -= oldest.num_tokens
