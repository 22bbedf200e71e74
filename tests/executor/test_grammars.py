"""Masks of requests with grammars: after any beginning, at the end, and where a grammar fails."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

pytest.importorskip("xgrammar", reason="xgrammar is not installed")

from tests.tokenizer.core_harness import END, VOCABULARY, encode
from tests.tools.grammars import compile_one

from octavo.kernels.masks import apply_masks
from octavo.services.executor import grammars as grammars_module
from octavo.services.executor.grammars import Grammars
from octavo.services.tokenizer.grammars import Compiler
from octavo.shared.grammar import GrammarSpec, grammar_path

WIDTH = VOCABULARY.size
WORDS = (WIDTH + 31) // 32
DATE = GrammarSpec("regex", r"[0-9]{2}:[0-9]{2}")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("run")


@pytest.fixture(scope="module")
def compiler(folder: Path) -> Iterator[Compiler]:
    compiler = Compiler(folder, VOCABULARY, WIDTH)
    yield compiler
    compiler.close()


@pytest.fixture
def grammars(folder: Path) -> Iterator[Grammars]:
    grammars = Grammars(folder)
    yield grammars
    grammars.close()


def allowed(grammars: Grammars, slot: int) -> set[bytes]:
    """The text of each token that the slot may get next; b"" is the end."""
    mask = torch.zeros(1, WORDS, dtype=torch.int32)
    grammars.fill([slot], mask)
    logits = torch.zeros(1, WIDTH)
    apply_masks(logits, mask)
    tokens = logits[0].isfinite().nonzero().flatten().tolist()
    return {b"" if token == END else VOCABULARY.pieces[token] for token in tokens}


DIGITS = {bytes([digit]) for digit in b"0123456789"}


def test_each_slot_follows_its_own_grammar(grammars: Grammars, compiler: Compiler) -> None:
    grammars.admit(0, compile_one(compiler, DATE))
    grammars.admit(7, compile_one(compiler, GrammarSpec("choice", '["yes", "no"]')))

    assert allowed(grammars, 0) == DIGITS
    assert allowed(grammars, 7) == {b"y", b"n"}
    assert len(allowed(grammars, 3)) == len(set(VOCABULARY.pieces)), "a slot without a grammar may get anything"
    for token in encode("12"):
        grammars.accept(0, token)
    assert allowed(grammars, 0) == {b":"}
    assert allowed(grammars, 7) == {b"y", b"n"}


def test_a_complete_text_can_only_end(grammars: Grammars, compiler: Compiler) -> None:
    grammars.admit(0, compile_one(compiler, DATE), encode("12:30"))

    assert allowed(grammars, 0) == {b""}
    grammars.accept(0, END)
    assert allowed(grammars, 0) == {b""}, "of a request that ignores the end"
    grammars.accept(0, encode("x")[0])
    assert grammars.take_failures() == {}


@pytest.mark.parametrize("num_known", range(6))
def test_a_resumed_request_goes_on_where_it_was(grammars: Grammars, compiler: Compiler, num_known: int) -> None:
    key, token_ids = compile_one(compiler, DATE), encode("12:30")
    grammars.admit(0, key)
    for token in token_ids[:num_known]:
        grammars.accept(0, token)
    grammars.admit(1, key, token_ids[:num_known])

    assert allowed(grammars, 1) == allowed(grammars, 0)


def test_a_grammar_that_fails_ends_its_own_request_alone(
    grammars: Grammars, compiler: Compiler, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = compile_one(compiler, DATE)
    broken = key[:-4] + "0000"
    grammar_path(folder, broken).write_text('{"grammar": ')
    grammars.admit(0, key)
    grammars.admit(1, key)
    grammars.admit(2, key[:-4] + "1111")  # there is none
    grammars.admit(3, broken)
    grammars.admit(4, "../../../etc/passwd")
    grammars.admit(5, key, encode("no"))

    grammars.accept(1, encode("x")[0])
    for slot in range(6):
        allowed(grammars, slot)
    failures = grammars.take_failures()

    assert set(failures) == {1, 2, 3, 4, 5}
    assert "refused token" in failures[1] and "could not be loaded" in failures[2]
    assert allowed(grammars, 1) == {b""}
    assert allowed(grammars, 0) == DIGITS
    assert grammars.take_failures() == {}
    monkeypatch.setattr(grammars_module, "MAX_TOKEN_S", 0.0)
    allowed(grammars, 0)
    assert grammars.take_failures() == {}, "one slow token may have been the machine"
    allowed(grammars, 0)
    assert "ms for a token" in grammars.take_failures()[0]


def test_a_grammar_that_gets_slow_ends_its_request(grammars: Grammars, compiler: Compiler) -> None:
    """Ambiguous: every way to split what there is counts, and each token takes longer than the one before."""
    grammars.admit(0, compile_one(compiler, GrammarSpec("ebnf", 'root ::= a\na ::= a a | "x" | ""')))
    failures: dict[int, str] = {}
    longest_s, num_tokens = 0.0, 0
    while not failures:
        began = time.thread_time()
        allowed(grammars, 0)
        grammars.accept(0, encode("x")[0])
        longest_s, num_tokens = max(longest_s, time.thread_time() - began), num_tokens + 1
        failures = grammars.take_failures()
        assert num_tokens < 1000

    assert "ms for a token" in failures[0]
    assert longest_s < 0.5
    assert allowed(grammars, 0) == {b""}


def test_a_released_slot_is_free_again(grammars: Grammars, compiler: Compiler) -> None:
    key = compile_one(compiler, DATE)
    grammars.admit(0, key, encode("12"))
    grammars.release(0)
    assert not grammars.has_grammar(0) and grammars.is_ready(0)
    assert len(allowed(grammars, 0)) > len(DIGITS)
    grammars.admit(0, key)
    assert grammars.has_grammar(0)
    assert allowed(grammars, 0) == DIGITS
    grammars.forget_all()
    assert not grammars.has_grammar(0)


def test_a_grammar_is_loaded_before_it_is_needed(grammars: Grammars, compiler: Compiler, folder: Path) -> None:
    key = compile_one(compiler, GrammarSpec("regex", "[cd]"))
    grammar_path(folder, key).unlink()

    grammars.admit(0, key)

    assert allowed(grammars, 0) == {b"c", b"d"}


def test_only_so_much_is_kept(folder: Path, compiler: Compiler) -> None:
    keys = [compile_one(compiler, GrammarSpec("regex", text)) for text in ("[ef]", "[gh]")]
    grammars = Grammars(folder, max_bytes=1)
    for slot, key in enumerate(keys):
        grammars.admit(slot, key)
    assert allowed(grammars, 0) == {b"e", b"f"} and allowed(grammars, 1) == {b"g", b"h"}
    grammar_path(folder, keys[0]).unlink()
    grammar_path(folder, keys[1]).unlink()
    grammars.admit(2, keys[1])
    grammars.admit(3, keys[0])
    assert allowed(grammars, 2) == {b"g", b"h"}, "the last one stays"
    allowed(grammars, 3)
    assert set(grammars.take_failures()) == {3}
    grammars.close()


def test_logits_of_another_width_are_noticed(grammars: Grammars, compiler: Compiler) -> None:
    grammars.admit(0, compile_one(compiler, DATE))
    grammars.fill([0], torch.zeros(1, WORDS + 1, dtype=torch.int32))
    assert "another width" in grammars.take_failures()[0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_mask_forbids_exactly_the_tokens_without_a_bit(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(5)
    width = 1000
    mask = torch.randint(-(2**31), 2**31, (4, 32), dtype=torch.int32, generator=generator)
    mask[1], mask[2] = -1, 0
    logits = torch.randn(4, width, generator=generator).to(dtype)
    expected = [
        [float(logits[row, token]) if mask[row, token // 32].item() >> token % 32 & 1 else -torch.inf
         for token in range(width)]
        for row in range(4)
    ]  # fmt: skip

    apply_masks(logits, mask)

    assert logits.tolist() == expected
