"""The metadata of a GGUF file becomes the tokenizer that the model was trained with."""

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer, pre_tokenizers

from octavo.services.tokenizer import gguf_tokenizer
from octavo.services.tokenizer.vocabulary import Vocabulary
from octavo.shared.errors import ModelError

_DATA = Path(__file__).parents[2].parent / "shared" / "data"
_STORIES = _DATA / "stories260k"
_QUESTIONS = _DATA / "gsm8k_test.jsonl"
_TEXTS = ["", " ", "  a  b ", "\n\t ", "日本 é 😀", "\x00\ufffd", "<s>x</s> y", "<0x41> ▁a", "a" * 500]


def _gguf_metadata() -> dict[str, object]:
    """A byte-level vocabulary as GGUF has it: 0 is <s>, 1 is </s>, 2 is <call>."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": ["<s>", "</s>", "<call>", *alphabet, "ĠĠ", "11"],
        "tokenizer.ggml.token_type": [3, 3, 4, *[1] * 258],
        "tokenizer.ggml.merges": ["Ġ Ġ", "1 1"],
        "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.eos_token_id": 1,
    }


def _sentence_piece_metadata() -> dict[str, object]:
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    words = ["▁", "a", "b", "c", "▁a", "bc", "▁ab", "abc"]
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens + words,
        "tokenizer.ggml.token_type": [2, 3, 3, *[6] * 256, *[1] * len(words)],
        "tokenizer.ggml.scores": [0.0] * 259 + [-9.0, -9.0, -9.0, -9.0, -1.0, -2.0, -3.0, -4.0],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
    }


def test_sentence_piece_scores_give_the_ids_of_the_models_tokenizer_json() -> None:
    if not _STORIES.is_dir() or not _QUESTIONS.is_file():
        pytest.skip("needs the model stories260k and the questions of the shared data folder")
    reference = Tokenizer.from_file(str(_STORIES / "tokenizer.json"))
    ids = reference.get_vocab()
    metadata = _sentence_piece_metadata() | {
        "tokenizer.ggml.tokens": sorted(ids, key=lambda token: ids[token]),
        "tokenizer.ggml.token_type": [2, 3, 3, *[6] * 256, *[1] * (len(ids) - 259)],
        "tokenizer.ggml.scores": [0.0] * 259 + [-float(rank) for rank in range(len(ids) - 259)],
    }
    texts = [
        *_TEXTS,
        *(json.loads(line)["question"] for line in _QUESTIONS.read_text("utf-8").splitlines()[:300]),
    ]

    encodings = gguf_tokenizer.build_tokenizer(metadata).encode_batch(texts)

    assert [each.ids for each in encodings] == [each.ids for each in reference.encode_batch(texts)]


def test_a_sentence_piece_file_puts_a_space_and_a_bos_in_front() -> None:
    vocabulary = Vocabulary(gguf_tokenizer.build_tokenizer(_sentence_piece_metadata()))

    ids = vocabulary.encode("abc é")

    assert [vocabulary.pieces[token_id] for token_id in ids] == [b"<s>", b" a", b"bc", b" ", b"\xc3", b"\xa9"]
    assert vocabulary.strips_leading_space
    assert vocabulary.special_ids == {0, 1, 2}


def test_a_sentence_piece_file_may_do_without_the_space() -> None:
    metadata = _sentence_piece_metadata() | {
        "tokenizer.ggml.add_space_prefix": False,
        "tokenizer.ggml.add_bos_token": False,
    }
    vocabulary = Vocabulary(gguf_tokenizer.build_tokenizer(metadata))

    assert [vocabulary.pieces[token_id] for token_id in vocabulary.encode("bc a")] == [b"bc", b" a"]
    assert not vocabulary.strips_leading_space


@pytest.mark.parametrize(
    ("pre", "pieces"),
    [
        ("gpt-2", [b" ", b" ", b"11", b"1"]),
        ("smollm", [b"  ", b"1", b"1", b"1"]),
        ("llama-bpe", [b"<s>", b" ", b" ", b"11", b"1"]),
        ("qwen2", [b" ", b" ", b"1", b"1", b"1"]),
    ],
)
def test_the_pre_tokenizer_of_a_file_decides_how_digits_are_cut(pre: str, pieces: list[bytes]) -> None:
    metadata = _gguf_metadata() | {"tokenizer.ggml.pre": pre}
    vocabulary = Vocabulary(gguf_tokenizer.build_tokenizer(metadata))

    assert [vocabulary.pieces[token_id] for token_id in vocabulary.encode("  111")] == pieces


def test_tokens_that_a_file_never_cuts_are_found_in_text() -> None:
    vocabulary = Vocabulary(gguf_tokenizer.build_tokenizer(_gguf_metadata()))

    assert vocabulary.encode("<s><call></s>") == [0, 2, 1]
    assert vocabulary.special_ids == {0, 1}


def test_a_file_may_ask_for_bos_and_eos_around_a_text() -> None:
    metadata = _gguf_metadata() | {"tokenizer.ggml.add_bos_token": True, "tokenizer.ggml.add_eos_token": True}
    vocabulary = Vocabulary(gguf_tokenizer.build_tokenizer(metadata))

    assert [vocabulary.pieces[token_id] for token_id in vocabulary.encode("a")] == [b"<s>", b"a", b"</s>"]
    assert [vocabulary.pieces[token_id] for token_id in vocabulary.encode("a", add_special_tokens=False)] == [b"a"]


def test_a_file_ends_completions_with_each_of_its_ends() -> None:
    metadata = _gguf_metadata() | {
        "tokenizer.ggml.tokens": ["</s>", "<turn>", "<|im_end|>", "<end_of_turn>"],
        "tokenizer.ggml.token_type": [3, 3, 3, 1],
        "tokenizer.ggml.eos_token_id": 0,
        "tokenizer.ggml.eot_token_id": 1,
        "tokenizer.ggml.eom_token_id": 99,
    }

    assert gguf_tokenizer.eos_ids(metadata) == {0, 1, 2}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokenizer.ggml.model": "bert"}, "'bert'; supported are gpt2, llama"),
        ({"tokenizer.ggml.model": None}, "is None"),
        ({"tokenizer.ggml.pre": "novel"}, "'novel'; supported are .*smollm"),
        ({"tokenizer.ggml.tokens": None}, "no array tokenizer.ggml.tokens"),
        ({"tokenizer.ggml.merges": ["zz y"]}, "make no vocabulary"),
        ({"tokenizer.ggml.token_type": [1]}, "token_type has 1 values; the vocabulary has 261 tokens"),
    ],
)
def test_a_gguf_tokenizer_that_is_not_supported_is_named(change: dict[str, object], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        gguf_tokenizer.build_tokenizer(_gguf_metadata() | change)
