"""The text of one stream of token ids, as it arrives.

Works on the vocabulary's bytes, never on strings of single tokens: a character whose bytes are
spread over several tokens is held back until it is whole. What is shown to the client of this text
is decided elsewhere (stop.py).
"""

import codecs
from collections.abc import Sequence

from octavo.services.tokenizer.vocabulary import Vocabulary

_NO_IDS: frozenset[int] = frozenset()


class Detokenizer:
    """Decodes one stream; O(1) a token, however long the stream is.

    The texts that feed and finish return, put together, depend on the ids alone and not on how they
    were split. Bytes that are not UTF-8 become U+FFFD. Ids outside the vocabulary add nothing, since a
    model may have more logits than its tokenizer has tokens.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        *,
        skip_special_tokens: bool = True,
        follows_prompt: bool = True,
        shown: frozenset[int] = _NO_IDS,
    ) -> None:
        """shown: special tokens that are not skipped.
        follows_prompt: the ids continue a text, so that a space in front of the first word is real.
        Where false, the space that SentencePiece puts before a text is taken off again.
        """
        self._pieces = vocabulary.pieces
        self._hidden = vocabulary.special_ids - shown if skip_special_tokens else _NO_IDS
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._drops_space = vocabulary.strips_leading_space and not follows_prompt

    def feed(self, token_ids: Sequence[int]) -> str:
        """The text that these ids complete; "" while the bytes of a character are still missing."""
        pieces, hidden, size = self._pieces, self._hidden, len(self._pieces)
        shown = [pieces[i] for i in token_ids if 0 <= i < size and i not in hidden]
        return self._trim(self._decoder.decode(b"".join(shown)))

    def finish(self) -> str:
        """The rest at the end of the stream: "", or U+FFFD where a character was left unfinished."""
        return self._trim(self._decoder.decode(b"", final=True))

    def _trim(self, text: str) -> str:
        if self._drops_space and text:
            self._drops_space = False
            return text.removeprefix(" ")
        return text
