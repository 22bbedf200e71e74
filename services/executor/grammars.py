"""Which tokens the grammars of running requests allow next: a mask for each row that is sampled.

Compiled grammars come from the runtime folder (shared/grammar.py). They are loaded by a thread: a big one takes
seconds, mostly outside of Python, and steps go on meanwhile. It listens for those that have just been compiled, so that
a grammar is in memory before the first request needs it.
"""

import logging
import socket
import threading
import time
from array import array
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from torch import Tensor

from octavo.shared.grammar import (
    GrammarVocabulary,
    announcement_path,
    grammar_path,
    grammars_folder,
    is_grammar_key,
    load_xgrammar,
    read_vocabulary,
    tokenizer_info,
    vocabulary_path,
)

log = logging.getLogger(__name__)

MAX_BYTES = 512 << 20
"""Of compiled grammars in memory, by the size of their files; those in use stay whatever their size."""
MAX_TOKEN_S = 0.05
"""CPU time that a grammar may take for a token: all requests of a step wait for it."""
ALL = -1  # a word of a mask whose 32 tokens are all allowed


class Grammars:
    """The grammars of all slots. A request whose grammar fails is named by `take_failures`; the others go on.

    One thread calls these methods, the one that steps.
    """

    def __init__(self, folder: Path, max_bytes: int = MAX_BYTES) -> None:
        """folder: the runtime folder."""
        self._library = _Library(folder, max_bytes)
        self._matchers: dict[int, Future[_Matcher] | _Matcher] = {}
        self._failures: dict[int, str] = {}

    def admit(self, slot: int, key: str, output_ids: Sequence[int] = ()) -> None:
        """A slot's request follows this grammar, and has these tokens already. Loading goes on behind."""
        self._failures.pop(slot, None)
        self._matchers[slot] = self._library.match(key, array("i", output_ids))

    def release(self, slot: int) -> None:
        """The slot's request is over. Of a slot without a grammar: nothing happens."""
        self._matchers.pop(slot, None)
        self._failures.pop(slot, None)

    def forget_all(self) -> None:
        self._matchers.clear()
        self._failures.clear()

    def has_grammar(self, slot: int) -> bool:
        return slot in self._matchers

    def is_ready(self, slot: int) -> bool:
        """Whether the slot's grammar, if it has one, can be asked without waiting for it to be loaded."""
        found = self._matchers.get(slot)
        return not isinstance(found, Future) or found.done()

    def accept(self, slot: int, token: int) -> None:
        """The slot's request has got this token."""
        matcher = self._matcher(slot)
        if matcher is not None:
            self._note(slot, matcher.accept(token))

    def fill(self, slots: Sequence[int], out: Tensor) -> None:
        """Write what each slot may get next: bit t % 32 of word t // 32 says whether token t is allowed.

        out: [at least len(slots), (width of the logits + 31) // 32], int32, on the CPU, rows contiguous (pinned, for
            a GPU); row i is slots[i]'s, rows beyond stay as they are. A slot without a grammar allows everything;
            one whose text is complete, or whose grammar failed, only what ends a completion.
        Waits for a grammar that is still being loaded: see is_ready.
        """
        out[: len(slots)].fill_(ALL)
        matchers = [self._matcher(slot) for slot in slots]
        for row, matcher in enumerate(matchers):
            if matcher is not None:
                self._note(slots[row], matcher.fill(out, row))
        for row in (out[: len(slots)].numpy().any(axis=1) == 0).nonzero()[0]:  # ten times as fast as torch
            matcher = matchers[row]
            assert matcher is not None
            self._note(slots[row], matcher.allows_nothing(out[row]))

    def take_failures(self) -> dict[int, str]:
        """The slots whose grammars failed since the last call, each with a sentence for its client."""
        failures, self._failures = self._failures, {}
        return failures

    def close(self) -> None:
        self._library.close()

    def _matcher(self, slot: int) -> "_Matcher | None":
        found = self._matchers.get(slot)
        if not isinstance(found, Future):
            return found
        try:
            matcher = self._matchers[slot] = found.result()
            return matcher
        except Exception as error:
            log.warning("grammar not loaded", extra={"slot": slot, "reason": str(error)})
            del self._matchers[slot]
            self._failures[slot] = "its grammar could not be loaded"
            return None

    def _note(self, slot: int, failure: str | None) -> None:
        if failure is not None:
            self._failures[slot] = failure


class _Matcher:
    """How far one request has come in its grammar."""

    def __init__(self, compiled: Any, vocabulary: GrammarVocabulary, output_ids: Sequence[int]) -> None:
        self._matcher = load_xgrammar().GrammarMatcher(compiled)
        self._vocabulary = vocabulary
        self._has_failed = False
        self._is_watched = False
        for token in output_ids:
            if self._matcher.is_terminated():
                break
            if not self._matcher.accept_token(token):
                raise ValueError(f"its grammar does not allow token {token}, which it has")

    def accept(self, token: int) -> str | None:
        """Returns why the grammar fails, if it does. What follows the token that ended the text is of no interest."""
        if self._has_failed or self._matcher.is_terminated():
            return None
        began = self._clock()
        is_accepted = self._matcher.accept_token(token)
        if not is_accepted:
            return self._fail(f"its grammar refused token {token}")
        return self._check_time(began)

    def fill(self, out: Tensor, row: int) -> str | None:
        """Returns why the grammar fails, if it does."""
        if self._has_failed or self._matcher.is_terminated():
            self._allow_stop_only(out[row])
            return None
        if out.shape[1] != self._vocabulary.num_words:
            self._has_failed = True  # and there are no stop tokens that could be named
            return f"its grammar is for logits of another width, {self._vocabulary.width}"
        began = self._clock()
        self._matcher.fill_next_token_bitmask(out, row)
        failure = self._check_time(began)
        if failure is not None:
            self._allow_stop_only(out[row])
        return failure

    def allows_nothing(self, row: Tensor) -> str:
        """The row that was filled is empty; returns that the grammar fails."""
        self._allow_stop_only(row)
        return self._fail("its grammar allows no token")

    def _allow_stop_only(self, row: Tensor) -> None:
        if len(row) != self._vocabulary.num_words:
            return
        row.zero_()
        for token in self._vocabulary.stop_ids:
            row[token // 32] |= _bit(token % 32)

    def _clock(self) -> float:
        """The wall clock, which takes no system call; after a slow token the CPU time of this thread."""
        return time.thread_time() if self._is_watched else time.perf_counter()

    def _check_time(self, began: float) -> str | None:
        took_s = self._clock() - began
        if took_s <= MAX_TOKEN_S:
            return None
        if not self._is_watched:
            self._is_watched = True  # it may have been the machine
            return None
        return self._fail(
            f"its grammar took {took_s * 1e3:.0f} ms for a token; at most {MAX_TOKEN_S * 1e3:.0f} are allowed"
        )

    def _fail(self, reason: str) -> str:
        self._has_failed = True
        return reason


class _Library:
    """Compiled grammars by their keys, loaded by one thread, kept while there is room."""

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self._folder, self._max_bytes = folder, max_bytes
        self._loader = ThreadPoolExecutor(1, "grammars")
        self._loaded: OrderedDict[str, tuple[Any, int]] = OrderedDict()  # of the loader's thread alone
        self._vocabularies: dict[str, tuple[GrammarVocabulary, Any]] = {}  # of the loader's thread alone
        grammars_folder(folder)
        self._socket = _listen(announcement_path(folder))
        threading.Thread(target=self._hear, name="grammars-hear", daemon=True).start()

    def match(self, key: str, output_ids: Sequence[int]) -> "Future[_Matcher]":
        return self._loader.submit(self._match, key, output_ids)

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._loader.shutdown(wait=True, cancel_futures=True)

    def _match(self, key: str, output_ids: Sequence[int]) -> _Matcher:
        compiled = self._load(key)
        return _Matcher(compiled, self._vocabulary(key)[0], output_ids)

    def _load(self, key: str) -> Any:
        """xgrammar.CompiledGrammar."""
        if not is_grammar_key(key):
            raise ValueError(f"{key!r} is no key of a grammar")
        if key not in self._loaded:
            text = grammar_path(self._folder, key).read_text()
            info = self._vocabulary(key)[1]
            self._loaded[key] = load_xgrammar().CompiledGrammar.deserialize_json(text, info), len(text)
            while len(self._loaded) > 1 and sum(size for _, size in self._loaded.values()) > self._max_bytes:
                self._loaded.popitem(last=False)
        self._loaded.move_to_end(key)
        return self._loaded[key][0]

    def _vocabulary(self, key: str) -> tuple[GrammarVocabulary, Any]:
        path = vocabulary_path(self._folder, key)
        if path.name not in self._vocabularies:
            vocabulary = read_vocabulary(path)
            self._vocabularies[path.name] = vocabulary, tokenizer_info(vocabulary)
        return self._vocabularies[path.name]

    def _hear(self) -> None:
        """Load what a compiler announces, and answer when that is done."""
        while True:
            try:
                link, _ = self._socket.accept()
            except OSError:
                return  # closed
            threading.Thread(target=self._load_announced, args=(link,), daemon=True).start()

    def _load_announced(self, link: socket.socket) -> None:
        with link:
            try:
                link.settimeout(1.0)
                self._loader.submit(self._load, link.recv(256).decode()).result()
                link.sendall(b".")
            except Exception as error:  # the one that needs it finds out
                log.info("announced grammar not loaded", extra={"reason": str(error)})


def _bit(number: int) -> int:
    """As an int32, whose highest bit is its sign."""
    return 1 << number if number < 31 else -(1 << 31)


def _listen(path: Path) -> socket.socket:
    path.unlink(missing_ok=True)  # left by an executor that crashed
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen(64)
    return listener
