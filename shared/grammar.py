"""A grammar that a completion must follow: how a request names it, and where its compiled form lies.

A tokenizer has grammars compiled, an executor loads them. They meet in the runtime folder:

    grammars/vocabulary-DIGEST.msgpack   the tokens that grammars are compiled for (GrammarVocabulary)
    grammars/KEY.json                    a compiled grammar, as xgrammar serializes it
    grammars/executor.sock               where an executor hears of new ones before requests need them

A key begins with the digest of its vocabulary, so it names both files.
"""

import importlib.metadata
import os
import re
import struct
import sys
import types
from collections.abc import Iterable, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any, Literal

import msgspec

from octavo.shared.errors import InvalidRequest

MAX_VALUE_CHARS = 256 * 1024
MAX_CHOICES = 10_000

_NO_TEXT = b"\xff"  # in no UTF-8
_KEY = re.compile("[0-9a-f]{56}")
_DIGEST_CHARS = 16


class GrammarSpec(msgspec.Struct, frozen=True):
    """A grammar as a request gives it.

    value: the JSON text of a schema, of a list of choices or of a structural tag (see `json_text`), a regular
        expression, or EBNF whose first rule is `root`; "" for json_object.
    any_whitespace: of json_schema: any white space between tokens, or just one space after "," and ":".
    strict: of json_schema: where the schema does not speak of additional properties, there are none.
    lead: the JSON of a structural tag's format that the text begins with, before what the grammar is for; "" for none.
        A structural tag has none but its own.
    Raises InvalidRequest for what is out of bounds.
    """

    kind: Literal["json_schema", "json_object", "regex", "choice", "ebnf", "structural_tag"]
    value: str = ""
    any_whitespace: bool = True
    strict: bool = True
    lead: str = ""

    def __post_init__(self) -> None:
        if len(self.value) > MAX_VALUE_CHARS:
            raise InvalidRequest(f"the grammar has {len(self.value)} characters; at most {MAX_VALUE_CHARS} are taken")
        try:
            self.value.encode()
        except UnicodeEncodeError:
            raise InvalidRequest("the grammar has a lone surrogate") from None


class GrammarVocabulary(msgspec.Struct, frozen=True):
    """The tokens of a model as grammars see them.

    pieces: the bytes of each id; b"" for one that no grammar may ever allow; of other markup bytes that are in no
        text, so that it matches where a grammar names its id, and nowhere else.
    stop_ids: ids that end a completion; allowed where a text is complete.
    width: of the logits; ids from len(pieces) on stand for nothing.
    """

    pieces: list[bytes]
    stop_ids: list[int]
    width: int

    @classmethod
    def of(
        cls, pieces: Sequence[bytes], special_ids: Iterable[int], eos_ids: Iterable[int], width: int
    ) -> "GrammarVocabulary":
        """Markup is no text: special tokens match no text of a grammar, and those that end a completion nothing at all.

        Raises InvalidRequest for a model without a token that ends a completion.
        """
        stop_ids = sorted(each for each in eos_ids if 0 <= each < width)
        if not stop_ids:
            raise InvalidRequest("this model has no token that ends a completion, which a grammar needs")
        spelled = list(pieces[:width])
        for token in {*special_ids, *stop_ids}:
            if token < len(spelled):
                spelled[token] = b"" if token in stop_ids else _NO_TEXT + token.to_bytes(4)
        return cls(spelled, stop_ids, width)

    def digest(self) -> str:
        """Also of the version of xgrammar: its serialized form is for that version alone."""
        version = importlib.metadata.version("xgrammar").encode()
        hashed = blake2b(version, digest_size=_DIGEST_CHARS // 2)
        hashed.update(struct.pack(f"<{2 + len(self.stop_ids)}q", self.width, len(self.stop_ids), *self.stop_ids))
        hashed.update(struct.pack(f"<{len(self.pieces)}i", *map(len, self.pieces)))
        hashed.update(b"".join(self.pieces))
        return hashed.hexdigest()

    @property
    def num_words(self) -> int:
        """Of int32 in a mask: one bit a token."""
        return -(-self.width // 32)


def json_text(value: object) -> str:
    """The JSON of a schema, choices or a tag as GrammarSpec wants it: compact, with the order of keys as given,
    since properties are generated in that order. Raises InvalidRequest for what cannot be written.
    """
    try:
        return msgspec.json.encode(value).decode()
    except (RecursionError, TypeError, ValueError, msgspec.MsgspecError) as error:
        raise InvalidRequest(f"the grammar is no JSON that can be used: {error}") from None


def grammar_key(spec: GrammarSpec, vocabulary_digest: str) -> str:
    """56 hexadecimal digits: those of the vocabulary, then those of the grammar."""
    hashed = blake2b(msgspec.msgpack.encode(spec), digest_size=20)
    return vocabulary_digest + hashed.hexdigest()


def is_grammar_key(text: str) -> bool:
    return _KEY.fullmatch(text) is not None


def grammars_folder(folder: Path) -> Path:
    """In the runtime folder; made if it is not there."""
    path = folder / "grammars"
    path.mkdir(mode=0o700, exist_ok=True)
    return path


def grammar_path(folder: Path, key: str) -> Path:
    """Of a compiled grammar, in the runtime folder."""
    return folder / "grammars" / f"{key}.json"


def vocabulary_path(folder: Path, key: str) -> Path:
    """Of the vocabulary that a key, or a vocabulary's digest, speaks of."""
    return folder / "grammars" / f"vocabulary-{key[:_DIGEST_CHARS]}.msgpack"


def announcement_path(folder: Path) -> Path:
    """Of the socket on which an executor hears of new grammars."""
    return folder / "grammars" / "executor.sock"


def write_atomically(path: Path, data: bytes) -> None:
    """Readers see all of it or nothing."""
    temporary = path.with_name(f".{path.name}.{os.urandom(6).hex()}")
    try:
        temporary.write_bytes(data)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def read_vocabulary(path: Path) -> GrammarVocabulary:
    return msgspec.msgpack.decode(path.read_bytes(), type=GrammarVocabulary)


def load_xgrammar() -> Any:
    """The module xgrammar, without transformers.

    It imports transformers for the names of three classes, of which we use none: a second of start-up and 20 MB.
    """
    if "xgrammar" in sys.modules or "transformers" in sys.modules:
        import xgrammar

        return xgrammar
    stand_in = types.ModuleType("transformers")
    for name in ("PreTrainedTokenizerBase", "PreTrainedTokenizerFast", "LogitsProcessor"):
        setattr(stand_in, name, type(name, (), {}))
    sys.modules["transformers"] = stand_in
    try:
        import xgrammar
    finally:
        if sys.modules.get("transformers") is stand_in:
            del sys.modules["transformers"]
    return xgrammar


def tokenizer_info(vocabulary: GrammarVocabulary) -> Any:
    """xgrammar's view of a vocabulary: the same wherever a grammar is compiled or loaded."""
    xgrammar = load_xgrammar()
    return xgrammar.TokenizerInfo(
        vocabulary.pieces,
        xgrammar.VocabType.RAW,
        vocab_size=vocabulary.width,
        stop_token_ids=vocabulary.stop_ids,
    )
