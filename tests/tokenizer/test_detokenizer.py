"""A stream's text is that of all its ids at once, however they arrive."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers

from octavo.services.tokenizer.detokenizer import Detokenizer
from octavo.services.tokenizer.vocabulary import Vocabulary


def _make_byte_level() -> Tokenizer:
    """Ids 0..255 are all bytes, 256.. tokens that end within characters, 260 and 261 are special."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    pairs = [("Ġ", "a"), ("Ã", "©"), ("ð", "Ł"), ("ðŁ", "ĺ")]  # " a", "é", half and most of an emoji
    ids = {token: token_id for token_id, token in enumerate([*alphabet, *(a + b for a, b in pairs)])}
    tokenizer = Tokenizer(models.BPE(ids, pairs))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken("<|end|>", special=True), AddedToken("｜é｜", special=True)])
    # An added token that can be read as bytes is bytes: "é" is 0xE9, "a b é" is text for its spaces.
    tokenizer.add_tokens([AddedToken("é", normalized=False), AddedToken("a b é", normalized=False)])
    return tokenizer


def _make_sentence_piece() -> Tokenizer:
    tokens = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "▁a", "b"]
    ids = {token: token_id for token_id, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(ids, [], unk_token="<unk>", byte_fallback=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return tokenizer


_BYTE_LEVEL = _make_byte_level()
_VOCABULARY = Vocabulary(_BYTE_LEVEL)
_SENTENCE_PIECE = Vocabulary(_make_sentence_piece())
_IDS = st.lists(st.integers(0, _VOCABULARY.size + 3), max_size=60)
_STREAMS = st.lists(_IDS, max_size=12)


def _decode(vocabulary: Vocabulary, feeds: list[list[int]], **options: bool) -> str:
    detokenizer = Detokenizer(vocabulary, **options)
    return "".join([*(detokenizer.feed(ids) for ids in feeds), detokenizer.finish()])


@settings(deadline=None)  # the machine may be busy
@given(_STREAMS, st.booleans())
def test_any_ids_in_any_split_decode_as_the_tokenizer_decodes_them_at_once(feeds: list[list[int]], skips: bool) -> None:
    text = _decode(_VOCABULARY, feeds, skip_special_tokens=skips)

    assert text == _BYTE_LEVEL.decode([i for ids in feeds for i in ids], skip_special_tokens=skips)


@settings(deadline=None)  # the machine may be busy
@given(_IDS)
def test_one_id_at_a_time_decodes_the_same(ids: list[int]) -> None:
    assert _decode(_VOCABULARY, [[token_id] for token_id in ids]) == _BYTE_LEVEL.decode(ids)


@settings(deadline=None)  # the machine may be busy
@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="é"), max_size=30))
def test_text_comes_back_with_no_broken_character_on_the_way(text: str) -> None:
    detokenizer = Detokenizer(_VOCABULARY)
    ids = [token_id for token_id in _VOCABULARY.encode(text) if token_id not in _VOCABULARY.special_ids]
    shown = b"".join(_VOCABULARY.pieces[token_id] for token_id in ids).decode()

    parts = [detokenizer.feed([token_id]) for token_id in ids]

    assert "".join(parts) == shown
    assert detokenizer.finish() == ""


def test_a_character_is_held_back_until_it_is_whole() -> None:
    detokenizer = Detokenizer(_VOCABULARY)
    ids = _VOCABULARY.encode("😀!")

    parts = [detokenizer.feed([token_id]) for token_id in ids]

    assert [_VOCABULARY.pieces[token_id] for token_id in ids] == [b"\xf0\x9f\x98", b"\x80", b"!"]
    assert parts == ["", "😀", "!"]


def test_an_unfinished_character_is_replaced_at_the_end() -> None:
    detokenizer = Detokenizer(_VOCABULARY)

    parts = [detokenizer.feed([258]), detokenizer.finish()]

    assert parts == ["", "\ufffd"]


def test_ids_outside_the_vocabulary_add_nothing() -> None:
    ids = [_VOCABULARY.size, 256, -1, 1 << 40]

    assert _decode(_VOCABULARY, [ids]) == " a"


@pytest.mark.parametrize(("skips", "text"), [(True, " a"), (False, "<|end|> a")])
def test_special_tokens_are_shown_where_that_is_asked_for(skips: bool, text: str) -> None:
    assert _decode(_VOCABULARY, [[260, 256]], skip_special_tokens=skips) == text


@settings(deadline=None)  # the machine may be busy
@given(st.lists(st.integers(257, 259), max_size=8))
def test_a_text_of_its_own_loses_its_first_space_as_in_the_tokenizer(ids: list[int]) -> None:
    text = _decode(_SENTENCE_PIECE, [[token_id] for token_id in ids], follows_prompt=False)

    assert text == _make_sentence_piece().decode(ids)


def test_a_completion_keeps_its_first_space() -> None:
    assert _decode(_SENTENCE_PIECE, [[258], [257], [259]]) == " a b"


def test_bytes_of_sentence_piece_make_a_character_together() -> None:
    ids = [1 + byte for byte in "é".encode()]

    assert _decode(_SENTENCE_PIECE, [[token_id] for token_id in ids]) == "é"
