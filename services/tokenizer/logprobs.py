"""Logprobs as the executor tells them, read for a client.

A client sees -9999 where a token is as good as impossible, or where nothing is known, since JSON has no infinity.
"""

import struct
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import NamedTuple

from octavo.services.tokenizer.vocabulary import Vocabulary
from octavo.shared.messages import logprob_bytes

LOWEST = -9999.0
_RANK_BYTES = 4


class TokenLogprobs(NamedTuple):
    """Of one token."""

    token_id: int
    logprob: float
    top: list[tuple[int, float]]
    """The likeliest tokens, highest first."""
    rank: int = 0
    """1 for the likeliest; 0: not told."""
    is_known: bool = True
    """False of a prompt's first token, which follows nothing."""


def read_logprobs(data: bytes, num_top: int, token_ids: Sequence[int]) -> list[TokenLogprobs]:
    """Of consecutive tokens of a completion, as `Tokens` brings them."""
    return list(_read(data, num_top, token_ids, 0))


def read_prompt_logprobs(data: bytes, num_top: int, prompt_ids: Sequence[int]) -> list[TokenLogprobs]:
    """Of all tokens of a prompt but the first, as `Tokens` brings them."""
    return list(_read(data, num_top, prompt_ids[1:], _RANK_BYTES))


def _read(data: bytes, num_top: int, token_ids: Sequence[int], rank_bytes: int) -> Iterator[TokenLogprobs]:
    form = struct.Struct(f"<{1 + num_top}f{num_top}i")
    assert form.size == logprob_bytes(num_top)
    step = rank_bytes + form.size
    for place, token_id in zip(range(0, len(data), step), token_ids, strict=False):
        rank = struct.unpack_from("<i", data, place)[0] if rank_bytes else 0
        chosen, *rest = form.unpack_from(data, place + rank_bytes)
        top = zip(rest[num_top:], map(_bounded, rest[:num_top]), strict=True)
        yield TokenLogprobs(token_id, _bounded(chosen), list(top), rank)


def _bounded(value: float) -> float:
    return value if value > LOWEST else LOWEST  # not a number is not greater


class Spelling:
    """How tokens are shown: by their text, or by their ids where the client wants that or there is no vocabulary."""

    def __init__(self, vocabulary: Vocabulary | None, as_ids: bool) -> None:
        self._pieces = () if vocabulary is None else vocabulary.pieces
        self._as_ids = as_ids or vocabulary is None

    def of(self, token_id: int) -> str:
        return f"token_id:{token_id}" if self._as_ids else self.bytes_of(token_id).decode(errors="replace")

    def bytes_of(self, token_id: int) -> bytes:
        return self._pieces[token_id] if 0 <= token_id < len(self._pieces) else b""

    def chat(self, tokens: Sequence[TokenLogprobs]) -> dict[str, object]:
        """In the form of chat completions."""
        return {"content": self.entries(tokens), "refusal": None}

    def entries(self, tokens: Sequence[TokenLogprobs]) -> list[dict[str, object]]:
        """Each with its bytes and its alternatives, as chat completions and responses have them."""
        return [
            {
                **self._entry(each.token_id, each.logprob),
                "top_logprobs": [self._entry(token_id, logprob) for token_id, logprob in each.top],
            }
            for each in tokens
        ]

    def completion(self, tokens: Sequence[TokenLogprobs], offset: int) -> dict[str, object]:
        """In the form of plain completions. offset: characters of the text before these tokens."""
        texts = [self.of(each.token_id) for each in tokens]
        offsets = accumulate(map(len, texts[:-1]), initial=offset) if texts else ()
        told = list(zip(texts, tokens, strict=True))
        return {
            "text_offset": list(offsets),
            "tokens": texts,
            "token_logprobs": [each.logprob if each.is_known else None for each in tokens],
            # The token itself, then the likeliest ones, as vLLM has it.
            "top_logprobs": [
                {text: each.logprob} | {self.of(token_id): logprob for token_id, logprob in each.top}
                if each.is_known
                else None
                for text, each in told
            ],
        }

    def prompt(self, tokens: Sequence[TokenLogprobs]) -> list[dict[str, object] | None]:
        """vLLM's `prompt_logprobs`: by token id, nothing for the first token."""
        return [None, *(self._by_id(each) for each in tokens)]

    def _by_id(self, each: TokenLogprobs) -> dict[str, object]:
        ranked = [(each.token_id, each.logprob, each.rank)]
        ranked += [(token_id, logprob, place + 1) for place, (token_id, logprob) in enumerate(each.top)]
        return {
            str(token_id): {"logprob": logprob, "rank": rank, "decoded_token": self.of(token_id)}
            for token_id, logprob, rank in reversed(ranked)
        }

    def _entry(self, token_id: int, logprob: float) -> dict[str, object]:
        return {"token": self.of(token_id), "logprob": logprob, "bytes": list(self.bytes_of(token_id))}
