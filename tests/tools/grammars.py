"""Grammars through the whole way: a compiler's worker, the runtime folder, an executor's masks, and a random model."""

import select
import time
from collections.abc import Sequence

import torch

from octavo.kernels.masks import apply_masks
from octavo.services.executor.grammars import Grammars
from octavo.services.tokenizer.grammars import Compiler
from octavo.services.tokenizer.vocabulary import Vocabulary
from octavo.shared.errors import RequestError
from octavo.shared.grammar import GrammarSpec

DEADLINE_S = 120.0  # the first grammar waits for torch and xgrammar to be imported


def settle(compiler: Compiler, keys: Sequence[str]) -> dict[str, RequestError | None]:
    """Wait for these; in the order in which they were answered."""
    answers: dict[str, RequestError | None] = {}
    until = time.monotonic() + DEADLINE_S
    while set(keys) - set(answers):
        assert time.monotonic() < until, "no answer"
        select.select([compiler.fd], [], [], 0.5)
        answers.update(compiler.poll())
    return answers


def compile_one(compiler: Compiler, spec: GrammarSpec) -> str:
    """Its key. Raises what is wrong with it."""
    key, is_there = compiler.request(spec)
    error = None if is_there else settle(compiler, [key])[key]
    if error is not None:
        raise error
    return key


def generate(
    grammars: Grammars, key: str, vocabulary: Vocabulary, width: int, seed: int, max_tokens: int = 150
) -> tuple[list[int], bool]:
    """What a model of random logits writes that likes to come to an end, and whether it did; no markup is allowed."""
    slot, generator = 3, torch.Generator().manual_seed(seed)
    closing = [token for token, piece in enumerate(vocabulary.pieces) if piece in (b'"', b"}", b"]", b"</", b"0")]
    markup = [token for token in vocabulary.special_ids if token not in vocabulary.eos_ids]
    mask = torch.zeros(1, (width + 31) // 32, dtype=torch.int32)
    grammars.admit(slot, key)
    output_ids: list[int] = []
    while len(output_ids) < max_tokens:
        grammars.fill([slot], mask)
        logits = torch.randn(1, width, generator=generator)
        logits[0, closing] += 4.0
        logits[0, list(vocabulary.eos_ids)] += 12.0
        apply_masks(logits, mask)
        assert not torch.isfinite(logits[0, markup]).any()
        assert not torch.isfinite(logits[0, len(vocabulary.pieces) :]).any()
        token = int(logits[0].argmax())
        grammars.accept(slot, token)
        assert grammars.take_failures() == {}
        if token in vocabulary.eos_ids:
            return output_ids, True
        output_ids.append(token)
    return output_ids, False
