"""Calls whose grammars are being compiled: they wait here, and nobody else does."""

from pathlib import Path

import msgspec

from octavo.services.tokenizer.grammar_worker import Limits
from octavo.services.tokenizer.grammars import Compiler, about
from octavo.services.tokenizer.vocabulary import Vocabulary
from octavo.shared.config import Config
from octavo.shared.errors import InvalidRequest, RequestError
from octavo.shared.grammar import GrammarSpec
from octavo.shared.messages import CallId, Generate, ModelInfo


class Waiting(msgspec.Struct, frozen=True):
    """A call that cannot begin yet."""

    gateway: int
    message: Generate
    field: str
    """Of its body, that asks for the grammar."""


class Compiling:
    """The grammars of one tokenizer's calls."""

    def __init__(self, folder: Path, vocabulary: Vocabulary | None, limits: Limits | None = None) -> None:
        """folder: the runtime folder, where an executor finds what is compiled. limits: None for the usual ones."""
        self._folder, self._vocabulary, self._limits = folder, vocabulary, limits
        self._compiler: Compiler | None = None
        self._width = 0
        self._waiting: dict[str, dict[CallId, Waiting]] = {}

    @property
    def fds(self) -> list[int]:
        """Readable when `take_answers` has something to return."""
        return [] if self._compiler is None else [self._compiler.fd]

    def key_of(self, spec: GrammarSpec, model: ModelInfo, waiting: Waiting) -> str | None:
        """Of a compiled grammar; None if it is not: then the call waits, and `take_answers` brings it back.

        Raises RequestError.
        """
        try:
            key, is_compiled = self._compiler_for(model).request(spec)
        except RequestError as error:
            raise about(error, waiting.field) from None
        if is_compiled:
            return key
        self.cancel(waiting.message.id)
        self._waiting.setdefault(key, {})[waiting.message.id] = waiting
        return None

    def take_answers(self) -> list[tuple[Waiting, RequestError | None]]:
        """Calls that need wait no longer, each with what is wrong with its grammar."""
        answers = [] if self._compiler is None else self._compiler.poll()
        return [
            (waiting, None if error is None else about(error, waiting.field))
            for key, error in answers
            for waiting in self._waiting.pop(key, {}).values()
        ]

    def cancel(self, id: CallId) -> None:
        """Nobody waits for this call any more."""
        for calls in self._waiting.values():
            calls.pop(id, None)

    def lose_gateway(self, gateway: int) -> None:
        for calls in self._waiting.values():
            for id in [id for id, waiting in calls.items() if waiting.gateway == gateway]:
                del calls[id]

    def keep(self, keys: set[str]) -> None:
        """Of running calls: they must stay for the next executor, should this one die. Due every minute or so."""
        if self._compiler is not None:
            self._compiler.keep(keys)

    def close(self) -> None:
        if self._compiler is not None:
            self._compiler.close()

    def _compiler_for(self, model: ModelInfo) -> Compiler:
        if self._vocabulary is None:
            raise InvalidRequest("this model has no tokenizer, which a grammar needs")
        if self._compiler is None or self._width != model.vocab_size:
            self.close()
            self._compiler = Compiler(self._folder, self._vocabulary, model.vocab_size, self._limits)
            self._width = model.vocab_size
        return self._compiler


def limits_of(config: Config) -> Limits:
    """Of each grammar, as the operator wants them."""
    return Limits(compile_s=config.max_grammar_compile_s, memory_bytes=config.max_grammar_compile_mib << 20)
