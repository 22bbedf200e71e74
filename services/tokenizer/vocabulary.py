"""The vocabulary of a model: text to token ids, and the bytes that each id stands for.

Owns the `tokenizers.Tokenizer` and how a model's files become one. Turning a stream of ids
back into text is detokenizer.py's part, the chat template is template.py's.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from tokenizers import AddedToken, Tokenizer

from octavo.services.tokenizer import gguf_tokenizer
from octavo.shared.errors import InvalidRequest, ModelError
from octavo.shared.gguf_file import read_metadata
from octavo.shared.model_files import ModelFiles


class Vocabulary:
    """A model's tokens. Never changes after it is made.

    pieces: the bytes that each id adds to the text; b"" for an id without a token.
    special_ids: ids that are markup (<|im_end|>) rather than text.
    eos_ids: ids that end a completion.
    strips_leading_space: whether a text's first space is the tokenizer's own (SentencePiece).
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        bos_token: str = "",
        eos_token: str = "",
        eos_ids: Iterable[int] = (),
        chat_template: str | None = None,
    ) -> None:
        """`tokenizer` is kept and must not be changed afterwards.

        Raises ModelError when it decodes in a way that is not understood.
        """
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self._tokenizer = tokenizer
        added = tokenizer.get_added_tokens_decoder()
        tokens = _tokens_by_id(tokenizer, added)
        self.pieces, self.strips_leading_space = _spell(tokens, _decoder_steps(tokenizer))
        self.special_ids = frozenset(token_id for token_id, token in added.items() if token.special)
        self.size = len(self.pieces)
        self.bos_token = bos_token
        self.eos_token = eos_token
        named = tokenizer.token_to_id(eos_token) if eos_token else None
        self.eos_ids = frozenset(eos_ids) | (frozenset() if named is None else {named})
        self.chat_template = chat_template

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """The token ids of `text`. Special tokens written out in it are recognised.

        add_special_tokens: add what the model wants around a text, most often a BOS token in
            front: true for a prompt as its user typed it, false for a rendered chat template,
            which has written these tokens itself.
        Raises InvalidRequest for text that is not Unicode (lone surrogates).
        """
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InvalidRequest(
                f"text has a lone surrogate, U+{ord(text[error.start]):04X}, at character {error.start}"
            ) from error
        return self._tokenizer.encode(text, add_special_tokens=add_special_tokens).ids


def load_vocabulary(files: ModelFiles) -> Vocabulary | None:
    """The vocabulary in a model's files; None for a folder without tokenizer.json.

    Raises ModelError when a file is broken or its tokenizer is of a kind that is not supported.
    """
    return _LOADERS[files.kind](files.path)


def _load_folder(folder: Path) -> Vocabulary | None:
    path = folder / "tokenizer.json"
    if not path.is_file():
        return None
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises a bare Exception for every fault of a file
        raise ModelError(f"{path} cannot be read as a tokenizer: {error}") from error
    config = _read_json(folder / "special_tokens_map.json") | _read_json(folder / "tokenizer_config.json")
    bos_token, eos_token = _content(config.get("bos_token")), _content(config.get("eos_token"))
    extra = config.get("additional_special_tokens")
    named = [_content(token) for token in extra] if isinstance(extra, list) else []
    _mark_special(tokenizer, [bos_token, eos_token, *named])
    generation = _read_json(folder / "generation_config.json") or _read_json(folder / "config.json")
    return Vocabulary(
        tokenizer,
        bos_token=bos_token,
        eos_token=eos_token,
        eos_ids=_ids(generation.get("eos_token_id")),
        chat_template=_folder_template(folder, config),
    )


def _load_gguf(path: Path) -> Vocabulary:
    metadata = read_metadata(path)
    template = metadata.get("tokenizer.chat_template")
    return Vocabulary(
        gguf_tokenizer.build_tokenizer(metadata),
        bos_token=gguf_tokenizer.named_token(metadata, "bos"),
        eos_token=gguf_tokenizer.named_token(metadata, "eos"),
        eos_ids=gguf_tokenizer.eos_ids(metadata),
        chat_template=template if isinstance(template, str) else None,
    )


_LOADERS: dict[str, Callable[[Path], Vocabulary | None]] = {"folder": _load_folder, "gguf": _load_gguf}


def _read_json(path: Path) -> dict[str, object]:
    """The object in a JSON file; empty when there is no such file."""
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise ModelError(f"{path} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise ModelError(f"{path} holds a {type(value).__name__}; a JSON object was expected")
    return value


def _content(token: object) -> str:
    """The text of a token that a config names, as a string or as an object; "" when it names none."""
    text = token.get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) else ""


def _ids(value: object) -> list[int]:
    """One id, several, or none, as a list."""
    values = value if isinstance(value, list) else [value]
    return [token_id for token_id in values if isinstance(token_id, int)]


def _mark_special(tokenizer: Tokenizer, texts: Iterable[str]) -> None:
    """Mark tokens that the config calls special as such where tokenizer.json does not.

    A token outside the vocabulary is left out: its id would lie beyond the model's embeddings. The
    config's padding and unknown tokens are not read, since some models name plain text there.
    """
    special = {token.content for token in tokenizer.get_added_tokens_decoder().values() if token.special}
    missing = {text for text in texts if text and text not in special and tokenizer.token_to_id(text) is not None}
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in missing])


def _folder_template(folder: Path, config: Mapping[str, object]) -> str | None:
    """The chat template of a folder: its own file, else what the tokenizer's config holds."""
    path = folder / "chat_template.jinja"
    if path.is_file():
        return path.read_text(encoding="utf-8")
    found = _read_json(folder / "chat_template.json").get("chat_template") or config.get("chat_template")
    if isinstance(found, list):
        templates = {str(entry.get("name")): entry.get("template") for entry in found if isinstance(entry, dict)}
        found = templates.get("default") or next(iter(templates.values()), None)
    return found if isinstance(found, str) else None


def _tokens_by_id(tokenizer: Tokenizer, added: Mapping[int, AddedToken]) -> list[str]:
    """Every token as the vocabulary spells it, "" where an id has none."""
    ids = tokenizer.get_vocab(with_added_tokens=True)
    tokens = [""] * (max([*ids.values(), *added], default=-1) + 1)
    for token, token_id in ids.items():
        tokens[token_id] = token
    for token_id, added_token in added.items():
        tokens[token_id] = added_token.content
    return tokens


def _decoder_steps(tokenizer: Tokenizer) -> list[dict[str, object]]:
    """The steps of the tokenizer's decoder, in the words of tokenizer.json."""
    if tokenizer.decoder is None:
        raise ModelError("the tokenizer has no decoder; its tokens cannot be turned back into text")
    decoder = json.loads(tokenizer.decoder.__getstate__())
    return list(decoder["decoders"]) if decoder["type"] == "Sequence" else [decoder]


def _spell(tokens: Sequence[str], steps: Sequence[Mapping[str, object]]) -> tuple[list[bytes], bool]:
    """The bytes of each token, and whether a text's first space is dropped.

    The steps are those of the crate tokenizers, decoders/; each works on one token by itself, but
    for Strip after Fuse and Metaspace, which look at the start of the whole text.
    """
    spelled = list(tokens)
    to_bytes: Callable[[str], bytes] = str.encode
    strips = is_fused = False
    for step in steps:
        kind = step["type"]
        if kind == "ByteLevel":
            to_bytes = _from_byte_level
        elif kind == "ByteFallback":
            to_bytes = _from_byte_fallback
        elif kind == "Fuse":
            is_fused = True
        elif kind == "Replace" and (old := _literal(step["pattern"])):
            new = str(step["content"])
            spelled = [token.replace(old, new) for token in spelled]
        elif kind == "Metaspace":
            mark = str(step["replacement"])
            spelled = [token.replace(mark, " ") for token in spelled]
            strips = step.get("prepend_scheme") != "never"
        elif kind == "Strip" and is_fused and (step["content"], step["start"], step["stop"]) == (" ", 1, 0):
            strips = True
        else:
            raise ModelError(f"the tokenizer's decoder step {json.dumps(step)} is not supported")
    return [to_bytes(token) for token in spelled], strips


def _literal(pattern: object) -> str | None:
    """The string that a Replace step looks for; None for a regular expression."""
    text = pattern.get("String") if isinstance(pattern, dict) else None
    return text if isinstance(text, str) else None


def _byte_level_table() -> dict[int, int]:
    """str.translate's table from the printable characters of byte-level BPE to characters 0..255.

    Bytes that are printable in Latin-1 stand for themselves, the others are numbered from U+0100 in
    order (GPT-2, encoder.py, bytes_to_unicode). Characters below U+0100 that stand for no byte are
    sent out of Latin-1, so that encoding them fails.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    table = {0x100 + index: byte for index, byte in enumerate(others)}
    return table | {byte: 0x10000 + byte for byte in others}


_BYTE_LEVEL = _byte_level_table()


def _from_byte_level(token: str) -> bytes:
    """One byte a character; a token with a character outside that alphabet is plain text."""
    try:
        return token.translate(_BYTE_LEVEL).encode("latin-1")
    except UnicodeEncodeError:
        return token.encode()


def _from_byte_fallback(token: str) -> bytes:
    """The byte that <0xNN> names; else the text."""
    if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
        try:
            return bytes([int(token[3:5], 16)])
        except ValueError:
            return token.encode()
    return token.encode()
